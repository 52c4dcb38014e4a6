"""Reading pickles without running what they ask for.

A pickle is a program. The standard library's unpickler runs it here with only the opcodes that plain data and arrays
need, and with an inert stand-in for each global: no class or function that a pickle names is imported or called, not
even NumPy's (a forged `numpy.dtype` state corrupts memory). Arrays are made of raw bytes, a checked type and a checked
shape.

It is the unpickler in pure Python, because the one in C cannot be bounded: a few bytes nest a tuple so that hashing it
as a key of a dict takes forever, and memo indices and lengths allocate gigabytes. Here time and memory are in
proportion to the length of the pickle.
"""

from collections.abc import Callable
import functools
import io
import pickle
import pickletools
import re
import struct
from typing import Any, BinaryIO

import numpy as np

MAX_READS = 1 << 21  # take seconds; a file of CIFAR-10 and a state dict of thousands of tensors need a tenth
MAX_DIMENSIONS = 64  # of NumPy
_TYPE = re.compile(r'[<>|=]?(b1|[iu][1248]|f[248])')  # of arrays of plain numbers
_MAX_KEY = 1 << 32  # integers below it do not collide as keys of a dict


def load(data: bytes | BinaryIO, find: Callable[[str], Any], persistent: Callable[[Any], Any] | None = None) -> Any:
  """Returns the object that a pickle describes: dicts, lists, tuples, numbers, strings, bytes and stand-ins.

  Hashing, printing or comparing a value may take forever: check its type before looking into it.

  A stream is left behind the pickle's end. `find` gives the stand-in of a global 'module.name', and `persistent` what a
  persistent id stands for, if there may be any. Nearly any exception is raised where the pickle is damaged or asks for
  more.
  """
  return _Unpickler(_File(io.BytesIO(data) if isinstance(data, bytes) else data), find, persistent).load()


class StandIn:
  """What is made in place of an object of a class that a pickle names; `build` takes the state of the object."""

  def build(self, state: Any) -> None:
    raise ValueError('a state for what has none')


class _File:
  """A pickle's bytes: never fewer than asked for, and in so many reads only; each opcode takes one or more."""

  def __init__(self, file: BinaryIO):
    self._file, self._left = file, MAX_READS

  def read(self, size: int) -> bytes:
    self._left -= 1
    if self._left < 0:
      raise ValueError('more opcodes than plain data need')
    found = self._file.read(size)
    if len(found) < size:
      raise EOFError('it is cut off')
    return found

  def readline(self) -> bytes:
    found = self._file.readline()
    if not found.endswith(b'\n'):
      raise EOFError('it is cut off')
    return found


_PYTHON: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Unpickler(_PYTHON):
  """Python's own, but for opcodes that look into values, or call them."""

  def __init__(self, file: _File, find: Callable[[str], Any], persistent: Callable[[Any], Any] | None):
    super().__init__(file, encoding='latin-1')  # of strings of Python 2, which may be bytes
    self._find = find
    if persistent is not None:
      self.persistent_load = persistent

  def find_class(self, module: str, name: str) -> Any:
    return self._find(f'{module}.{name}')

  def load_frame(self) -> None:  # a copy of what follows
    self.read(8)

  def load_bytearray8(self) -> None:  # Python's allocates the length before it reads
    (length,) = struct.unpack('<Q', self.read(8))
    self.append(bytearray(self.read(length)))

  def load_dict(self) -> None:
    items = self.pop_mark()
    self.append({})
    self._fill(items)

  def load_setitem(self) -> None:
    items = self.stack[-2:]
    del self.stack[-2:]
    self._fill(items)

  def load_setitems(self) -> None:
    self._fill(self.pop_mark())

  def _fill(self, items: list[Any]) -> None:
    """Puts keys and values in turn into the dict on top of the stack."""
    target = self.stack[-1]
    if not isinstance(target, dict):
      raise ValueError('items for what is not a dict')
    for key, value in zip(items[::2], items[1::2], strict=True):
      if not isinstance(key, str | bytes) and not (isinstance(key, int) and abs(key) < _MAX_KEY):
        raise ValueError('a key that is neither a text nor a small number')
      target[key] = value

  def load_reduce(self) -> None:
    arguments = self.stack.pop()
    if not isinstance(arguments, tuple):
      raise ValueError('arguments that are not a tuple')
    self.stack[-1] = self.stack[-1](*arguments)

  def load_build(self) -> None:
    state = self.stack.pop()
    if isinstance(self.stack[-1], StandIn):  # else attributes, such as the _metadata of a state dict
      self.stack[-1].build(state)


class _Opcodes(dict):
  def __missing__(self, code: int) -> None:
    name = next((opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)), str(code))
    raise ValueError(f'the opcode {name} has no place in plain data')


_PLAIN = (
  'PROTO', 'FRAME', 'STOP', 'NONE', 'NEWTRUE', 'NEWFALSE', 'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1',
  'LONG4', 'FLOAT', 'BINFLOAT', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'STRING', 'BINSTRING',
  'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8', 'MARK', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1',
  'TUPLE2', 'TUPLE3', 'EMPTY_LIST', 'LIST', 'APPEND', 'APPENDS', 'EMPTY_DICT', 'DICT', 'SETITEM', 'SETITEMS', 'PUT',
  'BINPUT', 'LONG_BINPUT', 'MEMOIZE', 'GET', 'BINGET', 'LONG_BINGET', 'GLOBAL', 'STACK_GLOBAL', 'BINPERSID', 'REDUCE',
  'BUILD',
)  # fmt: skip
_CODES = [getattr(pickle, name)[0] for name in _PLAIN]
_Unpickler.dispatch = _Opcodes({code: getattr(_Unpickler, _PYTHON.dispatch[code].__name__) for code in _CODES})


# ---- Arrays.


def array_type(text: Any) -> np.dtype:
  """Returns the type of an array of plain numbers by its name, such as '<i8'; raises ValueError for others."""
  if not isinstance(text, str) or not _TYPE.fullmatch(text):
    raise ValueError('an array of other things than plain numbers')
  return np.dtype(text)


def array(raw: Any, dtype: np.dtype, shape: Any, fortran: bool = False) -> np.ndarray:
  """Returns a read-only array of bytes that somebody else describes; raises ValueError if they do not fit together."""
  if not isinstance(raw, bytes | bytearray) or not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
    raise ValueError('an array without bytes or a shape')
  if not all(type(size) is int and 0 <= size < 2**48 for size in shape):
    raise ValueError('an array of an impossible shape')
  values = np.frombuffer(raw, dtype).reshape(shape, order='F' if fortran else 'C')
  values.flags.writeable = False
  return values


class Array(StandIn):
  """An array of NumPy; `values` is None until its state has been read."""

  values: np.ndarray | None = None

  def __init__(self, to_bytes: Callable[[Any], Any]):
    self._to_bytes = to_bytes

  def build(self, state: Any) -> None:  # (version, shape, type, whether Fortran, bytes)
    if not isinstance(state, tuple) or len(state) != 5:
      raise ValueError('an array without its state')
    self.fill(state[4], state[2], state[1], fortran=state[3])

  def fill(self, raw: Any, dtype: Any, shape: Any, fortran: Any) -> 'Array':
    if not isinstance(dtype, _DType) or not isinstance(fortran, bool | int):
      raise ValueError('an array without a type or an order')
    self.values = array(self._to_bytes(raw), dtype.dtype, shape, bool(fortran))
    return self


class _DType(StandIn):
  def __init__(self, text: Any, *_: Any):
    self.dtype = array_type(text.decode('latin-1') if isinstance(text, bytes) else text)

  def build(self, state: Any) -> None:  # (version, byte order, subarray, names, fields, ...)
    if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
      raise ValueError('an array of other things than plain numbers')
    order = state[1].decode('latin-1') if isinstance(state[1], bytes) else state[1]
    if not isinstance(order, str) or order not in '<>|=':
      raise ValueError('an array of an unknown byte order')
    self.dtype = array_type(order + self.dtype.str[1:])


def load_numpy(data: bytes) -> Any:
  """Returns the same as `load` for a pickle with arrays of NumPy, each as an `Array`."""
  encode = functools.cache(lambda text: text.encode('latin-1'))  # once: a pickle may name the same text again and again
  to_bytes = lambda raw: encode(raw) if isinstance(raw, str) else raw  # pickles of Python 2 have text for bytes

  def encoded(text: Any, encoding: Any) -> bytes:  # how Python 3 writes bytes in old protocols
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding != 'latin1':
      raise ValueError('bytes in an encoding other than latin1')
    return encode(text)

  def from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    if not isinstance(order, str) or order not in ('C', 'F'):
      raise ValueError('an array of an unknown order')
    return Array(to_bytes).fill(raw, dtype, shape, order == 'F')

  known: dict[str, Any] = {'numpy.ndarray': None, 'numpy.dtype': _DType, '_codecs.encode': encoded}
  for package in ('core', '_core'):
    known[f'numpy.{package}.multiarray._reconstruct'] = lambda *_: Array(to_bytes)
    known[f'numpy.{package}.numeric._frombuffer'] = from_buffer

  def find(name: str) -> Any:
    if name not in known:
      raise ValueError(f'{name[:80]} is not allowed')
    return known[name]

  return load(data, find)
