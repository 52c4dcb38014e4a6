"""Results that a run's folder holds: shown again under the same conditions, and not replaced unasked."""

from collections.abc import Callable, Mapping
from pathlib import Path
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from adversarial_augment import inference, results
from adversarial_augment.cli import progress
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.errors import ArtifactError, StorageError, UserError
from adversarial_augment.evaluation.accuracy import Poll
from adversarial_augment.evaluation.bench import Bench
from adversarial_augment.evaluation.corrupted import Outcomes
from adversarial_augment.parallel import processes
from adversarial_augment.run import summary
from adversarial_augment.run.retries import Retries
from adversarial_augment.storage import artifact, run_directory
from adversarial_augment.types import Dataset, TrainState

_SECONDS = 2  # between writes of what has been found so far, at least
_SHARE = 0.05  # of the time that those writes may take


def source_of(config: ConfigDict, workdir: Path, test: Dataset, restored: inference.Restored) -> dict[str, Any]:
  """Returns what `evaluate` says of the origin of all its results: step, checkpoint and provenance."""
  provenance = summary.provenance(config, {'test': test}, 'evaluate', workdir)
  provenance['config_sha256'] = restored.config_sha256  # of the run
  return {'step': restored.step, 'checkpoint_sha256': restored.sha256, 'provenance': provenance}


def agreed(conditions: Any, what: str) -> str:
  """Returns the hash of the conditions of a result, which must be the same on all processes.

  Raises:
    UserError: it is not.
  """
  sha256 = results.digest(conditions)
  if not processes.all_have(sha256):
    raise UserError(f'The processes have different images, weights or versions for {what}; give all the same files.')
  return sha256


def known(
  workdir: Path, name: str, conditions: str, checkpoint: str, *, protected: bool = True
) -> dict[str, Any] | None:
  """Returns the result that the run's folder holds, if it is of the same conditions; on one process.

  Args:
    workdir: of the run.
    name: of the result.
    conditions: their hash.
    checkpoint: hash of the classifier's state.
    protected: whether a result of this checkpoint under other conditions is an error; otherwise it may be replaced.

  Raises:
    UserError: there is something to protect, or the result contradicts itself.
  """
  path = workdir / 'results' / f'{name}.json'
  found = results.read(path)
  if found.get('conditions_sha256') == conditions:
    return results.load(workdir, name)
  if protected and found.get('checkpoint_sha256') == checkpoint:
    raise ArtifactError(
      f"'{path}' holds a result of this checkpoint for other images, settings or versions",
      path,
      remedy='use or replace',
    )
  return None


def measure_once(
  bench: Bench,
  name: str,
  state: TrainState,
  workdir: Path,
  about: Mapping[str, Any],
  poll: Poll = lambda: None,
  *,
  overwrite: bool = False,
  protected: bool = False,
) -> dict[str, Any]:
  """Returns the result of one evaluation of the test set: what the run's folder holds, or measured and written.

  Args:
    bench: of the test set.
    name: one of `config.evals`.
    state: of the classifier.
    workdir: of the run.
    about: `step`, `checkpoint_sha256` and `provenance` of the result.
    poll: called before every batch; may raise.
    overwrite: measures even what is known.
    protected: as of `known`.

  Raises:
    UserError: as of `agreed` and `known`.
    StorageError: the result cannot be written; it is printed then.
  """
  folder, origin = workdir / 'results', about['provenance']
  conditions = conditions_of(bench, name, about)
  look = lambda: known(workdir, name, conditions, about['checkpoint_sha256'], protected=protected)
  if not overwrite and (found := processes.on_process_0(look)):
    return found
  images = bench.origin(name)
  seed = images.get('corruptions', origin)['seed']  # of the corruptions; else of the run
  result = {'eval': name, 'split': 'test', 'seed': seed, **about, 'conditions_sha256': conditions}
  processes.on_process_0(lambda: run_directory.create(folder))  # before anything is measured that has no place
  unfinished = _Unfinished(folder / f'{name}.partial', conditions)
  result |= bench.measure(name, state, poll, unfinished.known, unfinished.keep)
  result['provenance'] = {**origin, **images}

  def write() -> None:
    results.write_evaluation(folder, name, result)
    unfinished.remove()

  try:
    Retries().attempt(about['step'], lambda: processes.on_process_0(write), final=True)
  except StorageError:
    if jax.process_index() == 0:
      print('\n'.join(summary.evaluation(name, result, {'split': 'test', 'config': origin['config']})), flush=True)
    raise
  return result


def conditions_of(bench: Bench, name: str, about: Mapping[str, Any]) -> str:
  """Returns the hash of all that decides the result of an evaluation; raises as `agreed`."""
  origin = about['provenance']
  made_by = {package: origin['versions'][package] for package in ('adversarial_augment', 'jax')}
  made_by |= origin.get('environment', {})
  weights = origin['weights'] if EVALUATIONS[name].under_attack else None
  return agreed([name, about['checkpoint_sha256'], bench.conditions(name), weights, made_by], name)


class _Unfinished:
  """The outcomes of an evaluation that goes on, in results/NAME.partial: a stop loses a few seconds of it."""

  def __init__(self, path: Path, conditions: str):
    """Takes over what an earlier start has found under the same conditions; process 0 tells all."""
    found = processes.on_process_0(lambda: results.read(path))
    same = found.get('conditions_sha256') == conditions
    self.known: Outcomes = found.get('correct', {}) if same else {}  # versions before this one kept counts
    self._path, self._conditions, self._keep = path, conditions, Periodic('evaluation')

  def keep(self, found: Outcomes) -> None:
    if jax.process_index() == 0:
      content = {'conditions_sha256': self._conditions, 'correct': found}
      self._keep(lambda: artifact.write_json(self._path, content))

  def remove(self) -> None:
    remove(self._path)


class Periodic:
  """Writes what has been found so far every few seconds, and not for more than a small share of the time."""

  def __init__(self, what: str):
    self._what, self._due = what, 0.0

  def __call__(self, write: Callable[[], None]) -> None:
    """Calls `write` where it is due; where that raises StorageError, warns and goes on."""
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
  """Removes a file, if it is there.

  Raises:
    StorageError: it cannot be removed.
  """
  with artifact.storage_errors(f"remove '{path}'"):
    path.unlink(missing_ok=True)
