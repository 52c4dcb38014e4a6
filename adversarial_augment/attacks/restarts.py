"""Attacks with restarts, or with several target classes in turn. Of each image the first success is kept."""

from collections.abc import Callable, Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import threefry
from adversarial_augment.attacks import inputs
from adversarial_augment.attacks.losses import margin
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree


@dataclasses.dataclass(frozen=True)
class RestartedAttack:
  """An `Attack` of several restarts, each of which is an attack itself, so that a suite can drop broken images between.

  Called, it runs them all in one compiled loop, and returns each image's first success, else its feasible image of the
  highest margin, with the metrics of `attack_result`. It raises a UserError for images outside [0, 1] or of another
  dtype, out-of-range labels, and anything but one key for each image; of traced arguments it checks shapes and dtypes.

  Attributes:
    number: of restarts, at least 1; every target class of a targeted attack counts as one.
    make: index, 0 to number - 1, traced or not -> the attack of that restart, which derives keys of its own.
  """

  number: int
  make: Callable[[Array | int], Attack]

  def __call__(
    self, keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None
  ) -> AttackResult:
    inputs.check(keys, logits_fn, *(x if isinstance(x, jax.core.Tracer) else np.asarray(x) for x in (images, labels)))
    keys = threefry.own(keys)
    images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)  # of 8 bits, labels would end at 255

    def one_more(index, kept):
      return better(kept, self.make(index)(keys, logits_fn, images, labels, frozen))

    dtype = jax.eval_shape(lambda: margin(logits_fn(images), labels)).dtype
    none = {'success': jnp.zeros(len(images), bool), 'margin': jnp.full(len(images), jnp.nan, dtype)}
    return jax.lax.fori_loop(0, self.number, one_more, AttackResult(images, none))


def attack_result(logits: Array, images: Array, labels: Array) -> AttackResult:
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


def restart_keys(keys: Key, index: Array | int) -> Key:
  """Returns the keys [n] of a restart."""
  return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def _no_nan(margins: Array) -> Array:
  return jnp.where(jnp.isnan(margins), -jnp.inf, margins)


def check_counts(attack: str, counts: Mapping[str, int]) -> None:
  """Checks arguments of an attack that count something.

  Args:
    attack: its name.
    counts: the values by the name of the argument.

  Raises:
    UserError: one of them is no whole number of at least 1.
  """
  for name, count in counts.items():
    if not isinstance(count, int) or count < 1:
      raise UserError(f'{name}={count} of attacks.{attack} must be a whole number, at least 1.')


def ranked_target(logits: jax.Array, labels: jax.Array, rank: jax.Array | int, num_targets: int) -> jax.Array:
  """Returns, of the classes other than the label, that of the `rank`-th largest clean logit, counted from 0.

  Args:
    logits: [n, k], of the clean images.
    labels: [n].
    rank: 0 to num_targets - 1; may be traced.
    num_targets: the ranks there are.

  Returns:
    [n]: over all ranks below k - 1 each other class once, and never the label.

  Raises:
    UserError: fewer than num_targets + 1 classes.
  """
  num_classes = logits.shape[-1]
  if num_targets >= num_classes:
    raise UserError(
      f'num_targets={num_targets} must be less than the number of classes, {num_classes}; set it to {num_classes - 1}.'
    )
  is_other = ~jax.nn.one_hot(labels, num_classes, dtype=bool)
  order = jnp.lexsort((-logits, is_other))  # the label first, whatever its logit; NaN last
  return jax.lax.dynamic_index_in_dim(order, rank + 1, axis=-1, keepdims=False)
