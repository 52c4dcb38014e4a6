"""Spatter: drops of water (severities 1 to 3) or mud (4 and 5). Constants and formulas are those of CIFAR-10-C.

Water is shaded by OpenCV's edges, distances and histogram equalisation, in 8-bit integers. The last bit of the noise
can flip a level, move an edge and change the whole image. The noise is therefore smoothed in float64, and the rest is
computed in integers, as in OpenCV.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from adversarial_augment.corruptions import filters
from adversarial_augment.corruptions.corruption import Corruption, Size
from adversarial_augment.types import Array, Key

# Mean and deviation of the noise, its smoothness, the threshold of liquid, then the opacity of water or the smoothness
# of mud.
_SPATTER = (
  (0.62, 0.1, 0.7, 0.7, 0.5), (0.65, 0.1, 0.8, 0.7, 0.5), (0.65, 0.3, 1.0, 0.69, 0.5),
  (0.65, 0.1, 0.7, 0.69, 0.6), (0.65, 0.1, 0.5, 0.68, 0.6),
)  # fmt: skip
_FIRST_MUD = 4  # severity

_WATER = np.array([175, 238, 238], np.float32)  # grey levels of red, green, blue
_MUD = np.array([63, 42, 20], np.float32)
_THIN_MUD = 0.8  # mud less opaque than this is omitted

_CANNY_LOW, _CANNY_HIGH = 50, 150
_TANGENT_22_5 = 13573  # of 22.5 degrees, in units of 2**-15

_UNIT = 10_000  # distance units per pixel, so that the lengths of all steps are integers
_FARTHEST = 20  # pixels
# Step lengths of OpenCV's 5 x 5 distance transform, by squared length: side, diagonal, knight's move.
_LENGTHS = {1: round(1 * _UNIT), 2: round(1.4 * _UNIT), 5: round(2.1969 * _UNIT)}
_STEPS = {(y, x): _LENGTHS[y * y + x * x] for y in range(-2, 3) for x in range(-2, 3) if y * y + x * x in _LENGTHS}

_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


class _Spatter(NamedTuple):
  # Mean and deviation of the noise, the threshold, and the matrices that smooth the noise: float64, as two float32.
  high: Any  # ([2], [], [h, h], [w, w])
  low: Any
  is_mud: Any  # bool []
  opacity: Any  # of water, float32 []
  mud: Any  # matrices that smooth mud, float32 [h, h], [w, w]


def _spatter(numbers: tuple[float, ...], size: Size) -> _Spatter:
  mean, deviation, sigma, threshold, last = numbers
  smooth = (scipy.ndimage.gaussian_filter1d(np.eye(n), sigma, axis=0, mode='nearest', truncate=4) for n in size)
  exact = (np.array([mean, deviation]), np.array(threshold), *smooth)
  high = tuple(x.astype(np.float32) for x in exact)
  low = tuple((x - part).astype(np.float32) for x, part in zip(exact, high, strict=True))
  mud = tuple(filters.gaussian_matrix(n, last, mode='nearest', truncate=4) for n in size)
  return _Spatter(high, low, np.array(numbers in _SPATTER[_FIRST_MUD - 1 :]), np.float32(last), mud)


def _normal(key: Key, size: Size, spatter: _Spatter) -> Array:
  return jax.random.normal(key, size)


def _splash(image: Array, normal: Array, spatter: _Spatter) -> Array:
  with jax.enable_x64(True):
    double = lambda x: x.astype(jnp.float64)
    exact = jax.tree.map(lambda high, low: double(high) + double(low), spatter.high, spatter.low)
    (mean, deviation), threshold, rows, columns = exact
    noise = filters.separable(mean + deviation * double(normal), rows, columns)
    wet = noise > threshold
    levels = jnp.where(noise < threshold, 0, noise * 255).astype(jnp.int32) & 255  # wraps around at 256
  return jax.lax.cond(
    spatter.is_mud, lambda: _with_mud(image, wet, spatter), lambda: _with_water(image, levels, spatter.opacity)
  )


def _with_mud(image: Array, wet: Array, spatter: _Spatter) -> Array:
  """Smooths the mask of dry pixels; inside mud it stays zero, which keeps levels integer there."""
  dry = filters.separable(1 - wet.astype(jnp.float32), *spatter.mud)[..., None]
  return jnp.where(1 - dry < _THIN_MUD, image, image * dry + _MUD[None, None] * (1 - dry))


def _with_water(image: Array, levels: Array, opacity: Array) -> Array:
  """Brightens drops; without any drop, the image is unchanged (the official code would divide by zero)."""
  light = (levels * _shading(levels)).astype(jnp.float32)
  light *= opacity / jnp.maximum(light.max(), 1)
  return image + light[..., None] * _WATER[None, None]


def _shading(levels: Array) -> Array:
  """Returns the brightness of drops, integers 0 to 255: the distance from their edges, equalised, lit from one side."""
  distance = _sum_of_nine(_distances(_edges(levels))) // (9 * _UNIT)
  embossed = jnp.clip(_correlate(_equalised(distance), _EMBOSS), 0, 255)
  return (2 * _sum_of_nine(embossed) + 9) // 18  # rounded


def _edges(levels: Array) -> Array:
  """Canny edges of integers 0..255 [h, w], as booleans: Sobel gradients, with the l_1 norm as their length."""
  replicated = jnp.pad(levels, 1, mode='edge')
  right = _correlate(replicated, ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)), pad=False)
  down = _correlate(replicated, ((-1, -2, -1), (0, 0, 0), (1, 2, 1)), pad=False)
  length = abs(right) + abs(down)
  around = jnp.pad(length, 1)
  at = lambda y, x: _shifted(around, 1, y, x)
  # An edge is a local maximum of the length across its direction, which is one of four.
  flat = abs(right) * _TANGENT_22_5
  steep = flat + (abs(right) << 16)
  height = abs(down) << 15
  horizontal = (length > at(0, -1)) & (length >= at(0, 1))
  vertical = (length > at(-1, 0)) & (length >= at(1, 0))
  falling = (length > at(-1, -1)) & (length > at(1, 1))
  rising = (length > at(-1, 1)) & (length > at(1, -1))
  diagonal = jnp.where((right ^ down) < 0, rising, falling)
  ridge = jnp.where(height < flat, horizontal, jnp.where(height > steep, vertical, diagonal))
  weak = ridge & (length > _CANNY_LOW)

  def grow(edges: Array) -> Array:
    padded = jnp.pad(edges, 1)
    return weak & functools.reduce(jnp.logical_or, (_shifted(padded, 1, i - 1, j - 1) for i, j in np.ndindex(3, 3)))

  return _fixed_point(grow, weak & (length > _CANNY_HIGH))


def _distances(edges: Array) -> Array:
  """Returns the lengths of the shortest paths to an edge, at most 20 pixels, in 1 / _UNIT pixel, int32 [h, w]."""
  far = _FARTHEST * _UNIT

  def step(distances: Array) -> Array:
    padded = jnp.pad(distances, 2, constant_values=far)
    for (y, x), length in _STEPS.items():
      distances = jnp.minimum(distances, _shifted(padded, 2, y, x) + length)
    return distances

  return _fixed_point(step, jnp.where(edges, 0, far))


def _fixed_point(step: Callable[[Array], Array], start: Array) -> Array:
  """Applies a monotone step until nothing changes."""
  changed = lambda pair: (pair[0] != pair[1]).any()
  return jax.lax.while_loop(changed, lambda pair: (pair[1], step(pair[1])), (start, step(start)))[1]


def _equalised(distance: Array) -> Array:
  """Equalises the histogram of integers 0..20 to 0..255."""
  levels = jnp.arange(_FARTHEST + 1)
  up_to = (distance[None] <= levels[:, None, None]).sum((1, 2))
  fewest = up_to[distance.min()]
  scale = 255 / (distance.size - fewest).astype(jnp.float32)
  spread = jnp.round((up_to - fewest).astype(jnp.float32) * scale).astype(jnp.int32)
  return jnp.where(fewest == distance.size, levels, spread)[distance]


def _sum_of_nine(x: Array) -> Array:
  return _correlate(x, ((1, 1, 1),) * 3)


def _correlate(x: Array, kernel: tuple[tuple[int, ...], ...], *, pad: bool = True) -> Array:
  """Correlates integers with a 3 x 3 kernel, padding by reflection; without `pad`, x is already padded."""
  padded = jnp.pad(x, 1, mode='reflect') if pad else x
  terms = (kernel[i][j] * _shifted(padded, 1, i - 1, j - 1) for i, j in np.ndindex(3, 3) if kernel[i][j])
  return functools.reduce(jnp.add, terms)


def _shifted(padded: Array, pad: int, y: int, x: int) -> Array:
  """Shifts a padded image by (y, x) and removes the padding, which must be at least as wide."""
  h, w = padded.shape
  return padded[pad + y : h - pad + y, pad + x : w - pad + x]


CORRUPTIONS = {'spatter': Corruption(_SPATTER, _spatter, _normal, _splash)}
