"""Linear filters of small images: as matrices, one for rows and one for columns, and along a line (motion)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from adversarial_augment.types import Array


def gaussian_matrix(size: int, sigma: float, *, mode: str, truncate: float) -> np.ndarray:
  """Returns the [size, size] matrix of SciPy's `gaussian_filter1d`, float32, with its edge `mode`."""
  columns = scipy.ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode=mode, truncate=truncate)
  return columns.astype(np.float32)


def zoom_matrix(size: int, factor: float) -> np.ndarray:
  """Returns the [size, size] matrix of a clipped zoom: the centre is cropped, enlarged, and trimmed to size, float32.

  The crop has ceil(size / factor) pixels, and its first and last pixel remain the first and last when it is enlarged to
  round(crop * factor) by linear interpolation (SciPy's `zoom` of order 1).
  """
  crop = math.ceil(size / factor)
  enlarged = round(crop * factor)
  first = (enlarged - size) // 2
  position = np.arange(first, first + size) * (crop - 1) / (enlarged - 1)
  left = np.minimum(position.astype(int), crop - 2)
  share = (position - left)[:, None]
  pixels = np.eye(size)[(size - crop) // 2 :]
  return ((1 - share) * pixels[left] + share * pixels[left + 1]).astype(np.float32)


def separable(image: Array, rows: Array, columns: Array) -> Array:
  """Applies filters [h', h] and [w', w] to the axes of an image [h, w, ...]."""
  return jnp.einsum('ih,hw...,jw->ij...', rows, image, columns)


def motion_kernel(radius: int, sigma: float, taps: int) -> np.ndarray:
  """Returns the weights of 2 * radius + 1 pixels, zero-padded to `taps`, float32 [taps]."""
  steps = np.arange(taps)
  kernel = np.exp(-(steps**2) / (2 * sigma**2)) * (steps < 2 * radius + 1)
  return (kernel / kernel.sum()).astype(np.float32)


def motion_blur(image: Array, degrees: Array, kernel: Array) -> Array:
  """Blurs [h, w, c] along a line as ImageMagick's `MotionBlurImage`: pixels on one side, weighted by half a Gaussian.

  The direction 0 is to the right, 90 downwards; the kernel [taps] has the weights of the pixels 0, 1, 2 ... steps away;
  edge pixels are repeated beyond the edges. The result has the integer levels that ImageMagick's PNG writer writes: its
  pixels have 16 bits, and level v is 257 v. A weighted sum is rounded to such a value q, and the file has
  floor(q / 257). With q = floor(257 x + 0.5), this is floor(x + 0.5 / 257).
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
