"""`prepare images`: makes a data set of a user's own images."""

import argparse
import collections
from collections.abc import Iterator, Sequence
import hashlib
import pathlib
import re

import numpy as np

from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.datasets import DATASETS, folder, writer
from adversarial_augment.errors import UserError, show
from adversarial_augment.preparation import command

_SIZES = (16, 512)  # SSIM needs 11 pixels, and the classifiers halve the side several times
_LONGEST_NAME = 100  # it becomes a part of file names, which hold 255
_SHOWN = 8  # files or sizes in a line
_OF_EVALUATIONS = (name for name, evaluation in EVALUATIONS.items() if evaluation.imported_from)
_TAKEN = ('cifar10', *_OF_EVALUATIONS, 'cifar10_corrupted', *DATASETS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--name', required=True, help='of the new data set: a-z, 0-9 and _, a letter first')
  parser.add_argument(
    '--from',
    dest='source',
    required=True,
    metavar='FOLDER',
    help='holds CLASS/*, or train/CLASS/* and test/CLASS/*, or val instead of test, or all three '
    f'({", ".join(folder.SUFFIXES)})',
  )
  parser.add_argument(
    '--size', default='32', metavar='PIXELS', help='a side, or HEIGHTxWIDTH such as 48x64 (default: %(default)s)'
  )
  fits = '; '.join(f'{name}: {about}' for name, about in folder.FITS.items())
  parser.add_argument(
    '--fit', choices=folder.FITS, default='crop', help=f'how images of other shapes are resized; {fits} (default: crop)'
  )
  parser.add_argument(
    '--test_fraction',
    type=float,
    help='of each class that is kept for testing, where there is no test folder (default: 0.2)',
  )
  parser.add_argument('--seed', type=int, default=0, help='of the split and the order (default: %(default)s)')


def run(arguments: argparse.Namespace) -> None:
  name, size = arguments.name, _size(arguments.size)
  if not re.fullmatch('[a-z][a-z0-9_]*', name) or len(name) > _LONGEST_NAME or name in _TAKEN:
    raise UserError(
      f'--name={show(name)} must be a letter a-z followed by a-z, 0-9 or _, at most {_LONGEST_NAME} in all, and '
      f'none of {", ".join(_TAKEN)}.'
    )
  if not 0 <= arguments.seed < 2**32:
    raise UserError(f'--seed={arguments.seed} must lie between 0 and 2**32 - 1.')
  data_dir, source = command.data_dir(arguments), command.source(arguments)
  assert source is not None  # the flag is required
  with command.readable(source):
    listing = folder.list_images(source, arguments.test_fraction, arguments.seed)
  reader = _Reader(size, arguments.fit, last=list(listing.splits)[-1])
  splits = {split: writer.Split(len(files), reader.read(split, files)) for split, files in listing.splits.items()}
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
  for note in listing.notes:
    print(note)
  if listing.unused:
    print(
      f'Not used: {len(listing.unused):,} images that do not lie in a class folder itself, such as '
      f'{_named(_varied(listing.unused))}.'
    )
  if listing.ignored:
    types = ', '.join(folder.SUFFIXES)
    print(f'Ignored {len(listing.ignored)} files that are not {types}, such as {_named(_varied(listing.ignored))}.')
  if listing.broken_links:
    print(f'Ignored {len(listing.broken_links)} links to nothing, such as {_named(_varied(listing.broken_links))}.')
  path = writer.write(description, splits, data_dir, arguments.overwrite)
  for line in reader.lines():
    print(line)
  command.report(description, splits, path, arguments)


class _Reader:
  """Reads the images of all splits, and keeps what is to be said of them."""

  def __init__(self, size: tuple[int, int], fit: str, last: str):
    """`last` is the split that is read last."""
    self._size, self._fit, self._last = size, fit, last
    self._num_images = 0
    self._changes: collections.Counter[str] = collections.Counter()
    self._places: dict[bytes, list[tuple[str, int, pathlib.Path]]] = {}  # of equal pixels: splits, labels, files
    self._broken: list[str] = []

  def read(self, split: str, files: list[tuple[pathlib.Path, int]]) -> Iterator[tuple[np.ndarray, int]]:
    """Yields images and labels.

    Raises:
      UserError: at the end of the last split, some cannot be read; it names them all.
    """
    for path, label in files:
      changes: list[str] = []
      try:
        image = folder.read_image(path, self._size, self._fit, changes.append)
      except UserError as error:
        self._broken.append(str(error).rstrip('.'))
        continue
      self._num_images += 1
      self._changes.update(changes)
      self._places.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append((split, label, path))
      if not self._broken:
        yield image, label
    if split == self._last and self._broken:
      several = f'{len(self._broken)} images cannot be used: ' if len(self._broken) > 1 else ''
      raise UserError(f'{several}{"; ".join(self._broken)}.')

  def lines(self) -> Iterator[str]:
    """Yields what was done to the images, and which of them are equal."""
    height, width = self._size
    del self._changes[f'of {height}x{width}']
    noted = [(count, change) for change, count in self._changes.most_common()]
    sizes = [(count, change) for count, change in noted if change.startswith('of ')]
    changes = [f'{count:,} {change}' for count, change in noted if not change.startswith('of ')]
    if sizes:
      number, of = sum(count for count, _ in sizes), [f'{count:,} {size}' for count, size in sizes]
      more = f', and {len(of) - _SHOWN} more sizes' if len(of) > _SHOWN else ''
      yield (
        f'Resized {number:,} of {self._num_images:,} images to {height}x{width} (--fit={self._fit}: '
        f'{folder.FITS[self._fit]}): {", ".join(of[:_SHOWN])}{more}.'
      )
    if changes:
      yield f'Converted: {", ".join(changes)}.'
    groups = list(self._places.values())
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


def _named(paths: Sequence[pathlib.Path]) -> str:
  return ', '.join(f"'{path}'" for path in paths[:_SHOWN])


def _varied(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Returns the paths with one of each folder first."""
  firsts = set({path.parent: path for path in reversed(paths)}.values())
  return sorted(paths, key=lambda path: path not in firsts)
