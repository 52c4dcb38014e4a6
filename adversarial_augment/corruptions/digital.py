"""Elastic deformation, pixelation and JPEG compression. Constants and formulas are those of CIFAR-10-C."""

import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from adversarial_augment.corruptions import filters
from adversarial_augment.corruptions.corruption import Corruption, HostCorruption, Size
from adversarial_augment.types import Array, Key

# As fractions of the shorter side: displacement length, its smoothness, range of the affine map's three points.
_ELASTIC = ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
_PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)  # fraction of pixels kept along a side
_JPEG_QUALITY = (80, 65, 58, 50, 40)


class _Elastic(NamedTuple):
  shift: Any  # float32 [], in pixels
  rows: Any  # float32 [h, h], smooths and scales the displacements
  columns: Any  # float32 [w, w], smooths them


class _Draws(NamedTuple):
  points: Array  # in [-1, 1): x and y of three points, float32 [3, 2]
  pixels: Array  # in [-1, 1): x and y of every pixel, float32 [2, h, w]


def _elastic(numbers: tuple[float, float, float], size: Size) -> _Elastic:
  length, sigma, shift = (min(size) * part for part in numbers)
  smooth = lambda n: filters.gaussian_matrix(n, sigma, mode='reflect', truncate=3) if sigma else np.eye(n)
  rows, columns = (smooth(n).astype(np.float32) for n in size)
  return _Elastic(np.float32(shift), np.float32(length) * rows, columns)


def _uniform(key: Key, size: Size, elastic: _Elastic) -> _Draws:
  points, pixels = jax.random.split(key)
  return _Draws(jax.random.uniform(points, (3, 2), minval=-1), jax.random.uniform(pixels, (2, *size), minval=-1))


def _deform(image: Array, draws: _Draws, elastic: _Elastic) -> Array:
  """An affine map, then per-pixel displacements; each interpolates linearly between four pixels.

  The affine map samples exact positions, as OpenCV 5 does; older versions round them to 1/32 pixel.
  """
  h, w = image.shape[:2]
  row, column = (a.astype(jnp.float32) for a in jnp.mgrid[:h, :w])
  image = _sample(image, *_affine_source(row, column, elastic.shift * draws.points), edge_twice=False)
  right, down = (filters.separable(pixels, elastic.rows, elastic.columns) for pixels in draws.pixels)
  return _sample(image, row + down, column + right, edge_twice=True)


def _affine_source(row: Array, column: Array, shifts: Array) -> tuple[Array, Array]:
  """Returns the source positions of pixels at (row, column), each [h, w], under an affine map.

  The map moves three corners of a square around the centre (lower right, upper right, upper left) by `shifts`, x and y,
  [3, 2].
  """
  h, w = row.shape
  half = min(h, w) // 3
  (a, c), (b, d) = (shifts[1] - shifts[2]) / (2 * half), (shifts[0] - shifts[1]) / (2 * half)
  a, d = 1 + a, 1 + d
  left, top = w // 2 - half, h // 2 - half
  x, y = column - left - shifts[2, 0], row - top - shifts[2, 1]
  determinant = a * d - b * c
  return top + (a * y - c * x) / determinant, left + (d * x - b * y) / determinant


def _sample(image: Array, row: Array, column: Array, *, edge_twice: bool) -> Array:
  """Interpolates [h, w, c] linearly at positions (row, column), each [h, w]; the image is repeated by reflection.

  `edge_twice` says that the edge pixel is repeated, that is, the axis of reflection is its outer side, not its centre.
  """

  def inside(i: Array, n: int) -> Array:
    period = 2 * n if edge_twice else 2 * n - 2
    i %= period
    return jnp.minimum(i, period - edge_twice - i)

  h, w = image.shape[:2]
  top, left = jnp.floor(row), jnp.floor(column)
  down, right = (row - top)[..., None], (column - left)[..., None]
  i, j = top.astype(jnp.int32), left.astype(jnp.int32)
  i0, i1, j0, j1 = inside(i, h), inside(i + 1, h), inside(j, w), inside(j + 1, w)
  upper = image[i0, j0] + right * (image[i0, j1] - image[i0, j0])
  lower = image[i1, j0] + right * (image[i1, j1] - image[i1, j0])
  return upper + down * (lower - upper)


def _pixelate(image: np.ndarray, kept: float) -> np.ndarray:
  h, w, _ = image.shape
  # Rows first, then columns: some versions of Pillow begin with the columns of tall images.
  narrow = Image.fromarray(image).resize((int(w * kept), h), Image.Resampling.BOX)
  small = narrow.resize((int(w * kept), int(h * kept)), Image.Resampling.BOX)
  return np.asarray(small.resize((w, h), Image.Resampling.BOX))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
  with io.BytesIO() as file:
    Image.fromarray(image).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file))


CORRUPTIONS: dict[str, Corruption | HostCorruption] = {
  'elastic_transform': Corruption(_ELASTIC, _elastic, _uniform, _deform),
  'pixelate': HostCorruption(_PIXELATE, _pixelate),
  'jpeg_compression': HostCorruption(_JPEG_QUALITY, _jpeg),
}
