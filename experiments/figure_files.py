"""Shared by the figures: their numbers as JSON, from which the pictures are drawn, and the pictures as PNG."""

import argparse
import base64
from collections.abc import Sequence
import io
import json
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from adversarial_augment import cli
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, files, sharing, untrusted
from adversarial_augment.types import Dataset

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
  """Returns the parser of one figure, with the flags that all share."""
  made = cli.Parser(prog=f'python -m experiments.{name}', description=description, epilog=epilog)
  made.add_argument('--output', metavar='DIR', help='folder of the .json and .png; created if missing')
  return made


def check_num_images(number: int, least: int, images: Dataset, multiple: int = 1) -> None:
  """Checks the number of images.

  Raises:
    UserError: it is outside [least, all images], or no multiple of a number.
  """
  if not least <= number <= images.num_examples or number % multiple:
    what = f'a multiple of {multiple} ' if multiple > 1 else ''
    raise UserError(
      f'--num_images={number} must be {what}between {least} and {images.num_examples}, the number of images of this '
      f'split of {images.name}.'
    )


def check_seed(seed: int) -> None:
  """Checks the seed.

  Raises:
    UserError: it is outside [0, 2**31).
  """
  if not 0 <= seed < 2**31:
    raise UserError(f'--seed={seed} must be between 0 and 2**31 - 1.')


def check_drawable() -> None:
  """Checks that Matplotlib is installed, before anything is computed.

  Raises:
    UserError: Matplotlib is not installed.
  """
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError:
    raise UserError("Figures need Matplotlib; pip install 'adversarial_augment[plots]'.") from None


def place(output: str | None, default: Path, name: str) -> Path:
  """Creates the folder of a figure, and returns the path of its JSON.

  Raises:
    UserError: not a valid folder name, or a file has that name.
    StorageError: the folder cannot be created.
  """
  folder = default if output is None else files.user_path(output, '--output')
  files.check_folder(folder, '--output')
  with artifact.storage_errors(f"make --output='{folder}'"):
    folder.mkdir(parents=True, exist_ok=True)
  return folder / f'{name}.json'


def known(path: Path, conditions: str, overwrite: bool) -> dict[str, Any]:
  """Returns the numbers saved earlier; {} if there are none, or if they are to be replaced.

  Args:
    path: of the JSON.
    conditions: hash of everything that the numbers depend on.
    overwrite: whether to replace numbers of other conditions, or a damaged file.

  Raises:
    UserError: it holds such numbers or is damaged, and `overwrite` is not set.
  """
  if overwrite or not path.exists():
    return {}
  try:
    content = untrusted.read_json(path)
    same = content['conditions_sha256'] == conditions
  except (OSError, ValueError, KeyError, TypeError):
    raise UserError(f"'{path}' is damaged or not a file of this figure; replace it with --overwrite.") from None
  if not same:
    raise UserError(
      f"'{path}' holds the numbers of another checkpoint, data set, setting or version; replace it "
      'with --overwrite, or name another --output.'
    )
  return content


def write(path: Path, content: dict[str, Any]) -> None:
  """Writes the numbers atomically.

  Raises:
    StorageError: they cannot be written.
  """
  with artifact.storage_errors(f"write '{path}'"):
    artifact.replace(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + '\n').encode())


def command(name: str) -> str:
  """Returns the command line of this process."""
  return sharing.command(f'experiments.{name}', sys.argv[1:], Path.cwd())


def encoded(images: np.ndarray) -> list[str]:
  """Returns each image as a PNG in base64: uint8, or floats in [0, 1], [n, h, w, 3]."""
  found = []
  for image in images:
    picture = io.BytesIO()
    levels = image if image.dtype == np.uint8 else np.rint(255 * image).astype(np.uint8)
    Image.fromarray(levels).save(picture, format='png')
    found.append(base64.b64encode(picture.getvalue()).decode())
  return found


def decoded(texts: Sequence[str]) -> np.ndarray:
  """Inverse of `encoded`: returns uint8 [n, h, w, 3].

  Raises:
    UserError: the texts are not images of `encoded`.
  """
  try:
    pictures = [Image.open(io.BytesIO(base64.b64decode(text)), formats=('PNG',)) for text in texts]
    return np.stack([np.asarray(picture) for picture in pictures])
  except Exception as error:  # of several types
    raise UserError('The numbers contain a damaged picture; compute them again with --overwrite.') from error


def mosaic(rows: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
  """Returns rows of images, uint8 [n, h, w, 3] each, as one image with white gaps."""
  padded = [np.pad(row, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255) for row in rows]
  return np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)


def new(width: float, height: float) -> 'Figure':
  """Returns an empty figure of this size in inches; needs no display."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), facecolor='white', layout='constrained')


def save(figure: 'Figure', path: Path, about: Sequence[str]) -> None:
  """Writes a figure as PNG, atomically, with a caption.

  Args:
    figure: to be written.
    path: of the PNG.
    about: lines of the caption: data, checkpoint, n, settings and seed.

  Raises:
    StorageError: it cannot be written.
  """
  figure.supxlabel('\n'.join(about), fontsize=7, linespacing=1.4)
  picture = io.BytesIO()
  figure.savefig(picture, format='png', dpi=150)
  with artifact.storage_errors(f"write '{path}'"):
    artifact.replace(path, picture.getvalue())
