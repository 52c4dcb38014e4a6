"""Surrogate losses that an adversary maximises: logits [n, k], labels and targets [n] -> [n], at least in float32."""

import jax
import jax.numpy as jnp

from adversarial_augment.errors import UserError
from adversarial_augment.types import Array

_TINY = 1e-12  # keeps the ratios finite where logits are equal


def cross_entropy(logits: Array, labels: Array) -> Array:
  """Returns -log softmax(logits)[label]."""
  return -_of_class(jax.nn.log_softmax(_at_least_float32(logits)), labels)


def kl_divergence(logits: Array, reference: Array) -> Array:
  """Returns KL(softmax(reference) || softmax(logits)) in nats, of a reference [n, k]."""
  log_p, log_q = (jax.nn.log_softmax(_at_least_float32(z)) for z in (reference, logits))
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def margin(logits: Array, labels: Array) -> Array:
  """Returns max over j != label of z_j - z_label.

  At least 0 where the label is not the only winner, and infinite where a logit is NaN: that is no right answer, and an
  attack that passed it by would call robust what fails.
  """
  logits = _at_least_float32(logits)
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  margins = jnp.where(is_label, -jnp.inf, logits).max(-1) - _of_class(logits, labels)
  return jnp.where(jnp.isnan(logits).any(-1), jnp.inf, margins)


def targeted_margin(logits: Array, labels: Array, targets: Array) -> Array:
  """Returns z_target - z_label (arXiv 1910.09338)."""
  logits = _at_least_float32(logits)
  return _of_class(logits, targets) - _of_class(logits, labels)


def dlr(logits: Array, labels: Array) -> Array:
  """Returns the difference of logits ratio (Eq. 6, arXiv 2003.01690), of at least 3 classes.

  The margin over z_(1) - z_(3), the largest and third largest logit: unchanged where logits are shifted or scaled.
  """
  largest = _largest(logits, 3, 'dlr')
  return margin(logits, labels) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
  """Returns the targeted difference of logits ratio (Eq. 7, arXiv 2003.01690), of at least 4 classes.

  z_target - z_label over z_(1) - (z_(3) + z_(4)) / 2, of the sorted logits.
  """
  largest = _largest(logits, 4, 'targeted')
  spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
  return targeted_margin(logits, labels, targets) / (spread + _TINY)


def _at_least_float32(logits: Array) -> Array:
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _of_class(values: Array, classes: Array) -> Array:
  return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]


def _largest(logits: Array, count: int, loss: str) -> Array:
  """Returns the largest logits [n, count] in descending order, or raises UserError where there are fewer."""
  if logits.shape[-1] < count:
    raise UserError(
      f"Loss '{loss}' needs at least {count} classes, and logits_fn gives {logits.shape[-1]}; use loss 'ce' or "
      'attacks.multitargeted.'
    )
  return jax.lax.top_k(_at_least_float32(logits), count)[0]
