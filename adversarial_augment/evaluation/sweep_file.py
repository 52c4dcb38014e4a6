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
from adversarial_augment.errors import ArtifactError
from adversarial_augment.parallel import processes
from adversarial_augment.storage import artifact, state_arrays, untrusted

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
  with artifact.storage_errors(f"write '{path}'"):
    artifact.replace(path, content.getvalue())


def read(path: Path, like: SuiteState, about: Mapping[str, Any]) -> SuiteState | None:
  """Returns the state in a file, the same on all processes; None where there is no file.

  Args:
    path: of the file.
    like: a state of the same shapes.
    about: what decides the outcome.

  Raises:
    ArtifactError: the file is damaged, or of something else.
    StorageError: it cannot be read.
  """
  limit = sum(array.nbytes for array in like) + _MAX_ABOUT
  found = _content(path, limit)
  if not found:
    return None
  try:
    packed = npy.Npz(io.BytesIO(found), limit)
    arrays = {name: np.array(packed[name]) for name in packed}  # a suite changes them
    sha256 = arrays.pop(_SHA256).tobytes().decode()
    known = dict(untrusted.parse_json(arrays[_ABOUT].tobytes()))
    whole = sha256 == state_arrays.hash_arrays(arrays)
  except (TypeError, ValueError, KeyError) as error:
    raise _damaged(path, type(error).__name__) from error
  if not whole:
    raise _damaged(path, 'its SHA-256 is another one')
  artifact.check_same(path, known, about, remedy='begin anew')
  del arrays[_ABOUT]
  shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
  if shapes != {name: (array.shape, array.dtype) for name, array in like._asdict().items()}:
    raise _damaged(path, 'its arrays have other shapes')
  return SuiteState(**arrays)


def _content(path: Path, limit: int) -> bytes:
  """Returns what process 0 finds in the file, on all processes; nothing where there is none."""
  held = [b'']

  def read_here() -> None:
    with artifact.storage_errors(f"read '{path}'"):
      if path.exists():
        try:
          held[0] = untrusted.read_bytes(path, limit)
        except untrusted.Unusable as error:
          raise _damaged(path, str(error)) from error
        if not held[0]:
          raise _damaged(path, 'it is empty')

  processes.on_process_0(read_here)  # an error reaches all of them
  return held[0] if jax.process_count() == 1 else processes.broadcast(held[0])


def _damaged(path: Path, reason: str) -> ArtifactError:
  return ArtifactError(f"'{path}' is damaged ({reason})", path, remedy='begin anew')


def _bytes(text: str) -> np.ndarray:
  return np.frombuffer(text.encode(), np.uint8)
