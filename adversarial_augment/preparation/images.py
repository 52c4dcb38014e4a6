"""`prepare images`: makes a data set of a user's own images."""

import argparse
import collections
from collections.abc import Iterator, Sequence
import hashlib
from pathlib import Path
import re

import numpy as np

from adversarial_augment.config import published
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.datasets import DATASETS, folder, writer
from adversarial_augment.errors import UserError, show
from adversarial_augment.preparation import command

_SIZES = (16, 512)  # SSIM needs 11 pixels, and the classifiers halve the side several times
_LONGEST_NAME = 100  # it becomes a part of file names, which hold 255
_SHOWN = 8  # files or sizes in a line
_IMPORTED = (name for name, evaluation in EVALUATIONS.items() if evaluation.imported_from)
_TAKEN = (*published.DATASETS, *_IMPORTED, 'cifar10_corrupted', *DATASETS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  suffixes, fits = ', '.join(folder.SUFFIXES), '; '.join(f'{name}: {about}' for name, about in folder.FITS.items())
  parser.add_argument('--name', required=True, help='name of the new data set: a-z, 0-9 and _, a letter first')
  about = f'folder with CLASS/*, or train/CLASS/* and test/CLASS/*, or val instead of test, or all three ({suffixes})'
  command.add_source(parser, 'FOLDER', about, required=True)
  parser.add_argument(
    '--size', default='32', metavar='PIXELS', help='height and width, or such as 48x64 (default: %(default)s)'
  )
  parser.add_argument(
    '--fit', choices=folder.FITS, default='crop', help=f'how images of other shapes are resized; {fits} (default: crop)'
  )
  parser.add_argument(
    '--test_fraction',
    type=float,
    help='fraction of each class that is kept for testing if there is no test folder (default: 0.2)',
  )
  parser.add_argument('--seed', type=int, default=0, help='seed of the split and the order (default: %(default)s)')


def run(arguments: argparse.Namespace) -> None:
  name, size = arguments.name, _size(arguments.size)
  if not re.fullmatch('[a-z][a-z0-9_]*', name) or len(name) > _LONGEST_NAME or name in _TAKEN:
    raise UserError(
      f'--name={show(name)} must be a letter a-z followed by a-z, 0-9 or _, at most {_LONGEST_NAME} in all, and '
      f'none of {", ".join(_TAKEN)}.'
    )
  command.check_range('--seed', arguments.seed, 0, 2**32 - 1)
  data_dir, source = command.data_dir(arguments), command.source(arguments)
  with command.readable(source):
    listing = folder.list_images(source, arguments.test_fraction, arguments.seed)
  reader = _Reader(size, arguments.fit, last=list(listing.splits)[-1])
  description = writer.Description(
    name=name,
    version='1.0.0',
    text=f"A user's own images, {size[0]}x{size[1]}x3, in {len(listing.class_names)} classes.",
    class_names=listing.class_names,
    image_shape=(*size, 3),
    origin='own',
    archive_sha256=None,
    made={'fit': arguments.fit, 'seed': arguments.seed, 'test_fraction': arguments.test_fraction},
  )
  for line in (*listing.notes, *_left_out(listing)):
    print(line)
  splits = {split: writer.Split(len(files), reader.read(split, files)) for split, files in listing.splits.items()}
  command.write(description, splits, data_dir, arguments.overwrite)
  for line in reader.lines():
    print(line)
  command.print_use(f'--config.dataset={name}', arguments)


def _left_out(listing: folder.Listing) -> Iterator[str]:
  """Yields which files were not read."""
  for paths, text in (
    (listing.unused, 'Not used: {:,} images that do not lie in a class folder itself'),
    (listing.ignored, f'Ignored {{}} files that are not {", ".join(folder.SUFFIXES)}'),
    (listing.broken_links, 'Ignored {} links to nothing'),
  ):
    if paths:
      firsts = set({path.parent: path for path in reversed(paths)}.values())  # one of each folder
      yield f'{text.format(len(paths))}, such as {_named(sorted(paths, key=lambda path: path not in firsts))}.'


class _Reader:
  """Reads the images of all splits, and keeps what is to be said of them."""

  def __init__(self, size: tuple[int, int], fit: str, last: str):
    """`last` is the split that is read last."""
    self._size, self._fit, self._last = size, fit, last
    self._changes: collections.Counter[str] = collections.Counter()
    self._places: dict[bytes, list[tuple[str, int, Path]]] = {}  # of equal pixels: splits, labels, files
    self._broken: list[str] = []

  def read(self, split: str, files: list[tuple[Path, int]]) -> Iterator[tuple[np.ndarray, int]]:
    """Yields images and labels; raises UserError at the end of the last split, with all that cannot be read."""
    for path, label in files:
      changes: list[str] = []
      try:
        image = folder.read_image(path, self._size, self._fit, changes.append)
      except UserError as error:
        self._broken.append(str(error).rstrip('.'))
        continue
      self._changes.update(changes)
      self._places.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append((split, label, path))
      if not self._broken:
        yield image, label
    if split == self._last and self._broken:
      several = f'{len(self._broken)} images cannot be used: ' if len(self._broken) > 1 else ''
      raise UserError(f'{several}{"; ".join(self._broken)}.')

  def lines(self) -> Iterator[str]:
    """Yields what was done to the images, and which of them are equal."""
    shape, groups = f'{self._size[0]}x{self._size[1]}', list(self._places.values())
    del self._changes[f'of {shape}']
    sizes: list[str] = []
    changes: list[str] = []
    for change, count in self._changes.most_common():
      (sizes if change.startswith('of ') else changes).append(f'{count:,} {change}')
    if sizes:
      resized = sum(count for change, count in self._changes.items() if change.startswith('of '))
      more = f', and {len(sizes) - _SHOWN} more sizes' if len(sizes) > _SHOWN else ''
      yield (
        f'Resized {resized:,} of {sum(map(len, groups)):,} images to {shape} (--fit={self._fit}: '
        f'{folder.FITS[self._fit]}): {", ".join(sizes[:_SHOWN])}{more}.'
      )
    if changes:
      yield f'Converted: {", ".join(changes)}.'
    for what, column in (('in several splits', 0), ('under several labels', 1)):
      if equal := [group for group in groups if len({place[column] for place in group}) > 1]:
        paths = [path for group in equal for _, _, path in group]
        yield f'warning: {len(paths):,} equal images are {what}, such as {_named(paths)}.'


def _size(text: str) -> tuple[int, int]:
  match = re.fullmatch('([0-9]{1,5})(?:x([0-9]{1,5}))?', text)
  if not match:
    raise UserError(f'--size={show(text)} must be pixels a side, such as 32, or HEIGHTxWIDTH, such as 48x64.')
  height, width = int(match[1]), int(match[2] or match[1])
  if not all(_SIZES[0] <= side <= _SIZES[1] for side in (height, width)):
    raise UserError(f'--size={text} must lie between {_SIZES[0]} and {_SIZES[1]} pixels.')
  return height, width


def _named(paths: Sequence[Path]) -> str:
  return ', '.join(f"'{path}'" for path in paths[:_SHOWN])
