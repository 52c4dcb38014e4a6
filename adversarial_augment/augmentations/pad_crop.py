"""Padding by 4 pixels and a random crop (appendix A, arXiv 2104.01086)."""

import jax
import jax.numpy as jnp

from adversarial_augment import threefry

PADDING = 4


def pad_crop(key: jax.Array, image: jax.Array) -> jax.Array:
  """Pads [h, w, c] with 4 black pixels on every side and crops it back at one of 9 x 9 offsets."""
  padded = jnp.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
  top, left = jax.random.randint(threefry.own(key), (2,), 0, 2 * PADDING + 1)
  return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
