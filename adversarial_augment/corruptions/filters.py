"""Linear filters of small images as matrices, one for rows and one for columns."""

import math

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from adversarial_augment.types import Array


def gaussian_matrix(size: int, sigma: float, *, mode: str, truncate: float) -> np.ndarray:
  """Returns the [size, size] matrix of SciPy's `gaussian_filter1d`, float32, with its edge `mode`."""
  columns = ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode=mode, truncate=truncate)
  return columns.astype(np.float32)


def zoom_matrix(size: int, factor: float) -> np.ndarray:
  """Returns the matrix of a clipped zoom along one axis: the centre is cropped, enlarged, and trimmed to size.

  The crop has ceil(size / factor) pixels, and its first and last pixel remain the first and last when it is enlarged to
  round(crop * factor) by linear interpolation (SciPy's `zoom` of order 1).

  Args:
    size: pixels along the axis.
    factor: at least 1.

  Returns:
    float32 [size, size].
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
  """Applies a filter to both axes of an image.

  Args:
    image: [h, w] or [h, w, c].
    rows: [h', h].
    columns: [w', w].

  Returns:
    [h', w'] or [h', w', c]
  """
  return jnp.einsum('ih,hw...,jw->ij...', rows, image, columns)
