"""Snow (blurred flakes on a brightened image) and fog. Constants and formulas are those of CIFAR-10-C."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.corruptions import filters
from adversarial_augment.corruptions.corruption import Corruption, Size
from adversarial_augment.types import Array, Key

# Mean and standard deviation of the noise, its zoom, the threshold of a flake, radius and sigma of the motion, weight
# of the image that is not brightened.
_SNOW = (
  (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
  (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
  (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
  (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
  (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
_TAPS = 29
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue

_FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))  # thickness, decay of the fine structure


class _Snow(NamedTuple):
  """The table's numbers, and filters for zoom and motion, float32; NumPy arrays, or JAX arrays inside `apply`."""

  mean: np.float32
  deviation: np.float32
  rows: Any  # [h, h]
  columns: Any  # [w, w]
  threshold: np.float32
  kernel: Any  # [taps]
  kept: np.float32


class _Flakes(NamedTuple):
  normal: Array  # [h, w]
  degrees: Array  # degrees of the motion: upwards, and up to 45 to either side


def _snow(numbers: tuple[float, ...], size: Size) -> _Snow:
  mean, deviation, zoom, threshold, radius, sigma, kept = numbers
  rows, columns = (filters.zoom_matrix(n, zoom) for n in size)
  kernel = filters.motion_kernel(int(radius), sigma, _TAPS)
  return _Snow(np.float32(mean), np.float32(deviation), rows, columns, np.float32(threshold), kernel, np.float32(kept))


def _flakes(key: Key, size: Size, constants: _Snow) -> _Flakes:
  keys = jax.random.split(key)
  return _Flakes(jax.random.normal(keys[0], size), jax.random.uniform(keys[1], minval=-135, maxval=-45))


def _add_snow(image: Array, draws: _Flakes, snow: _Snow) -> Array:
  noise = filters.separable(snow.mean + snow.deviation * draws.normal, snow.rows, snow.columns)
  flakes = jnp.floor(255 * jnp.clip(jnp.where(noise < snow.threshold, 0, noise), 0, 1))
  layer = filters.motion_blur(flakes[:, :, None], draws.degrees, snow.kernel)
  grey = (image @ _GREY)[:, :, None]
  bright = jnp.maximum(image, 1.5 * grey + 127.5)
  return snow.kept * image + (1 - snow.kept) * bright + layer + layer[::-1, ::-1]


class _Fog(NamedTuple):
  thickness: Any  # float32 []
  amplitudes: Any  # float32 [steps], from coarse to fine


def _fog(numbers: tuple[float, float], size: Size) -> _Fog:
  """The amplitude enters squared: it is both the range of the draws and their factor."""
  thickness, decay = numbers
  wibbles = 100 / decay ** np.arange(_doublings(size))
  return _Fog(np.float32(thickness), (wibbles**2).astype(np.float32))


def _doublings(size: Size) -> int:
  """Returns log2 of the side of the map: the smallest power of two that covers the image."""
  return math.ceil(math.log2(max(size)))


def _uniform(key: Key, size: Size, fog: _Fog) -> Array:
  """Draws a number in [-1, 1) for each point of the map except the first, in the order in which they are set."""
  return jax.random.uniform(key, (4 ** _doublings(size) - 1,), minval=-1)


def _add_fog(image: Array, uniform: Array, fog: _Fog) -> Array:
  h, w = image.shape[:2]
  plasma = _plasma(uniform, fog.amplitudes)[:h, :w, None]
  high = image.max()
  return (image + 255 * fog.thickness * plasma) * (high / (high + 255 * fog.thickness))


def _plasma(uniform: Array, amplitudes: Array) -> Array:
  """Diamond-square on a torus: each step doubles the map, setting new points to the mean of four plus a draw.

  A step from n to 2n points per side uses n * n draws each for the centres of squares, the points between neighbours of
  a row, and those between neighbours of a column: of 4**k - 1 in all. The map, [2**k, 2**k], is scaled to [0, 1].
  """
  corners = jnp.zeros((1, 1))
  for k in range(len(amplitudes)):
    n = 2**k
    draws = (amplitudes[k] * uniform[n * n - 1 : 4 * n * n - 1]).reshape(3, n, n)
    rows = corners + jnp.roll(corners, -1, axis=0)
    centres = (rows + jnp.roll(rows, -1, axis=1)) / 4 + draws[0]
    columns = corners + jnp.roll(corners, -1, axis=1)
    in_rows = (centres + jnp.roll(centres, 1, axis=0) + columns) / 4 + draws[1]
    in_columns = (centres + jnp.roll(centres, 1, axis=1) + rows) / 4 + draws[2]
    even, odd = jnp.stack([corners, in_rows], axis=2), jnp.stack([in_columns, centres], axis=2)
    corners = jnp.stack([even, odd], axis=1).reshape(2 * n, 2 * n)
  corners -= corners.min()
  return corners / corners.max()


CORRUPTIONS = {
  'snow': Corruption(_SNOW, _snow, _flakes, _add_snow),
  'fog': Corruption(_FOG, _fog, _uniform, _add_fog),
}
