"""Reads CIFAR-10.1, a newer test set for CIFAR-10 (Recht et al. 2018, arXiv 1806.00451), from its authors' files.

v6 (2,000 images, 200 of each class) is the recommended version, and the one of arXiv 2104.01086; v4 has 2,021 images.
"""

import pathlib

import numpy as np

from adversarial_augment.datasets import arrays
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact
from adversarial_augment.types import Batch

COUNTS = {'v6': 2000, 'v4': 2021}  # images of each version
PER_CLASS = {'v6': 200, 'v4': None}
# SHA-256, as in tensorflow_datasets/url_checksums/cifar10_1.txt
SHA256 = {
  'cifar10.1_v4_data.npy': '5aaedc268df8f4cffca2ac0cf9e608ae1897a8cddb630c7a850a2ea8f6558e75',
  'cifar10.1_v4_labels.npy': '1f9544300ded199539b6662364ce7fe6c2e1ea9f87408f06db4b1a6184cffb18',
  'cifar10.1_v6_data.npy': '2997188e5816f5bd545dc77771b6227828c28146049fcecf3fa10775474cacc6',
  'cifar10.1_v6_labels.npy': 'ae40beda001693674edc94d925ee8268cfe68905f8f9aff800c8dcdfcd6c9448',
}
_WAY_OUT = f'give the folder with {", ".join(SHA256)}, which is datasets/ of github.com/modestyachts/CIFAR-10.1'


def read(folder: pathlib.Path, version: str) -> tuple[Batch, dict[str, str]]:
  """Returns the images and labels of a version, and the SHA-256 of its two files; equal to `SHA256` if official.

  Args:
    folder: contains cifar10.1_VERSION_data.npy and cifar10.1_VERSION_labels.npy.
    version: one of COUNTS.

  Raises:
    UserError: a file is missing, damaged, or not of this version.
  """
  paths = [folder / f'cifar10.1_{version}_{part}.npy' for part in ('data', 'labels')]
  if missing := [path for path in paths if not path.is_file()]:
    raise UserError(f"'{missing[0]}' does not exist; {_WAY_OUT}.")
  images, labels = (arrays.open_array(arrays.whole(path)) for path in paths)
  n, (data, label) = COUNTS[version], (f"'{path}'" for path in paths)
  fault = (
    arrays.mismatch(images, data, 'uint8', (n, 32, 32, 3))
    or arrays.mismatch(labels, label, 'integers', (n,))
    or arrays.label_fault(labels, label, 10, PER_CLASS[version])
  )
  if fault:
    raise UserError(f'{fault}; get the file again.')
  return Batch(np.array(images), labels.astype(np.int32)), {path.name: artifact.sha256_of(path) for path in paths}
