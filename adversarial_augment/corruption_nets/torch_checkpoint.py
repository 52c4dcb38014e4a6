"""Reading PyTorch checkpoints without PyTorch, and without running what a pickle asks for.

A checkpoint of PyTorch 1.6 or newer is a zip archive: a pickle that describes the tensors, and their bytes beside it.
In an older one, as the published networks of 2018 and 2020 are, pickles and bytes stand one after the other.
The pickle is read by `pickles`, which replaces the few globals that a state dict needs by functions of this module.
"""

from collections.abc import Callable
import io
import math
import os
from typing import Any, BinaryIO
import zipfile

import numpy as np

from adversarial_augment.config.fields import show
from adversarial_augment.corruption_nets.weights import MAX_BYTES
from adversarial_augment.errors import AdversarialAugmentError, UserError
from adversarial_augment.storage import pickles, untrusted

MAX_PICKLE_BYTES = 4 * 2**20  # a state dict of thousands of tensors takes less than 1 MiB

_LEGACY = bytes.fromhex('80028a0a6cfc9c46f9206aa850192e')  # the magic number, pickled
_BIG_ENDIAN = 'was written on a big-endian machine; save it again on a little-endian one.'

# Storage types of the module `torch`; bfloat16, which NumPy lacks, is read as its bits.
STORAGES = {
  'FloatStorage': '<f4',
  'DoubleStorage': '<f8',
  'HalfStorage': '<f2',
  'BFloat16Storage': 'bfloat16',
  'LongStorage': '<i8',
  'IntStorage': '<i4',
  'ShortStorage': '<i2',
  'CharStorage': '|i1',
  'ByteStorage': '|u1',
  'BoolStorage': '|b1',
}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the state dict of a PyTorch checkpoint.

  Args:
    path: a checkpoint of any PyTorch: a state dict, or a dict that holds one under 'model' or 'state_dict'.

  Returns:
    Read-only arrays by key, in the file's order, which may share memory; bfloat16 becomes float32.

  Raises:
    UserError: no such file, another format, damaged, or its pickle asks for anything a state dict does not need.
  """
  try:
    with untrusted.open_file(path, MAX_BYTES) as file:
      start = file.read(len(_LEGACY))
      file.seek(0)
      if start == _LEGACY:
        content = _read_legacy(file, path)
      elif zipfile.is_zipfile(file):
        with untrusted.open_zip(file) as archive:
          content = _read_zip(archive, path)
      elif _LEGACY.startswith(start) or start[:2] in (b'P', b'PK'):
        raise UserError(f"'{path}' {'is cut off' if start else 'is empty'}; download it, or save it, again.")
      else:
        raise UserError(
          f"'{path}' is no checkpoint of PyTorch, neither a zip archive (1.6 or newer) nor of the older form; where "
          'PyTorch is installed, torch.load it and torch.save its state_dict again.'
        )
  except OSError as error:
    raise UserError(f"Cannot read the checkpoint '{path}': {error.strerror or error}; name another file.") from error
  except AdversarialAugmentError:
    raise
  except Exception as error:  # a hostile or damaged file can make zipfile and the machine raise nearly anything
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(f"The checkpoint '{path}' is damaged or not one of PyTorch ({reason}); get it again.") from error

  for name in ('model', 'state_dict'):
    if isinstance(content, dict) and isinstance(content.get(name), dict):
      content = content[name]
  if not isinstance(content, dict) or not content:
    raise UserError(f"The checkpoint '{path}' holds no state dict; save one with torch.save(model.state_dict(), ...).")
  for key, value in content.items():
    if not isinstance(key, str) or not isinstance(value, np.ndarray):
      raise UserError(f"The checkpoint '{path}' holds no plain state dict: its entry {show(key)} is not a tensor.")
  return content


def _read_zip(archive: zipfile.ZipFile, path: str | os.PathLike) -> Any:
  """The object that the archive's pickle describes, made of dicts, lists, numbers, strings and arrays only."""
  members = {member.filename: member for member in archive.infolist()}
  # PyTorch does not compress, so the members fit into the file, and reading them cannot take more memory than its size.
  if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()) or (
    sum(member.file_size for member in members.values()) > os.path.getsize(path)
  ):
    raise UserError(f"'{path}' is compressed, as no checkpoint of PyTorch is; save it again with torch.save.")
  roots = [name.removesuffix('data.pkl') for name in members if name.count('/') <= 1 and name.endswith('data.pkl')]
  if len(roots) != 1:
    raise UserError(f"'{path}' is a zip archive, but not a checkpoint of PyTorch: it holds {len(roots)} data.pkl.")
  root = roots[0]
  read = lambda name: untrusted.unzip(archive, members[f'{root}{name}'], MAX_BYTES)
  if f'{root}byteorder' in members and read('byteorder') != b'little':
    raise UserError(f"'{path}' {_BIG_ENDIAN}")
  if members[f'{root}data.pkl'].file_size > MAX_PICKLE_BYTES:
    raise UserError(f"'{path}': its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB, too large for a state dict.")
  storages: dict[str, np.ndarray] = {}

  def storage(identifier: Any) -> np.ndarray:
    key, dtype, count = _identified(identifier)
    if key not in storages:  # tensors may share a storage
      storages[key] = _numbers(read(f'data/{key}'), dtype, count)
    return storages[key]

  return pickles.run(bytes(read('data.pkl')), _finder(path), storage)


def _read_legacy(file: BinaryIO, path: str | os.PathLike) -> Any:
  """The object in a file of PyTorch before 1.6, made as by `_read_zip`.

  Five pickles come first: a magic number, the version, the machine, the object, and the keys of its storages. Then
  each storage: its length, int64, and its bytes. How long an entry of it is, the object says; so it is read twice.
  """
  size, start, find = os.fstat(file.fileno()).st_size, io.BytesIO(file.read(MAX_PICKLE_BYTES)), _finder(path)
  kinds: dict[str, tuple[str, int]] = {}

  def note(identifier: Any) -> None:
    key, dtype, count = _identified(identifier)
    if kinds.setdefault(key, (dtype, count)) != (dtype, count):
      raise ValueError('a storage of two kinds')

  def find_kind(name: str) -> Any:
    found = find(name)
    return found if isinstance(found, str) else lambda *_: {}

  _, version, machine = (pickles.run(start, find) for _ in range(3))
  if type(version) is not int or version != 1001 or not isinstance(machine, dict):
    raise ValueError('another version')
  if machine.get('little_endian') is not True:
    raise UserError(f"'{path}' {_BIG_ENDIAN}")
  begin = start.tell()
  pickles.run(start, find_kind, note)
  keys = pickles.run(start, find)
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(kinds):
    raise ValueError('the keys of other storages')
  file.seek(start.tell())
  storages = {}
  for key in keys:
    dtype, count = kinds[key]
    length, expected = file.read(8), count * _type(dtype).itemsize
    if len(length) < 8 or expected > size - file.tell():
      raise UserError(f"'{path}' is cut off; download it, or save it, again.")
    if int.from_bytes(length, 'little') != count:
      raise ValueError('a storage of another length')
    storages[key] = _numbers(file.read(expected), dtype, count)
  start.seek(begin)
  return pickles.run(start, find, lambda identifier: storages[_identified(identifier)[0]])


def _identified(identifier: Any) -> tuple[str, str, int]:
  """The key, type and length of a storage by its persistent id."""
  match identifier:
    case ('storage', str(dtype), str(key), _, int(count), *view) if dtype in STORAGES.values() and count >= 0:
      if all(part is None for part in view):  # of the older form; a part of a storage is none of a state dict
        return key, dtype, count
  raise ValueError('unknown persistent id')


def _type(dtype: str) -> np.dtype:
  return np.dtype('<u2' if dtype == 'bfloat16' else dtype)


def _numbers(raw: bytes | bytearray, dtype: str, count: int) -> np.ndarray:
  """The numbers [count] of a storage; bfloat16, the upper half of a float32, becomes one."""
  values = np.frombuffer(raw, _type(dtype), count)
  return (values.astype('<u4') << 16).view('<f4') if dtype == 'bfloat16' else values


def _finder(path: str | os.PathLike) -> Callable[[str], Any]:
  def find(name: str) -> Any:
    if name not in _GLOBALS:
      raise UserError(
        f"The checkpoint '{path}' asks for {show(name)}, which no state dict needs, and was refused; "
        'save only the state_dict, and trust no file that needs more.'
      )
    return _GLOBALS[name]

  return find


def _empty_dict() -> dict:  # takes no items, whose keys nobody would have looked at
  return {}


def _rebuild_tensor(values, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> np.ndarray:
  del requires_grad, hooks, metadata
  return _strided(values, offset, size, stride)


def _rebuild_parameter(values, requires_grad, hooks) -> Any:
  del requires_grad, hooks
  return values


_GLOBALS: dict[str, Any] = {
  'collections.OrderedDict': _empty_dict,
  'torch._utils._rebuild_tensor': _rebuild_tensor,  # of older versions
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
} | {f'torch.{name}': dtype for name, dtype in STORAGES.items()}


def _strided(values: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
  """A read-only view of a storage [n] as a tensor; refuses one that leaves it, and what describes none."""
  if not isinstance(values, np.ndarray) or values.ndim != 1 or not values.flags.c_contiguous:
    raise ValueError('a tensor of what is no storage')
  if not all(
    isinstance(numbers, tuple) and len(numbers) <= pickles.MAX_DIMENSIONS for numbers in (size, stride)
  ) or not all(isinstance(number, int) and 0 <= number < 2**63 for number in (offset, *size, *stride)):
    raise ValueError('impossible size, stride or offset of a tensor')
  if len(size) != len(stride):
    raise ValueError(f'impossible tensor of size {size}, stride {stride}')
  if math.prod(size) == 0:
    return np.empty(size, values.dtype)
  # No copy: a small pickle could describe many large tensors of one storage.
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if last >= len(values) or math.prod(size) > len(values):
    raise ValueError(f'tensor of size {size}, stride {stride}, offset {offset} leaves its storage of {len(values)}')
  steps = tuple(step * values.itemsize for step in stride)
  return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)
