"""Random horizontal flip (appendix A, arXiv 2104.01086)."""

import jax
import jax.numpy as jnp

from adversarial_augment import threefry


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
  """Mirrors [h, w, c] left to right with probability 1/2."""
  return jnp.where(jax.random.bernoulli(threefry.own(key)), image[:, ::-1], image)
