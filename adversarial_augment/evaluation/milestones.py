"""The evaluations of `train`: between steps on the validation set, and at the end on the test set."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
from pathlib import Path
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from adversarial_augment import results
from adversarial_augment.cli import progress
from adversarial_augment.config import adversaries
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.evaluation import bench, reuse
from adversarial_augment.evaluation.accuracy import Poll
from adversarial_augment.evaluation.bench import Bench
from adversarial_augment.parallel import processes, sharding
from adversarial_augment.run import segments, summary
from adversarial_augment.run.retries import Retries
from adversarial_augment.storage import checkpoints
from adversarial_augment.training import builders
from adversarial_augment.training.recipe import Recipe
from adversarial_augment.types import Dataset, TrainState


class _Enough(Exception):
  """Leaves an evaluation after its first batches."""


class Milestones:
  """Evaluates a run where it pauses and at its end; the loop calls it."""

  def __init__(
    self,
    config: ConfigDict,
    workdir: Path,
    recipe: Recipe,
    splits: dict[str, Dataset],
    test: bench.Images,
    began: float,
  ):
    """Builds the adversary; `splits` has a 'validation' set or none, `began` is `time.monotonic()` at the start."""
    self._config, self._workdir, self._recipe, self._splits, self._began = config, workdir, recipe, splits, began
    self._attack, self._phi = None, {}
    if builders.has_network(config):
      attack, phi = builders.evaluation_adversary(config, recipe.mesh)
      self._attack, self._phi = attack, sharding.replicate(recipe.mesh, phi)
    make = functools.partial(Bench, config, recipe.attacked_classifier, recipe.mesh, attack=self._attack, phi=self._phi)
    self._test = self._between = make(test)
    self._between_split, self._between_names = 'test', config.evals
    if 'validation' in splits:
      images = bench.open_images(config, splits['validation'], prepared=False)
      self._between, self._between_split, self._between_names = make(images), 'validation', tuple(images.opened)

  def __call__(self, state: TrainState, step: int, poll: Poll) -> None:
    """Evaluates, unless there are results of this very state; prints them. After the last step, draws the figure."""
    last = step == self._recipe.num_steps
    measured, names = (self._test, self._config.evals) if last else (self._between, self._between_names)
    path = self._workdir / 'results' / ('train.json' if last else f'eval_{step}.json')
    sha256 = checkpoints.state_sha256(state)
    provenance = summary.provenance(self._config, self._splits, 'train', self._workdir)
    about = {'step': step, 'checkpoint_sha256': sha256, 'provenance': provenance}
    conditions = {name: reuse.conditions_of(measured, name, about) for name in names}
    result = processes.on_process_0(lambda: results.read(path))
    same = result.get('state_sha256') == sha256 and result.get('conditions_sha256') == conditions
    known = same and result.get('evals', {}).keys() == conditions.keys()
    if known:
      result = processes.on_process_0(lambda: results.load(self._workdir, path.stem))
    else:
      result = self._measure(state, last, names, about, poll) | {'conditions_sha256': conditions}
      Retries().attempt(step, lambda: processes.on_process_0(lambda: results.write(path, result)), final=True)
    lines = summary.evals(result)
    if last:
      with progress.compiling(), progress.stage('drawing the pictures', progress.log):
        figure = processes.on_process_0(lambda: self._draw(state, again=not known))
      lines = summary.closing(result, self._workdir, figure)
    if jax.process_index() == 0:
      print('\n'.join(lines), flush=True)

  def compile(self, state: TrainState) -> float:
    """Evaluates two batches of each; returns the seconds that the closing evaluation and its picture will take.

    A signal that comes during a compilation is noticed only after it, so everything is compiled here.
    """
    progress.log('compiling the evaluations...')
    seconds = sum(self._try(self._test, name, state) for name in self._config.evals)
    if self._between is not self._test:
      for name in self._between_names:
        self._try(self._between, name, state)
    return seconds

  def _try(self, on: Bench, name: str, state: TrainState) -> float:
    """Evaluates two batches; returns the estimated seconds of all."""
    times: list[float] = []

    def poll() -> None:
      times.append(time.monotonic())
      if len(times) > 2:
        raise _Enough

    with contextlib.suppress(_Enough):
      on.measure(name, state, poll)
    times.append(time.monotonic())
    first = times[1] - times[0]
    second = times[2] - times[1] if len(times) > 2 else first
    picture = max(first - second, 0) if EVALUATIONS[name].under_attack else 0  # which compiles the attack once more
    return on.forecast(name, first, second) + picture

  def _measure(
    self, state: TrainState, last: bool, names: Sequence[str], about: Mapping[str, Any], poll: Poll
  ) -> dict[str, Any]:
    split = 'test' if last else self._between_split
    progress.log(f'evaluating on the {split} set...')
    made_by: dict[str, Any] = {}
    if last:
      made_by['segments'] = processes.on_process_0(lambda: segments.until(self._workdir, about['step']))
      found = {name: reuse.measure_once(self._test, name, state, self._workdir, about, poll) for name in names}
    else:
      found = {name: self._between.measure(name, state, poll) for name in names}
    return {
      **about['provenance'],
      'step': about['step'],
      'num_steps': self._recipe.num_steps,
      'state_sha256': about['checkpoint_sha256'],
      **made_by,
      'split': split,
      'evals': {name: results.without_details(value) for name, value in found.items()},
      'seconds': round(time.monotonic() - self._began, 1),  # of this start of the run
    }

  def _draw(self, state: TrainState, again: bool) -> str | None:
    """Draws the figure of the last state, if there is none or the results are new; returns its path."""
    path = self._workdir / 'figures' / 'ada_examples.png'
    if again or not path.with_name('training_curves.png').exists():
      trained = adversaries.ADVERSARIES.get(self._config.attack.name)
      moves_pixels = trained is not None and trained.moves == 'pixels'  # then it is shown; otherwise AdA
      shown = builders.build(self._config, self._config.attack.name) if moves_pixels else (self._attack, self._phi)
      return summary.draw(path, self._config, self._recipe, self._splits['test'], state, *shown)
    return str(path) if path.exists() else None
