"""Surrogate losses that an adversary maximises; one value per image, at least in float32."""

import jax
import jax.numpy as jnp

from adversarial_augment.errors import UserError

_TINY = 1e-12  # keeps the ratios finite where logits are equal


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[label]: [n, k], [n] -> [n], at least in float32."""
  return -_of_class(jax.nn.log_softmax(_at_least_float32(logits)), labels)


def kl_divergence(logits: jax.Array, reference: jax.Array) -> jax.Array:
  """Returns KL(softmax(reference) || softmax(logits)) in nats: [n, k], [n, k] -> [n], at least in float32."""
  log_p, log_q = (jax.nn.log_softmax(_at_least_float32(z)) for z in (reference, logits))
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns max over j != label of z_j - z_label: [n, k], [n] -> [n].

  At least 0 where the label is not the only winner, and infinite where a logit is NaN: that is no right answer, and an
  attack that passed it by would call robust what fails.
  """
  logits = _at_least_float32(logits)
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  margins = jnp.where(is_label, -jnp.inf, logits).max(-1) - _of_class(logits, labels)
  return jnp.where(jnp.isnan(logits).any(-1), jnp.inf, margins)


def targeted_margin(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns z_target - z_label (arXiv 1910.09338): [n, k], [n], [n] -> [n]."""
  logits = _at_least_float32(logits)
  return _of_class(logits, targets) - _of_class(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the difference of logits ratio (Eq. 6, arXiv 2003.01690): [n, k], [n] -> [n].

  The margin over z_(1) - z_(3), the largest and third largest logit: unchanged where logits are shifted or scaled.

  Raises:
    UserError: fewer than 3 classes.
  """
  _check_classes(logits, 3, "'dlr'")
  largest, _ = jax.lax.top_k(_at_least_float32(logits), 3)
  return margin(logits, labels) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the targeted difference of logits ratio (Eq. 7, arXiv 2003.01690): [n, k], [n], [n] -> [n].

  z_target - z_label over z_(1) - (z_(3) + z_(4)) / 2, of the sorted logits.

  Raises:
    UserError: fewer than 4 classes.
  """
  _check_classes(logits, 4, "'targeted'")
  largest, _ = jax.lax.top_k(_at_least_float32(logits), 4)
  spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
  return targeted_margin(logits, labels, targets) / (spread + _TINY)


def _at_least_float32(logits: jax.Array) -> jax.Array:
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _of_class(values: jax.Array, classes: jax.Array) -> jax.Array:
  return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]


def _check_classes(logits: jax.Array, least: int, loss: str) -> None:
  if logits.shape[-1] < least:
    raise UserError(
      f"Loss {loss} needs at least {least} classes, and logits_fn gives {logits.shape[-1]}; take the loss 'ce' or "
      'attacks.multitargeted.'
    )
