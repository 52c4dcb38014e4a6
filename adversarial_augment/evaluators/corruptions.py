"""Errors on a set of corruptions at five severities, all through one compiled function."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from adversarial_augment import corruptions
from adversarial_augment.datasets.cifar10_c import CorruptionSet
from adversarial_augment.evaluators.accuracy import Evaluate
from adversarial_augment.types import Batch, Dataset, TrainState

Counts = Mapping[str, list[int]]  # corruption -> images classified rightly at severity 1, 2, ...


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
  return CorruptionSet(tuple(names), 'generated, in memory', provenance, read)


def corruption_counts(
  evaluate: Evaluate,
  state: TrainState,
  dataset: Dataset,
  corrupted: CorruptionSet,
  names: Sequence[str],
  poll: Callable[[], None],
  known: Counts = MappingProxyType({}),
  keep: Callable[[Counts], None] = lambda counts: None,
) -> dict[str, list[int]]:
  """Returns, by corruption, how many images are classified rightly at each severity.

  Args:
    evaluate: what `accuracy` made.
    state: of the classifier.
    dataset: the clean images and their labels.
    corrupted: the same images, corrupted.
    names: corruptions of that set.
    poll: called before every batch.
    known: the counts of the first severities of some corruptions, which are not counted again.
    keep: called with all counts so far after each corruption and severity.
  """

  def cell(name: str, severity: int) -> Dataset:
    read = lambda index: Batch(corrupted.read(name, severity, index), dataset.read(index).labels)
    return dataset._replace(read=read)

  counts = {name: list(known.get(name, ())) for name in names}
  for name, row in counts.items():
    for severity in corruptions.SEVERITIES[len(row) :]:
      row.append(evaluate(state, cell(name, severity), poll)['num_correct'])
      keep(counts)
  return counts
