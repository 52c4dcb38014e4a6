"""Attacking a batch in parts, to save memory."""

import jax

from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree


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
