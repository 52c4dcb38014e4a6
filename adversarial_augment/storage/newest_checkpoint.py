"""Reading the newest good checkpoint of a folder, perhaps beside the run that goes on in it; on this process alone."""

from collections.abc import Callable, Mapping
import math
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from adversarial_augment.errors import CheckpointError, UserError
from adversarial_augment.storage import manifests, orbax_arrays, state_arrays
from adversarial_augment.storage.files import in_use, storage_errors
from adversarial_augment.storage.manifests import Damaged

Manifest = Mapping[str, Any]
Report = Callable[[str], None]
Check = Callable[[Manifest], None]

_WALKS = 100  # until a checkpoint counts as lost that is pruned while it is read
_MAX_RATIO = 8  # of a state to its parameters; with Adam it is 3


def steps(directory: Path) -> list[int]:
  """Returns the steps of the committed checkpoints, rising, damaged ones included; empty without the folder."""
  with storage_errors(f"read the checkpoints of '{directory}'"):
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
      raise Damaged(f'arrays larger than those of a run in {manifests.NAME}')
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
      'back from a copy, or start anew with another --workdir.'
    )
  return found[:2] if found else None


def _newest(directory: Path, read: Callable[[int, Manifest], Any]) -> tuple[Any, list[tuple[int, str]]]:
  """What `read` makes of the newest good checkpoint, None without one; and the damaged ones that are newer."""
  rejected: list[tuple[int, str]] = []
  for walk in range(_WALKS):
    rejected.clear()
    for step in reversed(steps(directory)):
      folder = directory / str(step)
      with in_use(folder):
        try:
          return read(step, manifests.verify(folder, step)), rejected
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
    raise Damaged(f'{orbax_arrays.one_line(error)} in arrays') from error
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
