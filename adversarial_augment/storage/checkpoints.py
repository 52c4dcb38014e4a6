"""Checkpoints that are whole or absent, proven before they are used, and never silently wrong.

Orbax writes and reads the arrays. Around it stand what it does not promise: a manifest with the SHA-256 of every file
and of itself (Orbax restores a flipped bit without complaint), one rename as the commit, and a walk from the newest
step to the oldest when one is damaged.

  directory/<step>/MANIFEST.json    step, config hash, leaves (path, shape, dtype), state hash, file hashes, own hash,
                                    and the steps of the log that lead to it
  directory/<step>/arrays/          Orbax; the bytes of all leaves in the order of their paths ('params/conv/w')
  directory/<step>.tmp/             a save that has not been committed

What else lies there, such as the files of a file manager, an editor or NFS, is left alone.

Every process calls these functions in the same order. Process 0 alone touches the disk, and tells the others the
outcome, its errors included; so the directory need not be shared, and no process waits for one that has failed.
A checkpoint does not depend on the number of devices or processes.
"""

from collections.abc import Iterable, Mapping
import os
from pathlib import Path
import re
import shutil
from typing import Any, TypeVar

import jax
import numpy as np

from adversarial_augment.errors import NumericalError, StorageError, UserError
from adversarial_augment.parallel import processes
from adversarial_augment.storage import artifact, log_steps, newest_checkpoint, orbax_arrays, state_arrays
from adversarial_augment.storage.artifact import storage_errors
from adversarial_augment.storage.newest_checkpoint import Check, Report
from adversarial_augment.storage.newest_checkpoint import newest_manifest as newest_manifest
from adversarial_augment.storage.newest_checkpoint import steps as steps

PyTree = Any
State = TypeVar('State')

_TEMPORARY = re.compile(r'\d+(\.replaced|\.pruned)?\.tmp')


def state_sha256(state: PyTree) -> str:
  """Returns the SHA-256 of all arrays of `state`: their paths, shapes, dtypes and bytes, in the order of the paths.

  All processes call it where `state` is spread over several.
  """
  return state_arrays.hash_arrays(state_arrays.to_host(state_arrays.flatten(state)))


def save(directory: Path, step: int, state: PyTree, *, config_sha256: str, log: log_steps.Runs | None = None) -> Path:
  """Writes `directory/<step>` whole, or leaves no trace of it; returns when it is on the disk.

  A good checkpoint of the same state and config in that place stays as it is; any other one is replaced.

  Args:
    directory: where the checkpoints lie; made if missing, its parent must exist.
    step: updates made so far, at least 0.
    state: arrays only.
    config_sha256: hash of the run's config, kept in the manifest.
    log: the steps that the run's log has lines of, for the manifest; on process 0.

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
  processes.on_process_0(lambda: _write(directory.absolute(), step, arrays, config_sha256, log or []))
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


def restore_newest(
  directory: Path, target: State, *, report: Report, check: Check = lambda manifest: None
) -> tuple[int, State] | None:
  """Restores the newest good checkpoint into arrays like those of `target`.

  Only reads, and may do so beside the run: what is pruned meanwhile is left for a newer one. A run that goes on in its
  own directory calls `remove_unfinished` first.

  Args:
    directory: where the checkpoints lie.
    target: the state's structure; its leaves are jax.Arrays or jax.ShapeDtypeStructs, whose shardings the result gets
      (one without a sharding goes to the first local device).
    report: takes one line per checkpoint that is newer and damaged; called on process 0.
    check: takes the manifest of the newest good one on process 0, and raises UserError where it is not to be used.

  Returns:
    (step, state), or None where there is no checkpoint, good or bad.

  Raises:
    CheckpointError: there are checkpoints and all are damaged.
    UserError: the checkpoint's leaves are not those of `target`; names the first that differs.
  """
  leaves = state_arrays.flatten(target)
  restored = _restore(directory, leaves, None, report, check)
  if restored is None:
    return None
  step, arrays = restored
  return step, jax.tree.unflatten(jax.tree.structure(target), [arrays[path] for path in leaves])


def restore_subtree(
  directory: Path,
  target: State,
  names: Iterable[str] = ('params', 'model_state'),
  *,
  report: Report,
  check: Check = lambda manifest: None,
) -> tuple[int, State]:
  """Restores some fields of another run's newest good checkpoint, for fine-tuning and evaluation.

  Args:
    directory: where that run's checkpoints lie.
    target: a NamedTuple such as TrainState; the fields `names` are as `target` of `restore_newest`.
    names: the fields to restore; the others are returned as they are.
    report: as in `restore_newest`.
    check: as in `restore_newest`.

  Returns:
    (step, target with the restored fields).

  Raises:
    CheckpointError: there are checkpoints and all are damaged.
    UserError: there is none, or its leaves under `names` are not those of `target`.
  """
  subtrees = {name: getattr(target, name) for name in names}
  leaves = state_arrays.flatten(subtrees)
  restored = _restore(directory, leaves, frozenset(subtrees), report, check)
  if restored is None:
    raise UserError(f"No checkpoint under '{directory}'; name the workdir of a run that has saved one.")
  step, arrays = restored
  values = jax.tree.unflatten(jax.tree.structure(subtrees), [arrays[path] for path in leaves])
  return step, target._replace(**values)  # type: ignore[attr-defined]


def try_to_save(directory: Path) -> None:
  """Writes arrays as of a checkpoint and removes them, on this process alone: what keeps them out is found early.

  Raises:
    StorageError: they cannot be written.
  """
  probe = directory.absolute() / f'{10**12}.tmp'  # a name as long as any, which `remove_unfinished` knows
  with storage_errors(f"save checkpoints under '{directory}'"):
    was_there = directory.exists()
    directory.mkdir(exist_ok=True)
    artifact.delete(probe)
    try:
      probe.mkdir()
      _write_arrays(probe / 'arrays', {'probe': np.zeros(1024, np.float32)})
    finally:
      artifact.delete(probe)
      if not was_there:
        directory.rmdir()


# Writing and deleting, on process 0.


def _write(
  directory: Path, step: int, arrays: Mapping[str, np.ndarray], config_sha256: str, log: log_steps.Runs
) -> None:
  """Writes one checkpoint and commits it by a rename; leaves nothing behind when it fails."""
  final, temporary, replaced = (directory / f'{step}{suffix}' for suffix in ('', '.tmp', '.replaced.tmp'))
  content = {
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
    # Half as much again is left for Orbax and the log.
    artifact.check_space(directory, sum(array.nbytes for array in arrays.values()) * 3 // 2 + (1 << 16))
    try:
      temporary.mkdir()
      _write_arrays(temporary / 'arrays', arrays)
      about = {**content, 'format': newest_checkpoint.FORMAT, 'log': log, 'files': artifact.entries(temporary)}
      artifact.replace(temporary / artifact.MANIFEST, newest_checkpoint.canonical(newest_checkpoint.seal(about)))
      artifact.commit_folder(temporary, final, replaced)
    except BaseException:  # an interrupt too must not leave half a checkpoint on a disk that may be full
      shutil.rmtree(temporary, ignore_errors=True)
      raise


def _holds(directory: Path, step: int, content: Mapping[str, Any]) -> bool:
  """Whether a good checkpoint `step` with this content is there already."""
  try:
    manifest = newest_checkpoint.verify(directory / str(step), step)
  except artifact.Damaged:
    return False
  return all(manifest[name] == value for name, value in content.items())


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  try:
    orbax_arrays.write(path, arrays)
  except Exception as error:  # Orbax and TensorStore report a full disk as ValueError, and other faults in other ways
    reason = artifact.one_line(error)
    raise StorageError(f"Cannot write the arrays in '{path}': {reason}; older ones are untouched.") from error


def _remove_unfinished(directory: Path) -> None:
  with storage_errors(f"remove unfinished checkpoints under '{directory}'"):
    if not directory.exists():
      return
    for path in [path for path in directory.iterdir() if _TEMPORARY.fullmatch(path.name)]:
      committed = path.with_name(path.name.split('.')[0])
      if path.name.endswith('.replaced.tmp') and not os.path.lexists(committed):
        os.rename(path, committed)  # killed between the two renames of a replacement: the old one comes back
      else:
        artifact.delete(path)


def _prune(directory: Path, keep: int) -> None:
  """Verifies before it deletes: what stays has to be good."""
  present = steps(directory)[::-1]
  good, superfluous = 0, []
  for step in present if len(present) > keep else []:
    if good == keep:
      superfluous.append(step)
      continue
    try:
      newest_checkpoint.verify(directory / str(step), step)
      good += 1
    except artifact.Damaged:
      pass  # a restore reports it; it takes no place among the good ones
  with storage_errors(f"delete old checkpoints under '{directory}'"):
    for step in superfluous:
      with newest_checkpoint.in_use(directory / str(step), exclusive=True) as free:
        if not free:
          continue  # somebody reads it; a later prune deletes it
        artifact.retire(directory / str(step), directory / f'{step}.pruned.tmp')


# Reading.


def _restore(
  directory: Path, leaves: Mapping[str, Any], names: frozenset[str] | None, report: Report, check: Check
) -> tuple[int, dict[str, jax.Array]] | None:
  """Reads on process 0 and gives every process its devices' parts."""
  host: dict[str, np.ndarray] = {}

  def read() -> int | None:
    found = newest_checkpoint.read(directory.absolute(), leaves, names, report, check)
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
