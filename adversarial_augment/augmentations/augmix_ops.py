"""The operations of AugMix, as in Pillow: grey levels in, grey levels out.

An image is int32 [h, w, c] with levels from 0 to 255. Operations on levels give exactly Pillow's results; those that
resample or blend are within one level, because Pillow computes positions in float64.
"""

import functools

import jax.numpy as jnp
import numpy as np

from adversarial_augment.types import Array

LEVELS = 256


def posterize(image: Array, bits: Array) -> Array:
  """Keeps the highest `bits` (1 to 8) of the 8 bits of a level."""
  return (image >> (8 - bits)) << (8 - bits)


def solarize(image: Array, threshold: Array) -> Array:
  """Inverts levels from the threshold on."""
  return jnp.where(image < threshold, image, LEVELS - 1 - image)


def autocontrast(image: Array) -> Array:
  """Stretches each channel to the full range; a constant channel is unchanged."""
  low, high = image.min((0, 1))[:, None], image.max((0, 1))[:, None]
  span = jnp.maximum(high - low, 1)
  levels = jnp.arange(LEVELS, dtype=jnp.int32)[None]
  above = jnp.clip(levels - low, 0, span)
  stretched = above * (LEVELS - 1) // span - _falls_short(low, span, above)
  return _look_up(jnp.where(high > low, stretched, levels), image)


def _falls_short(low: Array, span: Array, above: Array) -> Array:
  """Returns 1 where (low + above) * (255 / span) - low * (255 / span) in float64 stays below 255 * above / span.

  Pillow truncates that float to a level. It can only be too small where the true value is an integer.
  """
  starts, bits = _shortfalls()
  divisor = jnp.asarray(np.gcd(np.arange(LEVELS), LEVELS - 1), jnp.int32)[span]
  whole = (above > 0) & (above * divisor % span == 0)
  index = jnp.asarray(starts)[span] + low * divisor + above * divisor // span - 1
  return jnp.where(whole, jnp.asarray(bits).at[jnp.where(whole, index, 0)].get(mode='promise_in_bounds'), 0)


@functools.cache
def _shortfalls() -> tuple[np.ndarray, np.ndarray]:
  """Returns where the values of each span begin, and the shortfalls as a flat array over (span, low, value)."""
  bits = [np.zeros(0, bool)]  # of span 0, which has none
  for span in range(1, LEVELS):
    divisor = np.gcd(span, LEVELS - 1)
    low = np.arange(LEVELS - span)[:, None]
    above = np.arange(1, divisor + 1)[None] * (span // divisor)
    scale = (LEVELS - 1) / span
    value = (low + above) * scale + -low * scale
    bits.append((value.astype(np.int64) < above * (LEVELS - 1) // span).ravel())
  starts = np.cumsum([0, *(part.size for part in bits[:-1])], dtype=np.int32)
  return starts, np.concatenate(bits).astype(np.int32)


def equalize(image: Array) -> Array:
  """Equalizes the histogram of each channel; a nearly constant channel is unchanged."""
  height, width, channels = image.shape
  offsets = LEVELS * jnp.arange(channels, dtype=jnp.int32)[None, None]
  histogram = jnp.zeros(channels * LEVELS, jnp.int32).at[(image + offsets).ravel()].add(1).reshape(channels, LEVELS)
  below = jnp.cumsum(histogram, axis=1, dtype=jnp.int32) - histogram
  step = jnp.take_along_axis(below, image.max((0, 1))[:, None], axis=1) // (LEVELS - 1)
  flat = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), LEVELS - 1)
  return _look_up(jnp.where(step > 0, flat, jnp.arange(LEVELS, dtype=jnp.int32)[None]), image)


def _look_up(table: Array, image: Array) -> Array:
  """Looks levels up in a table [c, 256]."""
  offsets = LEVELS * jnp.arange(image.shape[-1], dtype=jnp.int32)[None, None]
  return table.ravel().at[image + offsets].get(mode='promise_in_bounds')


def rotate(image: Array, degrees: Array) -> Array:
  """Rotates counter-clockwise around the centre."""
  x, y = image.shape[1] / 2, image.shape[0] / 2
  cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
  return _affine(image, (cos, -sin, x - x * cos + y * sin), (sin, cos, y - x * sin - y * cos))


def shear_x(image: Array, slope: Array) -> Array:
  """Shears: reads `slope` * y further to the right."""
  return _affine(image, (1.0, slope, 0.0), (0.0, 1.0, 0.0))


def shear_y(image: Array, slope: Array) -> Array:
  """Shears: reads `slope` * x further down."""
  return _affine(image, (1.0, 0.0, 0.0), (slope, 1.0, 0.0))


def translate_x(image: Array, pixels: Array) -> Array:
  """Translates to the left."""
  return _affine(image, (1.0, 0.0, pixels), (0.0, 1.0, 0.0))


def translate_y(image: Array, pixels: Array) -> Array:
  """Translates up."""
  return _affine(image, (1.0, 0.0, 0.0), (0.0, 1.0, pixels))


def _affine(image: Array, x_row: tuple, y_row: tuple) -> Array:
  """Resamples [h, w, c] bilinearly, with black outside the image.

  The pixel at (x, y), measured from the image's upper left corner to the pixel's centre, comes from a x + b y + c to
  the right, where `x_row` is (a, b, c), and likewise down.
  """
  height, width, channels = image.shape
  x, y = jnp.arange(width, dtype=jnp.float32)[None] + 0.5, jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
  from_x, from_y = (jnp.float32(a) * x + jnp.float32(b) * y + jnp.float32(c) for a, b, c in (x_row, y_row))
  inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
  left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
  across, down = (from_x - 0.5 - left)[..., None], (from_y - 0.5 - top)[..., None]
  columns = [jnp.clip(left.astype(jnp.int32) + i, 0, width - 1) for i in (0, 1)]
  rows = [jnp.clip(top.astype(jnp.int32) + i, 0, height - 1) * width for i in (0, 1)]
  pixels = image.reshape(height * width, channels)
  at = lambda row, column: pixels.at[row + column].get(mode='promise_in_bounds').astype(jnp.float32)
  # As in Pillow, not (1 - t) * a + t * b: exact between equal levels.
  between = lambda a, b, t: a + (b - a) * t
  upper, lower = (between(at(row, columns[0]), at(row, columns[1]), across) for row in rows)
  return jnp.where(inside[..., None], between(upper, lower, down), 0).astype(jnp.int32)


def color(image: Array, factor: Array) -> Array:
  """Blends from grey (factor 0) to the image (1)."""
  return _blend(_grey(image)[..., None], image, factor)


def contrast(image: Array, factor: Array) -> Array:
  """Blends from the mean grey level to the image."""
  mean = _grey(image).sum() / np.float32(image.shape[0] * image.shape[1])
  return _blend(jnp.floor(mean + 0.5).astype(jnp.int32), image, factor)


def brightness(image: Array, factor: Array) -> Array:
  """Blends from black to the image."""
  return _blend(jnp.int32(0), image, factor)


def sharpness(image: Array, factor: Array) -> Array:
  """Blends from the image, smoothed over 3x3 pixels except at its border, to the image."""
  height, width, _ = image.shape
  shifted = (image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
  total = sum(shifted) + 4 * image[1:-1, 1:-1]
  return _blend(image.at[1:-1, 1:-1].set((2 * total + 13) // 26), image, factor)


def _grey(image: Array) -> Array:
  """Returns the luma [h, w] of RGB (ITU-R 601-2), in Pillow's fixed-point arithmetic."""
  red, green, blue = jnp.moveaxis(image, -1, 0)
  return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _blend(start: Array, end: Array, factor: Array) -> Array:
  start = jnp.broadcast_to(start, end.shape)
  return (start + factor * (end - start).astype(jnp.float32)).astype(jnp.int32)
