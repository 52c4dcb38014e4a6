"""CIFAR-10 and CIFAR-10.1 that attack: archives, pickles, arrays."""

import bz2
from collections.abc import Callable
import functools
import gzip
import lzma
from pathlib import Path
import struct
import tarfile
import zipfile
import zlib

import numpy as np

from tests.hostile_base import NESTED, Base, case, device, endless, pipe
from tests.pickles_test import FORGED, by_python_2

# ---- CIFAR-10 as an archive, a folder, an .npz.


def _cifar_case(name: str, make_file: Callable[[Path], object], file: str = 'a.tar.gz') -> None:
  @case(f'CIFAR-10: {name}')
  def make(folder: Path, base: Base) -> list[str]:
    make_file(folder / file)
    return ['prepare', 'cifar10', f'--from={folder / file}', f'--data_dir={folder}/out']


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = 'data_batch_1.bin') -> bytes:
  info = tarfile.TarInfo(name)
  info.size, info.type = size, kind
  return info.tobuf(tarfile.GNU_FORMAT)


@functools.cache
def _zeros() -> bytes:
  """Packed: more zeros than any archive may have."""
  return gzip.compress(bytes(64 << 20), 1) * 10


def _packed(path: Path, *parts: bytes, zeros: bool = False) -> None:
  path.write_bytes(gzip.compress(b''.join(parts), 1) + (_zeros() if zeros else b''))


def _pickles(path: Path, data: bytes) -> None:
  path.mkdir()
  for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
    (path / name).write_bytes(data)


def _zip(path: Path, content: bytes, **options) -> None:
  with zipfile.ZipFile(path, 'w', **options) as archive:
    for name in ('x_train', 'y_train', 'x_test', 'y_test'):
      archive.writestr(f'{name}.npy', content)


def _npy(shape: str = '(1, 32, 32, 3)', descr: str = "'|u1'", raw: bytes = bytes(3072)) -> bytes:
  text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
  return b'\x93NUMPY\2\0' + struct.pack('<I', len(text)) + text + raw


def _patched(path: Path, old: bytes, new: bytes) -> None:
  path.write_bytes(path.read_bytes().replace(old, new))


GB = 1 << 30
_cifar_case('an extended header of 640 MB', lambda p: _packed(p, header(GB, tarfile.XHDTYPE), zeros=True))
_cifar_case('a long name of 640 MB', lambda p: _packed(p, header(GB, tarfile.GNUTYPE_LONGNAME), zeros=True))
_cifar_case('extended headers one in another', lambda p: _packed(p, *[header(0, tarfile.XHDTYPE)] * 5000))
_cifar_case('a member that is skipped for ever', lambda p: _packed(p, header(2**62, name='x'), zeros=True))
_cifar_case('a size below zero', lambda p: _packed(p, header(-5)))
_cifar_case('a sparse member', lambda p: _packed(p, header(2**40, tarfile.GNUTYPE_SPARSE)))
_cifar_case('zeros', lambda p: _packed(p, zeros=True))
_cifar_case('empty streams', lambda p: p.write_bytes(gzip.compress(b'') * 10**6))
_cifar_case('a name of gzip without end', lambda p: p.write_bytes(b'\x1f\x8b\x08\x08' + b'x' * (100 << 20)))
_cifar_case('bzip2 of zeros', lambda p: p.write_bytes(header(2**35, name='x') and bz2.compress(bytes(10 << 20)) * 200))
_cifar_case('xz of a large dictionary', lambda p: p.write_bytes(_large_xz()))
_cifar_case('endless', endless)
_cifar_case('a pipe', pipe)
_cifar_case('a device', device)


def _large_xz() -> bytes:
  content = bytearray(lzma.compress(bytes(1 << 20), check=lzma.CHECK_NONE))
  content[content.index(b'\x21\x01') + 2] = 40  # of LZMA2: 4 GB
  content[20:24] = struct.pack('<I', zlib.crc32(bytes(content[12:20])))
  return bytes(content)


NUMPY = {f'a forged type with {name}': data for name, data in FORGED.items()} | {
  'a key of tuples': b'\x80\x02}' + NESTED + b'Ns.',
  'a function': b'cos\nsystem\n(U\x09touch ran\ntR.',
  'a module': b'cpets_payload\nImage\n.',
  'labels of lists': b'\x80\x02}(X\x06\0\0\0labels]q\1' + b'](h\1h\1eq\1' * 40 + b'X\4\0\0\0data' + by_python_2(
    np.zeros((1, 3072), np.uint8)
  )[2:-1] + b'u.',
  'an array that is huge': by_python_2(np.zeros((1, 3072), np.uint8)).replace(
    b'M\1\0M\0\x0c', b'I99999999999\nI3072\n'
  ),
  'opcodes without end': b'N' * (60 << 20) + b'.',
  'a text that is bytes again and again': b'X' + struct.pack('<I', 10**6) + b'x' * 10**6
  + b'q\0X\6\0\0\0latin1q\1]q\2c_codecs\nencode\nq\3' + b'h\3h\0h\1\x86R' * 10**5 + b'.',
}  # fmt: skip
for name, data in NUMPY.items():
  _cifar_case(f'a pickle of {name}', lambda p, data=data: _pickles(p, data), 'folder')

NPZ: dict[str, Callable[[Path], object]] = {
  'of an unknown method': lambda p: (
    _zip(p, _npy()), _patched(p, b'PK\1\2\x14\3\x14\0\0\0\0\0', b'PK\1\2\x14\3\x14\0\0\0\x63\0')
  ),
  'encrypted': lambda p: (_zip(p, _npy()), _patched(p, b'PK\1\2\x14\3\x14\0\0\0', b'PK\1\2\x14\3\x14\0\1\0')),
  'of broken LZMA': lambda p: (
    _zip(p, _npy(), compression=zipfile.ZIP_LZMA), _patched(p, b'\x5d\0\0\x80\0', b'\xff\xff\xff\xff\xff')
  ),
  'of an array that is huge': lambda p: _zip(p, _npy('(999999999, 32, 32, 3)')),
  'of zeros': lambda p: _zip(p, bytes(500 << 20), compression=zipfile.ZIP_DEFLATED, compresslevel=1),
  'of objects': lambda p: _zip(p, _npy(descr="'|O'", raw=b'cos\nsystem\n(U\x09touch ran\ntR.')),
  'of a type of tuples': lambda p: _zip(p, _npy(descr='(' * 4000 + ')' * 4000)),
  'of signs': lambda p: _zip(p, _npy('-' * 9000 + '1')),
  'of many members': lambda p: members(p, 60_000),
  'endless': endless,
}  # fmt: skip
for name, make_npz in NPZ.items():
  _cifar_case(f'an .npz {name}', make_npz, 'a.npz')


def members(path: Path, count: int) -> None:
  with zipfile.ZipFile(path, 'w') as archive:
    for i in range(count):
      archive.writestr(f'{i:040d}', b'')


def _npy_case(name: str, content: bytes | Callable[[Path], object]) -> None:
  @case(f'CIFAR-10.1: {name}')
  def make(folder: Path, base: Base) -> list[str]:
    for version in ('v4', 'v6'):
      for part in ('data', 'labels'):
        path = folder / f'cifar10.1_{version}_{part}.npy'
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
    return ['prepare', 'cifar10_1', f'--from={folder}', f'--data_dir={folder}/out']


_npy_case('a shape that is huge', _npy('(99999999999999, 32, 32, 3)'))
_npy_case('nothing of a shape that is huge', _npy('(0, 99999999999999, 99999999999999)', raw=b''))
_npy_case('a type of tuples', _npy(descr='(' * 4000 + ')' * 4000))
_npy_case('a type that is huge', _npy(descr="[('a', '|V99999999999')]"))
_npy_case('endless', endless)
_npy_case('a pipe', pipe)
