"""The class that a targeted attack heads for in each of its rounds: the others in the order of the clean logits."""

import jax
import jax.numpy as jnp

from adversarial_augment.errors import UserError


def check_counts(attack: str, **counts: int) -> None:
  """Refuses options that count something, and are no whole number of at least 1.

  Raises:
    UserError: one of them is none.
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
