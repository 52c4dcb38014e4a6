"""Errors on a test set under corruptions of five severities."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import corruptions, metrics
from adversarial_augment.config import rules
from adversarial_augment.config.fields import spell
from adversarial_augment.datasets import cifar10_c
from adversarial_augment.datasets.cifar10_c import CorruptionSet
from adversarial_augment.errors import UserError
from adversarial_augment.storage import files, outcomes
from adversarial_augment.types import Batch, Dataset

Outcomes = Mapping[str, list[str]]  # corruption -> packed bits of the images that are right at severity 1, 2, ...
Keep = Callable[[Outcomes], None]


def open_set(config: ConfigDict, images: Dataset, evaluation: str, names: Sequence[str], prepared: bool):
  """Returns the corrupted forms of a data set: what `prepare` has written beside it, or else made in memory."""
  height, width, _ = images.image_shape
  if min(height, width) < metrics.MIN_SIZE:
    raise rules.too_small(config.dataset, height, width, metrics.MIN_SIZE, f'the evaluation {evaluation}')
  folder = files.user_path(config.data_dir, 'data_dir') / cifar10_c.folder_name(config.dataset, names)
  if prepared and folder.exists():
    return cifar10_c.open_set(folder, names, images, verify=True)
  try:
    return in_memory(images, names, config.frost_dir)
  except UserError as error:
    if config.frost_dir is None:
      raise
    raise UserError(f'{spell(config, "frost_dir")}: {error}') from error


def in_memory(images: Dataset, names: Sequence[str], frost_dir: str | None = None, seed: int = 0) -> CorruptionSet:
  """Returns the corrupted forms of a data set, made when they are read: the same bytes as those of `prepare`."""

  def read(name: str, severity: int, index: np.ndarray) -> np.ndarray:
    return corruptions.corrupt(images.read(index).images, name, severity, seed, index, frost=frost_dir)

  frost = corruptions.describe_frost(frost_dir) if 'frost' in names else None
  provenance = {'seed': seed, 'frost': frost, 'made_with': corruptions.made_with(names)}
  return CorruptionSet(tuple(names), metrics.GENERATED_IN_MEMORY, provenance, read)


def errors(
  measure: Callable[[Dataset], dict[str, Any]],
  images: Dataset,
  corrupted: CorruptionSet,
  names: Sequence[str],
  *,
  rows: np.ndarray,
  known: Outcomes,
  keep: Keep,
) -> dict[str, Any]:
  """Returns the errors under each corruption at each severity, their means, and which images were correct.

  Of the images, only `rows` count. Outcomes that are `known` are not measured again; `keep` gets all so far after each
  severity.
  """

  def cell(name: str, severity: int) -> Dataset:
    def read(index: np.ndarray) -> Batch:
      return Batch(corrupted.read(name, severity, rows[index]), images.read(rows[index]).labels)

    return images._replace(num_examples=n, read=read)

  n = len(rows)
  correct = {name: list(known.get(name, ())) for name in names}
  for name, row in correct.items():
    for severity in corruptions.SEVERITIES[len(row) :]:
      row.append(measure(cell(name, severity))['correct'])
      keep(correct)
  counts = {name: [outcomes.count(bits) for bits in row] for name, row in correct.items()}
  error = {name: [1 - count / n for count in row] for name, row in counts.items()}
  mean = metrics.mean_corruption_error(error)
  return {
    'mean': mean,
    # As if each image counted once: its cells are not independent, and no dependence makes the mean vary more.
    'interval': list(metrics.binomial_interval(mean * n, n)),
    'corruption_error': {name: float(np.mean(row)) for name, row in error.items()},
    'severity_error': np.mean(list(error.values()), axis=0).tolist(),
    'error': error,
    'num_correct': counts,
    'correct': correct,
    'num_images': n,
    'origin': corrupted.origin,
    'frost': corrupted.provenance['frost'],
  }
