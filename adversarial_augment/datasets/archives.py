"""Tar archives from anywhere, packed or not: nothing is unpacked on disk, and what is unpacked in memory is bounded.

The standard library's `tarfile` reads an extended header whole, however long it says that it is, and its packed streams
have no bound.
"""

import bz2
from collections.abc import Callable, Iterator
import io
import lzma
import os
import re
import tarfile
from typing import Any, BinaryIO, NamedTuple
import zlib

from adversarial_augment.storage.untrusted import Unusable

_BLOCK = 512  # bytes of tar
_PIECE = 1 << 20  # bytes unpacked at once
_MAX_HEADERS = 1000  # members, and their extended headers
_MAX_EXTENDED = 1 << 16  # bytes of an extended header, which has a long name
_MAX_STREAMS = 1000  # packed one after the other
_MAX_DICTIONARY = 128 << 20  # bytes that xz may ask for
_EXTENDED = (
  tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_UNPACKERS: dict[bytes, Callable[[], Any]] = {  # by the first bytes
  b'\x1f\x8b': lambda: zlib.decompressobj(31),  # gzip
  b'BZh': bz2.BZ2Decompressor,
  b'\xfd7zXZ\0': lambda: lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY),
  b'\x5d\0\0': lambda: lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY),
}


class Member(NamedTuple):
  """A regular file in an archive."""

  name: str
  size: int
  offset: int  # of its first byte


def unpacked(file: BinaryIO, limit: int) -> BinaryIO:
  """Returns a file as it is or, if packed by gzip, bzip2 or xz, in memory; raises Unusable beyond `limit` bytes."""
  magic = file.read(6)
  file.seek(0)
  unpacker = next((unpacker for start, unpacker in _UNPACKERS.items() if magic.startswith(start)), None)
  if unpacker is None:
    return file
  content = io.BytesIO()
  for piece in _pieces(file, unpacker):
    if content.tell() + len(piece) > limit:
      raise Unusable(f'it unpacks to more than {limit:,} bytes')
    content.write(piece)
  content.seek(0)
  return content


def members(file: BinaryIO, limit: int = _MAX_HEADERS) -> Iterator[Member]:
  """Yields the regular files of an uncompressed tar archive; raises Unusable if it is damaged or exceeds a bound."""
  size = file.seek(0, os.SEEK_END)
  name, position = '', 0  # the name, from an extended header, is the next member's
  for number in range(limit):
    file.seek(position)
    header = file.read(_BLOCK)
    if number and not header.strip(b'\0'):
      return
    try:
      info = tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape')
    except (tarfile.HeaderError, ValueError) as error:
      raise Unusable(f'{error} at byte {position:,}') from error
    if info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
      raise Unusable('a member without a size')
    extended, start = info.type in _EXTENDED, position + _BLOCK
    if extended and info.size > _MAX_EXTENDED:
      raise Unusable(f'a header of {info.size:,} bytes')
    has_data = extended or info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    position = start + (-(-info.size // _BLOCK) * _BLOCK if has_data else 0)
    if position > size:
      raise Unusable('it is cut off')
    if info.isreg():
      yield Member(name or info.name, info.size, start)
    name = (_long_name(info.type, file.read(info.size)) or name) if extended else ''
  raise Unusable(f'more than {limit:,} members')


def _long_name(kind: bytes, content: bytes) -> str:
  """Returns the name that an extended header gives the next member, or '' if it says something else."""
  if kind == tarfile.GNUTYPE_LONGNAME:
    return content.partition(b'\0')[0].decode('utf-8', 'surrogateescape')
  found = re.search(rb'^\d+ path=([^\n]*)\n', content, re.MULTILINE) if kind != tarfile.GNUTYPE_LONGLINK else None
  return found[1].decode('utf-8', 'surrogateescape') if found else ''


def _pieces(file: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
  """Yields what the packed streams of a file contain, in pieces of at most _PIECE bytes."""
  packed = b''
  for _ in range(_MAX_STREAMS):
    while not packed:
      if not (packed := file.read(_PIECE)):
        return
      packed = packed.lstrip(b'\0')  # padding of the last block of a tape
    unpacker, full = new(), False
    while not unpacker.eof:
      if not packed and not full and not (packed := file.read(_PIECE)):
        raise Unusable('it is cut off')
      try:
        piece = unpacker.decompress(packed, _PIECE)
      except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:
        raise Unusable(f'it is damaged ({error})') from error
      packed, full = getattr(unpacker, 'unconsumed_tail', b''), len(piece) == _PIECE
      yield piece
    packed = unpacker.unused_data.lstrip(b'\0')
  raise Unusable(f'more than {_MAX_STREAMS:,} packed streams')
