"""Reading files that somebody else may have written: regular files only, of bounded size; JSON of bounded depth; zip.

Sizes and depths are bounded before anything is made of a file, so that a small one cannot ask for much time or memory.
What is not a file (a named pipe, a device) is neither waited for nor read without end.
"""

from collections.abc import Iterator
import errno
import json
import math
import os
from pathlib import Path
import stat
from typing import Any, BinaryIO
import zipfile

MAX_JSON = 16 << 20  # bytes; a report's largest file has less than one hundredth of it
MAX_DEPTH = 64  # of nested lists and objects; ours have at most ten
MAX_LINE = 1 << 20  # bytes
MAX_DIRECTORY = 2 << 20  # bytes of a zip archive's list of members
_PIECE = 1 << 20  # bytes read at once

_KINDS = {stat.S_IFIFO: 'a named pipe', stat.S_IFSOCK: 'a socket', stat.S_IFCHR: 'a device', stat.S_IFBLK: 'a device'}


class Unusable(ValueError):
  """A file cannot be used; the message is the reason alone, without the file's name."""


def open_file(path: str | os.PathLike, limit: int | None = None) -> BinaryIO:
  """Opens a regular file, or a link to one, for reading.

  Raises:
    Unusable: it is a pipe, a device or the like, or has more than `limit` bytes.
    OSError: it cannot be opened, or is a folder.
  """
  # Without O_NONBLOCK, opening a named pipe waits for a writer.
  descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
  try:
    status = os.fstat(descriptor)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if kind != stat.S_IFREG:
      raise Unusable(f'it is {_KINDS.get(kind, "something else")}, not a file')
    if limit is not None and status.st_size > limit:
      raise Unusable(f'it has {status.st_size:,} bytes, and no such file has more than {limit:,}')
    return os.fdopen(descriptor, 'rb')
  except BaseException:
    os.close(descriptor)
    raise


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
  """Returns the content of a file; raises as `open_file`."""
  with open_file(path, limit) as file:
    return file.read(limit)


def read_json(path: str | os.PathLike, limit: int = MAX_JSON) -> Any:
  """Returns the value in a JSON file; raises as `open_file` and `parse_json`."""
  return parse_json(read_bytes(path, limit))


def parse_json(content: bytes | str, *, finite: bool = True) -> Any:
  """Returns the value of JSON in UTF-8.

  Raises:
    Unusable: it is not JSON, is nested deeper than MAX_DEPTH or, if `finite`, has a number that is not finite.
  """
  number = _finite if finite else float
  try:
    text = content if isinstance(content, str) else content.decode()
    value = json.loads(text, parse_float=number, parse_constant=number)
  except RecursionError:
    raise Unusable('it is nested too deep') from None
  except ValueError as error:  # also of the encoding and of very long integers
    raise Unusable(f'{error}') from None
  level, depth = [value], 0
  while level:
    if depth > MAX_DEPTH:
      raise Unusable('it is nested too deep')
    nodes = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
    level = [item for node in nodes for item in node]
    depth += 1
  return value


def lines(path: Path) -> Iterator[bytes]:
  """Yields the lines of a file, with their ends; raises as `open_file`, or Unusable for one beyond MAX_LINE bytes."""
  with open_file(path) as file:
    number = 1
    while line := file.readline(MAX_LINE + 1):
      if len(line) > MAX_LINE:
        raise Unusable(f'line {number} has more than {MAX_LINE:,} bytes')
      yield line
      number += 1


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'{text} is not a finite number')
  return value


def open_zip(file: BinaryIO, max_directory: int = MAX_DIRECTORY) -> zipfile.ZipFile:
  """Opens a zip archive; raises Unusable if it is damaged, or lists its members in more than `max_directory` bytes."""
  try:
    return zipfile.ZipFile(_Piecewise(file, max_directory))  # type: ignore[arg-type]
  except Unusable:
    raise
  except Exception as error:  # zipfile raises nearly anything
    raise Unusable('it is no whole archive') from error


def unzip(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytearray:
  """Returns the bytes of a member.

  Raises:
    Unusable: it has more than `limit` bytes, is encrypted, packed by an unusual method, or damaged.
  """
  name = member.filename[:80]
  if member.file_size > limit:
    raise Unusable(f'{name!r} says that it has {member.file_size:,} bytes, and has at most {limit:,}')
  if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise Unusable(f'{name!r} is encrypted, or packed by an unusual method')
  content = bytearray()
  try:
    with archive.open(member) as file:
      while piece := file.read(_PIECE):
        content += piece
  except Exception as error:
    raise Unusable(f'{name!r} is damaged: {error}') from error
  if len(content) != member.file_size:
    raise Unusable(f'{name!r} is cut off')
  return content


class _Piecewise:
  """A file that refuses large reads: zipfile reads the list of members at once, however long it claims to be."""

  def __init__(self, file: BinaryIO, limit: int):
    self._file, self._limit = file, limit
    self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

  def read(self, size: int | None = -1) -> bytes:
    if size is None or size < 0:
      here = self.tell()
      size = self.seek(0, os.SEEK_END) - here
      self.seek(here)
    if size > self._limit:
      raise Unusable(f'its list of members has {size:,} bytes')
    return self._file.read(size)
