"""What an evaluation or an attack has found so far, in results/NAME.partial or NAME.sweep: a stop loses a few seconds.

Each file is replaced atomically, by process 0. It is used only under the conditions that it was written under.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
import contextlib
import io
import json
from pathlib import Path
import time
from typing import Any

import jax
import numpy as np

from adversarial_augment import results
from adversarial_augment.attacks.suite_runner import SuiteState
from adversarial_augment.cli import progress
from adversarial_augment.datasets.arrays import read_npz
from adversarial_augment.errors import ArtifactError, StorageError
from adversarial_augment.evaluation.corrupted import Outcomes
from adversarial_augment.parallel import processes
from adversarial_augment.storage import artifact, state_arrays, untrusted

_SECONDS = 2  # between writes, at least
_SHARE = 0.05  # of the time that writes may take
_ABOUT, _SHA256 = '_about', '_sha256'
_MAX_ABOUT = 1 << 20  # bytes that a file has beside the state of a suite


class Periodic:
  """Writes what has been found so far every few seconds; where that fails, warns and goes on."""

  def __init__(self, what: str):
    self._what, self._due = what, 0.0

  def __call__(self, write: Callable[[], None]) -> None:
    began = time.monotonic()
    if began < self._due:
      return
    try:
      write()
    except StorageError as error:
      progress.log(f'warning: {error} The {self._what} goes on; a stop would lose it.')
    now = time.monotonic()
    self._due = now + max(_SECONDS, (now - began) / _SHARE)


def remove(path: Path) -> None:
  """Removes a file, if it exists."""
  with artifact.storage_errors(f"remove '{path}'"):
    path.unlink(missing_ok=True)


class Cells:
  """The outcomes of an evaluation under corruptions, by corruption and severity."""

  def __init__(self, path: Path, conditions: str):
    """Reads what an earlier start has found under the same conditions."""
    found = processes.on_process_0(lambda: results.read(path))
    same = found.get('conditions_sha256') == conditions
    self.known: Outcomes = found.get('correct', {}) if same else {}  # versions before this one kept counts
    self._path, self._conditions, self._keep = path, conditions, Periodic('evaluation')

  def keep(self, found: Outcomes) -> None:
    """Writes them, if it is time."""
    if jax.process_index() == 0:
      content = {'conditions_sha256': self._conditions, 'correct': found}
      self._keep(lambda: artifact.write_json(self._path, content))


def write_suite(path: Path, state: SuiteState, conditions: Mapping[str, Any]) -> None:
  """Writes the state of a suite between two batches, with its conditions as JSON."""
  if jax.process_index():
    return
  arrays: dict[str, Any] = state._asdict() | {_ABOUT: _bytes(json.dumps(conditions, sort_keys=True))}
  arrays[_SHA256] = _bytes(state_arrays.hash_arrays(arrays))
  content = io.BytesIO()
  np.savez(content, **arrays)
  with artifact.storage_errors(f"write '{path}'"):
    artifact.replace(path, content.getvalue())


def read_suite(path: Path, like: SuiteState, conditions: Mapping[str, Any]) -> SuiteState | None:
  """Returns the state of a suite, of the shapes of `like` and the same on all processes; None if there is no file.

  Raises ArtifactError if the file is damaged, or of other conditions.
  """
  limit = sum(array.nbytes for array in like) + _MAX_ABOUT

  def read_here() -> str | None:
    with artifact.storage_errors(f"read '{path}'"), _damage(path):
      return base64.b64encode(untrusted.read_bytes(path, limit)).decode() if path.exists() else None

  content = processes.on_process_0(read_here)
  if content is None:
    return None
  with _damage(path):
    packed = read_npz(io.BytesIO(base64.b64decode(content)), limit)
    arrays = {name: np.array(values) for name, values in packed.items()}  # a suite changes them
    if arrays.pop(_SHA256).tobytes().decode() != state_arrays.hash_arrays(arrays):
      raise ValueError('its SHA-256 does not match')
    about = dict(untrusted.parse_json(arrays.pop(_ABOUT).tobytes()))
  artifact.check_same(path, about, conditions, remedy='begin anew')
  with _damage(path):
    if state_arrays.describe(arrays) != state_arrays.describe(like._asdict()):
      raise ValueError('its arrays have other shapes')
  return SuiteState(**arrays)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
  try:
    yield
  except (TypeError, ValueError, KeyError) as error:
    raise ArtifactError(f"'{path}' is damaged ({artifact.one_line(error)})", path, remedy='begin anew') from error


def _bytes(text: str) -> np.ndarray:
  return np.frombuffer(text.encode(), np.uint8)
