"""Errors on a set of corruptions at five severities, all through one compiled function."""

from collections.abc import Callable, Sequence

import numpy as np

from adversarial_augment import corruptions
from adversarial_augment.datasets.cifar10_c import CorruptionSet
from adversarial_augment.evaluators.accuracy import Evaluate
from adversarial_augment.types import Batch, Dataset, TrainState


def corrupted_in_memory(dataset: Dataset, names: Sequence[str], seed: int, frost_dir: str | None) -> CorruptionSet:
  """Returns the corrupted forms of a data set, made when they are read: the same bytes as those of `prepare`.

  Args:
    dataset: the clean images.
    names: of the corruptions.
    seed: of all draws.
    frost_dir: folder of the frost photographs, see `corruptions.corrupt`.
  """

  def read(name: str, severity: int, index: np.ndarray) -> np.ndarray:
    return corruptions.corrupt(dataset.read(index).images, name, severity, seed, index, frost=frost_dir)

  frost = corruptions.describe_frost(frost_dir) if 'frost' in names else None
  provenance = {'seed': seed, 'frost': frost, 'made_with': corruptions.made_with()}
  return CorruptionSet(tuple(names), dataset.num_examples, 'generated, in memory', provenance, read)


def corruption_counts(
  evaluate: Evaluate,
  state: TrainState,
  dataset: Dataset,
  corrupted: CorruptionSet,
  names: Sequence[str],
  poll: Callable[[], None],
) -> dict[str, list[int]]:
  """Returns, by corruption, how many images are classified rightly at each severity.

  Args:
    evaluate: what `accuracy` made.
    state: of the classifier.
    dataset: the clean images and their labels.
    corrupted: the same images, corrupted.
    names: corruptions of that set.
    poll: called before every batch.
  """

  def cell(name: str, severity: int) -> Dataset:
    read = lambda index: Batch(corrupted.read(name, severity, index), dataset.read(index).labels)
    return dataset._replace(read=read)

  return {
    name: [evaluate(state, cell(name, severity), poll)['num_correct'] for severity in corruptions.SEVERITIES]
    for name in names
  }
