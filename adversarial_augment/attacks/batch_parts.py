"""Attacking a batch in parts, to save memory, or only a part of it."""

import math

import jax
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


def in_microbatches(attack: Attack, size: int) -> Attack:
  """Returns `attack`, run on `size` images after the other; their number must be a multiple of it.

  Equal to `attack` where the logits of an image do not depend on the others: not under batch statistics.
  """

  def attack_parts(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    split = lambda x: x.reshape((x.shape[0] // size, size) + x.shape[1:])
    one = lambda part: attack(part[0], logits_fn, part[1], part[2], frozen)
    result = jax.lax.map(one, (split(keys), split(images), split(labels)))
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), result)

  return attack_parts
