"""Snow: blurred flakes on a brightened image. Constants and formulas are those of CIFAR-10-C."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.corruptions import filters
from adversarial_augment.corruptions.corruption import Corruption, Size
from adversarial_augment.corruptions.motion import motion_blur, motion_kernel
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


class _Snow(NamedTuple):
  """The table's numbers, and filters for zoom and motion, float32; NumPy arrays, or JAX arrays inside `apply`."""

  mean: np.float32
  deviation: np.float32
  rows: Any  # [h, h]
  columns: Any  # [w, w]
  threshold: np.float32
  kernel: Any  # [taps]
  kept: np.float32


class _Draws(NamedTuple):
  normal: Array  # [h, w]
  degrees: Array  # degrees of the motion: upwards, and up to 45 to either side


def _constants(severity: int, size: Size) -> _Snow:
  mean, deviation, zoom, threshold, radius, sigma, kept = _SNOW[severity - 1]
  rows, columns = (filters.zoom_matrix(n, zoom) for n in size)
  kernel = motion_kernel(int(radius), sigma, _TAPS)
  number = np.float32
  return _Snow(number(mean), number(deviation), rows, columns, number(threshold), kernel, number(kept))


def _draw(key: Key, size: Size, constants: _Snow) -> _Draws:
  del constants
  keys = jax.random.split(key)
  return _Draws(jax.random.normal(keys[0], size), jax.random.uniform(keys[1], minval=-135, maxval=-45))


def _apply(image: Array, draws: _Draws, snow: _Snow) -> Array:
  noise = filters.separable(snow.mean + snow.deviation * draws.normal, snow.rows, snow.columns)
  flakes = jnp.floor(255 * jnp.clip(jnp.where(noise < snow.threshold, 0, noise), 0, 1))
  layer = motion_blur(flakes[:, :, None], draws.degrees, snow.kernel)
  grey = (image @ _GREY)[:, :, None]
  bright = jnp.maximum(image, 1.5 * grey + 127.5)
  return snow.kept * image + (1 - snow.kept) * bright + layer + layer[::-1, ::-1]


SNOW = Corruption(_SNOW, _constants, _draw, _apply)
