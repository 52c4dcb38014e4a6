"""Published data sets: what is known of them before they are there, and the fields that follow from them."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class PublishedDataset(NamedTuple):
  """A data set that `prepare` downloads."""

  title: str
  num_train: int  # training images
  num_classes: int
  side: int  # of an image in pixels
  fields: Mapping[str, Any] = {}  # what fields that are None in a config stand for


# Mean and standard deviation of the channels of the training images in [0, 1], as usually given. For 64 pixels the
# first convolution has stride 2, so that later layers have the resolutions of CIFAR, and the cost is a quarter.
DATASETS = {
  'cifar10': PublishedDataset('CIFAR-10', 50_000, 10, 32),
  'cifar100': PublishedDataset(
    'CIFAR-100', 50_000, 100, 32,
    {'classifier.mean': (0.5071, 0.4865, 0.4409), 'classifier.std': (0.2673, 0.2564, 0.2762)},
  ),
  'tiny_imagenet': PublishedDataset(
    'Tiny ImageNet', 100_000, 200, 64,
    {
      'classifier.mean': (0.4802, 0.4481, 0.3975), 'classifier.std': (0.2770, 0.2691, 0.2821),
      'classifier.stem_stride': 2,
    },
  ),
}  # fmt: skip


FOLLOWING = tuple(DATASETS['tiny_imagenet'].fields)  # all fields that follow from some data set


def find(dataset: str) -> PublishedDataset | None:
  """Returns the entry of the field `dataset`, which may name a version; None for other data sets."""
  return DATASETS.get(dataset.partition(':')[0])
