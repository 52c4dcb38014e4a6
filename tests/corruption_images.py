"""Real images for the tests of corruptions, and the loop of `corruptions.corrupt` once more, with its draws."""

from collections.abc import Callable
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import datasets
from adversarial_augment.corruptions.corruption import Corruption, HostCorruption
from adversarial_augment.types import PyTree

CIFAR10_VARIABLE = 'ADVERSARIAL_AUGMENT_CIFAR10'


def real_images(n: int) -> np.ndarray:
  """Returns the first n test images of CIFAR-10 where its variable is set, else of the embedded set; read-only."""
  images = _test_images()
  assert len(images) >= n, f'the test split has {len(images)} images only'
  return images[:n]


@functools.cache
def _test_images() -> np.ndarray:
  folder = os.environ.get(CIFAR10_VARIABLE, '')
  dataset = datasets.load('cifar10' if folder else 'embedded', 'test', folder)
  images = dataset.read(np.arange(min(dataset.num_examples, 2000))).images
  images.flags.writeable = False
  return images


def corrupted(corruption: Corruption | HostCorruption, images: np.ndarray, severity: int) -> tuple[PyTree, np.ndarray]:
  """Returns the draws, stacked, and the corrupted images, uint8 [n, h, w, 3]."""
  if isinstance(corruption, HostCorruption):
    return (), np.stack([corruption.apply(image, corruption.severities[severity - 1]) for image in images])
  constants = corruption.constants(severity, images.shape[1:3])
  draws, levels = _runner(corruption)(images, constants)
  return jax.tree.map(np.asarray, draws), np.asarray(levels)


@functools.cache
def _runner(corruption: Corruption) -> Callable:
  def run(images, constants):
    def one(key_and_image):
      key, image = key_and_image
      draws = corruption.draw(key, image.shape[:2], constants)
      levels = corruption.apply(image.astype(jnp.float32), draws, constants)
      return draws, jnp.clip(levels, 0, 255).astype(jnp.uint8)

    return jax.lax.map(one, (jax.random.split(jax.random.key(7), len(images)), images))

  return jax.jit(run)


def differences(
  corruption: Corruption | HostCorruption, oracle: Callable, images: np.ndarray, severity: int
) -> np.ndarray:
  """Returns the corrupted images minus those of an oracle that has the same draws, int [n, h, w, 3]."""
  draws, levels = corrupted(corruption, images, severity)
  leaves, structure = jax.tree.flatten(draws)
  of_one = [structure.unflatten(parts) for parts in zip(*leaves, strict=True)] if leaves else [()] * len(images)
  expected = [oracle(image, severity, own) for image, own in zip(images, of_one, strict=True)]
  return levels.astype(int) - np.stack(expected)


def of_another_size(images: np.ndarray) -> np.ndarray:
  """Returns half as many images of 48 x 40 pixels, cut from pairs that are put side by side and mirrored downwards."""
  pairs = np.concatenate([images[::2], images[1::2]], axis=2)
  return np.ascontiguousarray(np.concatenate([pairs, pairs[:, ::-1]], axis=1)[:, :48, :40])
