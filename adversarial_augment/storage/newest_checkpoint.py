"""Reading the newest good checkpoint of a folder, perhaps beside the run that goes on in it; on this process alone.

A checkpoint's manifest is the canonical JSON of its content with a hash of all of it, so that every byte counts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
import fcntl
import hashlib
import json
import math
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from adversarial_augment.errors import CheckpointError, UserError
from adversarial_augment.storage import artifact, orbax_arrays, state_arrays, untrusted
from adversarial_augment.storage.artifact import MANIFEST, Damaged

Manifest = Mapping[str, Any]
Report = Callable[[str], None]
Check = Callable[[Manifest], None]

FORMAT = 2  # 1 had an array for each leaf
_MAX_LINES = 10**7  # of a log
_DTYPE = re.compile(r'bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16')
_WALKS = 100  # until a checkpoint counts as lost that is pruned while it is read
_MAX_RATIO = 8  # of a state to its parameters; with Adam it is 3


def steps(directory: Path) -> list[int]:
  """Returns the steps of the committed checkpoints, rising, damaged ones included; empty without the folder."""
  with artifact.storage_errors(f"read the checkpoints of '{directory}'"):
    if not directory.exists():
      return []
    names = [path.name for path in directory.iterdir()]
  return sorted(int(name) for name in names if re.fullmatch(r'0|[1-9]\d*', name))


def newest_manifest(directory: Path) -> Manifest | None:
  """Returns the manifest of the newest good checkpoint, or None where there is none."""
  found, _ = _newest(directory, lambda step, manifest: manifest)
  return found


def read(
  directory: Path, leaves: Mapping[str, Any], names: frozenset[str] | None, report: Report, check: Check
) -> tuple[int, dict[str, np.ndarray]] | None:
  """Returns the step and the arrays of the newest good checkpoint, or None where there is none, good or bad.

  Args:
    directory: where the checkpoints lie; an absolute path.
    leaves: those of the state that they are for.
    names: the fields of the state to compare; None: all.
    report: takes one line per checkpoint that is newer and damaged.
    check: takes the manifest, and raises UserError where the checkpoint is not to be used.

  Raises:
    CheckpointError: there are checkpoints and all are damaged.
    UserError: its leaves are not `leaves`, or `check` raised it.
  """

  def use(step: int, manifest: Manifest) -> tuple[int, dict[str, np.ndarray], str | None]:
    if _num_bytes(manifest['leaves']) > _MAX_RATIO * _num_bytes(state_arrays.describe(leaves)) + (1 << 20):
      raise Damaged('arrays larger than those of a run', MANIFEST)
    if mismatch := _mismatch(leaves, manifest['leaves'], names):
      return step, {}, mismatch
    check(manifest)
    return step, _read_arrays(directory / str(step), manifest), None

  found, rejected = _newest(directory, use)
  for step, reason in rejected:
    report(f'checkpoint {step} rejected: {reason}; ' + (f'using {found[0]}' if found else 'none left'))
  if found and found[2]:
    raise UserError(
      f"Checkpoint {found[0]} under '{directory}' is of another state: {found[2]}; use the config of the run that "
      'wrote it, or another folder.'
    )
  if rejected and not found:
    raise CheckpointError(
      f"No usable checkpoint is left of {len(rejected)} under '{directory}' (the newest: {rejected[0][1]}); bring one "
      'back from a copy.',
      remedy='workdir',
    )
  return found[:2] if found else None


@contextmanager
def in_use(folder: Path, *, exclusive: bool = False) -> Iterator[bool]:
  """Holds a folder against programs that would delete it (shared), or would read it (exclusive), for the block.

  Yields:
    False where others hold it otherwise. True also where the file system has no such locks.
  """
  descriptor = -1
  try:
    free = True
    try:
      descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
      fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
      free = False
    except OSError:  # not there, or no locks
      pass
    yield free
  finally:
    if descriptor >= 0:
      os.close(descriptor)


def canonical(value: Any) -> bytes:
  """Returns the one JSON spelling of `value`: sorted keys, no spaces."""
  return json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False).encode()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `content` with the hash of all its fields."""
  return {**content, 'manifest_sha256': hashlib.sha256(canonical(content)).hexdigest()}


def verify(folder: Path, step: int) -> dict[str, Any]:
  """Returns the manifest of the checkpoint `step` in `folder`, every byte of which is as it was written.

  Raises:
    Damaged: a byte, a file or the step is not; names the first file.
  """
  try:
    manifest = _parse(untrusted.read_bytes(folder / MANIFEST, untrusted.MAX_JSON))
  except untrusted.Unusable as error:
    raise Damaged(str(error), MANIFEST) from error
  except OSError as error:
    raise Damaged(str(error.strerror or error), MANIFEST) from error
  if manifest['format'] not in range(1, FORMAT + 1):
    raise Damaged(f'unknown format {manifest["format"]}', MANIFEST)
  if manifest['step'] != step:
    raise Damaged(f'step {manifest["step"]}', MANIFEST)
  artifact.verify(folder, manifest['files'])
  return manifest


def _parse(content: bytes) -> dict[str, Any]:
  """The manifest, if its bytes are the canonical ones of a sealed manifest."""
  try:
    manifest = untrusted.parse_json(content)
    body = {field: value for field, value in manifest.items() if field != 'manifest_sha256'}
    intact = canonical(seal(body)) == content
  except (ValueError, AttributeError) as error:  # no JSON, or JSON that is no object
    raise Damaged('no manifest', MANIFEST) from error
  if not intact:
    raise Damaged('sha256 mismatch', MANIFEST)
  try:
    _check_fields(manifest)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise Damaged('a field that is missing or of another type', MANIFEST) from error
  return manifest


def _check_fields(manifest: Mapping[str, Any]) -> None:
  """Looks at the fields of a sealed manifest: whoever sealed it need not have been a run."""
  right = [isinstance(manifest[name], str) for name in ('config_sha256', 'state_sha256')]
  right += [isinstance(file['bytes'], int) and isinstance(file['sha256'], str) for file in manifest['files'].values()]
  for shape, dtype in manifest['leaves'].values():
    right += [all(type(size) is int and 0 < size < 2**48 for size in shape), bool(_DTYPE.fullmatch(dtype))]
  before = lines = 0
  for first, last, distance in manifest.get('log', ()):  # older ones have none
    right.append(all(type(number) is int for number in (first, last, distance)))
    right.append(before < first <= last <= manifest['step'] and distance > 0)
    if not right[-1]:
      break
    before, lines = last, lines + (last - first) // distance + 1
  if not all(right) or lines > _MAX_LINES or type(manifest['format']) is not int:
    raise ValueError


def _newest(directory: Path, read: Callable[[int, Manifest], Any]) -> tuple[Any, list[tuple[int, str]]]:
  """What `read` makes of the newest good checkpoint, None without one; and the damaged ones that are newer."""
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


def _read_arrays(folder: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Reads all arrays and compares them with the hash of the state that was saved."""
  try:
    arrays = orbax_arrays.read(folder / 'arrays', manifest['leaves'], packed=manifest['format'] > 1)
  except Exception as error:  # whatever Orbax meets, this checkpoint does not load
    raise Damaged(artifact.one_line(error), 'arrays') from error
  if state_arrays.hash_arrays(arrays) != manifest['state_sha256']:
    raise Damaged('state_sha256 mismatch', 'arrays')
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
