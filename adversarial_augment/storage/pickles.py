"""Reading pickles without running what they ask for.

A pickle is a program. The machine of this module knows only the opcodes that plain data and arrays need. Each global
is replaced by a stand-in of ours: no class or function that a pickle names is imported or called, NumPy's and PyTorch's
own among them. Time and memory are in proportion to the pickle's length.
"""

from collections.abc import Callable
import io
import pickletools
import re
from typing import Any

import numpy as np

MAX_OPCODES = 1 << 20  # seconds; a file of CIFAR-10 and a state dict of thousands of tensors have a tenth
MAX_DIMENSIONS = 64  # of NumPy
_TYPE = re.compile(r'[<>|=]?(b1|[iu][1248]|f[248])')  # of an array: plain numbers


class StandIn:
  """What is made in place of an object that a pickle asks for."""

  def build(self, state: Any) -> None:
    """Takes the state that the pickle gives the object; here it is dropped."""


def array_type(text: Any) -> np.dtype:
  """Returns the type of an array's numbers by its name, such as '<i8'.

  Raises:
    ValueError: it is none of plain numbers.
  """
  if not isinstance(text, str) or not _TYPE.fullmatch(text):
    raise ValueError('an array of what are no plain numbers')
  return np.dtype(text)


def array(raw: Any, dtype: np.dtype, shape: Any, fortran: bool = False) -> np.ndarray:
  """Returns a read-only array of bytes that somebody else describes.

  Args:
    raw: bytes or a bytearray.
    dtype: as of `array_type`.
    shape: sizes of the dimensions, whose product the bytes must have.
    fortran: whether the first index is the fastest.

  Raises:
    ValueError: they do not fit together.
  """
  if not isinstance(raw, bytes | bytearray) or not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
    raise ValueError('an array of what are no bytes, or no shape')
  if not all(type(size) is int and 0 <= size < 2**48 for size in shape):
    raise ValueError('an array of an impossible shape')
  values = np.frombuffer(raw, dtype).reshape(shape, order='F' if fortran else 'C')
  values.flags.writeable = False
  return values


class NumPy:
  """The stand-ins of what NumPy's pickles ask for."""

  class Array(StandIn):
    """`values` is None until the state has come."""

    values: np.ndarray | None = None

    def __init__(self, bytes_of: Callable[[Any], Any]):
      self._bytes_of = bytes_of

    def build(self, state: Any) -> None:  # (version, shape, type, whether Fortran, bytes)
      if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError('an array without its state')
      self.fill(self._bytes_of(state[4]), state[2], state[1], fortran=state[3])

    def fill(self, raw: Any, dtype: Any, shape: Any, fortran: Any) -> None:
      if not isinstance(dtype, NumPy.DType) or not isinstance(fortran, bool | int):
        raise ValueError('an array of what are no plain numbers')
      self.values = array(raw, dtype.dtype, shape, bool(fortran))

  class DType(StandIn):
    def __init__(self, text: Any, *_: Any):
      self.dtype = array_type(text.decode('latin-1') if isinstance(text, bytes) else text)

    def build(self, state: Any) -> None:  # (version, byte order, subarray, names, fields, ...)
      if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise ValueError('an array of what are no plain numbers')
      order = state[1].decode('latin-1') if isinstance(state[1], bytes) else state[1]
      if not isinstance(order, str) or order not in '<>|=':
        raise ValueError('an array of an unknown byte order')
      self.dtype = array_type(order + self.dtype.str[1:])

  def __init__(self, length: int):
    self._left = 2 * length  # bytes to be turned from text; a pickle that asks for more has the same text many times
    self._known: dict[str, Any] = {
      'numpy.ndarray': None,  # only named, as an argument
      'numpy.dtype': NumPy.DType,
      '_codecs.encode': self._encoded,
    }
    for package in ('core', '_core'):
      self._known[f'numpy.{package}.multiarray._reconstruct'] = lambda *_: NumPy.Array(self._bytes_of)
      self._known[f'numpy.{package}.numeric._frombuffer'] = self._from_buffer

  def find(self, name: str) -> Any:
    """Returns the stand-in of a global; raises ValueError where there is none."""
    if name not in self._known:
      raise ValueError(f'{name[:80]} is not allowed')
    return self._known[name]

  def _bytes_of(self, raw: Any) -> Any:
    """Bytes as they are; they may be text, as in pickles of Python 2, or a bytearray."""
    if not isinstance(raw, str | bytearray):
      return raw
    self._left -= len(raw)
    if self._left < 0:
      raise ValueError('more bytes of arrays than the pickle has')
    return raw.encode('latin-1') if isinstance(raw, str) else bytes(raw)

  def _encoded(self, text: Any, encoding: Any) -> Any:  # how Python 3 writes bytes in old protocols
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding != 'latin1':
      raise ValueError('bytes in an encoding other than latin1')
    return self._bytes_of(text)

  def _from_buffer(self, raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    if not isinstance(order, str) or order not in ('C', 'F'):
      raise ValueError('an array of an unknown order')
    made = NumPy.Array(self._bytes_of)
    made.fill(self._bytes_of(raw), dtype, shape, fortran=order == 'F')
    return made


def run(data: bytes | io.BytesIO, find: Callable[[str], Any], persistent: Callable[[Any], Any] | None = None) -> Any:
  """Returns what a pickle makes.

  It is made of dicts, lists, tuples, numbers, strings and stand-ins only, but a short pickle can nest a tuple so that
  its hash, its text or a comparison takes for ever. So nothing here looks into a value before its type is known.

  Args:
    data: the pickle; of a stream, what follows it is left.
    find: gives the stand-in of a global, 'module.name'; raises where it has none.
    persistent: gives what a persistent id stands for; None: there are none.

  Raises:
    Exception: of nearly any kind, where the pickle is damaged or asks for more.
  """
  stack: list[Any] = []
  marks: list[int] = []
  memo: dict[int, Any] = {}

  def take(start: int) -> list[Any]:
    items = stack[start:]
    del stack[start:]
    return items

  for number, (opcode, value, _) in enumerate(pickletools.genops(data)):
    if number >= MAX_OPCODES:
      raise ValueError(f'more than {MAX_OPCODES:,} opcodes')
    argument: Any = value
    match opcode.name:
      case 'PROTO' | 'FRAME' | 'STOP':
        pass
      case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
        stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[opcode.name])
      case name if name in _LITERALS:
        stack.append(argument)
      case 'MARK':
        marks.append(len(stack))
      case 'EMPTY_TUPLE' | 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        stack.append(tuple(take(len(stack) - len(opcode.stack_before))))
      case 'TUPLE':
        stack.append(tuple(take(marks.pop())))
      case 'EMPTY_LIST':
        stack.append([])
      case 'LIST':
        stack.append(take(marks.pop()))
      case 'APPEND' | 'APPENDS':
        items = take(len(stack) - 1 if opcode.name == 'APPEND' else marks.pop())
        stack[-1].extend(items)
      case 'EMPTY_DICT':
        stack.append({})
      case 'DICT':
        stack.append(_filled({}, take(marks.pop())))
      case 'SETITEM' | 'SETITEMS':
        items = take(len(stack) - 2 if opcode.name == 'SETITEM' else marks.pop())
        _filled(stack[-1], items)
      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        memo[argument] = stack[-1]
      case 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        stack.append(memo[argument])
      case 'GLOBAL':
        stack.append(find(argument.replace(' ', '.')))
      case 'STACK_GLOBAL':
        module, name = take(len(stack) - 2)
        if not isinstance(module, str) or not isinstance(name, str):
          raise ValueError('the name of a global is no text')
        stack.append(find(f'{module}.{name}'))
      case 'BINPERSID' if persistent:
        stack.append(persistent(stack.pop()))
      case 'REDUCE':
        function, arguments = take(len(stack) - 2)
        if not isinstance(arguments, tuple):
          raise ValueError('arguments that are no tuple')
        stack.append(function(*arguments))
      case 'BUILD':
        state = stack.pop()
        if isinstance(stack[-1], StandIn):  # else attributes, such as the _metadata of a state dict
          stack[-1].build(state)
      case name:
        raise ValueError(f'the opcode {name} has no place in plain data')
  return stack.pop()


def _filled(target: Any, items: list[Any]) -> dict[str | bytes | int, Any]:
  """Puts keys and values in turn into a dict; a key is a text, or a number that is not made to collide."""
  if not isinstance(target, dict):
    raise ValueError('items of what is no dict')
  for key, value in zip(items[::2], items[1::2], strict=True):
    if not isinstance(key, str | bytes) and not (isinstance(key, int) and abs(key) < 2**32):
      raise ValueError('a key that is neither a text nor a small number')
    target[key] = value
  return target


# Opcodes that push their argument.
_LITERALS = (
  'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'UNICODE', 'BININT', 'BININT1', 'BININT2', 'INT', 'LONG', 'LONG1',
  'LONG4', 'BINFLOAT', 'FLOAT', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8', 'BINSTRING',
  'SHORT_BINSTRING', 'STRING',
)  # fmt: skip
