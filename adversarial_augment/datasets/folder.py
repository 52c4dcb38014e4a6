"""Reads a user's own images, in one folder per class."""

from collections.abc import Callable, Iterator
import io
import os
import pathlib
import sys
from typing import NamedTuple, TypeAlias
import unicodedata
import warnings

import numpy as np
from PIL import Image, ImageOps

from adversarial_augment.datasets.arrays import one_line
from adversarial_augment.errors import UserError
from adversarial_augment.storage import untrusted

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.gif')
FITS = {  # how an image gets another shape
  'crop': 'its middle is cut out, and scaled',
  'squash': 'it is scaled as a whole, which changes its proportions',
  'pad': 'it is scaled as a whole, and black is put around it',
}
_RESIZE: dict[str, Callable[..., Image.Image]] = {
  'crop': ImageOps.fit, 'squash': Image.Image.resize, 'pad': ImageOps.pad
}  # fmt: skip
_MODES = {
  '1': 'from black and white', 'L': 'from grey', 'LA': 'from grey', 'I': 'from grey', 'P': 'from a palette',
}  # fmt: skip
_ORIENTATION = 0x0112  # of EXIF
_FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'GIF')  # Pillow would open others too, some with other programs
_MAX_FILE = 1 << 28  # bytes
_MAX_PIXELS = 1 << 26  # 8192 x 8192; a file of a few KB can claim more than any memory holds
_SPLITS = {
  'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test',
  'val': 'validation', 'valid': 'validation', 'validation': 'validation',
}  # fmt: skip
_KNOWN = 'known splits are train and test, train and val, or train, val and test, in small letters or large'


class Listing(NamedTuple):
  """The files of a folder, not read yet."""

  class_names: tuple[str, ...]  # sorted; the label of a class is its position
  splits: dict[str, list[tuple[pathlib.Path, int]]]  # train, test, perhaps validation: file and label, shuffled
  unused: tuple[pathlib.Path, ...]  # images that are not in a class folder
  ignored: tuple[pathlib.Path, ...]  # files of other types
  broken_links: tuple[pathlib.Path, ...]
  notes: tuple[str, ...]  # for the user


_ByClass: TypeAlias = dict[str, list[pathlib.Path]]


def list_images(root: pathlib.Path, test_fraction: float | None = None, seed: int = 0) -> Listing:
  """Finds the images of ROOT/CLASS/*, or of ROOT/train/CLASS/* and so on for other splits, and shuffles them.

  Class names that differ only in Unicode normalisation are one class.

  Args:
    root: has one folder per class; or folders named train and test, val or both, which have them. A val folder
      without a test folder becomes the test split.
    test_fraction: of the images of each class that becomes the test split (rounded, at least one), in (0, 1);
      None is 0.2, or the test folder if there is one.
    seed: of the split and the order.

  Raises:
    UserError: a folder is missing, empty or oddly named, there are fewer than two classes, a class has too few images,
      or a fraction is given though there is a test folder.
  """
  if not root.is_dir():
    raise UserError(f"'{root}' is not a folder; give the folder that has one folder for each class.")
  fraction = 0.2 if test_fraction is None else test_fraction
  if not 0 < fraction < 1:
    raise UserError(f'test_fraction={fraction} must lie between 0 and 1, for example 0.2.')
  rng, notes = np.random.default_rng(seed), list[str]()
  folders = _split_folders(root)
  if folders and test_fraction is not None:
    raise UserError(f"'{root}' has a test folder, so that test_fraction={fraction} has no meaning; leave it out.")
  found = _given_splits(folders, notes) if folders else _random_split(root, fraction, rng, notes)
  class_names = tuple(sorted(found['train']))
  if len(class_names) < 2:
    raise UserError(f"'{root}' has {len(class_names)} class folder; a classifier needs at least 2.")
  splits = {}
  for split, by_class in found.items():
    listed = [(path, class_names.index(name)) for name in sorted(by_class) for path in by_class[name]]
    splits[split] = [listed[i] for i in rng.permutation(len(listed))]
  used = {path for files in splits.values() for path, _ in files}
  others = [path for path in _files(root, set()) if path not in used]
  broken = tuple(path for path in others if not path.exists())
  unused = tuple(filter(_is_image, others))
  ignored = tuple(path for path in others if path.exists() and not _is_image(path))
  return Listing(class_names, splits, unused, ignored, broken, tuple(notes))


def _given_splits(folders: dict[str, pathlib.Path], notes: list[str]) -> dict[str, _ByClass]:
  """Returns the images of each split's folder."""
  if 'test' not in folders:
    folders['test'] = folders.pop('validation')
    notes.append(f"'{folders['test']}' is taken as the test split; there is no test folder.")
  if 'validation' in folders:
    notes.append(
      f"'{folders['validation']}' is stored as the split validation, which train does not read; it can hold out "
      'training images instead.'
    )
  order = (split for split in ('train', 'test', 'validation') if split in folders)
  found: dict[str, _ByClass] = {split: _by_class(folders[split], notes) for split in order}
  for split, by_class in found.items():
    if unknown := sorted(by_class.keys() - found['train'].keys()):
      raise UserError(f"'{folders[split]}' has the class '{unknown[0]}', which '{folders['train']}' lacks.")
  return found


def _random_split(
  root: pathlib.Path, fraction: float, rng: np.random.Generator, notes: list[str]
) -> dict[str, _ByClass]:
  """Returns the images of class folders, a fraction of each class for testing."""
  found: dict[str, _ByClass] = {'train': {}, 'test': {}}
  for name, paths in _by_class(root, notes).items():
    if len(paths) < 2:
      raise UserError(f"Class '{name}' in '{root}' has 1 image; a class needs at least 2, one of them for testing.")
    count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
    order = rng.permutation(len(paths))
    found['test'][name] = [paths[i] for i in order[:count]]
    found['train'][name] = [paths[i] for i in order[count:]]
  return found


def read_image(
  path: pathlib.Path,
  size: int | tuple[int, int],
  fit: str = 'crop',
  note: Callable[[str], None] = lambda change: None,
) -> np.ndarray:
  """Returns an image as uint8 RGB [height, width, 3].

  It is turned by its EXIF data, put on white where it is transparent, brought into shape, and resized with Pillow's
  antialiased bicubic filter. An animation gives its first frame; 16-bit grey is scaled.

  Args:
    path: the file.
    size: height and width, or one number for both.
    fit: one of `FITS`.
    note: called with each change, such as 'from grey', and with the original size, 'of 48x64'.

  Raises:
    UserError: the file is not an image, is damaged, or has more than 67 million pixels.
  """
  height, width = (size, size) if isinstance(size, int) else size
  try:
    with warnings.catch_warnings():
      # The limit below is stricter than Pillow's, and its other warnings (odd EXIF data) concern no pixel.
      warnings.simplefilter('ignore')
      with Image.open(io.BytesIO(untrusted.read_bytes(path, _MAX_FILE)), formats=_FORMATS) as file:
        if file.width * file.height > _MAX_PIXELS:
          raise UserError(
            f"'{path}' has {file.width} x {file.height} pixels; at most {_MAX_PIXELS:,} are read: make it smaller."
          )
        if getattr(file, 'is_animated', False):
          note('the first frame of an animation')
        if file.format == 'PNG' and any(';16' in str(tile[3]) for tile in file.tile):
          note('from 16 bits')
        turned = ImageOps.exif_transpose(file)
        if file.getexif().get(_ORIENTATION, 1) != 1:
          note('turned as EXIF says')
        image = _rgb(turned, note)
        note(f'of {image.height}x{image.width}')
        return np.asarray(_RESIZE[fit](image, (width, height), Image.Resampling.BICUBIC))
  except UserError:
    raise
  except Exception as error:  # Pillow's readers fail in many ways on damaged files
    raise UserError(f"'{path}' cannot be read as an image ({one_line(error)}); repair it, or move it away.") from error


def _rgb(image: Image.Image, note: Callable[[str], None]) -> Image.Image:
  if image.mode not in ('RGB', 'RGBA'):
    note(_MODES.get(image.mode.partition(';')[0], f'from {image.mode}'))
  if image.mode.startswith('I'):  # 16 bits of grey, which convert() would clip to 255
    image = Image.fromarray((np.asarray(image).astype(np.int32).clip(0, 65535) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    note('with transparency, put on white')
    image = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
  return image.convert('RGB')


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folder of each split, or {} if the folders are those of classes; raises UserError if it is neither."""
  by_split: dict[str, list[pathlib.Path]] = {}
  for path in _folders(root):
    by_split.setdefault(_SPLITS.get(path.name.lower(), ''), []).append(path)
  others = by_split.pop('', [])
  if 'train' not in by_split:
    return {}
  train, partial = by_split['train'][0], bool(others) or len(by_split) == 1
  if partial and (not _folders(train) or any(map(_is_image, train.iterdir()))):
    return {}  # a class that is called train
  if twice := [paths for paths in by_split.values() if len(paths) > 1]:
    raise UserError(f"'{twice[0][0]}' and '{twice[0][1].name}' name one split; give one folder for each.")
  if partial:
    beside = f"beside it '{others[0].name}', which is no split" if others else 'no other split'
    raise UserError(
      f"'{train}' is a split of classes, and there is {beside}; {_KNOWN}. Rename or move folders, or give '{train}' "
      'alone, which is then split at random.'
    )
  return {split: paths[0] for split, paths in by_split.items()}


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders in a folder, sorted, without hidden ones and the one that macOS adds to archives."""
  named = [child for child in path.iterdir() if not child.name.startswith('.') and child.name != '__MACOSX']
  return sorted(child for child in named if child.is_dir())


def _files(folder: pathlib.Path, seen: set[pathlib.Path]) -> Iterator[pathlib.Path]:
  """Yields all files below a folder, sorted, without hidden ones; each folder once, as links may form a circle."""
  if (real := folder.resolve()) in seen:
    return
  seen.add(real)
  for path in sorted(folder.iterdir()):
    if not path.name.startswith('.'):
      yield from _files(path, seen) if path.is_dir() else [path]


def _is_image(path: pathlib.Path) -> bool:
  return path.suffix.lower() in SUFFIXES and not path.name.startswith('.') and path.is_file()


def _by_class(root: pathlib.Path, notes: list[str]) -> _ByClass:
  """Returns the images of each class folder, sorted by name; adds to `notes`."""
  found: _ByClass = {}
  folders: dict[str, pathlib.Path] = {}
  for folder in _folders(root):
    _check_name(folder)
    images = sorted(filter(_is_image, folder.iterdir()))
    if not images and any(map(_is_image, _files(folder, set()))):
      raise UserError(
        f"'{folder}' holds folders with images, but a class folder holds images itself; {_KNOWN}. Give the folder that "
        'holds the class folders, or move the images into them.'
      )
    if not images:
      raise UserError(f"Class folder '{folder}' has no images ({', '.join(SUFFIXES)}); fill it, or move it away.")
    name = unicodedata.normalize('NFC', folder.name)
    if name in folders:
      spelt = [' '.join(f'U+{ord(letter):04X}' for letter in path.name) for path in (folders[name], folder)]
      notes.append(f"Two folders in '{root}' are the class '{name}', in two normalisations: {' and '.join(spelt)}.")
    folders[name] = folder
    found.setdefault(name, []).extend(images)
  if not found:
    raise UserError(f"'{root}' has no folders; it must have one folder of images for each class.")
  return found


def _check_name(folder: pathlib.Path) -> None:
  """Refuses a class name that a line of UTF-8 in the data set's list of names could not reproduce."""
  name, encoding = folder.name, sys.getfilesystemencoding()
  if encoding.lower() != 'utf-8' and not os.fsencode(name).isascii():
    raise UserError(
      f'The locale (LC_ALL, LC_CTYPE, LANG, PYTHONUTF8) makes Python read names of files as {encoding}, in which class '
      f'folder {str(folder)!a} has no right name; set LC_ALL=C.UTF-8, or PYTHONUTF8=1.'
    )
  # Surrogates (Cs) stand for bytes that are not UTF-8.
  if name != name.strip() or any(unicodedata.category(letter) in ('Cc', 'Cs', 'Zl', 'Zp') for letter in name):
    raise UserError(
      f'Class folder {str(folder)!r} must have a name in UTF-8 with no line break, no other control character, and no '
      'blank at either end; rename it.'
    )
