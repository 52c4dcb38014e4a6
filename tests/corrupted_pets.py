"""A small data set, pets, and calls of `prepare cifar10_c` that corrupt it."""

import hashlib
import json
import pathlib
import shutil

import numpy as np

from adversarial_augment import datasets, prepare
from adversarial_augment.datasets import writer
from adversarial_augment.types import Dataset
from tests.described import described

N = 40
NAMES = ('brightness', 'gaussian_noise')


def write_pets(data_dir: pathlib.Path, name: str = 'pets', seed: int = 0, size: int = 32) -> pathlib.Path:
  """Writes a data set of 40 images of 3 classes."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (N, size, size, 3), np.uint8)
  description = writer.Description(name, '1.0.0', 'x', ('a', 'b', 'c'), (size, size, 3), 'own', None)
  writer.write(description, {'test': writer.Split(N, zip(images, rng.integers(0, 3, N), strict=True))}, data_dir)
  return data_dir


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(source, target))


def command(data_dir: pathlib.Path, *flags: str) -> list[str]:
  return ['cifar10_c', '--dataset=pets', f'--names={",".join(NAMES)}', f'--data_dir={data_dir}', *flags]


def run(data_dir: pathlib.Path, *flags: str) -> pathlib.Path:
  with described():
    prepare.main(command(data_dir, *flags))
  return data_dir


def load(data_dir: pathlib.Path) -> Dataset:
  return datasets.load('pets', 'test', str(data_dir))


def hashes(folder: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of each file of a set, hidden ones too, but for the lock."""
  paths = [path for path in folder.iterdir() if path.name != '.lock']
  return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def manifest_of(data_dir: pathlib.Path) -> dict:
  return json.loads((data_dir / 'pets_c' / 'MANIFEST.json').read_text())
