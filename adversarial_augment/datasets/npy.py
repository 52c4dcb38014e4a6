"""Memory-maps .npy files after a look at their headers: what is pickled, cut off or not an array is refused."""

import io
import math
import pathlib
from typing import NamedTuple

import numpy as np

from adversarial_augment.datasets.reasons import one_line
from adversarial_augment.errors import UserError

_HEADER = 1 << 16  # bytes; a longer header is no array's
_READERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class Part(NamedTuple):
  """A file, or one that lies unpacked within another, as in a tar archive."""

  label: str  # for messages
  path: pathlib.Path
  offset: int  # of the first byte
  size: int


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
  with part.path.open('rb') as file:
    file.seek(part.offset)
    head = io.BytesIO(file.read(min(part.size, _HEADER)))
  try:
    version = np.lib.format.read_magic(head)
    shape, fortran, dtype = _READERS[version](head)
  except (ValueError, KeyError) as error:
    reason = f'version {version} of the format' if isinstance(error, KeyError) else one_line(error)
    raise UserError(f"'{part.label}' is not a .npy file of an array ({reason}); get or make it again.") from error
  if dtype.hasobject:
    raise UserError(f"'{part.label}' holds pickled Python objects, which are not read; save a plain array of numbers.")
  if fortran and len(shape) > 1:
    raise UserError(f"'{part.label}' is stored column by column; save it again with numpy.ascontiguousarray.")
  expected = head.tell() + math.prod(shape) * dtype.itemsize
  if part.size != expected:
    raise UserError(
      f"'{part.label}' has {part.size:,} bytes, but an array {dtype.name} {list(shape)} needs {expected:,}: it was "
      'written or copied in part; get or make it again.'
    )
  if not math.prod(shape):
    return np.zeros(shape, dtype)  # nothing to map
  return np.memmap(part.path, dtype, 'r', part.offset + head.tell(), shape)
