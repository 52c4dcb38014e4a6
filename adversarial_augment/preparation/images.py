"""`prepare images`: makes a data set of a user's own images."""

import argparse
from collections.abc import Iterator
import pathlib
import re

import numpy as np

from adversarial_augment import fields
from adversarial_augment.datasets import DATASETS, folder, writer
from adversarial_augment.errors import UserError
from adversarial_augment.preparation import command

_SIZES = (16, 512)  # SSIM needs 11 pixels, and the classifiers halve the side several times
_LONGEST_NAME = 100  # it becomes a part of file names, which hold 255
_TAKEN = ('cifar10', 'cifar10_1', 'cifar10_corrupted', *DATASETS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--name', required=True, help='of the new data set: a-z, 0-9 and _, a letter first')
  parser.add_argument(
    '--from',
    dest='source',
    required=True,
    metavar='FOLDER',
    help=f'holds CLASS/*, or train/CLASS/* and test/CLASS/* ({", ".join(folder.SUFFIXES)})',
  )
  parser.add_argument('--size', type=int, default=32, help='height and width in pixels (default: %(default)s)')
  parser.add_argument(
    '--test_fraction',
    type=float,
    help='of each class that is kept for testing, where there is no test folder (default: 0.2)',
  )
  parser.add_argument('--seed', type=int, default=0, help='of the split and the order (default: %(default)s)')


def run(arguments: argparse.Namespace) -> None:
  name, size = arguments.name, arguments.size
  if not re.fullmatch('[a-z][a-z0-9_]*', name) or len(name) > _LONGEST_NAME or name in _TAKEN:
    raise UserError(
      f'--name={fields.show(name)} must be a letter a-z followed by a-z, 0-9 or _, at most {_LONGEST_NAME} in all, and '
      f'none of {", ".join(_TAKEN)}.'
    )
  if not _SIZES[0] <= size <= _SIZES[1]:
    raise UserError(f'--size={size} must lie between {_SIZES[0]} and {_SIZES[1]} pixels.')
  if not 0 <= arguments.seed < 2**32:
    raise UserError(f'--seed={arguments.seed} must lie between 0 and 2**32 - 1.')
  data_dir, source = command.data_dir(arguments), command.source(arguments)
  assert source is not None  # the flag is required
  with command.readable(source):
    listing = folder.list_images(source, arguments.test_fraction, arguments.seed)

  def examples(files: list[tuple[pathlib.Path, int]]) -> Iterator[tuple[np.ndarray, int]]:
    return ((folder.read_image(path, size), label) for path, label in files)

  splits = {split: writer.Split(len(files), examples(files)) for split, files in listing.splits.items()}
  description = writer.Description(
    name=name,
    version='1.0.0',
    text=f"A user's own images, {size}x{size}x3, in {len(listing.class_names)} classes.",
    class_names=listing.class_names,
    image_shape=(size, size, 3),
    origin='own',
    archive_sha256=None,
  )
  if listing.num_ignored:
    print(f'Ignored {listing.num_ignored} files that are not {", ".join(folder.SUFFIXES)}.')
  if listing.broken_links:
    print(f"Ignored {len(listing.broken_links)} links to nothing, such as '{listing.broken_links[0]}'.")
  command.report(description, splits, writer.write(description, splits, data_dir, arguments.overwrite), arguments)
