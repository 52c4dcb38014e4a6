"""A classifier, the images that it is judged on, and what is compiled for both: what evaluations measure with."""

from collections.abc import Callable
import functools
import time
from types import MappingProxyType
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import cli, registry
from adversarial_augment.cli import progress
from adversarial_augment.evaluation.accuracy import AccuracyFn, accuracy
from adversarial_augment.evaluation.evals import Keep, Outcomes, Poll, Result
from adversarial_augment.types import Attack, Dataset, Network, PyTree, TrainState


class Images(NamedTuple):
  """What a classifier is judged on."""

  dataset: Dataset
  opened: dict[str, Any]  # by evaluation, what it reads beside this data set

  def origins(self) -> dict[str, Result]:
    """Returns where all images but those of the test set itself come from, by evaluation."""
    return {name: registry.evaluations()[name].origin(opened) for name, opened in self.opened.items()}


def open_images(
  config: ConfigDict,
  images: Dataset,
  relabel: Callable[[Dataset], Dataset] = lambda dataset: dataset,
  *,
  prepared: bool = True,
) -> Images:
  """Opens what `config.evals` read beside the images; touches no device.

  Args:
    config: of the run.
    images: the test images, or others.
    relabel: gives a data set the labels that the classifier has for its classes.
    prepared: whether sets of `prepare` belong to `images`; evaluations that have no others are left out where not.

  Raises:
    UserError: a set is missing, damaged, or of other images or classes; or frost photographs are missing.
  """
  entries = [registry.evaluations()[name] for name in config.evals]
  opened = {
    entry.name: entry.open(config, images, relabel, prepared=prepared)
    for entry in entries
    if prepared or entry.on_validation
  }
  return Images(relabel(images), opened)


class Bench:
  """Measures evaluations of one classifier on one split; what is compiled for one image size serves all.

  Attributes:
    config: of the run.
    images: the first `config.eval_images` of the split.
    opened: by evaluation, what it reads beside them.
  """

  def __init__(
    self, config: ConfigDict, classifier: Network, mesh: Mesh, images: Images, attack: Attack | None, phi: PyTree
  ):
    """Compiles nothing yet.

    Args:
      config: of the run.
      classifier: fast inside loops.
      mesh: the devices.
      images: of `open_images`.
      attack: the adversary of evaluations under attack.
      phi: parameters of its corruption network, on the devices.
    """
    self.config, self.opened = config, images.opened
    self.images = self.first(images.dataset)
    for opened in self.opened.values():
      if warning := getattr(opened, 'warning', None):
        progress.log(f'warning: {cli.describe(warning)}')
    make = functools.partial(accuracy, classifier, mesh, config.batch_size)
    self._clean: Callable[[], AccuracyFn] = functools.cache(make)
    self._attacked: Callable[[], AccuracyFn] = functools.cache(functools.partial(make, attack=attack, phi=phi))

  def accuracy(self, state: TrainState, dataset: Dataset, poll: Poll, *, under_attack: bool = False) -> Result:
    """Returns the accuracy of a classifier on a data set of images of this size; see `accuracy.accuracy`."""
    return (self._attacked if under_attack else self._clean)()(state, dataset, poll)

  def first(self, dataset: Dataset) -> Dataset:
    """Returns the first `config.eval_images` images of a data set."""
    limit = self.config.eval_images or dataset.num_examples
    return dataset._replace(num_examples=min(dataset.num_examples, limit))

  def corrupted_rows(self) -> np.ndarray:
    """Returns which images are corrupted: evenly spaced, so that a set that is sorted by class is no trap."""
    total = self.images.num_examples
    count = min(total, self.config.corrupted_images or total)
    return np.arange(count) * total // count

  def subset(self) -> Result:
    """Returns what a result says of its images where `corrupted_rows` are not all."""
    total = self.images.num_examples
    return {'subset_of': total} if len(self.corrupted_rows()) < total else {}

  def measure(
    self, name: str, state: TrainState, poll: Poll, known: Outcomes = MappingProxyType({}), keep: Keep = lambda _: None
  ) -> Result:
    """Returns what an evaluation finds, with the origin of its images and the seconds that it took.

    Args:
      name: one of `config.evals`.
      state: of the classifier.
      poll: called before every batch; may raise.
      known: of corrupted images, by corruption; what an earlier start has found.
      keep: called with all the outcomes after each corruption and severity.
    """
    entry, began, size = registry.evaluations()[name], time.monotonic(), self.config.batch_size
    done = sum(map(len, known.values())) * len(self.corrupted_rows())
    lines = progress.Lines(entry.num_images(self) - done, progress.log, done=-size)  # the first batch is not done yet

    def advance() -> None:
      poll()
      lines.advance(name, size)

    with progress.stage(f'evaluating {name}', progress.log):
      found = entry.measure(self, state, advance, known, keep)
    return found | {'seconds': round(time.monotonic() - began, 3)}

  def forecast(self, name: str, first: float, batch: float) -> float:
    """Returns the seconds of an evaluation that is compiled.

    Args:
      name: one of `config.evals`.
      first: seconds of its first batch, with what was compiled for it.
      batch: of its next one.
    """
    entry = registry.evaluations()[name]
    further = entry.num_programs(self.opened[name]) - 1
    return entry.num_images(self) / self.config.batch_size * batch + further * max(first - batch, 0)

  def origin(self, name: str) -> Result:
    """Returns where the images of an evaluation come from, beside the test set itself."""
    return registry.evaluations()[name].origin(self.opened[name])

  def conditions(self, name: str) -> Result:
    """Returns what, beside the classifier, decides the outcome of an evaluation."""
    entry = registry.evaluations()[name]
    data = {field: value for field, value in self.images.provenance.items() if value is not None}
    images = {**self.origin(name), 'num_images': entry.num_images(self), 'data': data}
    return images | entry.conditions(self) | {'precision': self.config.precision}
