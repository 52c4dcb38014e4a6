"""Attacking a share of each batch: a departure from Eq. 3 of arXiv 2104.01086, whose adversary meets every image."""

import math

import numpy as np

from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree


def attacked_images(fraction: float, num_images: int) -> int:
  """Returns how many of a device's images `fraction` of them is, rounded down (but 0.29 of 100 is 29)."""
  return math.floor(fraction * num_images + 1e-6)


def on_share(attack: Attack, count: int, num_images: int) -> Attack:
  """Returns `attack`, run on `count` of `num_images` images; the others stay clean.

  They are evenly spaced. Batches are shuffled, so that no draw is needed, and where every device attacks an equal share
  without rounding, the same images of the global batch are attacked on any number of devices. Only they go through the
  networks, and batch statistics under attack are theirs; the metrics have one value for each of them, [count].
  """
  index = np.flatnonzero(np.diff(np.arange(num_images + 1) * count // num_images))

  def attack_share(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    result = attack(keys[index], logits_fn, images[index], labels[index], frozen)
    return result._replace(images=images.at[index].set(result.images))

  return attack_share
