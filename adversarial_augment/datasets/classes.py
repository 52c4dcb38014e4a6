"""Labels of one data set used as those of another: classes are matched by their names, never by position."""

from collections.abc import Sequence
from typing import NamedTuple
import unicodedata

import numpy as np

from adversarial_augment.errors import UserError
from adversarial_augment.types import Batch, Dataset

_SHOWN = 5  # names in a message


class Classes(NamedTuple):
  """The classes that the outputs of a classifier stand for, as far as they are known."""

  num: int | None
  names: tuple[str, ...]  # in the order of the outputs; () if unknown


def difference(known: Classes, dataset: Dataset) -> str:
  """Returns in what the classes of a classifier and of a data set differ, whatever their order; '' if in nothing.

  If the names of one are unknown, only the numbers are compared.
  """
  outputs, names = _normal(known.names), _normal(dataset.class_names)
  counts, only = '', ''
  if known.num not in (None, dataset.num_classes):
    counts = f'{known.num} classes against {dataset.num_classes}'
  if outputs and names and set(outputs) != set(names):
    former, latter = sorted(set(outputs) - set(names)), sorted(set(names) - set(outputs))
    only = f'{_listed(former)} only in the former, {_listed(latter)} only in the latter'
  return ': '.join(filter(None, (counts, only)))


def order(known: Classes, dataset: Dataset, classifier: str, remedy: str) -> list[int] | None:
  """Returns the output of a classifier that stands for each class of a data set, or None if the orders are the same.

  If the names of one are unknown, the orders are assumed to be the same.

  Raises:
    UserError: they do not have the same number of classes, or not the same names; `classifier` begins the message, and
      `remedy` ends it.
  """
  if found := difference(known, dataset):
    separator = ', ' if found[0].isdigit() else ': '
    raise UserError(
      f"{classifier} and the data set '{dataset.name}' have different classes{separator}{found}; {remedy}."
    )
  outputs, names = _normal(known.names), _normal(dataset.class_names)
  return [outputs.index(name) for name in names] if names and outputs and outputs != names else None


def note(known: Classes, dataset: Dataset, whose: str) -> str:
  """Returns a line on how the classes of `whose` are matched; '' if names and order are the same."""
  outputs, names = _normal(known.names), _normal(dataset.class_names)
  if not outputs or not names:
    return f'note: the names of the classes of {whose} are not known on both sides; they are matched by position'
  return f'note: the classes of {whose} have another order; they are matched by name' if outputs != names else ''


def in_order(dataset: Dataset, known: Classes, classifier: str) -> Dataset:
  """Returns a data set whose labels are the outputs of a classifier; its provenance records a change of labels.

  Raises:
    UserError: they do not have the same classes; `classifier` begins the message.
  """
  positions = order(known, dataset, classifier, 'name a data set of the same classes')
  if positions is None:
    return dataset
  table = np.array(positions, np.int32)

  def read(index: np.ndarray) -> Batch:
    images, labels = dataset.read(index)
    return Batch(images, table[labels])

  provenance = dataset.provenance | {'labels': 'matched by name'}
  return dataset._replace(read=read, class_names=known.names, provenance=provenance)


def _normal(names: Sequence[str]) -> list[str]:
  return [unicodedata.normalize('NFC', name) for name in names]


def _listed(names: Sequence[str]) -> str:
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(f"'{name}'" for name in names[:_SHOWN]) + more if names else 'none'
