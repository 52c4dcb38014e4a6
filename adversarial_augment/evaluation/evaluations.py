"""The evaluations that `config.evals` names: what each measures, from integer counts, and of which images."""

from collections.abc import Callable
import functools
import time
from types import MappingProxyType
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import corruptions, metrics
from adversarial_augment.cli import progress
from adversarial_augment.datasets.benchmarks import Benchmarks
from adversarial_augment.datasets.cifar10_c import CorruptionSet
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation.accuracy import Evaluate, accuracy
from adversarial_augment.evaluation.corruptions import Outcomes, corrupted_in_memory, corruption_outcomes
from adversarial_augment.run.run_log import tell
from adversarial_augment.storage import outcomes
from adversarial_augment.types import Attack, Dataset, Network, PyTree, TrainState

Poll = Callable[[], None]
Keep = Callable[[Outcomes], None]
Result = dict[str, Any]

_CORRUPTIONS = {'cifar10_c': metrics.NAMES, 'cifar10_c_extra': metrics.EXTRA_NAMES}
CORRUPTION_SEED = 0  # of what is corrupted in memory, and of what `prepare` writes by default


def check_frost(config: ConfigDict, benchmarks: Benchmarks) -> str | None:
  """Looks, before anything is trained or measured, whether corruptions made in memory have their frost photographs.

  Returns:
    Which they are; None where none are needed.

  Raises:
    UserError: one is missing, or is no image.
  """
  if 'cifar10_c' in config.evals and 'cifar10_c' not in benchmarks.corrupted:
    try:
      return corruptions.describe_frost(config.frost_dir)
    except UserError as error:
      if config.frost_dir is None:
        raise
      raise UserError(f"config.frost_dir='{config.frost_dir}': {error}") from error
  return None


class Evaluations:
  """The evaluations of one classifier on one split; what is compiled for one image serves all."""

  def __init__(
    self,
    config: ConfigDict,
    classifier: Network,
    mesh: Mesh,
    benchmarks: Benchmarks,
    attack: Attack | None,
    phi: PyTree,
  ):
    """Compiles nothing yet.

    Args:
      config: of the run.
      classifier: fast inside loops.
      mesh: the devices.
      benchmarks: the images.
      attack: the adversary of the evaluation 'ada'.
      phi: parameters of its corruption network, on the devices.
    """
    self._config, self._mesh = config, mesh
    limit = config.eval_images
    self._images, self._cifar10_1 = _first(benchmarks.images, limit), benchmarks.cifar10_1
    self._prepared = benchmarks.corrupted
    for corrupted in self._prepared.values():
      if corrupted.warning:
        tell(f'warning: {corrupted.warning}')
    make = functools.partial(accuracy, classifier, mesh, config.batch_size)
    self._accuracy: Callable[[], Evaluate] = functools.cache(make)
    self._under_attack: Callable[[], Evaluate] = functools.cache(functools.partial(make, attack=attack, phi=phi))

  def measure(
    self, name: str, state: TrainState, poll: Poll, known: Outcomes = MappingProxyType({}), keep: Keep = lambda _: None
  ) -> Result:
    """Returns what the evaluation `name` finds, with the origin of its images and the seconds that it took.

    Args:
      name: one of `config.evals`.
      state: of the classifier.
      poll: called before every batch; may raise.
      known: of corrupted images, by corruption; what an earlier start has found.
      keep: called with all the outcomes after each corruption and severity.
    """
    corruptions = functools.partial(self._corruptions, known, keep)
    measures: dict[str, Callable[[TrainState, Poll], Result]] = {
      'clean': self._clean,
      'ada': self._ada,
      'cifar10_c': functools.partial(corruptions, 'cifar10_c', 'mce'),
      'cifar10_c_extra': functools.partial(corruptions, 'cifar10_c_extra', 'mean_error'),
      'cifar10_1': self._versions,
    }
    began = time.monotonic()
    done = sum(map(len, known.values())) * len(self._rows())
    size = self._config.batch_size
    lines = progress.Lines(self._num_images(name) - done, tell, done=-size)  # the first batch is not done yet

    def advance() -> None:
      poll()
      lines.advance(name, size)

    with progress.stage(f'evaluating {name}', tell):
      found = measures[name](state, advance)
    return found | {'seconds': round(time.monotonic() - began, 3)}

  def forecast(self, name: str, first: float, batch: float) -> float:
    """Returns the seconds of an evaluation that is compiled.

    Args:
      name: one of `config.evals`.
      first: seconds of its first batch, with what was compiled for it.
      batch: of its next one.
    """
    made = name in _CORRUPTIONS and name not in self._prepared  # each corruption has a program of its own
    programs = len(_CORRUPTIONS[name]) - 1 if made else 0
    return self._num_images(name) / self._config.batch_size * batch + programs * max(first - batch, 0)

  def provenance(self, name: str) -> Result:
    """Returns where the images of an evaluation come from, beside the test set itself."""
    if name.startswith('cifar10_c'):
      corrupted = self._corrupted(name)
      return {'corruptions': {'origin': corrupted.origin, **corrupted.provenance}}
    if name == 'cifar10_1':
      return {name: {version: dataset.provenance for version, dataset in self._cifar10_1.items()}}
    return {}

  def conditions(self, name: str) -> Result:
    """Returns what, beside the classifier, decides the outcome of an evaluation."""
    config = self._config.to_dict()
    attack = {field: config[field] for field in ('attack', 'corruption_net')} if name == 'ada' else {}
    known = {field: value for field, value in self._images.provenance.items() if value is not None}
    images = {'num_images': self._num_images(name), 'data': known}
    if name in _CORRUPTIONS:
      images |= self._subset()
    return {**self.provenance(name), **images, **attack, 'precision': config['precision']}

  def _num_images(self, name: str) -> int:
    versions = sum(dataset.num_examples for dataset in self._versions_of().values())
    cells = {evaluation: len(names) * len(metrics.SEVERITIES) for evaluation, names in _CORRUPTIONS.items()}
    if name == 'cifar10_1':
      return versions
    return cells[name] * len(self._rows()) if name in cells else self._images.num_examples

  def _rows(self) -> np.ndarray:
    """Returns which test images are corrupted: evenly spaced, so that a set that is sorted by class is no trap."""
    total = self._images.num_examples
    count = min(total, self._config.corrupted_images or total)
    return np.arange(count) * total // count

  def _subset(self) -> Result:
    total = self._images.num_examples
    return {'subset_of': total} if len(self._rows()) < total else {}

  def _clean(self, state: TrainState, poll: Poll) -> Result:
    return _counted(self._accuracy()(state, self._images, poll), self._images)

  def _ada(self, state: TrainState, poll: Poll) -> Result:
    return _counted(self._under_attack()(state, self._images, poll), self._images)

  def _versions_of(self) -> dict[str, Dataset]:
    return {version: _first(dataset, self._config.eval_images) for version, dataset in self._cifar10_1.items()}

  def _versions(self, state: TrainState, poll: Poll) -> Result:
    found = {
      version: _counted(self._accuracy()(state, dataset, poll), dataset)
      for version, dataset in self._versions_of().items()
    }
    return found[metrics.CIFAR10_1_MAIN] | found

  def _corrupted(self, name: str) -> CorruptionSet:
    names = _CORRUPTIONS[name]
    return self._prepared.get(name) or corrupted_in_memory(self._images, names, CORRUPTION_SEED, self._config.frost_dir)

  def _corruptions(
    self, known: Outcomes, keep: Keep, name: str, mean_name: str, state: TrainState, poll: Poll
  ) -> Result:
    corrupted = self._corrupted(name)
    names, rows = _CORRUPTIONS[name], self._rows()
    n = len(rows)
    correct = corruption_outcomes(self._accuracy(), state, self._images, corrupted, names, poll, known, keep, rows)
    counts = {name: [outcomes.count(cell) for cell in row] for name, row in correct.items()}
    error = {name: [1 - count / n for count in row] for name, row in counts.items()}
    mean = metrics.mean_corruption_error(error)
    # As if each image counted once: its cells are not independent, and no dependence makes the mean vary more.
    low, high = metrics.binomial_interval(mean * n, n)
    return {
      mean_name: mean,
      'interval': [low, high],
      'corruption_error': {name: float(np.mean(row)) for name, row in error.items()},
      'severity_error': np.mean(list(error.values()), axis=0).tolist(),
      'error': error,
      'num_correct': counts,
      'correct': correct,
      'num_images': n,
      **self._subset(),
      'origin': corrupted.origin,
      'frost': corrupted.provenance['frost'],
    }


def _first(dataset: Dataset, limit: int | None) -> Dataset:
  return dataset._replace(num_examples=min(dataset.num_examples, limit or dataset.num_examples))


def _counted(result: Result, dataset: Dataset) -> Result:
  """Adds the interval, the calibration error and the origin to what an evaluator found."""
  bins = result['calibration']
  ece = metrics.calibration(bins['count'], bins['num_correct'], bins['confidence'])
  return result | {
    'interval': metrics.binomial_interval(result['num_correct'], result['num_images']),
    'calibration': bins | {'ece': ece},
    'origin': dataset.provenance.get('origin', 'unverified'),
  }
