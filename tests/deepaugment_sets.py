"""A small data set, pets, with a training split, and a DeepAugment set of it that needs no network."""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from adversarial_augment import datasets
from adversarial_augment.datasets import mixture, writer
from adversarial_augment.preparation import deepaugment_files
from adversarial_augment.types import Dataset
from tests.described import described

N = 60


def write_pets(data_dir: pathlib.Path, seed: int = 0, size: int = 32) -> pathlib.Path:
  """Writes a data set of 60 training and 16 test images of 3 classes."""
  rng = np.random.default_rng(seed)

  def split(n: int) -> writer.Split:
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    return writer.Split(n, zip(images, rng.integers(0, 3, n), strict=True))

  description = writer.Description('pets', '1.0.0', 'x', ('a', 'b', 'c'), (size, size, 3), 'own', None)
  writer.write(description, {'train': split(N), 'test': split(16)}, data_dir)
  return data_dir


def load(data_dir: pathlib.Path) -> Dataset:
  return datasets.load('pets', 'train', str(data_dir))


def open_sets(train: Dataset, data_dir: pathlib.Path, copies: int | None = None) -> list[Dataset]:
  """Opens the set 'some', as a command does."""
  with described():
    return mixture.load(train, str(data_dir), ['some'], copies)


def make(images: np.ndarray, index: np.ndarray | None, copy: int) -> np.ndarray:
  """Stands for the network."""
  return images ^ np.uint8(copy + 1)


def plan_of(train: Dataset, copies: int = 2, **changes) -> dict:
  return {
    'format': mixture.FORMAT,
    'origin': 'generated',
    'copies': copies,
    'train_set': train.provenance,
    'made_with': {'jax': '1'},
  } | changes


def write_some(data_dir: pathlib.Path, *, changes: Mapping[str, Any] = {}, **options: Any) -> tuple[int, int]:
  """Writes the set 'some' of pets, of two copies if the plan's `changes` do not say otherwise."""
  train = load(data_dir)
  folder = mixture.folder_of('pets', 'some', str(data_dir))
  with described():
    return deepaugment_files.write(folder, plan_of(train, **changes), train, **{'make': make} | options)


def write(data_dir: pathlib.Path) -> pathlib.Path:
  """Writes pets and their set 'some' of two copies."""
  write_some(write_pets(data_dir))
  return data_dir
