"""Reads a user's own images, kept in one folder for each class."""

import io
import pathlib
from typing import NamedTuple
import unicodedata
import warnings

import numpy as np
from PIL import Image, ImageOps

from adversarial_augment import untrusted
from adversarial_augment.datasets.reasons import one_line
from adversarial_augment.errors import UserError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.gif')
_FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'GIF')  # Pillow would open others too, some with other programs
_MAX_FILE = 1 << 28  # bytes
_MAX_PIXELS = 1 << 26  # 8192 x 8192; a file of a few KB can claim more than any memory holds


class Listing(NamedTuple):
  """The files of a folder, not read yet."""

  class_names: tuple[str, ...]  # sorted; the label of a class is its position
  splits: dict[str, list[tuple[pathlib.Path, int]]]  # train and test: file and label, shuffled
  num_ignored: int  # files of other types
  broken_links: tuple[pathlib.Path, ...]  # to nothing; they may have been images, or folders of them


def list_images(root: pathlib.Path, test_fraction: float | None = None, seed: int = 0) -> Listing:
  """Finds the images of ROOT/CLASS/*, or of ROOT/train/CLASS/* and ROOT/test/CLASS/*, and shuffles them.

  Args:
    root: holds one folder for each class, or exactly the folders train and test, which hold them.
    test_fraction: of the images of each class that becomes the test split (rounded, at least one), in (0, 1);
      None is 0.2, or the test folder if there is one.
    seed: of the split and the order.

  Raises:
    UserError: a folder is missing, empty or oddly named, there are fewer than two classes, a class has too few images,
      or a fraction is given though there is a test folder.
  """
  if not root.is_dir():
    raise UserError(f"--from='{root}' is not a folder; give the folder that holds one folder for each class.")
  fraction = 0.2 if test_fraction is None else test_fraction
  if not 0 < fraction < 1:
    raise UserError(f'--test_fraction={fraction} must lie between 0 and 1, for example 0.2.')
  rng = np.random.default_rng(seed)
  if [path.name for path in _folders(root)] == ['test', 'train']:
    if test_fraction is not None:
      raise UserError(f"'{root}' has a test folder, so that --test_fraction={fraction} has no meaning; leave it out.")
    train, ignored = _by_class(root / 'train')
    test, ignored_too = _by_class(root / 'test')
    found = [link for folder in (root, root / 'train', root / 'test') for link in _broken_links(folder)]
    broken = tuple(dict.fromkeys(found))
    unknown = sorted(test.keys() - train.keys())
    if unknown:
      raise UserError(f"'{root / 'test'}' has the class '{unknown[0]}', which '{root / 'train'}' lacks.")
    ignored += ignored_too
  else:
    files, ignored = _by_class(root)
    broken = _broken_links(root)
    train, test = {}, {}
    for name, paths in files.items():
      if len(paths) < 2:
        raise UserError(f"Class '{name}' in '{root}' has 1 image; a class needs at least 2, one of them for testing.")
      count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
      order = rng.permutation(len(paths))
      test[name] = [paths[i] for i in order[:count]]
      train[name] = [paths[i] for i in order[count:]]
  class_names = tuple(sorted(train))
  if len(class_names) < 2:
    raise UserError(f"'{root}' has {len(class_names)} class folder; a classifier needs at least 2.")
  splits = {}
  for split, by_class in (('train', train), ('test', test)):
    listed = [(path, class_names.index(name)) for name in sorted(by_class) for path in by_class[name]]
    splits[split] = [listed[i] for i in rng.permutation(len(listed))]
  return Listing(class_names, splits, ignored, broken)


def read_image(path: pathlib.Path, size: int) -> np.ndarray:
  """Returns an image as uint8 RGB [size, size, 3].

  It is turned as its EXIF data says, put on white where it is transparent, cut to the square in its middle, and resized
  with Pillow's antialiased bicubic filter. Of an animated image the first frame is taken; 16-bit grey is scaled.

  Raises:
    UserError: the file is no image, is damaged, or has more than 67 million pixels.
  """
  try:
    with warnings.catch_warnings():
      # The limit below is stricter than Pillow's, and what else it warns of (odd EXIF data) harms no pixel.
      warnings.simplefilter('ignore')
      with Image.open(io.BytesIO(untrusted.read_bytes(path, _MAX_FILE)), formats=_FORMATS) as file:
        if file.width * file.height > _MAX_PIXELS:
          raise UserError(
            f"'{path}' has {file.width} x {file.height} pixels; at most {_MAX_PIXELS:,} are read: make it smaller."
          )
        image = _rgb(ImageOps.exif_transpose(file))
        return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
  except UserError:
    raise
  except Exception as error:  # Pillow's readers fail in many ways on damaged files
    raise UserError(f"'{path}' cannot be read as an image ({one_line(error)}); repair or remove it.") from error


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I'):  # 16 bits of grey, which convert() would clip to 255
    image = Image.fromarray((np.asarray(image).astype(np.int32).clip(0, 65535) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
  return image.convert('RGB')


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith('.'))


def _broken_links(root: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """Returns the links to nothing in a folder and in its folders of classes, sorted by name, without hidden ones."""
  paths = [child for folder in (root, *_folders(root)) for child in sorted(folder.iterdir())]
  return tuple(path for path in paths if path.is_symlink() and not path.exists() and not path.name.startswith('.'))


def _by_class(root: pathlib.Path) -> tuple[dict[str, list[pathlib.Path]], int]:
  """Returns the images of each class folder, sorted by name, and how many other files were met."""
  found, ignored = {}, 0
  for folder in _folders(root):
    _check_name(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith('.'))
    found[folder.name] = [path for path in files if path.suffix.lower() in SUFFIXES]
    ignored += len(files) - len(found[folder.name])
    if not found[folder.name]:
      raise UserError(f"Class folder '{folder}' has no images ({', '.join(SUFFIXES)}); fill or remove it.")
  if not found:
    raise UserError(f"'{root}' has no folders; it must hold one folder of images for each class.")
  return found, ignored


def _check_name(folder: pathlib.Path) -> None:
  """Refuses a class name that the data set's list of names, UTF-8 with one on each line, would not give back."""
  name = folder.name
  # Surrogates (Cs) stand for bytes that are not UTF-8.
  if name != name.strip() or any(unicodedata.category(letter) in ('Cc', 'Cs', 'Zl', 'Zp') for letter in name):
    raise UserError(
      f'Class folder {str(folder)!r} must have a name in UTF-8 with no line break, no other control character, and no '
      'blank at either end; rename it.'
    )
