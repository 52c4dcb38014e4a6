"""Errors on a set of corruptions at five severities, all through one compiled function."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from adversarial_augment import corruptions
from adversarial_augment.datasets.cifar10_c import CorruptionSet
from adversarial_augment.evaluation.accuracy import Evaluate
from adversarial_augment.types import Batch, Dataset, TrainState

Outcomes = Mapping[str, list[str]]  # corruption -> the images classified rightly at severity 1, 2, ..., as packed bits


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


def corruption_outcomes(
  evaluate: Evaluate,
  state: TrainState,
  dataset: Dataset,
  corrupted: CorruptionSet,
  names: Sequence[str],
  poll: Callable[[], None],
  known: Outcomes = MappingProxyType({}),
  keep: Callable[[Outcomes], None] = lambda found: None,
  rows: np.ndarray | None = None,
) -> dict[str, list[str]]:
  """Returns, by corruption, which images are classified rightly at each severity, as `outcomes.pack` has it.

  Args:
    evaluate: what `accuracy` made.
    state: of the classifier.
    dataset: the clean images and their labels.
    corrupted: the same images, corrupted.
    names: corruptions of that set.
    poll: called before every batch.
    known: the outcomes of the first severities of some corruptions, which are not measured again.
    keep: called with all outcomes so far after each corruption and severity.
    rows: the images that count, by their places in the data set; None: all.
  """
  chosen = np.arange(dataset.num_examples) if rows is None else rows

  def cell(name: str, severity: int) -> Dataset:
    def read(index: np.ndarray) -> Batch:
      return Batch(corrupted.read(name, severity, chosen[index]), dataset.read(chosen[index]).labels)

    return dataset._replace(num_examples=len(chosen), read=read)

  found = {name: list(known.get(name, ())) for name in names}
  for name, row in found.items():
    for severity in corruptions.SEVERITIES[len(row) :]:
      row.append(evaluate(state, cell(name, severity), poll)['correct'])
      keep(found)
  return found
