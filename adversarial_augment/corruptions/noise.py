"""Noise: every pixel and channel changes independently. Constants and formulas are those of CIFAR-10-C."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from adversarial_augment.corruptions.corruption import Corruption, Size, one_number
from adversarial_augment.types import Array, Key

_GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation, white is 1
_SPECKLE = (0.06, 0.1, 0.12, 0.16, 0.2)  # the same, in units of the pixel's value
_IMPULSE = (0.01, 0.02, 0.03, 0.05, 0.07)  # share of salt and pepper
_PHOTONS = (500, 250, 100, 75, 50)  # mean count of a pixel of level 255
_STEPS = (128, 64, 32, 16, 8, 4, 2, 1)  # of the binary search in 255 counts
_BITS = 24  # of the uniform number whose Poisson quantile is taken


class _Poisson(NamedTuple):
  """The Poisson distribution of each grey level; a count is `first` plus the number of `bounds` up to the draw."""

  first: np.ndarray  # int32 [256], the smallest count that occurs
  bounds: np.ndarray  # int32 [256 * 256], of level l from 256 l on: the cumulative probabilities times 2**24
  levels: np.ndarray  # float32 [501], grey level of each count; larger counts are 255


def _normal(key: Key, size: Size, sigma: Array) -> Array:
  return jax.random.normal(key, (*size, 3))


def _uniform(key: Key, size: Size, amount: Array) -> Array:
  return jax.random.uniform(key, (*size, 3))


def _uniform_bits(key: Key, size: Size, constants: _Poisson) -> Array:
  """Returns integers of 24 bits, int32 [h, w, 3]."""
  return (jax.random.bits(key, (*size, 3)) >> (32 - _BITS)).astype(jnp.int32)


def _gaussian(image: Array, normal: Array, sigma: Array) -> Array:
  return 255 * jnp.clip(image / 255 + sigma * normal, 0, 1)


def _speckle(image: Array, normal: Array, sigma: Array) -> Array:
  return image + image * sigma * normal


def _impulse(image: Array, uniform: Array, amount: Array) -> Array:
  """Salt (white) and pepper (black), half of `amount` each."""
  return jnp.where(uniform < amount / 2, 255, jnp.where(uniform < amount, 0, image))


def _poisson(photons: int, size: Size) -> _Poisson:
  counts = np.arange(2 * _PHOTONS[0])
  mean = np.arange(256)[:, None] * photons / 255
  # The draw b represents (b + 1/2) / 2**24, which exceeds P(count <= k) if b is at least this.
  reached = np.ceil(scipy.special.pdtr(counts, mean) * 2**_BITS - 0.5)
  first = (reached <= 0).sum(axis=1)
  bounds = np.take_along_axis(reached, first[:, None] + np.arange(256), axis=1)
  levels = 255 * np.minimum(counts[: _PHOTONS[0] + 1] / photons, 1)
  return _Poisson(first.astype(np.int32), bounds.astype(np.int32).ravel(), np.floor(levels).astype(np.float32))


def _shot(image: Array, bits: Array, poisson: _Poisson) -> Array:
  level = image.astype(jnp.int32)
  position = 256 * level
  for step in _STEPS:
    position += jnp.where(poisson.bounds[position + (step - 1)] <= bits, step, 0)
  count = poisson.first[level] + position - 256 * level
  return poisson.levels[jnp.minimum(count, _PHOTONS[0])]


CORRUPTIONS = {
  'gaussian_noise': Corruption(_GAUSSIAN, one_number, _normal, _gaussian),
  'shot_noise': Corruption(_PHOTONS, _poisson, _uniform_bits, _shot),
  'impulse_noise': Corruption(_IMPULSE, one_number, _uniform, _impulse),
  'speckle_noise': Corruption(_SPECKLE, one_number, _normal, _speckle),
}
