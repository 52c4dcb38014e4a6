"""Reads CIFAR-10 in its common forms: the binary archive, the Python archive, either unpacked, or an .npz."""

from collections.abc import Mapping
import pathlib
from typing import NamedTuple

import numpy as np

from adversarial_augment.datasets import archives, arrays
from adversarial_augment.datasets.arrays import one_line
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, pickles, untrusted
from adversarial_augment.types import Batch

URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
ARCHIVE_BYTES = 170_052_171
# https://www.cs.toronto.edu/~kriz/cifar.html; the first as in tensorflow_datasets/url_checksums/cifar10.txt
ARCHIVE_SHA256 = 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
PYTHON_ARCHIVE_SHA256 = '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce'
CLASS_NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
COUNTS = {'train': 50_000, 'test': 10_000}

_PARTS = {'train': tuple(f'data_batch_{i}' for i in range(1, 6)), 'test': ('test_batch',)}
_FILES = {f'{part}{suffix}' for parts in _PARTS.values() for part in parts for suffix in ('', '.bin')}
_NPZ_KEYS = {  # Keras and MedMNIST names
  'train': (('x_train', 'y_train'), ('train_images', 'train_labels')),
  'test': (('x_test', 'y_test'), ('test_images', 'test_labels')),
}
_MAX_FILE = 64 << 20  # bytes; the real ones have about 30 MB
_MAX_MEMBERS = 100
_MAX_ARCHIVE = 1 << 30  # bytes; the real ones have 170 MB, and an .npz 185 MB
_MAX_UNPACKED = 1 << 29  # bytes of a packed archive; the real ones have 186 MB
_PIXELS = 3 * 32 * 32
_WAY_OUT = 'give cifar-10-binary.tar.gz, cifar-10-python.tar.gz, a folder with their files, or an .npz'


class Source(NamedTuple):
  splits: dict[str, Batch]  # in the order of the archive
  origin: str  # 'official': the archive has the hash of one of the two published ones; or 'unverified'
  archive_sha256: str | None  # None for a folder


def read(path: pathlib.Path, counts: Mapping[str, int] = COUNTS) -> Source:
  """Reads all of CIFAR-10, and executes nothing that the files contain.

  Args:
    path: cifar-10-binary.tar.gz or cifar-10-python.tar.gz; a folder with their files; or an .npz with uint8 images
      [n, 32, 32, 3] x_train, x_test (or train_images, test_images) and labels [n] or [n, 1] y_train, y_test (or
      train_labels, test_labels).
    counts: the size of each split, of which every class has a tenth.

  Raises:
    UserError: the file is missing, damaged, too large, or not CIFAR-10.
  """
  archive = None
  if path.is_dir():
    splits = _decode(_from_folder(path), path)
  elif path.is_file():
    if path.stat().st_size > _MAX_ARCHIVE:
      raise UserError(f"'{path}' has {path.stat().st_size:,} bytes, too many for CIFAR-10; {_WAY_OUT}.")
    archive = artifact.sha256_of(path)
    splits = _from_npz(path) if path.suffix == '.npz' else _decode(_from_tar(path), path)
  else:
    problem = 'is neither a file nor a folder' if path.exists() else 'does not exist'
    raise UserError(f"'{path}' {problem}; {_WAY_OUT}.")
  for split, (images, labels) in splits.items():
    n, label = counts[split], f"'{path}': the array of {split} labels"
    fault = (
      arrays.mismatch(images, f"'{path}': the array of {split} images", 'uint8', (n, 32, 32, 3))
      or arrays.mismatch(labels, label, 'integers', (n,))
      or arrays.label_fault(labels, label, len(CLASS_NAMES), n // len(CLASS_NAMES))
    )
    if fault:
      raise UserError(f'{fault}: it is not CIFAR-10, or incomplete; {_WAY_OUT}.')
  return Source(splits, 'official' if archive in (ARCHIVE_SHA256, PYTHON_ARCHIVE_SHA256) else 'unverified', archive)


def _from_folder(path: pathlib.Path) -> dict[str, bytes]:
  """Returns the files of an unpacked archive by name; they may be one folder deeper, as in the archive."""
  found = {}
  for file in sorted([*path.glob('*'), *path.glob('cifar-10-batches-*/*')]):
    if file.name in _FILES and file.is_file():
      try:
        found[file.name] = untrusted.read_bytes(file, _MAX_FILE)
      except untrusted.Unusable as error:
        raise UserError(f"'{file}' cannot be used ({error}); {_WAY_OUT}.") from error
  return found


def _from_tar(path: pathlib.Path) -> dict[str, bytes]:
  """Returns the files of an archive by name, without their folders."""
  found = {}
  try:
    with untrusted.open_file(path, _MAX_ARCHIVE) as packed:
      file = archives.unpacked(packed, _MAX_UNPACKED)
      for number, member in enumerate(archives.members(file)):
        if number >= _MAX_MEMBERS or member.size > _MAX_FILE:
          raise UserError(f"'{path}' has too many or too large members ('{member.name}'); it is not CIFAR-10.")
        name = pathlib.PurePosixPath(member.name).name
        if name in _FILES:
          file.seek(member.offset)
          found[name] = file.read(member.size)
  except (untrusted.Unusable, OSError) as error:
    raise UserError(
      f"'{path}' is not a tar archive, or a damaged one ({one_line(error)}); {_WAY_OUT}, or download it again."
    ) from error
  return found


def _decode(files: Mapping[str, bytes], path: pathlib.Path) -> dict[str, Batch]:
  """Returns the splits from the files of the binary version or, if there are none, of the Python version."""
  suffix, decode = ('.bin', _from_binary) if any(name.endswith('.bin') for name in files) else ('', _from_pickle)
  splits = {}
  for split, parts in _PARTS.items():
    names = [f'{part}{suffix}' for part in parts]
    if missing := [name for name in names if name not in files]:
      raise UserError(f"'{path}' has no file {missing[0]}; {_WAY_OUT}.")
    batches = [decode(files[name], f'{path}: {name}') for name in names]
    splits[split] = Batch(*(np.concatenate(column) for column in zip(*batches, strict=True)))
  return splits


def _from_binary(data: bytes, where: str) -> Batch:
  """Returns the images of one file: records of one byte for the label and 3 x 1024 for the colour planes."""
  if not data or len(data) % (1 + _PIXELS):
    raise UserError(f"'{where}' has {len(data):,} bytes, which is not a multiple of {1 + _PIXELS}; it is damaged.")
  records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
  return Batch(_planes_last(records[:, 1:]), records[:, 0].astype(np.int32))


def _from_pickle(data: bytes, where: str) -> Batch:
  try:
    content = pickles.load_numpy(data)
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    pixels, labels = content['data'].values, content['labels']
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
      raise ValueError(f'data has shape {pixels.shape} and type {pixels.dtype}')
    if isinstance(labels, pickles.Array):
      labels = labels.values
    elif not all(type(label) is int and 0 <= label < 256 for label in labels):
      raise ValueError('labels that are not small numbers')
    return Batch(_planes_last(pixels), np.array(labels, np.int32))
  except Exception as error:  # a damaged or foreign pickle fails in any way
    raise UserError(f"'{where}' is not a file of the Python version of CIFAR-10 ({one_line(error)}).") from error


def _planes_last(pixels: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _from_npz(path: pathlib.Path) -> dict[str, Batch]:
  known = [name for choices in _NPZ_KEYS.values() for pair in choices for name in pair]
  try:
    with untrusted.open_file(path, _MAX_ARCHIVE) as file:
      found = arrays.read_npz(file, _MAX_ARCHIVE, known)
  except (untrusted.Unusable, OSError) as error:
    raise UserError(
      f"'{path}' is not a usable .npz ({one_line(error)}): it must be a zip archive of whole arrays, none of "
      f'them pickled; {_WAY_OUT}.'
    ) from error
  splits = {}
  for split, choices in _NPZ_KEYS.items():
    keys = next((pair for pair in choices if set(pair) <= found.keys()), None)
    if keys is None:
      raise UserError(f"'{path}' lacks {' or '.join(map(' and '.join, choices))}; add the arrays, or {_WAY_OUT}.")
    images, labels = found[keys[0]], found[keys[1]]
    splits[split] = Batch(images, labels[:, 0] if labels.shape[1:] == (1,) else labels)
  return splits
