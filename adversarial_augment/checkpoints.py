"""Checkpoints that are whole or absent, proven before they are used, and never silently wrong.

Orbax writes and reads the arrays. Around it stand what it does not promise: a manifest with the SHA-256 of every file
and of itself (Orbax restores a flipped bit without complaint), one rename as the commit, and a walk from the newest
step to the oldest when one is damaged.

  directory/<step>/MANIFEST.json    step, config hash, leaves (path, shape, dtype), state hash, file hashes, own hash
  directory/<step>/arrays/          Orbax; a flat dict from leaf path ('params/conv/w') to array
  directory/<step>.tmp/             a save that has not been committed

Every process calls these functions in the same order. Process 0 alone touches the disk, and tells the others the
outcome, its errors included; so the directory need not be shared, and no process waits for one that has failed.
A checkpoint does not depend on the number of devices or processes.
"""

from collections.abc import Callable, Iterable, Mapping
import math
import os
from pathlib import Path
import re
import shutil
from typing import Any, TypeVar

import jax
import numpy as np

from adversarial_augment import manifests, processes, state_arrays
from adversarial_augment.errors import CheckpointError, NumericalError, StorageError, UserError
from adversarial_augment.files import crash_point, fsync_path, storage_errors
from adversarial_augment.manifests import Damaged

PyTree = Any
State = TypeVar('State')
Report = Callable[[str], None]

_MAX_RATIO = 8  # of a state to its parameters; with Adam it is 3
_TEMPORARY = re.compile(r'\d+(\.replaced|\.pruned)?\.tmp')


def steps(directory: Path) -> list[int]:
  """Returns the steps of the committed checkpoints, rising, damaged ones included; empty without the folder."""
  with storage_errors(f"read the checkpoints of '{directory}'"):
    if not directory.exists():
      return []
    names = [path.name for path in directory.iterdir()]
  return sorted(int(name) for name in names if re.fullmatch(r'0|[1-9]\d*', name))


def state_sha256(state: PyTree) -> str:
  """Returns the SHA-256 of all arrays of `state`: their paths, shapes, dtypes and bytes, in the order of the paths.

  All processes call it where `state` is spread over several.
  """
  return state_arrays.hash_arrays(state_arrays.to_host(state_arrays.flatten(state)))


def save(directory: Path, step: int, state: PyTree, *, config_sha256: str) -> Path:
  """Writes `directory/<step>` whole, or leaves no trace of it; returns when it is on the disk.

  A good checkpoint of the same state and config in that place stays as it is; any other one is replaced.

  Args:
    directory: where the checkpoints lie; made if missing, its parent must exist.
    step: updates made so far, at least 0.
    state: arrays only.
    config_sha256: hash of the run's config, kept in the manifest.

  Returns:
    The checkpoint's folder.

  Raises:
    NumericalError: a leaf of `state` is not finite; nothing is written.
    StorageError: the disk is full, missing or not writable; older checkpoints are untouched and the save can be tried
      again.
  """
  arrays = state_arrays.to_host(state_arrays.flatten(state))
  for path, array in arrays.items():
    if jax.dtypes.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
      raise NumericalError(f"'{path}' is not finite after step {step}; the checkpoint of this step was not written.")
  processes.on_process_0(lambda: _write(directory.absolute(), step, arrays, config_sha256))
  return directory / str(step)


def prune(directory: Path, keep: int) -> None:
  """Deletes the checkpoints older than the newest `keep` good ones; at least 2 good ones always stay.

  Raises:
    StorageError: one cannot be deleted.
  """
  processes.on_process_0(lambda: _prune(directory, max(keep, 2)))


def remove_unfinished(directory: Path) -> None:
  """Deletes what killed saves left behind. Only for the run that owns the directory; `save` does it too.

  Raises:
    StorageError: something cannot be deleted.
  """
  processes.on_process_0(lambda: _remove_unfinished(directory))


def restore_newest(directory: Path, target: State, *, report: Report) -> tuple[int, State] | None:
  """Restores the newest good checkpoint into arrays like those of `target`.

  Only reads. A run that goes on in its own directory calls `remove_unfinished` first.

  Args:
    directory: where the checkpoints lie.
    target: the state's structure; its leaves are jax.Arrays or jax.ShapeDtypeStructs, whose shardings the result gets
      (one without a sharding goes to the first local device).
    report: takes one line per checkpoint that is newer and damaged; called on process 0.

  Returns:
    (step, state), or None where there is no checkpoint, good or bad.

  Raises:
    CheckpointError: there are checkpoints and all are damaged.
    UserError: the checkpoint's leaves are not those of `target`; names the first that differs.
  """
  leaves = state_arrays.flatten(target)
  restored = _restore(directory, leaves, None, report)
  if restored is None:
    return None
  step, arrays = restored
  return step, jax.tree.unflatten(jax.tree.structure(target), [arrays[path] for path in leaves])


def restore_subtree(
  directory: Path, target: State, names: Iterable[str] = ('params', 'model_state'), *, report: Report
) -> tuple[int, State]:
  """Restores some fields of another run's newest good checkpoint, for fine-tuning and evaluation.

  Args:
    directory: where that run's checkpoints lie.
    target: a NamedTuple such as TrainState; the fields `names` are as `target` of `restore_newest`.
    names: the fields to restore; the others are returned as they are.
    report: as in `restore_newest`.

  Returns:
    (step, target with the restored fields).

  Raises:
    CheckpointError: there are checkpoints and all are damaged.
    UserError: there is none, or its leaves under `names` are not those of `target`.
  """
  subtrees = {name: getattr(target, name) for name in names}
  leaves = state_arrays.flatten(subtrees)
  restored = _restore(directory, leaves, frozenset(subtrees), report)
  if restored is None:
    raise UserError(f"No checkpoint under '{directory}'; name the workdir of a run that has saved one.")
  step, arrays = restored
  values = jax.tree.unflatten(jax.tree.structure(subtrees), [arrays[path] for path in leaves])
  return step, target._replace(**values)  # type: ignore[attr-defined]


# Writing and deleting, on process 0.


def _write(directory: Path, step: int, arrays: Mapping[str, np.ndarray], config_sha256: str) -> None:
  """Writes one checkpoint and commits it by a rename; leaves nothing behind when it fails."""
  final, temporary, replaced = (directory / f'{step}{suffix}' for suffix in ('', '.tmp', '.replaced.tmp'))
  content = {
    'format': manifests.FORMAT,
    'step': step,
    'config_sha256': config_sha256,
    'leaves': state_arrays.describe(arrays),
    'state_sha256': state_arrays.hash_arrays(arrays),
  }
  with storage_errors(f"save checkpoint {step} under '{directory}'"):
    directory.mkdir(exist_ok=True)
    _remove_unfinished(directory)
    if _holds(directory, step, content):
      return
    _check_space(directory, step, sum(array.nbytes for array in arrays.values()))
    try:
      temporary.mkdir()
      _write_arrays(temporary / 'arrays', arrays)
      crash_point('after_arrays', step)
      sealed = manifests.seal({**content, 'files': manifests.hash_files(temporary)})
      crash_point('before_manifest', step)
      (temporary / manifests.NAME).write_bytes(manifests.canonical(sealed))
      crash_point('after_manifest', step)
      for root, _, names in os.walk(temporary, topdown=False):
        for name in names:
          fsync_path(Path(root, name))
        fsync_path(Path(root))
      crash_point('before_rename', step)
      if os.path.lexists(final):
        os.rename(final, replaced)
      os.rename(temporary, final)
      crash_point('after_rename', step)
      fsync_path(directory)
      _delete(replaced)
    except BaseException:  # an interrupt too must not leave half a checkpoint on a disk that may be full
      shutil.rmtree(temporary, ignore_errors=True)
      if os.path.lexists(replaced) and not os.path.lexists(final):
        os.rename(replaced, final)
      raise


def _holds(directory: Path, step: int, content: Mapping[str, Any]) -> bool:
  """Whether a good checkpoint `step` with this content is there already."""
  try:
    manifest = manifests.verify(directory / str(step), step)
  except Damaged:
    return False
  return all(manifest[name] == value for name, value in content.items())


def _check_space(directory: Path, step: int, size: int) -> None:
  """Refuses a save of `size` bytes that the disk would not take; half as much again is left for Orbax and the log."""
  needed, free = size * 3 // 2 + (1 << 16), shutil.disk_usage(directory).free
  if free < needed:
    raise StorageError(
      f"Cannot save checkpoint {step} under '{directory}': {free / 1e6:.1f} MB are free and {needed / 1e6:.1f} MB "
      'are needed; free space or name another --workdir.'
    )


def _checkpointer() -> Any:
  """Orbax for this process alone: its barriers would wait for processes that take no part."""
  import orbax.checkpoint as ocp

  alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix='ada')
  options = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
  handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
  return ocp.Checkpointer(handler, multiprocessing_options=options)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  import orbax.checkpoint as ocp

  try:
    with _checkpointer() as checkpointer:
      checkpointer.save(path, args=ocp.args.StandardSave(dict(arrays)))
  except Exception as error:  # Orbax and TensorStore report a full disk as ValueError, and other faults in other ways
    raise StorageError(f"Cannot write the arrays in '{path}': {_one_line(error)}; older ones are untouched.") from error


def _remove_unfinished(directory: Path) -> None:
  with storage_errors(f"remove unfinished checkpoints under '{directory}'"):
    if not directory.exists():
      return
    for path in [path for path in directory.iterdir() if _TEMPORARY.fullmatch(path.name)]:
      committed = path.with_name(path.name.split('.')[0])
      if path.name.endswith('.replaced.tmp') and not os.path.lexists(committed):
        os.rename(path, committed)  # killed between the two renames of a replacement: the old one comes back
      else:
        _delete(path)


def _prune(directory: Path, keep: int) -> None:
  """Verifies before it deletes: what stays has to be good."""
  present = steps(directory)[::-1]
  good, superfluous = 0, []
  for step in present if len(present) > keep else []:
    if good == keep:
      superfluous.append(step)
      continue
    try:
      manifests.verify(directory / str(step), step)
      good += 1
    except Damaged:
      pass  # a restore reports it; it takes no place among the good ones
  crash_point('before_prune', max(present, default=None))
  with storage_errors(f"delete old checkpoints under '{directory}'"):
    for step in superfluous:
      # First the rename, so that a kill does not leave half a checkpoint under a committed name.
      os.rename(directory / str(step), directory / f'{step}.pruned.tmp')
      _delete(directory / f'{step}.pruned.tmp')


def _delete(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


# Reading.


def _restore(
  directory: Path, leaves: Mapping[str, Any], names: frozenset[str] | None, report: Report
) -> tuple[int, dict[str, jax.Array]] | None:
  """Reads on process 0 and gives every process its devices' parts."""
  host: dict[str, np.ndarray] = {}

  def read() -> int | None:
    found = _read_newest(directory.absolute(), leaves, names, report)
    if found is None:
      return None
    host.update(found[1])
    return found[0]

  step = processes.on_process_0(read)
  if step is None:
    return None
  arrays: dict[str, jax.Array] = {}
  for path, leaf in leaves.items():
    if jax.process_count() == 1:
      array = host.pop(path)
    else:
      data = bytes(state_arrays.array_bytes(host.pop(path))) if jax.process_index() == 0 else b''
      array = np.frombuffer(processes.broadcast(data), leaf.dtype).reshape(leaf.shape)
    arrays[path] = state_arrays.to_devices(array, leaf)
  return step, arrays


def _read_newest(
  directory: Path, leaves: Mapping[str, Any], names: frozenset[str] | None, report: Report
) -> tuple[int, dict[str, np.ndarray]] | None:
  """The newest good checkpoint's arrays; reports the damaged ones that are newer."""
  present = steps(directory)[::-1]
  rejected: list[tuple[int, str]] = []
  mismatch, found = None, None
  for step in present:
    try:
      manifest = manifests.verify(directory / str(step), step)
      mismatch = _mismatch(leaves, manifest['leaves'], names)
      if _num_bytes(manifest['leaves']) > _MAX_RATIO * _num_bytes(state_arrays.describe(leaves)) + (1 << 20):
        raise Damaged(f'arrays larger than those of a run in {manifests.NAME}')
      found = step, {} if mismatch else _read_arrays(directory / str(step), manifest)
      break
    except Damaged as error:
      rejected.append((step, str(error)))
  for step, reason in rejected:
    report(f'checkpoint {step} rejected: {reason}; ' + (f'using {found[0]}' if found else 'none left'))
  if found and mismatch:
    raise UserError(
      f"Checkpoint {found[0]} under '{directory}' is of another state: {mismatch}; use the config of the run that "
      'wrote it, or another folder.'
    )
  if rejected and not found:
    raise CheckpointError(
      f"No usable checkpoint is left of {len(rejected)} under '{directory}' (the newest: {rejected[0][1]}); bring one "
      'back from a copy, or start anew with another --workdir.'
    )
  return found


def _read_arrays(folder: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Reads all arrays and compares them with the hash of the state that was saved."""
  import orbax.checkpoint as ocp

  # A stand-in per array: NumPy, so that Orbax gives the bytes as they are and no dtype is narrowed.
  target = {path: np.broadcast_to(np.zeros((), dtype), shape) for path, (shape, dtype) in manifest['leaves'].items()}
  try:
    with _checkpointer() as checkpointer:
      arrays = checkpointer.restore(folder / 'arrays', args=ocp.args.StandardRestore(target, strict=True))
  except Exception as error:  # whatever Orbax meets, this checkpoint does not load
    raise Damaged(f'{_one_line(error)} in arrays') from error
  if state_arrays.hash_arrays(arrays) != manifest['state_sha256']:
    raise Damaged('state_sha256 mismatch in arrays')
  return arrays


def _num_bytes(leaves: Mapping[str, Any]) -> int:
  return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in leaves.values())


def _mismatch(leaves: Mapping[str, Any], saved: Mapping[str, Any], names: frozenset[str] | None) -> str | None:
  """The first leaf in which the run's state and the checkpoint differ, in words."""
  here = state_arrays.describe(leaves)
  there = {path: leaf for path, leaf in saved.items() if names is None or path.split('/')[0] in names}
  for path in [*here, *sorted(there.keys() - here.keys())]:
    if here.get(path) != there.get(path):
      saved_leaf, own_leaf = (_spell(tree.get(path)) for tree in (there, here))
      return f"'{path}' is {saved_leaf} in the checkpoint and {own_leaf} here"
  return None


def _spell(leaf: list[Any] | None) -> str:
  return f'{leaf[1]}{leaf[0]}' if leaf else 'absent'


def _one_line(error: Exception) -> str:
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
