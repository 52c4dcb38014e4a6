"""An unfinished attack on disk: whole or not at all, and refused where it is damaged or of something else."""

from collections.abc import Mapping
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adversarial_augment.attacks.suite_runner import SuiteState
from adversarial_augment.datasets import npy
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import processes
from adversarial_augment.storage import files, state_arrays, untrusted

_ABOUT, _SHA256 = '_about', '_sha256'
_MAX_ABOUT = 1 << 20  # bytes that a file has beside the state


def write(path: Path, state: SuiteState, about: Mapping[str, Any]) -> None:
  """Replaces the file in one instant; process 0 alone writes.

  Args:
    path: of the file.
    state: between two batches.
    about: what decides the outcome, as JSON: a suite is resumed only under the same.

  Raises:
    StorageError: it cannot be written; what was there stays.
  """
  if jax.process_index():
    return
  arrays: dict[str, Any] = state._asdict() | {_ABOUT: _bytes(json.dumps(about, sort_keys=True))}
  arrays[_SHA256] = _bytes(state_arrays.hash_arrays(arrays))
  content = io.BytesIO()
  np.savez(content, **arrays)
  with files.storage_errors(f"write '{path}'"):
    files.replace(path, content.getvalue())


def read(path: Path, like: SuiteState, about: Mapping[str, Any]) -> SuiteState | None:
  """Returns the state in a file, the same on all processes; None where there is no file.

  Args:
    path: of the file.
    like: a state of the same shapes.
    about: what decides the outcome.

  Raises:
    UserError: the file is damaged, or of something else.
    StorageError: it cannot be read.
  """

  remedy = 'remove it, or begin anew with --overwrite'
  limit = sum(array.nbytes for array in like) + _MAX_ABOUT

  def content() -> bytes:  # empty where there is no file
    with files.storage_errors(f"read '{path}'"):
      if not path.exists():
        return b''
      try:
        if found := untrusted.read_bytes(path, limit):
          return found
      except untrusted.Unusable as error:
        raise UserError(f"'{path}' is damaged ({error}); {remedy}.") from error
    raise UserError(f"'{path}' is damaged (it is empty); {remedy}.")

  if jax.process_count() == 1:
    found = content()
  else:
    held: list[bytes] = []
    processes.on_process_0(lambda: held.append(content()))  # an error reaches all of them
    found = processes.broadcast(held[0] if held else b'')
  if not found:
    return None
  try:
    packed = npy.Npz(io.BytesIO(found), limit)
    arrays = {name: np.array(packed[name]) for name in packed}  # a suite changes them in place
    sha256 = arrays.pop(_SHA256).tobytes().decode()
    known = dict(untrusted.parse_json(arrays[_ABOUT].tobytes()))
    whole = sha256 == state_arrays.hash_arrays(arrays)
  except (TypeError, ValueError, KeyError) as error:
    raise UserError(f"'{path}' is damaged ({type(error).__name__}); {remedy}.") from error
  if not whole:
    raise UserError(f"'{path}' is damaged (its SHA-256 is another one); {remedy}.")
  for name in sorted(about.keys() | known.keys()):
    if about.get(name) != known.get(name):
      raise UserError(
        f"'{path}' is of another {name} ({_short(known.get(name))}, now {_short(about.get(name))}); {remedy}."
      )
  del arrays[_ABOUT]
  shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
  if shapes != {name: (array.shape, array.dtype) for name, array in like._asdict().items()}:
    raise UserError(f"'{path}' is damaged (its arrays have other shapes); {remedy}.")
  return SuiteState(**arrays)


def _bytes(text: str) -> np.ndarray:
  return np.frombuffer(text.encode(), np.uint8)


def _short(value: Any) -> str:
  text = str(value)
  return text if len(text) <= 20 else f'{text[:12]}...'
