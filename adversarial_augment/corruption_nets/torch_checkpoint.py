"""Reading PyTorch checkpoints without PyTorch, and without running what a pickle asks for.

A checkpoint of PyTorch 1.6 or newer is a zip archive: a pickle that describes the tensors, and their bytes beside it.
In an older one, as the published networks of 2018 and 2020 are, pickles and bytes stand one after the other.
The pickle is read by `pickles` with stand-ins for the few globals that a state dict needs: they describe tensors, whose
arrays are then made of the bytes.
"""

import io
import math
import os
from typing import Any, BinaryIO, NamedTuple
import zipfile

import numpy as np

from adversarial_augment.config.fields import show
from adversarial_augment.corruption_nets.weights import MAX_BYTES
from adversarial_augment.errors import AdversarialAugmentError, UserError
from adversarial_augment.storage import pickles, untrusted

MAX_PICKLE_BYTES = 4 * 2**20  # a state dict of thousands of tensors takes less than 1 MiB

_WRAPPERS = ('model', 'net', 'state_dict', 'model_state_dict')  # names under which checkpoints have a state dict
_LEGACY = bytes.fromhex('80028a0a6cfc9c46f9206aa850192e')  # the magic number, pickled
_BIG_ENDIAN = 'was written on a big-endian machine; save it again on a little-endian one.'

# Storage types of the module `torch`; bfloat16, which NumPy lacks, is read as its bits.
STORAGES = {
  'FloatStorage': '<f4', 'DoubleStorage': '<f8', 'HalfStorage': '<f2', 'BFloat16Storage': 'bfloat16',
  'LongStorage': '<i8', 'IntStorage': '<i4', 'ShortStorage': '<i2', 'CharStorage': '|i1', 'ByteStorage': '|u1',
  'BoolStorage': '|b1',
}  # fmt: skip


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the state dict in a checkpoint of any PyTorch, or of what it has under one of `_WRAPPERS`.

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
        return _read_legacy(file, path)
      if zipfile.is_zipfile(file):
        with untrusted.open_zip(file) as archive:
          return _read_zip(archive, path)
  except OSError as error:
    raise UserError(f"Cannot read the checkpoint '{path}': {error.strerror or error}; name another file.") from error
  except AdversarialAugmentError:
    raise
  except Exception as error:  # a hostile or damaged file can make zipfile and the unpickler raise nearly anything
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(f"The checkpoint '{path}' is damaged or not one of PyTorch ({reason}); get it again.") from error
  if _LEGACY.startswith(start) or start[:2] in (b'P', b'PK'):
    raise UserError(f"'{path}' {'is cut off' if start else 'is empty'}; download it, or save it, again.")
  raise UserError(
    f"'{path}' is not a checkpoint of PyTorch, neither a zip archive (1.6 or newer) nor of the older form; where "
    'PyTorch is installed, torch.load it and torch.save its state_dict again.'
  )


class _Storage(NamedTuple):
  """The numbers of one or several tensors, as a pickle names them."""

  key: str
  kind: str  # of `STORAGES`
  length: int

  @property
  def dtype(self) -> np.dtype:
    return np.dtype('<u2' if self.kind == 'bfloat16' else self.kind)

  def numbers(self, raw: bytes | bytearray) -> np.ndarray:
    """Returns the numbers [length] in these bytes; bfloat16, the upper half of a float32, becomes one."""
    values = np.frombuffer(raw, self.dtype, self.length)
    return (values.astype('<u4') << 16).view('<f4') if self.kind == 'bfloat16' else values


class _Tensor(NamedTuple):
  """A view of a storage, as a pickle describes it."""

  storage: _Storage
  offset: Any
  size: Any
  stride: Any

  def array(self, values: np.ndarray) -> np.ndarray:
    """Returns a read-only view of the storage's numbers; refuses one that leaves them, and what describes none."""
    offset, size, stride = self.offset, self.size, self.stride
    if not all(
      isinstance(sizes, tuple) and len(sizes) <= pickles.MAX_DIMENSIONS for sizes in (size, stride)
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


def _read_zip(archive: zipfile.ZipFile, path: str | os.PathLike) -> dict[str, np.ndarray]:
  members = {member.filename: member for member in archive.infolist()}
  # PyTorch does not compress, so the members fit into the file, and reading them cannot take more memory than its size.
  if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()) or (
    sum(member.file_size for member in members.values()) > os.path.getsize(path)
  ):
    raise UserError(f"'{path}' is compressed, which PyTorch does not do; save it again with torch.save.")
  roots = [name.removesuffix('data.pkl') for name in members if name.count('/') <= 1 and name.endswith('data.pkl')]
  if len(roots) != 1:
    raise UserError(f"'{path}' is a zip archive, but not a checkpoint of PyTorch: it holds {len(roots)} data.pkl.")
  root = roots[0]
  read = lambda name: untrusted.unzip(archive, members[f'{root}{name}'], MAX_BYTES)
  if f'{root}byteorder' in members and read('byteorder') != b'little':
    raise UserError(f"'{path}' {_BIG_ENDIAN}")
  if members[f'{root}data.pkl'].file_size > MAX_PICKLE_BYTES:
    raise UserError(f"'{path}': its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB, too large for a state dict.")
  storages: dict[str, _Storage] = {}
  tensors = _tensors(_load(io.BytesIO(read('data.pkl')), path, storages), path)
  used = {tensor.storage.key for tensor in tensors.values()}
  numbers = {key: storages[key].numbers(read(f'data/{key}')) for key in used}
  return {key: tensor.array(numbers[tensor.storage.key]) for key, tensor in tensors.items()}


def _read_legacy(file: BinaryIO, path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the tensors in a file of PyTorch before 1.6.

  Five pickles come first: a magic number, the version, the machine, the object, and the keys of its storages. Then
  each storage: its length, int64, and its bytes.
  """
  size, start = os.fstat(file.fileno()).st_size, io.BytesIO(file.read(MAX_PICKLE_BYTES))
  storages: dict[str, _Storage] = {}
  _, version, machine = (_load(start, path) for _ in range(3))
  if type(version) is not int or version != 1001 or not isinstance(machine, dict):
    raise ValueError('another version')
  if machine.get('little_endian') is not True:
    raise UserError(f"'{path}' {_BIG_ENDIAN}")
  content, keys = _load(start, path, storages), _load(start, path)
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
    raise ValueError('the keys of other storages')
  file.seek(start.tell())
  numbers = {}
  for storage in map(storages.__getitem__, keys):
    length, expected = file.read(8), storage.length * storage.dtype.itemsize
    if len(length) < 8 or expected > size - file.tell():
      raise UserError(f"'{path}' is cut off; download it, or save it, again.")
    if int.from_bytes(length, 'little') != storage.length:
      raise ValueError('a storage of another length')
    numbers[storage.key] = storage.numbers(file.read(expected))
  return {key: tensor.array(numbers[tensor.storage.key]) for key, tensor in _tensors(content, path).items()}


def _load(stream: io.BytesIO, path: str | os.PathLike, storages: dict[str, _Storage] | None = None) -> Any:
  """Returns what the next pickle describes; adds its storages, where it may have any."""

  def find(name: str) -> Any:
    if name not in _GLOBALS:
      raise UserError(
        f"The checkpoint '{path}' asks for {show(name)}, which no state dict needs, and was refused; "
        'save only the state_dict, and trust no file that needs more.'
      )
    return _GLOBALS[name]

  def persistent(identifier: Any) -> _Storage:
    assert storages is not None
    match identifier:
      case ('storage', str(kind), str(key), _, int(count), *view) if kind in STORAGES.values() and count >= 0:
        # In the older form a storage may be a part of another one, which no state dict needs.
        storage = _Storage(key, kind, count)
        if all(part is None for part in view) and storages.setdefault(key, storage) == storage:
          return storage
    raise ValueError('an unknown storage, or one of two kinds')

  return pickles.load(stream, find, None if storages is None else persistent)


def _tensors(content: Any, path: str | os.PathLike) -> dict[str, _Tensor]:
  """Returns the state dict in what a checkpoint describes."""
  for name in _WRAPPERS:
    if isinstance(content, dict) and isinstance(content.get(name), dict):
      content = content[name]
  if not isinstance(content, dict) or not content:
    raise UserError(f"The checkpoint '{path}' holds no state dict; save one with torch.save(model.state_dict(), ...).")
  for key, value in content.items():
    if not isinstance(key, str) or not isinstance(value, _Tensor):
      raise UserError(f"The checkpoint '{path}' holds no plain state dict: its entry {show(key)} is not a tensor.")
  return content


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
  if not isinstance(storage, _Storage):
    raise ValueError('a tensor of what is no storage')
  return _Tensor(storage, offset, size, stride)


_GLOBALS: dict[str, Any] = {
  'collections.OrderedDict': dict,  # takes no items, whose keys nobody would have looked at
  'torch._utils._rebuild_tensor': _rebuild_tensor,  # of older versions
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
} | {f'torch.{name}': kind for name, kind in STORAGES.items()}
