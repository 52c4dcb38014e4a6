"""Corrupted test sets that are published as images, NAME/SEVERITY/CLASS/FILE, as Tiny-ImageNet-C is."""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import io
from pathlib import Path, PurePosixPath
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from adversarial_augment import metrics
from adversarial_augment.datasets import archives, arrays
from adversarial_augment.datasets.arrays import one_line
from adversarial_augment.datasets.cifar10_c import CorruptionSet
from adversarial_augment.errors import UserError
from adversarial_augment.storage import untrusted
from adversarial_augment.types import Dataset

_MAX_MEMBERS = 2_000_000  # Tiny-ImageNet-C has 750,000 images
_MAX_IMAGE = 1 << 20  # bytes
_SUFFIXES = ('.jpeg', '.jpg', '.png')


class _File(NamedTuple):
  path: Path  # of the image, or of the archive that has it
  offset: int = 0
  size: int = _MAX_IMAGE


_Cells = dict[tuple[str, int], dict[str, dict[str, _File]]]  # name and severity -> class -> name of a file


def is_published_so(path: Path) -> bool:
  """Returns whether a folder, or a tar archive, has images in folders of corruptions."""
  if path.is_dir():
    return any(found.is_dir() for name in metrics.ALL_NAMES for found in (path / name, *path.glob(f'*/{name}')))
  with contextlib.suppress(untrusted.Unusable, OSError), untrusted.open_file(path) as file:
    first = next(archives.members(file), None)
    return first is not None and PurePosixPath(first.name).suffix.lower() in _SUFFIXES
  return False


def open_set(path: Path, names: Sequence[str], test: Dataset) -> CorruptionSet:
  """Lists the images of a folder or an uncompressed tar archive; they are decoded when they are read.

  The files do not say which test image they show. Those of a class are taken in the order of their names, numbers by
  their value, for its test images in order.

  Raises:
    UserError: a corruption, severity, class or image is missing or superfluous, or the archive is damaged.
  """
  cells: _Cells = collections.defaultdict(lambda: collections.defaultdict(dict))
  for place, file in _images(path):
    *_, name, severity, of_class, _ = ('', '', '', *place.parts)
    if name in names and severity in tuple('12345'):
      cells[name, int(severity)][of_class][place.name] = file
  present = [name for name in names if cells.keys() & {(name, severity) for severity in metrics.SEVERITIES}]
  if missing := [name for name in names if name not in present]:
    way_out = f'choose those that it has with --names={",".join(present)}' if present else 'give another one'
    raise UserError(f"'{path}' has no images of {', '.join(missing)}; {way_out}.")
  labels = arrays.labels_of(test)
  ordered = {
    (name, severity): _in_order(path, f'{name}/{severity}', cells[name, severity], labels, test)
    for name in names
    for severity in metrics.SEVERITIES
  }

  def read(name: str, severity: int, indices: np.ndarray) -> np.ndarray:
    return np.stack([_decoded(ordered[name, severity][i], test.image_shape) for i in indices])

  return CorruptionSet(tuple(names), 'unverified', {'seed': None, 'made_with': None}, read)


def _images(path: Path) -> Iterator[tuple[PurePosixPath, _File]]:
  if path.is_dir():
    for file in path.glob('**/*'):
      if file.suffix.lower() in _SUFFIXES and not file.name.startswith('.'):
        yield PurePosixPath(file.as_posix()), _File(file)
    return
  try:
    with untrusted.open_file(path) as packed:
      for member in archives.members(packed, _MAX_MEMBERS):
        place = PurePosixPath(member.name)
        if place.suffix.lower() in _SUFFIXES and not place.name.startswith('.'):
          yield place, _File(path, member.offset, member.size)
  except untrusted.Unusable as error:
    raise UserError(f"'{path}' is no whole tar archive ({one_line(error)}); get it again.") from error


def _in_order(
  path: Path, cell: str, classes: dict[str, dict[str, _File]], labels: np.ndarray, test: Dataset
) -> list[_File]:
  """Returns a file for each test image."""
  if not classes:
    raise UserError(f"'{path}' has no images in {cell}; get it again.")
  if set(classes) != set(test.class_names):
    other = sorted(set(classes) ^ set(test.class_names))[0]
    lacks = 'the test set' if other in classes else cell
    raise UserError(f"'{path}': {lacks} has no class '{other}'; give the corruptions of '{test.name}'.")
  found: list[_File] = [_File(path)] * len(labels)
  for label, name in enumerate(test.class_names):
    places, files = np.flatnonzero(labels == label), classes[name]
    if len(places) != len(files):
      raise UserError(
        f"'{path}' has {len(files)} images in {cell}/{name}, but '{test.name}' has {len(places)} of that class; get "
        'it again.'
      )
    for place, file in zip(places, sorted(files, key=_natural), strict=True):
      found[place] = files[file]
  return found


def _natural(name: str) -> list[tuple[int, str]]:
  """Orders val_2 before val_10."""
  return [(int(part), '') if part.isdigit() else (0, part) for part in re.split(r'([0-9]+)', name)]


def _decoded(file: _File, shape: Sequence[int]) -> np.ndarray:
  try:
    with untrusted.open_file(file.path) as opened:
      opened.seek(file.offset)
      content = opened.read(min(file.size, _MAX_IMAGE))
    with Image.open(io.BytesIO(content), formats=('JPEG', 'PNG')) as image:
      if (image.height, image.width, 3) != tuple(shape):
        raise ValueError(f'it has {image.width} x {image.height} pixels, but must have {shape[1]} x {shape[0]}')
      return np.asarray(image.convert('RGB'))
  except Exception as error:  # whatever a damaged file raises
    where = f'{file.path}, byte {file.offset:,}' if file.offset else file.path
    raise UserError(f"'{where}' cannot be used as an image ({one_line(error)}); get the set again.") from error
