"""Data sets: uint8 images held in memory, read by index. No module here imports JAX."""

from collections.abc import Callable

from adversarial_augment.datasets import embedded, source
from adversarial_augment.types import Dataset

# Data sets that are made, not read. All other names are those of prepared ones under `data_dir`.
DATASETS: dict[str, Callable[[str], Dataset]] = {'embedded': embedded.load}


def count(name: str, split: str, data_dir: str) -> int:
  """Returns how many images a split has, without reading them; arguments and errors as of `load`."""
  return embedded.NUM_EXAMPLES[split] if name == 'embedded' else source.count(name, split, data_dir)


def load(name: str, split: str, data_dir: str) -> Dataset:
  """Returns one split of a data set, held in memory.

  Args:
    name: a name in `DATASETS`, or of a prepared data set: 'cifar10', 'cifar10:3.0.2', 'cifar10_corrupted/fog_1'.
    split: 'train' or 'test', or another split that the data set has.
    data_dir: the folder of prepared data sets, as for tfds; '~' is the home folder.

  Raises:
    UserError: no such data set or split, or its files are damaged or not usable.
  """
  if name in DATASETS:
    return DATASETS[name](split)
  return source.load(name, split, data_dir)
