"""Arrays in .npy and .npz files, after a look at their headers: what is pickled, cut off or no array is refused."""

from collections.abc import Iterator, Sequence
import functools
import hashlib
import io
import math
import pathlib
import re
import struct
from typing import BinaryIO, NamedTuple

import numpy as np

from adversarial_augment.errors import UserError
from adversarial_augment.storage import pickles, untrusted
from adversarial_augment.storage.untrusted import Unusable

_MAX_HEADER = 1 << 16  # bytes; a longer header is no array's
_MAX_ENTRIES = 500  # characters of it, without the blanks that fill it up
_ENTRY = re.compile(
  r"""(?:'descr':\s*'(?P<descr>[^']{1,20})'|'fortran_order':\s*(?P<fortran>True|False)"""
  r"""|'shape':\s*\((?P<shape>[0-9L, ]*)\)),?\s*"""
)


class Part(NamedTuple):
  """A file, or one that lies unpacked within another, as in a tar archive."""

  label: str  # for messages
  path: pathlib.Path
  offset: int  # of the first byte
  size: int

  def digest(self, algorithm: str) -> str:
    """Returns the hash of its bytes, such as 'sha256', in hexadecimal digits."""
    with untrusted.open_file(self.path) as file:
      file.seek(self.offset)
      new = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
      return hashlib.file_digest(_Section(file, self.size), new).hexdigest()  # type: ignore[arg-type]


class _Section(io.RawIOBase):
  """The next bytes of a file as a file of their own."""

  def __init__(self, file: BinaryIO, size: int):
    self._file, self._left = file, size

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
    count = self._file.readinto(memoryview(buffer)[: self._left])  # type: ignore[attr-defined]
    self._left -= count
    return count


def header(dtype: np.dtype | type, shape: Sequence[int]) -> bytes:
  """Returns what a .npy file begins with."""
  written = io.BytesIO()
  description = {'descr': np.lib.format.dtype_to_descr(np.dtype(dtype)), 'fortran_order': False, 'shape': tuple(shape)}
  np.lib.format.write_array_header_1_0(written, description)
  return written.getvalue()


def whole(path: pathlib.Path) -> Part:
  """Returns all of a file.

  Raises:
    UserError: there is no such file.
  """
  if not path.is_file():
    raise UserError(f"'{path}' {'is no file' if path.exists() else 'does not exist'}; put the .npy file there.")
  return Part(str(path), path, 0, path.stat().st_size)


def open_array(part: Part) -> np.ndarray:
  """Returns the array of a .npy file, memory-mapped and read-only; nothing that the file contains is executed.

  Raises:
    UserError: it is no .npy file, holds Python objects, is in Fortran order, or is not as long as its header says.
  """
  try:
    with untrusted.open_file(part.path) as file:
      file.seek(part.offset)
      header = _read_header(file.read(min(part.size, _MAX_HEADER)))
  except Unusable as error:
    raise UserError(f"'{part.label}' is not a .npy file of an array ({error}); get or make it again.") from error
  if 'O' in header.descr:
    raise UserError(f"'{part.label}' holds pickled Python objects, which are not read; save a plain array of numbers.")
  if header.fortran and len(header.shape) > 1:
    raise UserError(f"'{part.label}' is stored column by column; save it again with numpy.ascontiguousarray.")
  try:
    dtype = pickles.array_type(header.descr)
  except ValueError as error:
    raise UserError(f"'{part.label}' holds {header.descr}; save a plain array of numbers.") from error
  expected = header.size + math.prod(header.shape) * dtype.itemsize
  if part.size != expected:
    raise UserError(
      f"'{part.label}' has {part.size:,} bytes, but an array {dtype.name} {list(header.shape)} needs {expected:,}: it "
      'was written or copied in part; get or make it again.'
    )
  if not math.prod(header.shape):
    return np.zeros(header.shape, dtype)  # nothing to map
  return np.memmap(part.path, dtype, 'r', part.offset + header.size, header.shape)


class Npz:
  """The arrays of a .npz file, each read when it is asked for."""

  def __init__(self, file: BinaryIO, limit: int):
    """Reads the list of arrays.

    Args:
      file: the archive.
      limit: bytes that all arrays may have together.

    Raises:
      Unusable: it is no zip archive, or a damaged one.
    """
    self._archive, self._left = untrusted.open_zip(file), limit
    self._members = {member.filename.removesuffix('.npy'): member for member in self._archive.infolist()}

  def __iter__(self) -> Iterator[str]:
    return iter(self._members)

  def __getitem__(self, name: str) -> np.ndarray:
    """Returns an array, read-only.

    Raises:
      KeyError: there is none of that name.
      Unusable: it is no array of plain numbers, larger than what is left of the limit, or damaged.
    """
    content = untrusted.unzip(self._archive, self._members[name], self._left)
    self._left -= len(content)
    header = _read_header(bytes(content[:_MAX_HEADER]))
    del content[: header.size]
    try:
      return pickles.array(content, pickles.array_type(header.descr), header.shape, header.fortran)
    except ValueError as error:
      raise Unusable(f'{name[:80]!r}: {error}') from error


class _Header(NamedTuple):
  size: int  # bytes
  descr: str  # the type, such as '<i8'
  fortran: bool
  shape: tuple[int, ...]


def _read_header(start: bytes) -> _Header:
  """What the start of a .npy file says; read as text, of which nothing is evaluated."""
  version = start[6:8]
  if start[:6] != np.lib.format.MAGIC_PREFIX or len(version) < 2:
    raise Unusable('it does not begin as one')
  if version not in (b'\1\0', b'\2\0'):
    raise Unusable(f'version {tuple(version)} of the format')
  first, form = (10, '<H') if version == b'\1\0' else (12, '<I')
  if len(start) < first:
    raise Unusable('its header is cut off')
  (length,) = struct.unpack(form, start[first - struct.calcsize(form) : first])
  text = start[first : first + length].decode('latin-1').strip()
  if len(start) < first + length or len(text) > _MAX_ENTRIES or not re.fullmatch(r'\{.*\}', text):
    raise Unusable('its header is cut off or damaged')
  inside = text[1:-1].strip()
  entries: dict[str, str] = {}
  while found := _ENTRY.match(inside):
    entries |= {key: value for key, value in found.groupdict().items() if value is not None}
    inside = inside[found.end() :]
  if inside or len(entries) != 3:
    raise Unusable('its header does not give one type of numbers, an order and a shape')
  shape = tuple(int(size) for size in re.findall(r'\d{1,15}', entries['shape']))
  if math.prod(filter(None, shape)) >= 2**48:
    raise Unusable('its shape is one that no array has')
  return _Header(first + length, entries['descr'], entries['fortran'] == 'True', shape)
