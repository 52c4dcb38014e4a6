"""Blurs. Constants and formulas are those of CIFAR-10-C.

The official code works in float64 and truncates. Flat patches under any blur, and all patches under a box filter, give
integer levels, which rounding errors of float32 must not decrease by one. So only the *change* by a filter is computed,
which is small and has small errors, and a slack of about the size of these errors is added before truncation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from adversarial_augment.corruptions import filters
from adversarial_augment.corruptions.corruption import Corruption, Size, no_draw
from adversarial_augment.types import Array, Key

_GAUSSIAN = (0.4, 0.6, 0.7, 0.8, 1.0)  # sigma, in pixels
_DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))  # radius of a disk, sigma of its blur
_GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))  # sigma, rounds of displacements
_MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))  # radius, sigma
_ZOOM = (1.06, 1.11, 1.16, 1.21, 1.26)  # largest zoom factor; factors increase from 1 in steps of 0.01

_DEFOCUS_REACH = 2  # pixels to each side
_GLASS_ROUNDS = 2
_MOTION_TAPS = 19
_ZOOM_FACTORS = 26

_DEFOCUS_SLACK = 5e-6  # levels
_ZOOM_SLACK = 1e-4


class _Gaussian(NamedTuple):
  """A Gaussian filter minus the identity."""

  rows: np.ndarray  # float32 [h, h]
  columns: np.ndarray  # float32 [w, w]
  slack: np.float32  # levels


class _Glass(NamedTuple):
  gaussian: _Gaussian
  rounds: np.int32


class _Zooms(NamedTuple):
  rows: np.ndarray  # float32 [n, h, h]
  columns: np.ndarray  # float32 [n, w, w]


def _gaussian(sigma: float, size: Size) -> _Gaussian:
  matrices = (filters.gaussian_matrix(n, sigma, mode='nearest', truncate=4).astype(np.float64) for n in size)
  rows, columns = (matrix - np.diag(matrix.sum(axis=1)) for matrix in matrices)  # the sums are 1 up to rounding
  largest_change = 2 * 255 * abs(rows).sum(axis=1).max()
  return _Gaussian(rows.astype(np.float32), columns.astype(np.float32), np.float32(largest_change * 2**-24))


def _gaussian_blur(image: Array, draws: tuple[()], gaussian: _Gaussian) -> Array:
  downwards = jnp.einsum('ih,hwc->iwc', gaussian.rows, image)
  across = jnp.einsum('jw,hwc->hjc', gaussian.columns, image + downwards)
  return image + jnp.floor(downwards + across + gaussian.slack)


def _defocus(numbers: tuple[float, float], size: Size) -> np.ndarray:
  """Returns the kernel, float32 [5, 5]: a disk, blurred over 3 x 3 pixels."""
  radius, sigma = numbers
  steps = np.arange(-_DEFOCUS_REACH, _DEFOCUS_REACH + 1)
  disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
  around = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
  kernel = scipy.ndimage.correlate(disk, np.outer(around, around), mode='constant')
  return (kernel / kernel.sum()).astype(np.float32)


def _defocus_blur(image: Array, draws: tuple[()], kernel: Array) -> Array:
  h, w, _ = image.shape
  padded = jnp.pad(image, ((_DEFOCUS_REACH, _DEFOCUS_REACH), (_DEFOCUS_REACH, _DEFOCUS_REACH), (0, 0)), mode='reflect')
  change = jnp.zeros_like(image)
  for i, j in np.ndindex(*kernel.shape):
    change += kernel[i, j] * (padded[i : i + h, j : j + w] - image)
  return image + jnp.floor(change + _DEFOCUS_SLACK)


def _glass(numbers: tuple[float, int], size: Size) -> _Glass:
  sigma, rounds = numbers
  return _Glass(_gaussian(sigma, size), np.int32(rounds))


def _displacements(key: Key, size: Size, constants: _Glass) -> Array:
  """Returns how far up and to the left each pixel's source is, 0 or 1, int32 [rounds, 2, h, w]."""
  bits = jax.random.bits(key, size)[None, None]
  places = jnp.arange(2 * _GLASS_ROUNDS, dtype=bits.dtype).reshape(_GLASS_ROUNDS, 2, 1, 1)
  return (bits >> places & 1).astype(jnp.int32)


def _glass_blur(image: Array, displacements: Array, glass: _Glass) -> Array:
  """Replaces pixels by neighbours, between two blurs.

  The official code means to swap every pixel, from the last to the first, with one at most a pixel above and to the
  left, but its swap copies that one into both. The source has not been overwritten at that point, so the order does not
  matter. The first two rows and columns are unchanged.
  """
  image = _gaussian_blur(image, (), glass.gaussian)
  row, column = jnp.indices(image.shape[:2], sparse=True)
  for i, (up, left) in enumerate(displacements):
    moves = (row >= 2) & (column >= 2) & (i < glass.rounds)
    image = image[row - up * moves, column - left * moves]
  return _gaussian_blur(image, (), glass.gaussian)


def _motion(numbers: tuple[int, float], size: Size) -> np.ndarray:
  return filters.motion_kernel(*numbers, _MOTION_TAPS)


def _angle(key: Key, size: Size, kernel: Array) -> Array:
  return jax.random.uniform(key, minval=-45, maxval=45)  # degrees


def _zooms(largest: float, size: Size) -> _Zooms:
  """The mean of the image and its clipped zooms, the first of which is the image itself; padded with zeros."""
  factors = np.arange(1, largest, 0.01)
  matrices = [np.stack([filters.zoom_matrix(n, factor) for factor in (1, *factors)]) for n in size]
  rows, columns = (np.pad(m, ((0, _ZOOM_FACTORS + 1 - len(m)), (0, 0), (0, 0))) for m in matrices)
  return _Zooms(rows / np.float32(len(factors) + 1), columns)


def _zoom_blur(image: Array, draws: tuple[()], zooms: _Zooms) -> Array:
  return jnp.einsum('nih,hwc,njw->ijc', zooms.rows, image, zooms.columns) + _ZOOM_SLACK


CORRUPTIONS = {
  'defocus_blur': Corruption(_DEFOCUS, _defocus, no_draw, _defocus_blur),
  'glass_blur': Corruption(_GLASS, _glass, _displacements, _glass_blur),
  'motion_blur': Corruption(_MOTION, _motion, _angle, filters.motion_blur),
  'zoom_blur': Corruption(_ZOOM, _zooms, no_draw, _zoom_blur),
  'gaussian_blur': Corruption(_GAUSSIAN, _gaussian, no_draw, _gaussian_blur),
}
