"""Images and labels as arrays, in memory and in .npy and .npz files.

Files may come from anywhere: a header is bounded and checked first, and nothing that is pickled is loaded.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import io
import math
import pathlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL

from adversarial_augment.datasets import sampling
from adversarial_augment.errors import UserError
from adversarial_augment.storage import pickles, untrusted
from adversarial_augment.storage.untrusted import Unusable
from adversarial_augment.types import Batch, Dataset

_MAX_HEADER = 1000  # bytes of a .npy header; NumPy pads them to 128
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Part(NamedTuple):
  """A file, or an uncompressed one within another, as in a tar archive."""

  label: str  # for messages
  path: pathlib.Path
  offset: int  # of the first byte
  size: int

  def digest(self, algorithm: str) -> str:
    """Returns the hash of its bytes, such as 'sha256', in hexadecimal digits."""
    content = np.memmap(self.path, np.uint8, 'r', self.offset, (self.size,))
    return hashlib.new(algorithm, content.data, usedforsecurity=False).hexdigest()


class _Header(NamedTuple):
  size: int  # bytes
  shape: tuple[int, ...]
  fortran: bool
  dtype: np.dtype


def one_line(error: BaseException) -> str:
  """Returns the text of an exception on one line of at most 200 characters, or else its kind."""
  if isinstance(error, PIL.UnidentifiedImageError):  # its text has the address of an object
    return 'not a PNG, JPEG, BMP, WebP or GIF image'
  return ' '.join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
  """Turns an OSError of the block, which reads `path`, into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(f"'{error.filename or path}' cannot be read ({error.strerror or error}); repair it.") from error


def labels_of(dataset: Dataset) -> np.ndarray:
  """Returns all labels of a split, int [n]."""
  return np.concatenate([dataset.read(index).labels for index in sampling.batches(dataset.num_examples, 10_000)])


def fingerprint(batches: Iterable[Batch]) -> str:
  """Returns the SHA-256 of a split in pieces of any size, by which results name their data.

  It is the hash of the bytes of all images in order, then of all labels as little-endian int32.
  """
  digest, labels = hashlib.sha256(), []
  for batch in batches:
    digest.update(np.ascontiguousarray(batch.images).data)
    labels.append(np.asarray(batch.labels))
  for part in labels:
    digest.update(part.astype('<i4').tobytes())
  return digest.hexdigest()


def in_memory(
  images: np.ndarray,
  labels: np.ndarray,
  name: str,
  num_classes: int,
  class_names: Sequence[str],
  provenance: Mapping[str, Any],
) -> Dataset:
  """Returns a data set of images uint8 [n, h, w, 3] and labels int32 [n]; its provenance has their fingerprint too."""

  def read(indices: np.ndarray) -> Batch:
    return Batch(images[indices], labels[indices])

  height, width, channels = images.shape[1:]
  about = {**provenance, 'sha256': fingerprint([Batch(images, labels)])}
  shape = (height, width, channels)
  return Dataset(name, len(labels), num_classes, shape, read, about, class_names=tuple(class_names))


def mismatch(array: np.ndarray, label: str, dtype: str, shape: Sequence[int]) -> str:
  """Returns how an array differs from the expected one, as a clause that `label` begins; '' if it does not.

  `dtype` is a name such as 'uint8', or 'integers' for all of them.
  """
  has_dtype = array.dtype.kind in 'iu' if dtype == 'integers' else array.dtype.name == dtype
  if has_dtype and array.shape == tuple(shape):
    return ''
  return f'{label} has shape {list(array.shape)} and type {array.dtype.name}, but must be {dtype} {list(shape)}'


def label_fault(labels: np.ndarray, label: str, num_classes: int, per_class: int | None = None) -> str:
  """Returns what is wrong with labels that must lie in [0, num_classes), as `mismatch`; `per_class`: images of each."""
  if not 0 <= labels.min() <= labels.max() < num_classes:
    return f'{label} has labels from {labels.min()} to {labels.max()}, but they must lie in [0, {num_classes - 1}]'
  counts = np.bincount(labels.astype(np.int64), minlength=num_classes)
  if per_class is not None and (counts != per_class).any():
    return f'{label} has {counts.tolist()} images of the classes, but must have {per_class:,} of each'
  return ''


def header(dtype: np.dtype | type, shape: Sequence[int]) -> bytes:
  """Returns the first bytes of a .npy file, before the array itself."""
  written = io.BytesIO()
  description = {'descr': np.lib.format.dtype_to_descr(np.dtype(dtype)), 'fortran_order': False, 'shape': tuple(shape)}
  np.lib.format.write_array_header_1_0(written, description)
  return written.getvalue()


def whole(path: pathlib.Path) -> Part:
  """Returns all of a file; raises UserError if there is none."""
  if not path.is_file():
    raise UserError(f"'{path}' {'is not a file' if path.exists() else 'does not exist'}; put the .npy file there.")
  return Part(str(path), path, 0, path.stat().st_size)


def open_array(part: Part) -> np.ndarray:
  """Returns the array of a .npy file, memory-mapped and read-only; raises UserError if the file is not usable."""
  try:
    with untrusted.open_file(part.path) as file:
      file.seek(part.offset)
      head = _read_header(file.read(min(part.size, _MAX_HEADER)))
  except Unusable as error:
    raise UserError(f"'{part.label}' is not a .npy file of numbers ({error}); get or make it again.") from error
  count = math.prod(head.shape)
  expected = head.size + count * head.dtype.itemsize
  if part.size != expected:
    raise UserError(
      f"'{part.label}' has {part.size:,} bytes, but an array {head.dtype.name} {list(head.shape)} needs {expected:,}: "
      'it was written or copied in part; get or make it again.'
    )
  if not count:
    return np.zeros(head.shape, head.dtype)  # nothing to map
  return np.memmap(part.path, head.dtype, 'r', part.offset + head.size, head.shape, 'F' if head.fortran else 'C')


def read_npz(file: BinaryIO, limit: int, names: Container[str] | None = None) -> dict[str, np.ndarray]:
  """Returns the arrays of a .npz file, read-only: those with the given `names`, or all.

  Raises:
    Unusable: it is not a zip archive, an array is damaged or not of numbers, or they have more than `limit` bytes.
  """
  archive, found = untrusted.open_zip(file), {}
  for member in archive.infolist():
    name = member.filename.removesuffix('.npy')
    if names is not None and name not in names:
      continue
    content = untrusted.unzip(archive, member, limit)
    limit -= len(content)
    try:
      head = _read_header(bytes(content[:_MAX_HEADER]))
      del content[: head.size]
      found[name] = pickles.array(content, head.dtype, head.shape, head.fortran)
    except ValueError as error:
      raise Unusable(f'{name[:80]!r}: {error}') from error
  return found


def _read_header(start: bytes) -> _Header:
  """Returns what the first bytes of a .npy file say; raises Unusable."""
  file = io.BytesIO(start)
  try:
    version = np.lib.format.read_magic(file)
    shape, fortran, dtype = _READERS[version](file, max_header_size=_MAX_HEADER)
  except Exception as error:  # NumPy evaluates a literal, which raises nearly anything
    raise Unusable(f'its header is cut off, damaged, or of another version: {one_line(error)[:100]}') from error
  if dtype.hasobject:
    raise Unusable('it has pickled Python objects, which are not read')
  if any(size < 0 for size in shape) or math.prod(filter(None, shape)) >= 2**48:
    raise Unusable('its shape is impossible')
  try:
    return _Header(file.tell(), shape, fortran, pickles.array_type(dtype.str))
  except ValueError as error:
    raise Unusable(f'its type is {dtype.str[:20]}') from error
