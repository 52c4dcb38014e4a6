"""Reading files that somebody else may have written: regular files only, of bounded size, and JSON of bounded depth.

A size or a depth is bounded before anything is made of it, so that a small file cannot ask for much time or memory, and
what is no file (a named pipe, a device) is neither waited for nor read without end.
"""

from collections.abc import Iterator
import errno
import json
import math
import os
from pathlib import Path
import stat
from typing import Any, BinaryIO

MAX_JSON = 16 << 20  # bytes; a report's largest file has less than one hundredth of it
MAX_DEPTH = 64  # of nested lists and objects; the deepest of ours have ten
MAX_LINE = 1 << 20  # bytes

_KINDS = {stat.S_IFIFO: 'a named pipe', stat.S_IFSOCK: 'a socket', stat.S_IFCHR: 'a device', stat.S_IFBLK: 'a device'}


class Unusable(ValueError):
  """What a file holds, or is, cannot be used; the message is the reason alone, without the file's name."""


def open_file(path: str | os.PathLike, limit: int | None = None) -> BinaryIO:
  """Opens a regular file of at most `limit` bytes for reading; links are followed.

  Raises:
    Unusable: it is a pipe, a device or another thing that is no file, or it is larger.
    OSError: it cannot be opened; it is a folder.
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
  """Returns the content of a regular file of at most `limit` bytes.

  Raises:
    Unusable, OSError: as of `open_file`.
  """
  with open_file(path, limit) as file:
    return file.read(limit)


def read_json(path: str | os.PathLike, limit: int = MAX_JSON) -> Any:
  """Returns the value in a JSON file.

  Raises:
    Unusable, OSError: as of `open_file` and `parse_json`.
  """
  return parse_json(read_bytes(path, limit))


def parse_json(content: bytes | str, *, finite: bool = True) -> Any:
  """Returns the value of a JSON text in UTF-8; NaN and infinity are none, unless `finite` is False.

  Raises:
    Unusable: it is no JSON, or nested deeper than MAX_DEPTH.
  """
  try:
    text = content if isinstance(content, str) else content.decode()
    number = _finite if finite else float
    value = json.loads(text, parse_float=number, parse_constant=number)
  except RecursionError:
    raise Unusable('it is nested too deep') from None
  except ValueError as error:  # of the encoding and of very long integers too
    raise Unusable(f'{error}') from None
  level, depth = [value], 0
  while level:
    if depth > MAX_DEPTH:
      raise Unusable('it is nested too deep')
    level = [item for node in level if isinstance(node, dict | list) for item in _items(node)]
    depth += 1
  return value


def lines(path: Path) -> Iterator[bytes]:
  """Yields the lines of a regular file, with their ends, one after the other.

  Raises:
    Unusable, OSError: as of `open_file`; or a line has more than MAX_LINE bytes.
  """
  with open_file(path) as file:
    number = 1
    while line := file.readline(MAX_LINE + 1):
      if len(line) > MAX_LINE:
        raise Unusable(f'line {number} has more than {MAX_LINE:,} bytes')
      yield line
      number += 1


def _items(node: dict[str, Any] | list[Any]) -> Any:
  return node.values() if isinstance(node, dict) else node


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'{text} is not a finite number')
  return value
