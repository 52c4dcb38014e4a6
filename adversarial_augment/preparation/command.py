"""What the subcommands of `prepare` share: flags that name folders, and the closing lines."""

import argparse
from collections.abc import Iterator, Mapping
import contextlib
import pathlib
import shlex

from adversarial_augment.datasets import writer
from adversarial_augment.errors import StorageError, UserError, show
from adversarial_augment.storage import files


def data_dir(arguments: argparse.Namespace) -> pathlib.Path:
  """Returns the folder of prepared data sets; `train` takes the same names.

  Raises:
    UserError: it cannot be the name of a folder, or a file is in its place.
  """
  text = arguments.data_dir
  if not text or not text.isprintable():
    raise UserError(f'--data_dir={show(text)} must be a printable name of a folder, not empty; name another one.')
  path = files.user_path(text, '--data_dir')
  files.check_folder(path, '--data_dir')
  return path


def source(arguments: argparse.Namespace) -> pathlib.Path | None:
  """Returns what --from names, or None without the flag.

  Raises:
    UserError: it is empty, or no name of a file.
  """
  if arguments.source is None:
    return None
  if not arguments.source:
    raise UserError('--from is empty; it must name a file or a folder.')
  return files.user_path(arguments.source, '--from')


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
  """Turns an OSError of the block, which reads `path`, into a UserError."""
  try:
    yield
  except StorageError:
    raise
  except OSError as error:
    raise UserError(
      f"'{error.filename or path}' cannot be read ({error.strerror or error}); make it readable, or change --from."
    ) from error


def report(
  description: writer.Description,
  splits: Mapping[str, writer.Split],
  path: pathlib.Path,
  arguments: argparse.Namespace,
) -> None:
  """Says what was written, and how `train` is told to use it."""
  counts = ', '.join(f'{split.num_examples:,} {name}' for name, split in splits.items())
  print(f"Wrote '{path}': {counts} images, {len(description.class_names)} classes, origin {description.origin}.")
  print(f'Use it with --config.dataset={description.name} --config.data_dir={shlex.quote(arguments.data_dir)}')
