"""The images on which a classifier is judged: the test set, its corrupted forms, and CIFAR-10.1."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from adversarial_augment import metrics
from adversarial_augment.datasets import cifar10, cifar10_c, classes, source
from adversarial_augment.errors import UserError
from adversarial_augment.storage import files
from adversarial_augment.types import Dataset

_CORRUPTED = {'cifar10_c': metrics.NAMES, 'cifar10_c_extra': metrics.EXTRA_NAMES}


class Benchmarks(NamedTuple):
  """What `config.evals` needs."""

  images: Dataset
  corrupted: Mapping[str, cifar10_c.CorruptionSet] = {}  # by evaluation; what is missing is made in memory
  cifar10_1: Mapping[str, Dataset] = {}


def load(evals: Collection[str], name: str, data_dir: str, images: Dataset) -> Benchmarks:
  """Opens what the evaluations need beside the test set, and looks whether it belongs to it.

  Args:
    evals: names of evaluations.
    name: of the data set.
    data_dir: the folder of prepared data sets; a folder NAME_c there holds the corrupted test set.
    images: the test set.

  Raises:
    UserError: a set is missing, damaged, or of other images or classes.
  """
  corrupted: dict[str, cifar10_c.CorruptionSet] = {}
  cifar10_1: dict[str, Dataset] = {}
  if _CORRUPTED.keys() & set(evals):
    if min(images.image_shape[:2]) < metrics.MIN_SIZE:
      raise UserError(
        f'config.dataset={name} has images of {images.image_shape[0]}x{images.image_shape[1]}, but corruptions need '
        f'{metrics.MIN_SIZE} pixels a side; prepare it larger, or leave cifar10_c out of config.evals.'
      )
    folder = files.user_path(data_dir, 'config.data_dir') / cifar10_c.folder_name(name)
    if folder.exists():
      wanted = {evaluation: _CORRUPTED[evaluation] for evaluation in evals if evaluation in _CORRUPTED}
      opened = lambda names: cifar10_c.open_set(folder, names, images, verify=True)
      corrupted = {evaluation: opened(names) for evaluation, names in wanted.items()}
  if 'cifar10_1' in evals:
    if name.partition(':')[0] != 'cifar10':
      raise UserError(
        f"config.evals has cifar10_1, the classes of which are CIFAR-10's, but config.dataset={name}; leave it out."
      )
    for version in metrics.CIFAR10_1_COUNTS:
      dataset = source.load(f'cifar10_1/{version}', 'test', data_dir)
      if dataset.class_names == tuple('0123456789'):  # as TFDS has it, in CIFAR-10's order
        dataset = dataset._replace(class_names=cifar10.CLASS_NAMES)
      known = classes.Classes(images.num_classes, images.class_names)
      cifar10_1[version] = classes.in_order(dataset, known, f"The data set '{images.name}'")
  return Benchmarks(images, corrupted, cifar10_1)


def origins(benchmarks: Benchmarks) -> dict[str, Any]:
  """Returns where all images but those of the test set come from, by evaluation."""
  corrupted = {name: {'origin': of.origin, **of.provenance} for name, of in benchmarks.corrupted.items()}
  return corrupted | {version: dataset.provenance for version, dataset in benchmarks.cifar10_1.items()}
