"""Motion blur as in ImageMagick's `MotionBlurImage`: a line of pixels on one side, weighted by half a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.types import Array


def motion_kernel(radius: int, sigma: float, taps: int) -> np.ndarray:
  """Returns the weights of 2 * radius + 1 pixels, zero-padded to `taps`, float32 [taps]."""
  steps = np.arange(taps)
  kernel = np.exp(-(steps**2) / (2 * sigma**2)) * (steps < 2 * radius + 1)
  return (kernel / kernel.sum()).astype(np.float32)


def motion_blur(image: Array, degrees: Array, kernel: Array) -> Array:
  """Blurs an image along a line, and returns the grey levels that ImageMagick's PNG writer writes.

  ImageMagick's pixels have 16 bits; level v is 257 v. A weighted sum is rounded to such a value q, and the file has
  floor(q / 257). With q = floor(257 x + 0.5), this is floor(x + 0.5 / 257).

  Args:
    image: grey levels, float32 [h, w, c].
    degrees: direction of the line: 0 is to the right, 90 downwards.
    kernel: weights of the pixels 0, 1, 2 ... steps away, [taps].

  Returns:
    Integer grey levels, [h, w, c]; edge pixels are repeated beyond the edges.
  """
  reach = len(kernel)
  steps = jnp.arange(reach, dtype=jnp.float32)
  angle = jnp.deg2rad(degrees)
  down, right = (jnp.ceil(steps * f(angle) - 0.5).astype(jnp.int32) for f in (jnp.sin, jnp.cos))
  padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode='edge')
  blurred = jnp.zeros_like(image)
  for i in range(reach):
    blurred += kernel[i] * jax.lax.dynamic_slice(padded, (reach + down[i], reach + right[i], 0), image.shape)
  return jnp.floor(blurred + 0.5 / 257)
