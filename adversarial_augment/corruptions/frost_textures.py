"""The photographs of the corruption 'frost': the official ones if available, otherwise procedural textures.

They are not part of this package. The optional distribution `imagecorruptions` contains them, byte for byte as in the
authors' repository. Its files are read without importing it, which would need OpenCV and numba.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from adversarial_augment.corruptions.corruption import Size
from adversarial_augment.errors import UserError

FILES = ('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')  # frost6.jpg is never drawn
_OFFICIAL = 'c146cff9eab2397f71c47ee7c727e2f8a36cf7445b8daf1dad63a0ce34140861'  # SHA-256 of all five
_DISTRIBUTION = 'imagecorruptions'
_SHRINK = 0.2  # of the photographs, for images of 32 pixels per side
_STAND_IN = (120, 180)  # height, width, in pixels


def describe(folder: Path | None) -> str:
  """Returns the origin of the frost textures, for results.

  Raises:
    UserError: as in `textures`.
  """
  folder = folder if folder is not None else _distribution()
  if folder is None:
    return 'procedural'
  for name in FILES:
    _photograph(Path(folder, name))
  digest = hashlib.sha256(b''.join(_content(Path(folder, name)) for name in FILES)).hexdigest()
  return 'photographs of CIFAR-10-C' if digest == _OFFICIAL else f'other photographs, SHA-256 {digest}'


@functools.lru_cache(maxsize=4)
def textures(folder: Path | None, size: Size) -> tuple[np.ndarray, ...]:
  """Returns five textures, each at least one pixel higher and wider than an image.

  Photographs are reduced to a fifth, as for CIFAR-10-C, or less if the images are too large for that.

  Args:
    folder: with the photographs `FILES`. None: those of the distribution `imagecorruptions` or, if it is not installed,
      ridged noise, which is not comparable with published results.
    size: of the images.

  Returns:
    uint8 [height, width, 3] each, of various sizes.

  Raises:
    UserError: a photograph is missing or is not an image.
  """
  folder = folder if folder is not None else _distribution()
  if folder is None:
    return tuple(_fitted(_ridges(number), 1, size) for number in range(len(FILES)))
  return tuple(_fitted(_photograph(Path(folder, name)), _SHRINK, size) for name in FILES)


def resize(image: np.ndarray, factor: float) -> np.ndarray:
  """Interpolates linearly between pixel centres, as OpenCV's INTER_LINEAR, without antialiasing.

  Args:
    image: uint8 [h, w, c].
    factor: of both sides.

  Returns:
    uint8 [round(factor * h), round(factor * w), c]
  """
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


def _distribution() -> Path | None:
  spec = importlib.util.find_spec(_DISTRIBUTION)
  if spec is None or not spec.submodule_search_locations:
    return None
  return Path(spec.submodule_search_locations[0], 'frost')


def _photograph(path: Path) -> np.ndarray:
  _content(path)
  try:
    with Image.open(path) as image:
      return np.asarray(image.convert('RGB'))
  except Exception as error:  # of any type that Pillow's decoders raise
    raise UserError(f"frost: '{path}' cannot be read as an image ({error}); replace the file.") from error


def _content(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(
      f"frost: cannot read '{path}' ({error.strerror}); the folder must hold {', '.join(FILES)}, as the directory "
      f"'frost' of the distribution {_DISTRIBUTION} does."
    ) from error


def _ridges(number: int) -> np.ndarray:
  """Returns ridged fractal noise, pale blue, uint8 [height, width, 3], determined by `number`."""
  random = np.random.default_rng(number)
  ridges = np.zeros(_STAND_IN)
  for octave in range(5):
    noise = ndimage.gaussian_filter(random.normal(size=_STAND_IN), 16 / 2**octave, mode='wrap')
    ridges -= np.abs(noise) / noise.std() * 0.7**octave
  ridges = (ridges - ridges.mean()) / ridges.std()
  return np.clip(ridges[..., None] * 28 + (145, 167, 179), 0, 255).astype(np.uint8)
