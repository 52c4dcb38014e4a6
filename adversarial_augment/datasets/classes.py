"""Labels of one data set counted as those of another: classes are matched by their names, never by position."""

from collections.abc import Sequence
import itertools
from typing import NamedTuple
import unicodedata

import numpy as np

from adversarial_augment.errors import UserError
from adversarial_augment.types import Batch, Dataset

_SHOWN = 5  # names in a message


class Classes(NamedTuple):
  """What the outputs of a classifier stand for, as far as it is known."""

  num: int | None
  names: tuple[str, ...]  # in the order of the outputs; () where nobody knows them


def order(known: Classes, dataset: Dataset, classifier: str, remedy: str) -> list[int] | None:
  """Returns the output of a classifier that stands for each class of a data set, or None where both have one order.

  Where the names of one are not known, that is all that can be assumed.

  Args:
    known: what the outputs stand for.
    dataset: whose classes are matched.
    classifier: begins the message.
    remedy: ends it.

  Raises:
    UserError: they have not the same number of classes, or not the same names.
  """
  both = f"{classifier} and the data set '{dataset.name}' have different classes"
  outputs, names = _normal(known.names), _normal(dataset.class_names)
  only = [sorted(a - b) for a, b in itertools.permutations((set(outputs), set(names)))]
  named = bool(outputs and names)
  which = f': {_listed(only[0])} only in the former, {_listed(only[1])} only in the latter' if named else ''
  if known.num is not None and known.num != dataset.num_classes:
    raise UserError(f'{both}, {known.num} classes against {dataset.num_classes}{which}; {remedy}.')
  if not named or outputs == names:
    return None
  if any(only):
    raise UserError(f'{both}{which}; {remedy}.')
  return [outputs.index(name) for name in names]


def note(known: Classes, dataset: Dataset, whose: str) -> str:
  """Returns what is to be said of how the classes of `whose` were matched; '' where names and order are the same."""
  outputs, names = _normal(known.names), _normal(dataset.class_names)
  if not outputs or not names:
    return f'note: the names of the classes of {whose} are not known on both sides; they are matched by position'
  if outputs != names:
    return f'note: the classes of {whose} have another order; they are matched by name'
  return ''


def in_order(dataset: Dataset, known: Classes, classifier: str) -> Dataset:
  """Returns a data set whose labels are the outputs of a classifier; its provenance says so where they were not.

  Args:
    dataset: to be classified.
    known: what the outputs stand for.
    classifier: begins the message.

  Raises:
    UserError: they have not the same classes.
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
