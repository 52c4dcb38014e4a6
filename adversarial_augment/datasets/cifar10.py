"""Reads CIFAR-10 as it is handed around: the binary archive, the Python archive, either unpacked, or an .npz."""

from collections.abc import Mapping
import pathlib
from typing import NamedTuple
import zipfile

import numpy as np

from adversarial_augment.datasets import archives, npy
from adversarial_augment.datasets.reasons import one_line
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
  """What was read, and whether it is the real thing."""

  splits: dict[str, Batch]  # in the order of the archive
  origin: str  # 'official': the archive has the hash of one of the two published ones; or 'unverified'
  archive_sha256: str | None  # None for a folder


def read(path: pathlib.Path, counts: Mapping[str, int] = COUNTS) -> Source:
  """Reads all of CIFAR-10, executing nothing that the files contain.

  Args:
    path: cifar-10-binary.tar.gz or cifar-10-python.tar.gz; a folder with their files; or an .npz with uint8 images
      [n, 32, 32, 3] x_train, x_test (or train_images, test_images) and labels [n] or [n, 1] y_train, y_test (or
      train_labels, test_labels).
    counts: the size of each split, of which every class has a tenth.

  Raises:
    UserError: the file is missing, damaged, too large, or not CIFAR-10.
  """
  if path.is_dir():
    splits, archive = _decode(_from_folder(path), path), None
  elif path.is_file():
    if path.stat().st_size > _MAX_ARCHIVE:
      raise UserError(f"'{path}' has {path.stat().st_size:,} bytes, too many for CIFAR-10; {_WAY_OUT}.")
    archive = artifact.sha256_of(path)
    splits = _from_npz(path) if path.suffix == '.npz' else _decode(_from_tar(path), path)
  else:
    problem = 'is neither a file nor a folder that holds CIFAR-10' if path.exists() else 'does not exist'
    raise UserError(f"'{path}' {problem}; give an archive, a folder or an .npz of CIFAR-10.")
  for split, batch in splits.items():
    _check(split, batch, counts[split], path)
  return Source(splits, 'official' if archive in (ARCHIVE_SHA256, PYTHON_ARCHIVE_SHA256) else 'unverified', archive)


def _check(split: str, batch: Batch, expected: int, path: pathlib.Path) -> None:
  images, labels = batch
  if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
    raise UserError(
      f"'{path}': {split} images have shape {images.shape} and type {images.dtype}, but must be uint8 [n, 32, 32, 3]."
    )
  if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"'{path}': {split} labels have shape {labels.shape} and type {labels.dtype}, but must be {len(images)} integers."
    )
  if len(images) != expected:
    raise UserError(
      f"'{path}': {len(images):,} {split} images, but CIFAR-10 has {expected:,}; the files are incomplete."
    )
  if labels.min() < 0 or labels.max() > 9:
    raise UserError(f"'{path}': {split} labels run from {labels.min()} to {labels.max()}, but must lie in [0, 9].")
  histogram = np.bincount(labels, minlength=10)
  if (histogram != expected // 10).any():
    raise UserError(
      f"'{path}': the {split} classes have {histogram.tolist()} images, but CIFAR-10 has {expected // 10:,} of each."
    )


def _wanted() -> set[str]:
  parts = {part for names in _PARTS.values() for part in names}
  return parts | {f'{part}.bin' for part in parts}


def _from_folder(path: pathlib.Path) -> dict[str, bytes]:
  """Returns the files of an unpacked archive by name; they may lie one folder deeper, as the archive has them."""
  found = {}
  for file in sorted([*path.glob('*'), *path.glob('cifar-10-batches-*/*')]):
    if file.name in _wanted() and file.is_file():
      if file.stat().st_size > _MAX_FILE:
        raise UserError(f"'{file}' has {file.stat().st_size:,} bytes; files of CIFAR-10 have at most {_MAX_FILE:,}.")
      found[file.name] = untrusted.read_bytes(file, _MAX_FILE)
  return found


def _from_tar(path: pathlib.Path) -> dict[str, bytes]:
  """Returns the wanted members, read in memory: nothing is unpacked on disk, whatever their names."""
  found = {}
  try:
    with untrusted.open_file(path, _MAX_ARCHIVE) as file:
      stream = archives.unpacked(file, _MAX_UNPACKED)
      for number, member in enumerate(archives.members(stream)):
        if number >= _MAX_MEMBERS or member.size > _MAX_FILE:
          raise UserError(f"'{path}' has too many or too large members ('{member.name}'); it is not CIFAR-10.")
        name = pathlib.PurePosixPath(member.name).name
        if name in _wanted():
          found[name] = stream.read(member.size)
  except (untrusted.Unusable, OSError) as error:
    if zipfile.is_zipfile(path):
      kind = 'is a zip archive, not a tar archive'
    else:
      kind = f'is not a tar archive, or a damaged one ({one_line(error)})'
    raise UserError(f"'{path}' {kind}; {_WAY_OUT}, or download it again.") from error
  return found


def _decode(files: Mapping[str, bytes], path: pathlib.Path) -> dict[str, Batch]:
  """Returns the splits from the files of the binary version or, if there are none, of the Python version."""
  binary = any(name.endswith('.bin') for name in files)
  splits = {}
  for split, parts in _PARTS.items():
    names = [f'{part}.bin' if binary else part for part in parts]
    missing = [name for name in names if name not in files]
    if missing:
      raise UserError(f"'{path}' has no file {missing[0]}; {_WAY_OUT}.")
    batches = [(_from_binary if binary else _from_pickle)(files[name], f'{path}: {name}') for name in names]
    splits[split] = Batch(
      np.concatenate([batch.images for batch in batches]), np.concatenate([batch.labels for batch in batches])
    )
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
      raise ValueError('labels that are no small numbers')
    return Batch(_planes_last(pixels), np.array(labels, np.int32))
  except Exception as error:  # a damaged or foreign pickle fails in any way
    raise UserError(f"'{where}' is not a file of the Python version of CIFAR-10 ({one_line(error)}).") from error


def _planes_last(pixels: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _from_npz(path: pathlib.Path) -> dict[str, Batch]:
  try:
    with untrusted.open_file(path, _MAX_ARCHIVE) as file:
      arrays = npy.Npz(file, _MAX_ARCHIVE)
      splits = {}
      for split, choices in _NPZ_KEYS.items():
        keys = next((pair for pair in choices if pair[0] in arrays and pair[1] in arrays), None)
        if keys is None:
          raise UserError(
            f"'{path}' holds {', '.join(sorted(arrays)[:10])}, but must hold x_train, y_train, x_test, y_test (or "
            'train_images, train_labels, test_images, test_labels).'
          )
        images, labels = arrays[keys[0]], arrays[keys[1]]
        splits[split] = Batch(images, labels[:, 0] if labels.shape[1:] == (1,) else labels)
      return splits
  except (untrusted.Unusable, OSError) as error:
    raise UserError(
      f"'{path}' is not a usable .npz ({one_line(error)}): it must be a zip archive of whole arrays, none of "
      f'them pickled; {_WAY_OUT}.'
    ) from error
