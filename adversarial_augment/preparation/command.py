"""What the subcommands of `prepare` share: flags that name folders, and the closing lines."""

import argparse
from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path
import shlex

from adversarial_augment.datasets import writer
from adversarial_augment.errors import StorageError, UserError, show
from adversarial_augment.storage import artifact, files
from adversarial_augment.storage.download import download


def add_source(parser: argparse.ArgumentParser, metavar: str, about: str, *, required: bool = False) -> None:
  parser.add_argument('--from', dest='source', metavar=metavar, required=required, help=about)


def add_url(parser: argparse.ArgumentParser, url: str, what: str) -> None:
  parser.add_argument('--url', default=url, help=f'address of the {what} (default: %(default)s)')


def downloaded(url: str, data_dir: Path, name: str, sha256: str, size: int) -> Path:
  """Returns a published archive, which is kept in DATA_DIR/downloads and downloaded only once."""
  path = data_dir / 'downloads' / name
  with artifact.storage_errors(f"write under '{data_dir}'"):
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.is_file() and artifact.sha256_of(path) == sha256
  if not known:
    download(url, path, sha256, size)
  return path


def data_dir(arguments: argparse.Namespace) -> Path:
  """Returns the folder of prepared data sets, which need not exist; `train` takes the same names."""
  text = arguments.data_dir
  if not text or not text.isprintable():
    raise UserError(f'--data_dir={show(text)} must be a printable name of a folder, not empty; name another one.')
  path = files.user_path(text, '--data_dir')
  files.check_folder(path, '--data_dir')
  return path


def source(arguments: argparse.Namespace) -> Path:
  """Returns what --from names."""
  if not arguments.source:
    raise UserError('--from is empty; it must name a file or a folder.')
  return files.user_path(arguments.source, '--from')


def check_range(flag: str, value: int, least: int, most: int) -> None:
  if not least <= value <= most:
    raise UserError(f'{flag}={value} must lie between {least} and {most}.')


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
  """Turns an OSError of the block, which reads `path`, into a UserError."""
  try:
    yield
  except StorageError:
    raise
  except OSError as error:
    raise UserError(
      f"'{error.filename or path}' cannot be read ({error.strerror or error}); make it readable, or change --from."
    ) from error


def write(description: writer.Description, splits: Mapping[str, writer.Split], data_dir: Path, overwrite: bool) -> None:
  """Writes a data set, and prints what was written."""
  path = writer.write(description, splits, data_dir, overwrite)
  counts = ', '.join(f'{split.num_examples:,} {name}' for name, split in splits.items())
  print(f"Wrote '{path}': {counts} images, {len(description.class_names)} classes, origin {description.origin}.")


def print_use(flags: str, arguments: argparse.Namespace) -> None:
  print(f'Use it with {flags} --config.data_dir={shlex.quote(arguments.data_dir)}')
