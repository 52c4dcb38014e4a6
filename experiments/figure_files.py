"""What the figures share: their numbers as JSON, from which alone the pictures are drawn, and the pictures as PNG."""

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
from adversarial_augment.storage import files, sharing, untrusted
from adversarial_augment.types import Dataset

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
  """Returns the parser of one figure, with the flags that all have."""
  made = cli.Parser(prog=f'python -m experiments.{name}', description=description, epilog=epilog)
  made.add_argument('--output', metavar='DIR', help='of the .json and the .png; made if missing')
  made.add_argument('--debug', action='store_true', help='show tracebacks')
  return made


def check_num_images(number: int, least: int, test: Dataset) -> None:
  """Refuses a number of images that a figure, or a data set, does not have.

  Raises:
    UserError: it is outside [least, all test images].
  """
  if not least <= number <= test.num_examples:
    raise UserError(
      f'--num_images={number} must lie between {least} and {test.num_examples}, the test images of {test.name}; '
      'change it.'
    )


def check_seed(seed: int) -> None:
  """Refuses a seed that the draws do not take.

  Raises:
    UserError: it is outside [0, 2**31).
  """
  if not 0 <= seed < 2**31:
    raise UserError(f'--seed={seed} must lie between 0 and 2**31 - 1; choose another one.')


def check_drawable() -> None:
  """Looks, before anything is computed, whether there is something to draw with.

  Raises:
    UserError: Matplotlib is not installed.
  """
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError:
    raise UserError("Figures need Matplotlib; pip install 'adversarial_augment[plots]'.") from None


def place(output: str | None, default: Path, name: str) -> Path:
  """Returns the path of a figure's JSON, in a folder that it makes.

  Raises:
    UserError: a name that no folder can have, or a file is in its place.
    StorageError: the folder cannot be made.
  """
  folder = default if output is None else files.user_path(output, '--output')
  files.check_folder(folder, '--output')
  with files.storage_errors(f"make --output='{folder}'"):
    folder.mkdir(parents=True, exist_ok=True)
  return folder / f'{name}.json'


def known(path: Path, conditions: str, overwrite: bool) -> dict[str, Any]:
  """Returns the numbers that were found before; {} where there are none, or none that are wanted.

  Args:
    path: of the JSON.
    conditions: hash of all that decides the numbers.
    overwrite: whether numbers found under other conditions, or a damaged file, may go.

  Raises:
    UserError: they may not.
  """
  if overwrite or not path.exists():
    return {}
  try:
    content = untrusted.read_json(path)
    same = content['conditions_sha256'] == conditions
  except (OSError, ValueError, KeyError, TypeError):
    raise UserError(f"'{path}' is damaged or of something else; replace it with --overwrite.") from None
  if not same:
    raise UserError(
      f"'{path}' holds what another checkpoint, data set, setting or version gave; replace it with --overwrite, or "
      'name another --output.'
    )
  return content


def write(path: Path, content: dict[str, Any]) -> None:
  """Writes the numbers, whole or not at all.

  Raises:
    StorageError: they cannot be written.
  """
  with files.storage_errors(f"write '{path}'"):
    files.replace(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + '\n').encode())


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
  """Returns what `encoded` was given, as uint8 [n, h, w, 3].

  Raises:
    UserError: the texts are something else.
  """
  try:
    pictures = [Image.open(io.BytesIO(base64.b64decode(text)), formats=('PNG',)) for text in texts]
    return np.stack([np.asarray(picture) for picture in pictures])
  except Exception as error:  # of many kinds
    raise UserError('The numbers of the figure hold a damaged picture; make them anew with --overwrite.') from error


def mosaic(rows: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
  """Returns rows of images, uint8 [n, h, w, 3] each, as one image with white gaps."""
  padded = [np.pad(row, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255) for row in rows]
  return np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)


def new(width: float, height: float) -> 'Figure':
  """Returns an empty figure of that many inches, without a display."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), facecolor='white', layout='constrained')


def save(figure: 'Figure', path: Path, about: Sequence[str]) -> None:
  """Writes a figure as PNG, whole or not at all, with what was measured below it.

  Args:
    figure: to be written.
    path: of the PNG.
    about: lines that say data, checkpoint, n, settings and seed.

  Raises:
    StorageError: it cannot be written.
  """
  figure.supxlabel('\n'.join(about), fontsize=7, linespacing=1.4)
  picture = io.BytesIO()
  figure.savefig(picture, format='png', dpi=150)
  with files.storage_errors(f"write '{path}'"):
    files.replace(path, picture.getvalue())
