"""Puts data in place: brings CIFAR-10, or a folder of images, into the form that `train` reads.

    python -m adversarial_augment.prepare cifar10
    python -m adversarial_augment.prepare cifar10 --from=cifar-10-python.tar.gz
    python -m adversarial_augment.prepare images --name=pets --from=FOLDER --size=32

Data sets are written as TFDS writes them (ArrayRecord), so `tfds.data_source` reads them too. An interrupted command
leaves no half-written data set; a download goes on where it stopped.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import pathlib
import re
from typing import NamedTuple

import numpy as np

from adversarial_augment import cli, fields, files
from adversarial_augment.datasets import DATASETS, cifar10, folder, writer
from adversarial_augment.download import download, sha256_of
from adversarial_augment.errors import StorageError, UserError

_SIZES = (16, 512)  # SSIM needs 11 pixels, and the classifiers halve the side several times
_LONGEST_NAME = 100  # it becomes a part of file names, which hold 255


class Command(NamedTuple):
  help: str
  add_arguments: Callable[[argparse.ArgumentParser], None]
  run: Callable[[argparse.Namespace], None]


def main(argv: Sequence[str]) -> None:
  """Runs one subcommand.

  Args:
    argv: the words after the program's name.

  Raises:
    UserError: a flag or a file is wrong.
    StorageError: the disk is full or not writable.
  """
  arguments = _parser().parse_args(argv)
  COMMANDS[arguments.command].run(arguments)


def _cifar10_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--from',
    dest='source',
    metavar='PATH',
    help='the binary or the Python archive, a folder with its files, or an .npz with x_train, y_train, x_test, '
    'y_test; without it the official archive is downloaded (170 MB) to DATA_DIR/downloads',
  )
  parser.add_argument('--url', default=cifar10.URL, help='a mirror of the binary archive (default: %(default)s)')


def _cifar10(arguments: argparse.Namespace) -> None:
  description = writer.Description(
    name='cifar10',
    version='3.0.2',  # of the TFDS builder whose layout this is
    text='CIFAR-10: 50,000 training and 10,000 test images, 32x32x3, in 10 classes.',
    class_names=cifar10.CLASS_NAMES,
    image_shape=(32, 32, 3),
    origin='unverified',
    archive_sha256=None,
    has_ids=True,
  )
  data_dir, source = _data_dir(arguments), _source(arguments)
  writer.check_target(description, data_dir, sum(cifar10.COUNTS.values()), arguments.overwrite)
  path = _downloaded(arguments.url, data_dir) if source is None else source
  with _readable(path):
    content = cifar10.read(path, cifar10.COUNTS)
  splits = {
    name: writer.Split(len(batch.labels), zip(batch.images, batch.labels, strict=True))
    for name, batch in content.splits.items()
  }
  description = description._replace(origin=content.origin, archive_sha256=content.archive_sha256)
  _report(description, splits, writer.write(description, splits, data_dir, arguments.overwrite), arguments)


def _downloaded(url: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Returns the official binary archive; it is kept, so that it is fetched once."""
  path = data_dir / 'downloads' / 'cifar-10-binary.tar.gz'
  with files.storage_errors(f"write under '{data_dir}'"):
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.is_file() and sha256_of(path) == cifar10.ARCHIVE_SHA256
  if not known:
    download(url, path, cifar10.ARCHIVE_SHA256, cifar10.ARCHIVE_BYTES)
  return path


def _images_arguments(parser: argparse.ArgumentParser) -> None:
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


def _images(arguments: argparse.Namespace) -> None:
  name, size = arguments.name, arguments.size
  taken = ('cifar10', *DATASETS)
  if not re.fullmatch('[a-z][a-z0-9_]*', name) or len(name) > _LONGEST_NAME or name in taken:
    raise UserError(
      f'--name={fields.show(name)} must be a letter a-z followed by a-z, 0-9 or _, at most {_LONGEST_NAME} in all, and '
      f'none of {", ".join(taken)}.'
    )
  if not _SIZES[0] <= size <= _SIZES[1]:
    raise UserError(f'--size={size} must lie between {_SIZES[0]} and {_SIZES[1]} pixels.')
  if not 0 <= arguments.seed < 2**32:
    raise UserError(f'--seed={arguments.seed} must lie between 0 and 2**32 - 1.')
  data_dir, source = _data_dir(arguments), _source(arguments)
  assert source is not None  # the flag is required
  with _readable(source):
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
  _report(description, splits, writer.write(description, splits, data_dir, arguments.overwrite), arguments)


def _data_dir(arguments: argparse.Namespace) -> pathlib.Path:
  """Returns the folder of prepared data sets; `train` takes the same names."""
  text = arguments.data_dir
  if not text or not text.isprintable():
    raise UserError(
      f'--data_dir={fields.show(text)} must be a printable name of a folder, not empty; name another one.'
    )
  return files.user_path(text, '--data_dir')


def _source(arguments: argparse.Namespace) -> pathlib.Path | None:
  """Returns what --from names, or None without the flag."""
  if arguments.source is None:
    return None
  if not arguments.source:
    raise UserError('--from is empty; it must name a file or a folder.')
  return files.user_path(arguments.source, '--from')


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
  """Turns an OSError of the block, which reads `path`, into a UserError."""
  try:
    yield
  except StorageError:
    raise
  except OSError as error:
    raise UserError(
      f"'{error.filename or path}' cannot be read ({error.strerror or error}); make it readable, or change --from."
    ) from error


def _report(
  description: writer.Description,
  splits: dict[str, writer.Split],
  path: pathlib.Path,
  arguments: argparse.Namespace,
) -> None:
  counts = ', '.join(f'{split.num_examples:,} {name}' for name, split in splits.items())
  print(f"Wrote '{path}': {counts} images, {len(description.class_names)} classes, origin {description.origin}.")
  print(f'Use it with --config.dataset={description.name} --config.data_dir={arguments.data_dir}')


# The subcommands; a new one is two functions and one line.
COMMANDS = {
  'cifar10': Command('download or import CIFAR-10', _cifar10_arguments, _cifar10),
  'images': Command('import a folder of images, one folder for each class', _images_arguments, _images),
}


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(prog='python -m adversarial_augment.prepare', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for name, command in COMMANDS.items():
    sub = commands.add_parser(name, help=command.help, description=command.help)
    command.add_arguments(sub)
    sub.add_argument(
      '--data_dir', default='~/tensorflow_datasets', help='the folder of prepared data sets (default: %(default)s)'
    )
    sub.add_argument('--overwrite', action='store_true', help='replace the data set if it exists')
    sub.add_argument('--debug', action='store_true', help='show the traceback of an error')
  return parser


if __name__ == '__main__':
  cli.run(main)
