"""Attacks of several similar tries: restarts, or targets in turn. Of each image the first success is kept."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import threefry
from adversarial_augment.attacks import inputs
from adversarial_augment.attacks.losses import margin
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree


class Rounds(NamedTuple):
  """An attack's tries. Each is an attack itself, so that a suite may drop the images that are broken in between."""

  number: int  # of rounds, at least 1
  make: Callable[[Array | int], Attack]  # round, 0 to number - 1, traced or not -> its attack, with keys of its own


def repeated(rounds: Rounds) -> Attack:
  """Makes the attack that tries all rounds in one compiled loop.

  Returns:
    An `Attack` that hands out each image's first success, else its feasible image of the highest margin; the metrics
    are those of `judged`. It raises a UserError for images outside [0, 1] or of another dtype, labels that there are
    not, and what are not one key for each image; of what is traced it sees shapes and dtypes.
  """

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    inputs.check(keys, logits_fn, *(x if isinstance(x, jax.core.Tracer) else np.asarray(x) for x in (images, labels)))
    keys = threefry.own(keys)
    images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)  # of 8 bits, labels would end at 255

    def one_more(index, kept):
      return better(kept, rounds.make(index)(keys, logits_fn, images, labels, frozen))

    dtype = jax.eval_shape(lambda: margin(logits_fn(images), labels)).dtype
    none = {'success': jnp.zeros(len(images), bool), 'margin': jnp.full(len(images), jnp.nan, dtype)}
    return jax.lax.fori_loop(0, rounds.number, one_more, AttackResult(images, none))

  return attack


def judged(logits: Array, images: Array, labels: Array) -> AttackResult:
  """Returns images with what their logits say: `margin` [n], and `success` [n], a margin of at least 0.

  A label that ties with another class counts as broken, and so do logits that are NaN.

  Raises:
    UserError: the logits are not [n, k], k at least 2.
  """
  if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
    raise UserError(
      f'logits_fn gives {tuple(logits.shape)} for {len(images)} images; it must give [{len(images)}, classes], '
      'of at least 2 classes.'
    )
  margins = margin(logits, labels)
  return AttackResult(images, {'success': margins >= 0, 'margin': margins})


def better(old: AttackResult, new: AttackResult) -> AttackResult:
  """Takes, image by image, the old one if it is a success; else the new one if that is, or has a higher margin."""
  higher = _no_nan(new.metrics['margin']) > _no_nan(old.metrics['margin'])
  return choose(~old.metrics['success'] & (new.metrics['success'] | higher), new, old)


def choose(condition: Array, tree: PyTree, other: PyTree) -> PyTree:
  """Takes, image by image, `tree` where the condition [n] holds, else `other`; all leaves are [n, ...]."""
  pick = lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
  return jax.tree.map(pick, tree, other)


def round_keys(keys: Key, index: Array | int) -> Key:
  """Returns the keys [n] of a round."""
  return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def _no_nan(margins: Array) -> Array:
  return jnp.where(jnp.isnan(margins), -jnp.inf, margins)
