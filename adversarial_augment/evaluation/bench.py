"""A classifier, its test images, and what is compiled for both: measures any evaluation, by its entry."""

from collections.abc import Callable
import functools
import time
from types import MappingProxyType
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import cli, metrics
from adversarial_augment.cli import progress
from adversarial_augment.config.adversaries import ADVERSARIES
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.config.fields import spell
from adversarial_augment.datasets import cifar, classes, source
from adversarial_augment.datasets.manifests import with_code
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import corrupted
from adversarial_augment.evaluation.accuracy import AccuracyFn, Poll, accuracy
from adversarial_augment.evaluation.corrupted import Keep, Outcomes
from adversarial_augment.types import Attack, Dataset, Network, PyTree, TrainState

Relabel = Callable[[Dataset], Dataset]  # gives a data set the labels that the classifier has for its classes
Result = dict[str, Any]

# Fields of other adversaries than AdA that decide nothing, but that the hashes of older results have.
_IN_OLDER_HASHES = {'attack.norm', 'attack.epsilon', 'attack.trades'}
# Fields that older hashes do not have, where they change nothing.
_NOT_IN_OLDER_HASHES = {'moved': 'all', 'every': 1, 'growth_epochs': 0.0, 'measure_end': True, 'replay': 1}


class Images(NamedTuple):
  """What a classifier is evaluated on."""

  dataset: Dataset
  opened: dict[str, Any]  # evaluation -> what it reads beside this data set: parts, a `CorruptionSet`, or None

  def origins(self) -> dict[str, Result]:
    """Returns the origin of each evaluation's images, beside the test set itself."""
    return {name: self._origin(name, opened) for name, opened in self.opened.items()}

  def _origin(self, name: str, opened: Any) -> Result:
    if EVALUATIONS[name].parts:
      return {name: {part: dataset.provenance for part, dataset in opened.items()}}
    return {'corruptions': {'origin': opened.origin, **opened.provenance}} if EVALUATIONS[name].corruptions else {}


def open_images(
  config: ConfigDict, images: Dataset, relabel: Relabel = lambda dataset: dataset, *, prepared: bool = True
) -> Images:
  """Opens what `config.evals` read beside the images; touches no device.

  Only test images have sets of `prepare`; for others, `prepared` is False, and evaluations that need one are left out.
  """
  names = [name for name in config.evals if prepared or EVALUATIONS[name].on_validation]
  return Images(relabel(images), {name: _open(name, config, images, relabel, prepared) for name in names})


def _open(name: str, config: ConfigDict, images: Dataset, relabel: Relabel, prepared: bool) -> Any:
  entry = EVALUATIONS[name]
  if entry.datasets and config.dataset.partition(':')[0] not in entry.datasets:
    others = ' or '.join(entry.datasets)
    raise UserError(f'{spell(config, "dataset", "evals")}: {name} has the classes of {others}; leave it out.')
  if entry.corruptions:
    return corrupted.open_set(config, images, name, entry.corruptions, prepared)
  known, opened = classes.Classes(images.num_classes, images.class_names), {}
  for part in entry.parts:
    dataset = source.load(f'{name}/{part}', 'test', config.data_dir)
    if dataset.class_names == tuple('0123456789'):  # as TFDS has it, in CIFAR-10's order
      dataset = dataset._replace(class_names=cifar.PUBLISHED['cifar10'].class_names)
    opened[part] = relabel(classes.in_order(dataset, known, f"The data set '{images.name}'"))
  return opened or None


class Bench:
  """Measures evaluations of one classifier on one split; what is compiled for one image size serves all."""

  def __init__(
    self, config: ConfigDict, classifier: Network, mesh: Mesh, images: Images, attack: Attack | None, phi: PyTree
  ):
    """Takes a classifier that is fast inside loops, and the adversary of evaluations under attack with its phi."""
    self.config, self._images = config, images
    self.images = self._first(images.dataset)  # the first `config.eval_images` of the split
    for opened in images.opened.values():
      if warning := getattr(opened, 'warning', None):
        progress.log(f'warning: {cli.describe(warning)}')
    make = functools.partial(accuracy, classifier, mesh, config.batch_size)
    self._clean: Callable[[], AccuracyFn] = functools.cache(make)
    self._attacked: Callable[[], AccuracyFn] = functools.cache(functools.partial(make, attack=attack, phi=phi))

  def _first(self, dataset: Dataset) -> Dataset:
    limit = self.config.eval_images or dataset.num_examples
    return dataset._replace(num_examples=min(dataset.num_examples, limit))

  def _datasets(self, name: str) -> dict[str, Dataset]:
    """Returns the data sets, not corrupted, that an evaluation measures, by part."""
    if EVALUATIONS[name].parts:
      return {part: self._first(dataset) for part, dataset in self._images.opened[name].items()}
    return {'': EVALUATIONS[name].images(self.config, self.images)}

  def _corrupted_rows(self) -> np.ndarray:
    """Returns which images are corrupted: evenly spaced, so that a set that is sorted by class is no trap."""
    total = self.images.num_examples
    count = min(total, self.config.corrupted_images or total)
    return np.arange(count) * total // count

  def _subset(self) -> Result:
    total = self.images.num_examples
    return {'subset_of': total} if len(self._corrupted_rows()) < total else {}

  def _num_images(self, name: str) -> int:
    """Returns how many images are classified, counting each corrupted form."""
    cells = len(EVALUATIONS[name].corruptions) * len(metrics.SEVERITIES)
    whole = sum(dataset.num_examples for dataset in self._datasets(name).values())
    return cells * len(self._corrupted_rows()) if cells else whole

  def measure(
    self, name: str, state: TrainState, poll: Poll, known: Outcomes = MappingProxyType({}), keep: Keep = lambda _: None
  ) -> Result:
    """Returns what an evaluation finds, and the seconds that it took.

    `known` are outcomes of corrupted images that an earlier start has found; `keep` is called with all the outcomes
    after each corruption and severity.
    """
    began, size = time.monotonic(), self.config.batch_size
    done = sum(map(len, known.values())) * len(self._corrupted_rows())
    lines = progress.Lines(self._num_images(name) - done, progress.log, done=-size)  # the first batch is not done yet

    def advance() -> None:
      poll()
      lines.advance(name, size)

    with progress.stage(f'evaluating {name}', progress.log):
      found = self._find(name, state, advance, known, keep)
    return found | {'seconds': round(time.monotonic() - began, 3)}

  def _find(self, name: str, state: TrainState, poll: Poll, known: Outcomes, keep: Keep) -> Result:
    entry = EVALUATIONS[name]
    measure_on = (self._attacked if entry.under_attack else self._clean)()
    measure = lambda dataset: measure_on(state, dataset, poll)
    if entry.corruptions:
      forms, rows = self._images.opened[name], self._corrupted_rows()
      found = corrupted.errors(measure, self.images, forms, entry.corruptions, rows=rows, known=known, keep=keep)
      return {entry.mean_error: found.pop('mean'), **found, **self._subset()}
    found = {part: measure(dataset) for part, dataset in self._datasets(name).items()}
    return found[entry.parts[0]] | found if entry.parts else found['']

  def forecast(self, name: str, first: float, batch: float) -> float:
    """Returns the seconds of an evaluation that is compiled, by those of its first batch, with compiling, and next."""
    opened = self._images.opened[name]
    programs = len(opened.names) if getattr(opened, 'origin', '') == metrics.GENERATED_IN_MEMORY else 1
    return self._num_images(name) / self.config.batch_size * batch + (programs - 1) * max(first - batch, 0)

  def origin(self, name: str) -> Result:
    """Returns the origin of an evaluation's images, beside the test set itself."""
    return self._images.origins()[name]

  def conditions(self, name: str) -> Result:
    """Returns what, beside the classifier, determines the result of an evaluation."""
    entry, origin, config = EVALUATIONS[name], self.origin(name), self.config.to_dict()
    data = {field: value for field, value in self.images.provenance.items() if value is not None}
    own = {field: config[field] for field in entry.conditions}
    if 'attack' in own:
      others = {field for name, one in ADVERSARIES.items() if name != 'ada' for field in one.fields} - _IN_OLDER_HASHES
      unused = {name for name, value in _NOT_IN_OLDER_HASHES.items() if own['attack'][name] == value}
      own['attack'] = {
        name: value for name, value in own['attack'].items() if f'attack.{name}' not in others and name not in unused
      }
    if entry.corruptions:
      made = origin['corruptions']
      own |= {'corruptions': made | {'made_with': with_code(made['made_with'], 'corruptions')}, **self._subset()}
    return {**origin, 'num_images': self._num_images(name), 'data': data, 'precision': self.config.precision, **own}
