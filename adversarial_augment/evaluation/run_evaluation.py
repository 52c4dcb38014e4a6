"""The evaluations of a run: which split, what is known already, which files, and the closing table."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
from pathlib import Path
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from adversarial_augment.cli import progress
from adversarial_augment.datasets.benchmarks import Benchmarks
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.evaluation.corruptions import Outcomes
from adversarial_augment.evaluation.evaluations import Evaluations, Poll
from adversarial_augment.parallel import processes, sharding
from adversarial_augment.run import summary
from adversarial_augment.run.run_log import Patience, tell
from adversarial_augment.storage import checkpoints, files, results, run_directory
from adversarial_augment.training import recipe
from adversarial_augment.types import Dataset, TrainState

_SECONDS = 2  # between writes of the outcomes of an evaluation that goes on


class _Enough(Exception):
  """Leaves an evaluation after its first batches."""


def find(
  evaluations: Evaluations,
  name: str,
  state: TrainState,
  workdir: Path,
  about: Mapping[str, Any],
  poll: Poll = lambda: None,
  *,
  anew: bool = False,
  keep: bool = False,
) -> dict[str, Any]:
  """Returns the result of one evaluation of the test set: what the run's folder knows already, or measured and written.

  Args:
    evaluations: of the test set.
    name: one of `config.evals`.
    state: of the classifier.
    workdir: of the run.
    about: `step`, `checkpoint_sha256` and `provenance` of the result.
    poll: called before every batch; may raise.
    anew: measures even what is known.
    keep: refuses to replace what was found for the same checkpoint under other conditions, unless `anew`.

  Raises:
    UserError: the processes have other images, there is something to keep, or what is known contradicts itself.
    StorageError: the result cannot be written; it is printed then.
  """
  folder, origin = workdir / 'results', about['provenance']
  conditions = _conditions(evaluations, name, about)
  known = processes.on_process_0(lambda: results.read(folder / f'{name}.json'))
  if known.get('conditions_sha256') == conditions and not anew:
    return processes.on_process_0(lambda: results.load(workdir, name))
  if keep and not anew and known.get('checkpoint_sha256') == about['checkpoint_sha256']:
    raise UserError(
      f"'{folder / name}.json' holds what other images, settings or versions gave for this checkpoint; replace it "
      'with --overwrite.'
    )
  images = evaluations.provenance(name)
  seed = images.get('corruptions', origin)['seed']  # of the corruptions; else of the run
  result = {'eval': name, 'split': 'test', 'seed': seed, **about, 'conditions_sha256': conditions}
  processes.on_process_0(lambda: run_directory.create(folder))  # before anything is measured that has no place
  unfinished = _Unfinished(folder / f'{name}.partial', conditions)
  result |= evaluations.measure(name, state, poll, unfinished.known, unfinished.keep)
  result['provenance'] = {**origin, **images}

  def write() -> None:
    results.write_evaluation(folder, name, result)
    unfinished.remove()

  try:
    Patience().attempt(about['step'], lambda: processes.on_process_0(write), final=True)
  except StorageError:
    if jax.process_index() == 0:
      print('\n'.join(summary.evaluation(name, result, {'split': 'test', 'config': origin['config']})), flush=True)
    raise
  return result


class _Unfinished:
  """The outcomes of an evaluation that goes on, in results/NAME.partial: a stop loses a few seconds of it."""

  def __init__(self, path: Path, conditions: str):
    """Takes over what an earlier start has found under the same conditions; process 0 tells all."""
    found = processes.on_process_0(lambda: results.read(path))
    same = found.get('conditions_sha256') == conditions
    self.known: Outcomes = found.get('correct', {}) if same else {}  # versions before this one kept counts
    self._path, self._conditions, self._written = path, conditions, time.monotonic()

  def keep(self, found: Outcomes) -> None:
    if jax.process_index() or time.monotonic() - self._written < _SECONDS:
      return
    try:
      run_directory.write_json(self._path, {'conditions_sha256': self._conditions, 'correct': found})
    except StorageError as error:
      tell(f'warning: {error} The evaluation goes on; a stop would lose it.')
    self._written = time.monotonic()

  def remove(self) -> None:
    with files.storage_errors(f"remove '{self._path}'"):
      self._path.unlink(missing_ok=True)


def _conditions(evaluations: Evaluations, name: str, about: Mapping[str, Any]) -> str:
  """Returns the hash of all that decides the result of an evaluation.

  Raises:
    UserError: it is not the same on all processes.
  """
  origin = about['provenance']
  made_by = {package: origin['versions'][package] for package in ('adversarial_augment', 'jax')}
  made_by |= origin.get('environment', {})
  weights = origin['weights'] if name == 'ada' else None
  found = results.digest([name, about['checkpoint_sha256'], evaluations.conditions(name), weights, made_by])
  if not processes.all_have(found):
    raise UserError(f'The processes have different images or weights for {name}; give all of them the same files.')
  return found


class Evaluation:
  """What the loop calls to evaluate: between steps on the validation set, at the end on the test set."""

  def __init__(
    self,
    config: ConfigDict,
    workdir: Path,
    static: recipe.Recipe,
    splits: dict[str, Dataset],
    benchmarks: Benchmarks,
    began: float,
  ):
    """Builds the adversary of the evaluation.

    Args:
      config: of the run.
      workdir: of the run.
      static: of the run.
      splits: 'train', 'test', and perhaps 'validation'.
      benchmarks: of the test set.
      began: `time.monotonic()` at the start of the program.
    """
    self._config, self._workdir, self._static, self._splits, self._began = config, workdir, static, splits, began
    self._attack, self._phi = None, {}
    if recipe.has_network(config):
      attack, phi = recipe.build_attack(config, static.mesh)
      self._attack, self._phi = attack, sharding.replicate(static.mesh, phi)
    make = functools.partial(
      Evaluations, config, static.attacked_classifier, static.mesh, attack=self._attack, phi=self._phi
    )
    self._test = self._between = make(benchmarks)
    self._between_split, self._between_names = 'test', config.evals
    if 'validation' in splits:
      self._between, self._between_split = make(Benchmarks(splits['validation'])), 'validation'
      self._between_names = tuple(name for name in config.evals if name != 'cifar10_1')  # test images, all of it

  def __call__(self, state: TrainState, step: int, poll: Poll) -> None:
    """Evaluates, unless the results of this very state are there; writes and prints them.

    Args:
      state: to evaluate.
      step: updates made so far; the last one closes the run.
      poll: called before every batch; may raise.

    Raises:
      UserError: the results that are there contradict themselves.
      StorageError: the results cannot be written.
    """
    last = step == self._static.num_steps
    names = self._config.evals if last else self._between_names
    path = self._workdir / 'results' / ('train.json' if last else f'eval_{step}.json')
    sha256 = checkpoints.state_sha256(state)
    about = {
      'step': step,
      'checkpoint_sha256': sha256,
      'provenance': summary.provenance(self._config, self._splits, 'train', self._workdir),
    }
    evaluations = self._test if last else self._between
    conditions = {name: _conditions(evaluations, name, about) for name in names}
    result = processes.on_process_0(lambda: results.read(path))
    same = result.get('state_sha256') == sha256 and result.get('conditions_sha256') == conditions
    known = same and result.get('evals', {}).keys() == conditions.keys()
    if known:
      result = processes.on_process_0(lambda: results.load(self._workdir, path.stem))
    else:
      result = self._measure(state, last, names, about, poll) | {'conditions_sha256': conditions}
      Patience().attempt(step, lambda: processes.on_process_0(lambda: results.write(path, result)), final=True)
    lines = summary.evals(result)
    if last:
      with progress.stage('drawing the pictures', tell):
        figure = processes.on_process_0(lambda: self._draw(state, anew=not known))
      lines = summary.closing(result, self._workdir, figure)
    if jax.process_index() == 0:
      print('\n'.join(lines), flush=True)

  def compile(self, state: TrainState) -> float:
    """Evaluates two batches of each, so that no compilation keeps a later evaluation from noticing a signal.

    Returns:
      The seconds that the closing evaluation will take, with its picture.
    """
    tell('compiling the evaluations...')
    seconds = sum(self._try(self._test, name, state) for name in self._config.evals)
    if self._between is not self._test:
      for name in self._between_names:
        self._try(self._between, name, state)
    return seconds

  def _try(self, evaluations: Evaluations, name: str, state: TrainState) -> float:
    """Evaluates two batches; returns the seconds of all."""
    times: list[float] = []

    def poll() -> None:
      times.append(time.monotonic())
      if len(times) > 2:
        raise _Enough

    with contextlib.suppress(_Enough):
      evaluations.measure(name, state, poll)
    times.append(time.monotonic())
    first = times[1] - times[0]
    second = times[2] - times[1] if len(times) > 2 else first
    compiling = max(first - second, 0) if name == 'ada' else 0  # once more, for the picture
    return evaluations.forecast(name, first, second) + compiling

  def _measure(
    self, state: TrainState, last: bool, names: Sequence[str], about: Mapping[str, Any], poll: Poll
  ) -> dict[str, Any]:
    split = 'test' if last else self._between_split
    tell(f'evaluating on the {split} set...')
    if last:
      found = {name: find(self._test, name, state, self._workdir, about, poll) for name in names}
    else:
      found = {name: self._between.measure(name, state, poll) for name in names}
    return {
      **about['provenance'],
      'step': about['step'],
      'num_steps': self._static.num_steps,
      'state_sha256': about['checkpoint_sha256'],
      'split': split,
      'evals': {name: results.without_details(value) for name, value in found.items()},
      'seconds': round(time.monotonic() - self._began, 1),  # of this start of the run
    }

  def _draw(self, state: TrainState, anew: bool) -> str | None:
    """The figure of the last state; one that is there already stays, unless the results are new too."""
    path = self._workdir / 'figures' / 'ada_examples.png'
    if anew or not path.with_name('training_curves.png').exists():
      within_ball = self._config.attack.name == 'lp'  # then it is the adversary of the training that is shown
      shown = (recipe.lp_attack(self._config), {}) if within_ball else (self._attack, self._phi)
      return summary.draw(path, self._config, self._static, self._splits['test'], state, *shown)
    return str(path) if path.exists() else None
