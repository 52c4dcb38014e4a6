"""Reads Tiny ImageNet as Stanford's CS231n publishes it: tiny-imagenet-200.zip, or its folder.

The published test images have no labels. As is usual, the validation images become the test split.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import functools
import io
import itertools
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from adversarial_augment.datasets.arrays import one_line
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, untrusted

URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
ARCHIVE = 'tiny-imagenet-200.zip'
ARCHIVE_BYTES = 248_100_043
ARCHIVE_SHA256 = '6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821'
COUNTS = {'train': 100_000, 'test': 10_000}
NUM_CLASSES = 200
SIDE = 64

_CLASSES, _ANNOTATIONS = 'wnids.txt', 'val/val_annotations.txt'
_MAX_ARCHIVE = 1 << 29  # bytes
_MAX_DIRECTORY = 32 << 20  # bytes; the real one has some 13 MB
_MAX_TEXT = 4 << 20  # bytes
_MAX_IMAGE = 1 << 20  # bytes
_FORMS = f'give {ARCHIVE} or its folder'


class Source(NamedTuple):
  class_names: tuple[str, ...]  # WordNet ids, sorted; the label of a class is its position
  splits: dict[str, list[tuple[str, int]]]  # names of files with their labels; those of training are shuffled
  images: Callable[[list[tuple[str, int]]], Iterator[tuple[np.ndarray, int]]]  # reads them: uint8 [64, 64, 3], label
  origin: str  # 'official': the archive has the published hash; or 'unverified'
  archive_sha256: str | None  # None for a folder


@contextlib.contextmanager
def open_source(
  path: pathlib.Path, counts: Mapping[str, int] = COUNTS, num_classes: int = NUM_CLASSES
) -> Iterator[Source]:
  """Opens the archive or its folder, and lists the images; nothing is unpacked on disk.

  Raises:
    UserError: the file is missing, damaged or too large, or another data set; or an image cannot be read.
  """
  if path.is_dir():
    roots = [path, *(file.parent for file in sorted(path.glob(f'*/{_CLASSES}')))]
    root = next((root for root in roots if (root / _CLASSES).exists()), path)
    found = (root.glob(pattern) for pattern in ('*', 'train/*/images/*', 'val/*', 'val/images/*'))
    names = {file.relative_to(root).as_posix() for file in itertools.chain(*found)}
    read = lambda name, limit: untrusted.read_bytes(root / name, limit)
    yield _listed(path, names, read, counts, num_classes, None)
    return
  if not path.is_file():
    raise UserError(f"'{path}' {'is neither a file nor a folder' if path.exists() else 'does not exist'}; {_FORMS}.")
  try:
    with untrusted.open_file(path, _MAX_ARCHIVE) as file:
      archive = untrusted.open_zip(file, _MAX_DIRECTORY)
      members = {member.filename: member for member in archive.infolist()}
      lists = [name for name in members if name == _CLASSES or name.endswith(f'/{_CLASSES}')]
      top = min(lists, default='').removesuffix(_CLASSES)
      members = {name.removeprefix(top): member for name, member in members.items() if name.startswith(top)}
      unzip = lambda name, limit: bytes(untrusted.unzip(archive, members[name], limit))
      yield _listed(path, members.keys(), unzip, counts, num_classes, artifact.sha256_of(path))
  except untrusted.Unusable as error:
    raise UserError(
      f"'{path}' is not {ARCHIVE}, or a damaged one ({one_line(error)}); {_FORMS}, or download it again."
    ) from error


def _listed(
  path: pathlib.Path,
  names: Iterable[str],
  read: Callable[[str, int], bytes],
  counts: Mapping[str, int],
  num_classes: int,
  sha256: str | None,
) -> Source:
  present = set(names)

  def lines(name: str) -> list[str]:
    if name not in present:
      raise UserError(f"'{path}' has no file {name}; it is not Tiny ImageNet, or incomplete; {_FORMS}.")
    try:
      return read(name, _MAX_TEXT).decode('utf-8', 'replace').splitlines()
    except untrusted.Unusable as error:
      raise UserError(f"'{path}: {name}' cannot be used ({one_line(error)}); {_FORMS}.") from error

  classes = tuple(sorted({line.strip() for line in lines(_CLASSES)} - {''}))
  labels = {name: label for label, name in enumerate(classes)}
  parts = [name.split('/') for name in sorted(present)]
  train = [
    ('/'.join(part), labels.get(part[1], -1))
    for part in parts
    if len(part) == 4 and (part[0], part[2]) == ('train', 'images') and part[3].lower().endswith('.jpeg')
  ]
  rows = [line.split('\t') for line in lines(_ANNOTATIONS) if line.strip()]
  test = [*{f'val/images/{row[0]}': labels.get(row[1] if len(row) > 1 else '', -1) for row in rows}.items()]
  if missing := [name for name, _ in test if name not in present]:
    raise UserError(f"'{path}' has no file {missing[0]}, which {_ANNOTATIONS} lists; {_FORMS}.")
  for split, listed in (('train', train), ('test', test)):
    if unknown := [name for name, label in listed if label < 0]:
      raise UserError(f"'{path}': the class of {unknown[0]} is not in {_CLASSES}; {_FORMS}.")
    found = np.bincount([label for _, label in listed], minlength=num_classes)
    share = counts[split] // num_classes
    if len(classes) != num_classes or (found != share).any():
      raise UserError(
        f"'{path}' has {len(classes)} classes and {min(found)} to {max(found)} {split} images of each, but must have "
        f'{num_classes} and {share}: it is not Tiny ImageNet, or incomplete; {_FORMS}.'
      )
  order = np.random.default_rng(0).permutation(len(train))

  def images(listed: list[tuple[str, int]]) -> Iterator[tuple[np.ndarray, int]]:
    for name, label in listed:
      yield _decoded(f'{path}: {name}', functools.partial(read, name, _MAX_IMAGE)), label

  splits = {'train': [train[i] for i in order], 'test': test}
  return Source(classes, splits, images, 'official' if sha256 == ARCHIVE_SHA256 else 'unverified', sha256)


def _decoded(where: str, read: Callable[[], bytes]) -> np.ndarray:
  """Returns a JPEG file as uint8 RGB [64, 64, 3]; some of the published ones are grey."""
  try:
    with Image.open(io.BytesIO(read()), formats=('JPEG',)) as file:
      if file.size != (SIDE, SIDE):
        raise ValueError(f'it has {file.width} x {file.height} pixels, but must have {SIDE} x {SIDE}')
      return np.asarray(file.convert('RGB'))
  except Exception as error:  # whatever a damaged archive or JPEG raises
    raise UserError(f"'{where}' cannot be used ({one_line(error)}); {_FORMS}, or download it again.") from error
