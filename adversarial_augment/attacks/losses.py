"""Surrogate losses that an adversary maximises; one value per image."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[label]: [n, k], [n] -> [n], at least in float32."""
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
