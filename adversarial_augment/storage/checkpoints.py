"""Checkpoints that are whole or absent, verified before they are used, and never silently wrong.

Orbax writes and reads the arrays. This module adds what Orbax does not promise: a manifest with the SHA-256 of every
file and of itself (Orbax restores a flipped bit without complaint), one rename as the commit, and a walk from the
newest step to the oldest when some are damaged.

  directory/<step>/MANIFEST.json    step, config hash, leaves (path, shape, dtype), state hash, file hashes, own hash,
                                    and the steps of the log that lead to it
  directory/<step>/arrays/          Orbax; the bytes of all leaves in the order of their paths ('params/conv/w')
  directory/<step>.tmp/             a save that has not been committed

A manifest is the canonical JSON of its content, so that every byte of it counts. Other files are ignored.

Every process calls these functions in the same order. Only process 0 touches the disk; it tells the others the outcome,
errors included. So the directory need not be shared, and no process waits for one that has failed. A checkpoint does
not depend on the number of devices or processes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
import fcntl
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
from typing import Annotated, Any, TypeVar

import jax
import msgspec
from msgspec import Meta
import numpy as np

from adversarial_augment.errors import CheckpointError, NumericalError, StorageError, UserError
from adversarial_augment.parallel import processes
from adversarial_augment.storage import artifact, run_directory, state_arrays, untrusted
from adversarial_augment.storage.artifact import MANIFEST, Damaged, storage_errors

PyTree = Any
State = TypeVar('State')
Manifest = Mapping[str, Any]
Report = Callable[[str], None]  # takes one line for each damaged checkpoint that is newer than the one used
Check = Callable[[Manifest], None]  # raises UserError where the checkpoint with this manifest must not be used

FORMAT = 2  # 1 had an array for each leaf
_TEMPORARY = re.compile(r'\d+(\.replaced|\.pruned)?\.tmp')
_WALKS = 100  # until a checkpoint that is pruned while it is read counts as lost
_MAX_RATIO = 8  # of a state to its parameters; 3 with Adam
_MAX_LINES = 10**7  # of a log

_Size = Annotated[int, Meta(gt=0, lt=2**48)]
_DType = Annotated[str, Meta(pattern=r'^(bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16)\Z')]


class _File(msgspec.Struct):
  bytes: int
  sha256: str


class _Manifest(msgspec.Struct):
  format: int
  step: int
  config_sha256: str
  state_sha256: str
  leaves: dict[str, tuple[list[_Size], _DType]]
  files: dict[str, _File]
  log: list[tuple[int, int, int]] = []  # see run_directory.Runs; older checkpoints have none

  def __post_init__(self) -> None:
    lines, before = 0, 0
    for first, last, distance in self.log:
      if not before < first <= last <= self.step or distance <= 0:
        raise ValueError('impossible steps')
      lines, before = lines + (last - first) // distance + 1, last
    if lines > _MAX_LINES:
      raise ValueError('too many steps')


def state_sha256(state: PyTree) -> str:
  """Returns the SHA-256 of the paths, shapes, dtypes and bytes of all arrays; all processes call it."""
  return state_arrays.hash_arrays(state_arrays.to_host(state_arrays.flatten(state)))


def steps(directory: Path) -> list[int]:
  """Returns the steps of the committed checkpoints, rising, damaged ones included; empty without the folder."""
  with storage_errors(f"read the checkpoints of '{directory}'"):
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
  return sorted(int(name) for name in names if re.fullmatch(r'0|[1-9]\d*', name))


# Writing and deleting.


def save(
  directory: Path, step: int, state: PyTree, *, config_sha256: str, log: run_directory.Runs | None = None
) -> Path:
  """Writes `directory/<step>` whole, or leaves no trace of it; returns its folder when it is on the disk.

  A good checkpoint of the same state and config in that place stays as it is; any other one is replaced. `log` has the
  steps of the lines of the run's log, on process 0.

  Raises:
    NumericalError: a leaf of `state` is not finite; nothing is written.
    StorageError: the disk is full, missing or not writable; older checkpoints are untouched, and the save can be tried
      again.
  """
  arrays = state_arrays.to_host(state_arrays.flatten(state))
  for path, array in arrays.items():
    if jax.dtypes.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
      raise NumericalError(f"'{path}' is not finite after step {step}; the checkpoint of this step was not written.")
  content = {
    'step': step,
    'config_sha256': config_sha256,
    'leaves': state_arrays.describe(arrays),
    'state_sha256': state_arrays.hash_arrays(arrays),
  }
  processes.on_process_0(lambda: _write(directory.absolute(), arrays, content, {'format': FORMAT, 'log': log or []}))
  return directory / str(step)


def _write(
  directory: Path, arrays: Mapping[str, np.ndarray], content: Mapping[str, Any], more: Mapping[str, Any]
) -> None:
  """Writes a checkpoint, if there is none with this content, and commits it; leaves nothing behind when it fails."""
  step = content['step']
  final, temporary, replaced = (directory / f'{step}{suffix}' for suffix in ('', '.tmp', '.replaced.tmp'))
  with storage_errors(f"save checkpoint {step} under '{directory}'"):
    directory.mkdir(exist_ok=True)
    _remove_unfinished(directory)
    present = _verified(final, step)
    if present and all(present[name] == value for name, value in content.items()):
      return
    # Half as much again is left for Orbax and the log.
    artifact.check_space(directory, sum(array.nbytes for array in arrays.values()) * 3 // 2 + (1 << 16))
    try:
      temporary.mkdir()
      _write_arrays(temporary / 'arrays', arrays)
      artifact.replace(temporary / MANIFEST, sealed({**content, **more, 'files': artifact.entries(temporary)}))
      artifact.commit_folder(temporary, final, replaced)
    except BaseException:  # an interrupt too must not leave half a checkpoint on a disk that may be full
      shutil.rmtree(temporary, ignore_errors=True)
      raise


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  try:
    state_arrays.write(path, arrays)
  except Exception as error:  # Orbax and TensorStore report a full disk as ValueError, and other faults in other ways
    reason = artifact.one_line(error)
    raise StorageError(f"Cannot write the arrays in '{path}': {reason}; older ones are untouched.") from error


def try_to_save(directory: Path) -> None:
  """Writes arrays as of a checkpoint and removes them, on this process; raises StorageError where that fails."""
  probe = directory.absolute() / f'{10**12}.tmp'  # as long as any name, and known to `remove_unfinished`
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


def remove_unfinished(directory: Path) -> None:
  """Deletes what killed saves left. Only for the run that owns the directory; `save` does it too."""
  processes.on_process_0(lambda: _remove_unfinished(directory))


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


def prune(directory: Path, keep: int) -> None:
  """Deletes the checkpoints older than the newest `keep` good ones; at least 2 good ones always stay."""
  processes.on_process_0(lambda: prune_here(directory, max(keep, 2)))


def prune_here(directory: Path, keep: int) -> None:
  """Does so on this process alone, and verifies before it deletes: damaged ones take no place among those that stay."""
  present = steps(directory)[::-1]
  if len(present) <= keep:
    return
  good = 0
  with storage_errors(f"delete old checkpoints under '{directory}'"):
    for step in present:
      folder = directory / str(step)
      if good < keep:
        good += _verified(folder, step) is not None
        continue
      with in_use(folder, exclusive=True) as free:
        if free:  # else somebody reads it; a later prune deletes it
          artifact.retire(folder, directory / f'{step}.pruned.tmp')


# Reading.


def restore_newest(
  directory: Path,
  target: State,
  *,
  report: Report,
  check: Check = lambda manifest: None,
  names: frozenset[str] | None = None,
) -> tuple[int, State] | None:
  """Restores the newest good checkpoint into arrays like those of `target`.

  Only reads, and may do so beside the run: what is pruned meanwhile is left for a newer one. `report` and `check` are
  called on process 0. The result is (step, state), or None where there is no checkpoint, good or bad.

  Args:
    directory: of the checkpoints.
    target: the state's structure, of jax.Arrays or jax.ShapeDtypeStructs, whose shardings the result gets (one without
      a sharding goes to the first local device).
    report: see `Report`.
    check: see `Check`.
    names: the fields of the saved state that `target` has; None: all.

  Raises:
    CheckpointError: there are checkpoints and all are damaged.
    UserError: the checkpoint's leaves are not those of `target`; names the first that differs.
  """
  leaves = state_arrays.flatten(target)
  host: dict[str, np.ndarray] = {}

  def read() -> int | None:
    step, arrays = read_newest(directory, leaves, names, report, check)
    host.update(arrays)
    return step

  step = processes.on_process_0(read)
  if step is None:
    return None
  arrays = []
  for path, leaf in leaves.items():
    if jax.process_count() == 1:
      array = host.pop(path)
    else:
      data = bytes(state_arrays.array_bytes(host.pop(path))) if jax.process_index() == 0 else b''
      array = np.frombuffer(processes.broadcast(data), leaf.dtype).reshape(leaf.shape)
    arrays.append(state_arrays.to_devices(array, leaf))
  return step, jax.tree.unflatten(jax.tree.structure(target), arrays)


def restore_subtree(
  directory: Path,
  target: State,
  names: Iterable[str] = ('params', 'model_state'),
  *,
  report: Report,
  check: Check = lambda manifest: None,
) -> tuple[int, State]:
  """Returns (step, target) with the fields `names` of another run's newest good checkpoint.

  `target` is a NamedTuple such as TrainState; for other arguments and errors see `restore_newest`. No checkpoint is a
  UserError here.
  """
  fields = {name: getattr(target, name) for name in names}
  restored = restore_newest(directory, fields, names=frozenset(fields), report=report, check=check)
  if restored is None:
    raise UserError(f"No checkpoint under '{directory}'; name the workdir of a run that has saved one.")
  step, values = restored
  return step, target._replace(**values)  # type: ignore[attr-defined]


def newest_manifest(directory: Path) -> Manifest | None:
  """Returns the manifest of the newest good checkpoint, or None where there is none."""
  found, _ = _newest(directory, lambda step, manifest: manifest)
  return found


def verify(folder: Path, step: int) -> dict[str, Any]:
  """Returns the manifest of the checkpoint `step`, all of whose bytes are as they were written; raises `Damaged`."""
  manifest = read_manifest(folder, step)
  artifact.verify(folder, manifest['files'])
  return manifest


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
  """Returns the manifest of the checkpoint `step`, which is as it was written; raises `Damaged`."""
  with artifact.damage_in(MANIFEST):
    content = untrusted.read_bytes(folder / MANIFEST, untrusted.MAX_JSON)
  try:
    manifest = untrusted.parse_json(content)
    if content != sealed({field: manifest[field] for field in manifest if field != 'manifest_sha256'}):
      raise Damaged('sha256 mismatch', MANIFEST)
    msgspec.convert(manifest, _Manifest)  # whoever sealed it need not have been a run
  except msgspec.ValidationError as error:
    raise Damaged('a field that is missing or of another type', MANIFEST) from error
  except (ValueError, TypeError) as error:  # not JSON, or not an object
    raise Damaged('no manifest', MANIFEST) from error
  if not 1 <= manifest['format'] <= FORMAT:
    raise Damaged(f'unknown format {manifest["format"]}', MANIFEST)
  if manifest['step'] != step:
    raise Damaged(f'step {manifest["step"]}', MANIFEST)
  return manifest


def _verified(folder: Path, step: int) -> Manifest | None:
  try:
    return verify(folder, step)
  except Damaged:
    return None


def sealed(content: Mapping[str, Any]) -> bytes:
  """Returns a manifest with the hash of all its fields in its one spelling: sorted keys, no spaces."""
  spell = lambda value: json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False).encode()
  return spell({**content, 'manifest_sha256': hashlib.sha256(spell(content)).hexdigest()})


def _newest(directory: Path, read: Callable[[int, Manifest], Any]) -> tuple[Any, list[tuple[int, str]]]:
  """Returns what `read` makes of the newest good checkpoint, or None; and the damaged ones that are newer."""
  rejected: list[tuple[int, str]] = []
  for walk in range(_WALKS):
    rejected.clear()
    for step in reversed(steps(directory)):
      folder = directory / str(step)
      with in_use(folder):
        try:
          return read(step, verify(folder, step)), rejected
        except Damaged as error:
          if not os.path.lexists(folder) and walk < _WALKS - 1:
            break  # pruned or replaced by the run that goes on: it has newer ones
          rejected.append((step, str(error)))
    else:
      break
  return None, rejected


def read_newest(
  directory: Path, leaves: Mapping[str, Any], names: frozenset[str] | None, report: Report, check: Check
) -> tuple[int | None, dict[str, np.ndarray]]:
  """Returns the step and the arrays, by path, of the newest good checkpoint; (None, {}) where there is none.

  For this process alone; touches no device. `leaves` are the expected arrays or shapes by path; for the other arguments
  and errors see `restore_newest`.
  """
  here = state_arrays.describe(leaves)

  def use(step: int, manifest: Manifest) -> tuple[int, dict[str, np.ndarray], str]:
    saved = manifest['leaves']
    if state_arrays.num_bytes(saved) > _MAX_RATIO * state_arrays.num_bytes(here) + (1 << 20):
      raise Damaged('arrays larger than those of a run', MANIFEST)
    there = {path: leaf for path, leaf in saved.items() if names is None or path.split('/')[0] in names}
    if mismatch := _mismatch(here, there):
      return step, {}, mismatch
    check(manifest)
    return step, _read_arrays(directory.absolute() / str(step), manifest), ''

  found, rejected = _newest(directory, use)
  for step, reason in rejected:
    report(f'checkpoint {step} rejected: {reason}; ' + (f'using {found[0]}' if found else 'none left'))
  if rejected and not found:
    raise CheckpointError(
      f"No usable checkpoint is left of {len(rejected)} under '{directory}' (the newest: {rejected[0][1]}); bring one "
      'back from a copy.',
      remedy='workdir',
    )
  if found and found[2]:
    raise UserError(
      f"Checkpoint {found[0]} under '{directory}' is of another state: {found[2]}; use the config of the run that "
      'wrote it, or another folder.'
    )
  return found[:2] if found else (None, {})


def _mismatch(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
  """Says in which leaf the run's state and the checkpoint differ first."""
  for path in [*here, *sorted(there.keys() - here.keys())]:
    if here.get(path) != there.get(path):
      leaves = [tree.get(path) for tree in (there, here)]
      saved, own = (f'{leaf[1]}{leaf[0]}' if leaf else 'absent' for leaf in leaves)
      return f"'{path}' is {saved} in the checkpoint and {own} here"
  return ''


def _read_arrays(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
  """Reads all arrays and compares them with the hash of the state that was saved."""
  try:
    arrays = state_arrays.read(folder / 'arrays', manifest['leaves'], packed=manifest['format'] > 1)
  except Exception as error:  # whatever Orbax meets, this checkpoint does not load
    raise Damaged(artifact.one_line(error), 'arrays') from error
  if state_arrays.hash_arrays(arrays) != manifest['state_sha256']:
    raise Damaged('state_sha256 mismatch', 'arrays')
  return arrays


@contextmanager
def in_use(folder: Path, *, exclusive: bool = False) -> Iterator[bool]:
  """Locks a folder against programs that would delete it (shared) or read it (exclusive).

  Yields False where they hold it; True also where the file system has no locks, or the folder is gone.
  """
  descriptor, free = -1, True
  try:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
  except BlockingIOError:
    free = False
  except OSError:
    pass
  try:
    yield free
  finally:
    if descriptor >= 0:
      os.close(descriptor)
