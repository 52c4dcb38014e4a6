"""Tar archives, packed or not, read piece by piece: nothing is unpacked on disk, and no size is believed.

The standard library's `tarfile` reads an extended header whole, however long it says it is, and its packed streams
have no bound.
"""

import bz2
from collections.abc import Callable, Iterator
import lzma
import os
import re
import tarfile
from typing import Any, BinaryIO, NamedTuple, Protocol
import zlib

from adversarial_augment.storage.untrusted import Unusable

_BLOCK = 512  # bytes of tar
_PIECE = 1 << 20  # bytes unpacked at once
_MAX_HEADERS = 1000  # members, and what stands before them
_MAX_EXTENDED = 1 << 16  # bytes of a header with a long name
_MAX_STREAMS = 1000  # packed one after the other
_MAX_DICTIONARY = 128 << 20  # bytes that xz may ask for
_EXTENDED = (
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
)


class Stream(Protocol):
  position: int  # bytes read or skipped

  def read(self, size: int) -> bytes: ...

  def skip(self, size: int) -> None: ...


class Member(NamedTuple):
  """A regular file in an archive."""

  name: str
  size: int
  offset: int  # of its first byte


def unpacked(file: BinaryIO, limit: int) -> Stream:
  """Returns the bytes of a file that is packed by gzip, bzip2 or xz, or not at all; at most `limit` where it is packed.

  What it returns raises Unusable where the file is damaged, or has more.
  """
  magic = file.read(6)
  file.seek(0)
  for start, new in _PACKED.items():
    if magic.startswith(start):
      return _Unpacked(_pieces(file, new), limit)
  return plain(file)


def members(stream: Stream) -> Iterator[Member]:
  """Yields the regular files of a tar archive; each may be read from the stream before the next one is asked for.

  Raises:
    Unusable: it is no tar archive, damaged, or has too many or too long headers.
  """
  name = ''  # of the next member, from an extended header
  for number in range(_MAX_HEADERS):
    header = stream.read(_BLOCK)
    if number and (not header or not header.strip(b'\0')):
      return
    try:
      info = tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape')
    except (tarfile.HeaderError, ValueError) as error:
      raise Unusable(f'{error} at byte {stream.position - len(header):,}') from error
    if info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
      raise Unusable('a member without a size')
    start = stream.position
    if info.type in _EXTENDED:
      if info.size > _MAX_EXTENDED:
        raise Unusable(f'a header of {info.size:,} bytes')
      name = _long_name(info.type, stream.read(info.size)) or name
      has_data = True
    else:
      has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
      if info.isreg():
        yield Member(name or info.name, info.size, start)
      name = ''
    if has_data:
      stream.skip(start + -(-info.size // _BLOCK) * _BLOCK - stream.position)
  raise Unusable(f'more than {_MAX_HEADERS:,} members')


def _long_name(kind: bytes, content: bytes) -> str:
  """The name that an extended header gives the next member; nothing where it says something else."""
  if kind == tarfile.GNUTYPE_LONGNAME:
    return content.partition(b'\0')[0].decode('utf-8', 'surrogateescape')
  found = re.search(rb'^\d+ path=([^\n]*)\n', content, re.MULTILINE) if kind != tarfile.GNUTYPE_LONGLINK else None
  return found[1].decode('utf-8', 'surrogateescape') if found else ''


def plain(file: BinaryIO) -> Stream:
  """Returns the bytes of a file as they are."""
  return _Plain(file)


class _Plain:
  def __init__(self, file: BinaryIO):
    self._file, self._size, self.position = file, os.fstat(file.fileno()).st_size, 0

  def read(self, size: int) -> bytes:
    found = self._file.read(size)
    self.position += len(found)
    return found

  def skip(self, size: int) -> None:
    if self.position + size > self._size:
      raise Unusable('it is cut off')
    self.position = self._file.seek(self.position + size)


class _Unpacked:
  def __init__(self, pieces: Iterator[bytes], limit: int):
    self._pieces, self._limit = pieces, limit
    self._ready = bytearray()
    self.position = 0

  def read(self, size: int) -> bytes:
    while len(self._ready) < size and (piece := self._next()):
      self._ready += piece
    found = bytes(self._ready[:size])
    self._move(len(found))
    return found

  def skip(self, size: int) -> None:
    while len(self._ready) < size:
      size -= len(self._ready)
      self._move(len(self._ready))
      piece = self._next()
      if not piece:
        raise Unusable('it is cut off')
      self._ready += piece
    self._move(size)

  def _move(self, size: int) -> None:
    del self._ready[:size]
    self.position += size

  def _next(self) -> bytes:
    piece = next(self._pieces, b'')
    if self.position + len(self._ready) + len(piece) > self._limit:
      raise Unusable(f'it unpacks to more than {self._limit:,} bytes')
    return piece


def _pieces(file: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
  """Yields what the packed streams of a file hold, in pieces of at most _PIECE bytes."""
  packed = b''
  for _ in range(_MAX_STREAMS):
    while not packed:
      if not (packed := file.read(_PIECE)):
        return
      packed = packed.lstrip(b'\0')  # what fills up the last block of a tape
    unpacker, full = new(), False
    while not unpacker.eof:
      if not packed and not full and not (packed := file.read(_PIECE)):
        raise Unusable('it is cut off')
      try:
        piece = unpacker.decompress(packed, _PIECE)
      except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:
        raise Unusable(f'it is damaged ({error})') from error
      packed, full = getattr(unpacker, 'unconsumed_tail', b''), len(piece) == _PIECE
      if piece:
        yield piece
    packed = unpacker.unused_data.lstrip(b'\0')
  raise Unusable(f'more than {_MAX_STREAMS:,} packed streams')


_PACKED: dict[bytes, Callable[[], Any]] = {
  b'\x1f\x8b': lambda: zlib.decompressobj(31),  # gzip
  b'BZh': bz2.BZ2Decompressor,
  b'\xfd7zXZ\0': lambda: lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY),
  b'\x5d\0\0': lambda: lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY),
}
