"""Brightness, saturation and contrast. Constants and formulas are those of CIFAR-10-C.

The first two change the value or saturation in HSV. This scales the distances of a pixel's three levels from each other
or from black, so the hue need not be computed, and most numbers depend on at most two levels. These are in tables, made
in float64 as in the official code, because truncation turns the last bit into a level.
"""

import jax.numpy as jnp
import numpy as np

from adversarial_augment.corruptions.corruption import Corruption, Size, no_draw, one_number
from adversarial_augment.types import Array

_BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)  # added to the value
_SATURATE = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))  # factor of the saturation, addend
_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor of the distance from the mean

_GREY = np.array([0, 1, 1], np.float32)  # a pixel without hue is treated as red

_ABOVE = 1e-4  # grey levels; a flat channel equals its mean, and rounding must not decrease a level


def _value_and_saturation() -> tuple[np.ndarray, np.ndarray]:
  """Returns value and saturation in [0, 1] for largest level i and smallest level j, [256, 1] and [256, 256]."""
  level = np.arange(256) / 255
  value = level[:, None]
  spread = np.maximum(value - level, 0)
  return value, np.divide(spread, value, out=np.zeros_like(spread), where=value > 0)


def _brightness(addend: float, size: Size) -> np.ndarray:
  """Returns the new level for level j in a pixel whose largest level is i, uint8 [256, 256]."""
  value, saturation = _value_and_saturation()
  brighter = np.clip(value + addend, 0, 1)
  return (255 * (brighter * (1 - saturation))).astype(np.uint8)


def _brighten(image: Array, draws: tuple[()], table: Array) -> Array:
  levels = image.astype(jnp.int32)
  return table[levels.max(axis=2, keepdims=True), levels].astype(jnp.float32)


def _saturate(numbers: tuple[float, float], size: Size) -> np.ndarray:
  """Returns the new smallest level for smallest level j and largest level i, float32 [256, 256]."""
  factor, addend = numbers
  value, saturation = _value_and_saturation()
  smallest = 255 * (value * (1 - np.clip(factor * saturation + addend, 0, 1)))
  rounded = smallest.astype(np.float32)
  return np.where(np.floor(rounded) > smallest, np.nextafter(rounded, np.float32(0)), rounded)


def _stretch(image: Array, draws: tuple[()], smallest: Array) -> Array:
  """Moves the smallest level to that of the table; the largest stays, the middle one keeps its relative position."""
  high, low = image.max(axis=2, keepdims=True), image.min(axis=2, keepdims=True)
  share = jnp.where(high > low, (high - image) / jnp.maximum(high - low, 1), _GREY[None, None])
  return (1 - share) * high + share * smallest[high.astype(jnp.int32), low.astype(jnp.int32)]


def _flatten(image: Array, draws: tuple[()], factor: Array) -> Array:
  mean = image.mean(axis=(0, 1), keepdims=True)
  return factor * (image - mean) + mean + _ABOVE


CORRUPTIONS = {
  'brightness': Corruption(_BRIGHTNESS, _brightness, no_draw, _brighten),
  'contrast': Corruption(_CONTRAST, one_number, no_draw, _flatten),
  'saturate': Corruption(_SATURATE, _saturate, no_draw, _stretch),
}
