"""Frost and fog. Constants and formulas are those of CIFAR-10-C."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.corruptions import frost_textures
from adversarial_augment.corruptions.corruption import Corruption, Size
from adversarial_augment.types import Array, Key

_FROST = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))  # factors of the image and of the frost
_FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))  # thickness, decay of the fine structure


class _Frost(NamedTuple):
  sums: Any  # uint8 [256, 256], of level i of the image and level j of the frost
  textures: Any  # uint8 [5, height, width, 3], padded to one shape
  sizes: Any  # int32 [5, 2], sizes without the padding


class _Fog(NamedTuple):
  thickness: Any  # float32 []
  amplitudes: Any  # float32 [steps], from coarse to fine


@functools.cache
def frost(folder: Path | None) -> Corruption:
  """Returns the corruption that blends in a crop of one of five photographs, or of procedural textures.

  Args:
    folder: see `frost_textures.textures`, also for errors.
  """
  return Corruption(_FROST, functools.partial(_frost, folder), _place, _add_frost)


def _frost(folder: Path | None, severity: int, size: Size) -> _Frost:
  of_image, of_frost = _FROST[severity - 1]
  level = np.arange(256)
  sums = np.clip(of_image * level[:, None] + of_frost * level, 0, 255).astype(np.uint8)
  textures = frost_textures.textures(folder, size)
  sizes = np.array([texture.shape[:2] for texture in textures], np.int32)
  padded = np.zeros((len(textures), *sizes.max(axis=0), 3), np.uint8)
  for i, texture in enumerate(textures):
    padded[i, : texture.shape[0], : texture.shape[1]] = texture
  return _Frost(sums, padded, sizes)


def _place(key: Key, size: Size, frost: _Frost) -> tuple[Array, Array]:
  """Draws a texture, and the row and column of its first pixel; as in the original, never the last of each."""
  which, where = jax.random.split(key)
  number = jax.random.randint(which, (), 0, len(frost.sizes))
  return number, jax.random.randint(where, (2,), 0, frost.sizes[number] - jnp.array(size))


def _add_frost(image: Array, place: tuple[Array, Array], frost: _Frost) -> Array:
  number, (row, column) = place
  piece = jax.lax.dynamic_slice(frost.textures, (number, row, column, 0), (1, *image.shape))[0]
  return frost.sums[image.astype(jnp.int32), piece.astype(jnp.int32)].astype(jnp.float32)


def _fog(severity: int, size: Size) -> _Fog:
  """The amplitude enters squared: it is both the range of the draws and their factor."""
  thickness, decay = _FOG[severity - 1]
  wibbles = 100 / decay ** np.arange(_doublings(size))
  return _Fog(np.float32(thickness), (wibbles**2).astype(np.float32))


def _doublings(size: Size) -> int:
  """Returns log2 of the side of the map: the smallest power of two that covers the image."""
  return math.ceil(math.log2(max(size)))


def _uniform(key: Key, size: Size, fog: _Fog) -> Array:
  """Draws a number in [-1, 1) for each point of the map except the first, in the order in which they are set."""
  del fog
  return jax.random.uniform(key, (4 ** _doublings(size) - 1,), minval=-1)


def _add_fog(image: Array, uniform: Array, fog: _Fog) -> Array:
  h, w = image.shape[:2]
  plasma = _plasma(uniform, fog.amplitudes)[:h, :w, None]
  high = image.max()
  return (image + 255 * fog.thickness * plasma) * (high / (high + 255 * fog.thickness))


def _plasma(uniform: Array, amplitudes: Array) -> Array:
  """Diamond-square on a torus: each step doubles the map, setting new points to the mean of four plus a draw.

  Args:
    uniform: [4**k - 1]. A step from n to 2n points per side uses n * n draws each for the centres of squares, the
      points between neighbours of a row, and those between neighbours of a column.
    amplitudes: factors of the draws, [k].

  Returns:
    The map, [2**k, 2**k], from 0 to 1.
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


FOG = Corruption(_FOG, _fog, _uniform, _add_fog)
