"""Reads CIFAR-10.1, a newer test set for CIFAR-10 (Recht et al. 2018, arXiv 1806.00451), as its authors hand it out.

v6 (2,000 images, 200 of each class) is the recommended version, and the one of arXiv 2104.01086; v4 has 2,021 images.
"""

import pathlib

import numpy as np

from adversarial_augment.datasets import npy
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact
from adversarial_augment.types import Batch

COUNTS = {'v6': 2000, 'v4': 2021}  # images of each version
MAIN = 'v6'
# SHA-256, as in tensorflow_datasets/url_checksums/cifar10_1.txt
SHA256 = {
  'cifar10.1_v4_data.npy': '5aaedc268df8f4cffca2ac0cf9e608ae1897a8cddb630c7a850a2ea8f6558e75',
  'cifar10.1_v4_labels.npy': '1f9544300ded199539b6662364ce7fe6c2e1ea9f87408f06db4b1a6184cffb18',
  'cifar10.1_v6_data.npy': '2997188e5816f5bd545dc77771b6227828c28146049fcecf3fa10775474cacc6',
  'cifar10.1_v6_labels.npy': 'ae40beda001693674edc94d925ee8268cfe68905f8f9aff800c8dcdfcd6c9448',
}
_CLASSES = 10


def read(folder: pathlib.Path, version: str) -> tuple[Batch, dict[str, str]]:
  """Returns the images and labels of a version, and the SHA-256 of its two files; equal to `SHA256` if official.

  Args:
    folder: holds cifar10.1_VERSION_data.npy and cifar10.1_VERSION_labels.npy.
    version: one of COUNTS.

  Raises:
    UserError: a file is missing, damaged, or not of this version.
  """
  paths = [folder / f'cifar10.1_{version}_{part}.npy' for part in ('data', 'labels')]
  for path in paths:
    if not path.is_file():
      raise UserError(
        f"'{path}' does not exist; give the folder with {', '.join(SHA256)}, which is datasets/ of "
        'github.com/modestyachts/CIFAR-10.1.'
      )
  images, labels = (npy.open_array(npy.whole(path)) for path in paths)
  n = COUNTS[version]
  if images.dtype != np.uint8 or images.shape != (n, 32, 32, 3):
    raise UserError(
      f"'{paths[0]}' has shape {list(images.shape)} and type {images.dtype.name}, but {version} must be uint8 "
      f'{[n, 32, 32, 3]}; get the file again.'
    )
  if labels.dtype.kind not in 'iu' or labels.shape != (n,):
    raise UserError(
      f"'{paths[1]}' has shape {list(labels.shape)} and type {labels.dtype.name}, but {version} must be "
      f'integers [{n}]; get the file again.'
    )
  if labels.min() < 0 or labels.max() >= _CLASSES:
    raise UserError(
      f"'{paths[1]}' has labels from {labels.min()} to {labels.max()}, but they must lie in [0, {_CLASSES - 1}]; get "
      'the file again.'
    )
  histogram = np.bincount(labels.astype(np.int64), minlength=_CLASSES)
  if version == MAIN and (histogram != n // _CLASSES).any():
    raise UserError(
      f"'{paths[1]}' has {histogram.tolist()} images of the classes, but {version} has {n // _CLASSES} of each; get "
      'the file again.'
    )
  hashes = {path.name: artifact.sha256_of(path) for path in paths}
  return Batch(np.array(images), labels.astype(np.int32)), hashes
