"""Attacks with restarts, or with several target classes in turn. Of each image the first success is kept."""

from collections.abc import Callable, Mapping
import dataclasses
import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment import threefry
from adversarial_augment.attacks import inputs
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.losses import margin
from adversarial_augment.attacks.trees import choose
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree


@dataclasses.dataclass(frozen=True)
class RestartedAttack:
  """An `Attack` of several restarts, each of which is an attack itself, so that a suite can drop broken images between.

  Called, it runs them all in one compiled loop, and returns each image's first success, else its feasible image of the
  highest margin, with the metrics `success` and `margin` of `attack_result`. It raises a UserError for images outside
  [0, 1] or of another dtype, out-of-range labels, anything but one key for each image, and too few classes for the
  loss or the targets; of traced arguments it checks shapes and dtypes.

  Attributes:
    number: of restarts, at least 1; every target class of a targeted attack counts as one.
    make: index, 0 to number - 1, traced or not -> the attack of that restart, which derives keys of its own.
  """

  number: int
  make: Callable[[Array | int], Attack]

  def __call__(
    self, keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None
  ) -> AttackResult:
    inputs.check(keys, logits_fn, images, labels)
    keys = threefry.own(keys)
    images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)  # of 8 bits, labels would end at 255

    def one_more(index, kept):
      return better(kept, self.make(index)(keys, logits_fn, images, labels, frozen))

    dtype = jax.eval_shape(lambda: margin(logits_fn(images), labels)).dtype
    none = {'success': jnp.zeros(len(images), bool), 'margin': jnp.full(len(images), jnp.nan, dtype)}
    return jax.lax.fori_loop(0, self.number, one_more, AttackResult(images, none))


class Restart(NamedTuple):
  """What one restart is given, for n images."""

  number: Array | int  # of the restart; 0 is the first, of every target
  keys: Key  # [n], of this restart
  logits_fn: LogitsFn
  images: Array  # [n, h, w, c]
  labels: Array  # int32 [n]
  targets: Any  # int32 [n], the classes to aim at; None for attacks without
  clean: AttackResult  # the images as they are
  frozen: PyTree = None  # what the attack is given as its last argument


def restarted(search: Callable[[Restart], AttackResult], restarts: int, num_targets: int = 0) -> RestartedAttack:
  """Makes the attack that runs `search` with every target, then again from the next start.

  Images on which a search finds nothing stronger stay clean. `num_targets=0` is for searches without targets.
  """

  def make(index: Array | int) -> Attack:
    @fast_in_loops
    def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
      logits = logits_fn(images)
      clean = attack_result(logits, images, labels)
      targets = ranked_target(logits, labels, index % num_targets, num_targets) if num_targets else None
      number, own = index // max(num_targets, 1), restart_keys(keys, index)
      return better(clean, search(Restart(number, own, logits_fn, images, labels, targets, clean, frozen)))

    return attack

  return RestartedAttack(restarts * max(num_targets, 1), make)


def attack_result(logits: Array, images: Array, labels: Array) -> AttackResult:
  """Returns images with what their logits say: `margin` [n], and `success` [n], a margin of at least 0.

  A label that ties with another class counts as broken, and so do logits that are NaN.
  """
  margins = margin(logits, labels)
  return AttackResult(images, {'success': margins >= 0, 'margin': margins})


def better(old: AttackResult, new: AttackResult) -> AttackResult:
  """Takes, image by image, the old one if it is a success; else the new one if that is, or has a higher margin."""
  old_margin, new_margin = (
    jnp.where(jnp.isnan(m), -jnp.inf, m) for m in (old.metrics['margin'], new.metrics['margin'])
  )
  return choose(~old.metrics['success'] & (new.metrics['success'] | (new_margin > old_margin)), new, old)


def restart_keys(keys: Key, index: Array | int) -> Key:
  """Returns the keys [n] of a restart."""
  return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def check_numbers(attack: str, counts: Mapping[str, int], sizes: Mapping[str, float] = {}) -> None:
  """Raises UserError for arguments of an attack: counts below 1 or not whole, and sizes that are not above 0."""
  for name, count in counts.items():
    if not isinstance(count, numbers.Integral) or count < 1:
      raise UserError(f'{name}={count} of attacks.{attack} must be a whole number, at least 1.')
  for name, size in sizes.items():
    if not 0 < size < math.inf:
      raise UserError(f'{name}={size} of attacks.{attack} must be a finite number above 0, in units of epsilon.')


def ranked_target(logits: Array, labels: Array, rank: Array | int, num_targets: int) -> Array:
  """Returns, of the classes other than the label, that of the `rank`-th largest clean logit [n, k], counted from 0.

  Over all ranks below k - 1 that is each other class once. Raises UserError where there are fewer than `num_targets`.
  """
  num_classes = logits.shape[-1]
  if num_targets >= num_classes:
    raise UserError(
      f'num_targets={num_targets} must be less than the number of classes, {num_classes}; set it to {num_classes - 1}.'
    )
  is_other = ~jax.nn.one_hot(labels, num_classes, dtype=bool)
  order = jnp.lexsort((-logits, is_other))  # the label first, whatever its logit; NaN last
  return jax.lax.dynamic_index_in_dim(order, rank + 1, axis=-1, keepdims=False)
