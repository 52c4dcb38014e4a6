"""Errors on a test set under corruptions of five severities."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adversarial_augment import corruptions, metrics
from adversarial_augment.datasets.cifar10_c import CorruptionSet
from adversarial_augment.evaluation.evals import Keep, Outcomes
from adversarial_augment.storage import outcomes
from adversarial_augment.types import Batch, Dataset


def corrupted_in_memory(dataset: Dataset, names: Sequence[str], seed: int, frost_dir: str | None) -> CorruptionSet:
  """Returns the corrupted forms of a data set, made when they are read: the same bytes as those of `prepare`.

  Args:
    dataset: the clean images.
    names: of the corruptions.
    seed: of all draws.
    frost_dir: folder of the frost photographs, see `corruptions.corrupt`.

  Raises:
    UserError: the folder lacks one of the photographs.
  """

  def read(name: str, severity: int, index: np.ndarray) -> np.ndarray:
    return corruptions.corrupt(dataset.read(index).images, name, severity, seed, index, frost=frost_dir)

  frost = corruptions.describe_frost(frost_dir) if 'frost' in names else None
  provenance = {'seed': seed, 'frost': frost, 'made_with': corruptions.made_with()}
  return CorruptionSet(tuple(names), metrics.GENERATED_IN_MEMORY, provenance, read)


def errors(
  accuracy_of: Callable[[Dataset], dict[str, Any]],
  dataset: Dataset,
  corrupted: CorruptionSet,
  names: Sequence[str],
  *,
  rows: np.ndarray,
  known: Outcomes,
  keep: Keep,
) -> dict[str, Any]:
  """Returns the errors under each corruption at each severity, their means, and which images were correct.

  Args:
    accuracy_of: images -> what `accuracy` finds.
    dataset: the clean images and their labels.
    corrupted: the same images, corrupted.
    names: corruptions of that set.
    rows: the images that count, by their places in the data set.
    known: the outcomes of the first severities of some corruptions, which are not measured again.
    keep: called with all outcomes so far after each corruption and severity.
  """
  n = len(rows)
  correct = _outcomes(accuracy_of, dataset, corrupted, names, rows, known, keep)
  counts = {name: [outcomes.count(cell) for cell in row] for name, row in correct.items()}
  error = {name: [1 - count / n for count in row] for name, row in counts.items()}
  mean = metrics.mean_corruption_error(error)
  # As if each image counted once: its cells are not independent, and no dependence makes the mean vary more.
  low, high = metrics.binomial_interval(mean * n, n)
  return {
    'mean': mean,
    'interval': [low, high],
    'corruption_error': {name: float(np.mean(row)) for name, row in error.items()},
    'severity_error': np.mean(list(error.values()), axis=0).tolist(),
    'error': error,
    'num_correct': counts,
    'correct': correct,
    'num_images': n,
    'origin': corrupted.origin,
    'frost': corrupted.provenance['frost'],
  }


def _outcomes(
  accuracy_of: Callable[[Dataset], dict[str, Any]],
  dataset: Dataset,
  corrupted: CorruptionSet,
  names: Sequence[str],
  rows: np.ndarray,
  known: Outcomes,
  keep: Keep,
) -> dict[str, list[str]]:
  """Returns, by corruption, which images are classified correctly at each severity, as `outcomes.pack` has it."""

  def cell(name: str, severity: int) -> Dataset:
    def read(index: np.ndarray) -> Batch:
      return Batch(corrupted.read(name, severity, rows[index]), dataset.read(rows[index]).labels)

    return dataset._replace(num_examples=len(rows), read=read)

  found = {name: list(known.get(name, ())) for name in names}
  for name, row in found.items():
    for severity in corruptions.SEVERITIES[len(row) :]:
      row.append(accuracy_of(cell(name, severity))['correct'])
      keep(found)
  return found
