"""Frost, a crop of a photograph that is blended in. Constants and formulas are those of CIFAR-10-C.

The photographs are not part of this package. The optional distribution `imagecorruptions` contains them, byte for byte
as in the authors' repository. Its files are read without importing it, which would need OpenCV and numba. Without them,
procedural textures are used, which are not comparable with published results.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import scipy

from adversarial_augment.corruptions.corruption import Corruption, Size
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Key

_FROST = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))  # factors of the image and of the frost
FILES = ('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')  # frost6.jpg is never drawn
_OFFICIAL = 'c146cff9eab2397f71c47ee7c727e2f8a36cf7445b8daf1dad63a0ce34140861'  # SHA-256 of all five
_DISTRIBUTION = 'imagecorruptions'
_SHRINK = 0.2  # of the photographs, for images of 32 pixels per side
_STAND_IN = (120, 180)  # height, width, in pixels


class _Frost(NamedTuple):
  sums: Any  # uint8 [256, 256], of level i of the image and level j of the frost
  textures: Any  # uint8 [5, height, width, 3], padded to one shape
  sizes: Any  # int32 [5, 2], sizes without the padding


@functools.cache
def with_photographs(folder: Path | None) -> Corruption:
  """Returns the corruption that blends in a crop of one of five photographs, or of procedural textures."""
  return Corruption(_FROST, functools.partial(_frost, folder), _place, _add_frost)


def _frost(folder: Path | None, numbers: tuple[float, float], size: Size) -> _Frost:
  image_share, frost_share = numbers
  level = np.arange(256)
  sums = np.clip(image_share * level[:, None] + frost_share * level, 0, 255).astype(np.uint8)
  found = textures(folder, size)
  sizes = np.array([texture.shape[:2] for texture in found], np.int32)
  padded = np.zeros((len(found), *sizes.max(axis=0), 3), np.uint8)
  for i, texture in enumerate(found):
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


def describe(folder: Path | None) -> str:
  """Returns the origin of the frost textures, for results; raises UserError as `textures` does."""
  photographs = _photographs(folder)
  if photographs is None:
    return 'procedural'
  digest = hashlib.sha256(b''.join(content for content, _ in photographs)).hexdigest()
  return 'photographs of CIFAR-10-C' if digest == _OFFICIAL else f'other photographs, SHA-256 {digest}'


@functools.lru_cache(maxsize=4)
def textures(folder: Path | None, size: Size) -> tuple[np.ndarray, ...]:
  """Returns five textures, uint8 [height, width, 3], each at least one pixel higher and wider than an image.

  Photographs are reduced to a fifth, as for CIFAR-10-C, or less if the images are too large for that.

  Args:
    folder: with the photographs `FILES`. None: those of the distribution `imagecorruptions` or, if it is not installed,
      ridged noise.
    size: of the images.

  Raises:
    UserError: a photograph is missing or is not an image.
  """
  photographs = _photographs(folder)
  if photographs is None:
    return tuple(_fitted(_ridges(number), 1, size) for number in range(len(FILES)))
  return tuple(_fitted(image, _SHRINK, size) for _, image in photographs)


def _photographs(folder: Path | None) -> list[tuple[bytes, np.ndarray]] | None:
  """Returns the content and the pixels of each file; None if there are none."""
  if folder is None:
    spec = importlib.util.find_spec(_DISTRIBUTION)
    if spec is None or not spec.submodule_search_locations:
      return None
    folder = Path(spec.submodule_search_locations[0], 'frost')
  found = []
  for path in (folder / name for name in FILES):
    try:
      content = path.read_bytes()
    except OSError as error:
      raise UserError(
        f"frost: cannot read '{path}' ({error.strerror}); the folder must hold {', '.join(FILES)}, as the directory "
        f"'frost' of the distribution {_DISTRIBUTION} does."
      ) from error
    try:
      with Image.open(path) as image:
        found.append((content, np.asarray(image.convert('RGB'))))
    except Exception as error:  # of any type that Pillow's decoders raise
      raise UserError(f"frost: '{path}' cannot be read as an image ({error}); replace the file.") from error
  return found


def resize(image: np.ndarray, factor: float) -> np.ndarray:
  """Scales the sides of uint8 [h, w, c], linearly between pixel centres as OpenCV's INTER_LINEAR, not antialiased."""
  result = image.astype(np.float64)
  for axis in (0, 1):
    position = (np.arange(round(factor * image.shape[axis])) + 0.5) / factor - 0.5
    position = np.clip(position, 0, image.shape[axis] - 1)
    left = np.minimum(position.astype(int), image.shape[axis] - 2)
    share = np.expand_dims(position - left, tuple(i for i in range(image.ndim) if i != axis))
    result = (1 - share) * result.take(left, axis) + share * result.take(left + 1, axis)
  return np.rint(result).astype(np.uint8)


def _fitted(image: np.ndarray, factor: float, size: Size) -> np.ndarray:
  return resize(image, max(factor, (size[0] + 1) / image.shape[0], (size[1] + 1) / image.shape[1]))


def _ridges(number: int) -> np.ndarray:
  """Returns ridged fractal noise, pale blue, uint8 [height, width, 3], determined by `number`."""
  random = np.random.default_rng(number)
  ridges = np.zeros(_STAND_IN)
  for octave in range(5):
    noise = scipy.ndimage.gaussian_filter(random.normal(size=_STAND_IN), 16 / 2**octave, mode='wrap')
    ridges -= np.abs(noise) / noise.std() * 0.7**octave
  ridges = (ridges - ridges.mean()) / ridges.std()
  return np.clip(ridges[..., None] * 28 + (145, 167, 179), 0, 255).astype(np.uint8)
