"""Reading PyTorch checkpoints without PyTorch, and without running what a pickle asks for.

A checkpoint of PyTorch 1.6 or newer is a zip archive: a pickle that describes the tensors, and their bytes beside it.
The pickle may name only the few globals that a state dict needs, and each is replaced by a function of this module.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
import io
import math
import os
import pickle
import pickletools
from typing import Any
import zipfile

import numpy as np

from adversarial_augment.errors import UserError

MAX_PICKLE_BYTES = 16 * 2**20  # a state dict of thousands of tensors takes less than 1 MiB
MAX_WORK = 10**7  # objects on the unpickler's stack, with all that they hold; such a state dict makes less than 10**6

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
    path: a zip checkpoint: a state dict, or a dict that holds one under 'model' or 'state_dict'.

  Returns:
    Read-only arrays by key, in the file's order, which may share memory; bfloat16 becomes float32.

  Raises:
    UserError: no such file, another format, damaged, or its pickle asks for anything a state dict does not need.
  """
  try:
    with open(path, 'rb') as file:
      if not zipfile.is_zipfile(file):
        raise UserError(
          f"'{path}' is not a whole zip checkpoint of PyTorch 1.6 or newer; download it again if it was cut off, or, "
          'where PyTorch is installed, torch.load it and torch.save its state_dict again.'
        )
      with zipfile.ZipFile(file) as archive:
        content = _unpickle(archive, path)
  except OSError as error:
    raise UserError(f"Cannot read the checkpoint '{path}': {error.strerror or error}.") from error
  except UserError:
    raise
  except Exception as error:  # a hostile or damaged file can make zipfile and pickle raise nearly anything
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(f"The checkpoint '{path}' is damaged or not one of PyTorch ({reason}).") from error

  for name in ('model', 'state_dict'):
    if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
      content = content[name]
  if not isinstance(content, Mapping) or not content:
    raise UserError(f"The checkpoint '{path}' holds no state dict; save one with torch.save(model.state_dict(), ...).")
  for key, value in content.items():
    if not isinstance(key, str) or not isinstance(value, np.ndarray):
      raise UserError(f"The checkpoint '{path}' holds no plain state dict: its entry {key!r} is not a tensor.")
  return dict(content)


def _unpickle(archive: zipfile.ZipFile, path: str | os.PathLike) -> Any:
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
  if f'{root}byteorder' in members and archive.read(f'{root}byteorder') != b'little':
    raise UserError(f"'{path}' was written on a big-endian machine; save it again on a little-endian one.")
  if members[f'{root}data.pkl'].file_size > MAX_PICKLE_BYTES:
    raise UserError(f"'{path}': its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB, too large for a state dict.")
  data = archive.read(f'{root}data.pkl')
  _check_work(data, path)

  def storage(identifier: Any) -> np.ndarray:
    kind, dtype, key, _, count = identifier
    if kind != 'storage':
      raise ValueError('unknown persistent id')
    raw = archive.read(f'{root}data/{key}')
    values = np.frombuffer(raw, '<u2' if dtype == 'bfloat16' else dtype, count)
    if dtype == 'bfloat16':  # the upper half of a float32
      values = (values.astype('<u4') << 16).view('<f4')
    return values

  return _Reader(data, storage, path).load()


def _check_work(data: bytes, path: str | os.PathLike) -> None:
  """Refuses a pickle of few bytes that is much work: a tuple of a tuple twice, of a tuple twice ... is a key of a dict.

  Plays the unpickler's stack with the number of objects in place of each object.
  """
  stack: list[int | None] = []  # None: a mark
  memo: dict[int, int] = {}
  work = 0
  for opcode, argument, _ in pickletools.genops(data):
    name, before = opcode.name, opcode.stack_before
    index = int(argument or 0) if name.endswith(('PUT', 'GET')) else len(memo)
    if index > len(data):  # the memo is an array of the largest index: a few bytes could ask for all memory there is
      raise UserError(f"'{path}': its pickle is damaged ({name} {index}).")
    if name.endswith('PUT') or name == 'MEMOIZE':
      memo[index] = stack[-1] or 0
      continue
    if name == 'MARK':
      stack.append(None)
      continue
    size, pops = 1, len(before)
    if pickletools.markobject in before:
      while (top := stack.pop()) is not None:
        size += top
      pops = before.index(pickletools.markobject)
    for _ in range(pops):
      size += stack.pop() or 0
    if name.endswith('GET'):
      size = memo[index]
    stack += [size] * len(opcode.stack_after)
    work += size * len(opcode.stack_after)
    if work > MAX_WORK:
      raise UserError(f"'{path}': its pickle repeats itself more than {MAX_WORK:,} times, as no state dict does.")


class _Reader(pickle.Unpickler):
  """An unpickler that knows the globals of a state dict and refuses every other."""

  def __init__(self, data: bytes, storage: Callable[[Any], np.ndarray], path: str | os.PathLike):
    super().__init__(io.BytesIO(data))
    self._path = path
    self._storage = storage
    self._storages: dict[str, np.ndarray] = {}

    # Functions of this reader, not of the module: a pickle can set attributes of what it is given.
    def rebuild_tensor(values, offset, size, stride, requires_grad, hooks, metadata=None):
      del requires_grad, hooks, metadata
      return _strided(values, offset, size, stride)

    def rebuild_parameter(values, requires_grad, hooks):
      del requires_grad, hooks
      return values

    self._globals: dict[tuple[str, str], Any] = {
      ('collections', 'OrderedDict'): OrderedDict,
      ('torch._utils', '_rebuild_tensor_v2'): rebuild_tensor,
      ('torch._utils', '_rebuild_parameter'): rebuild_parameter,
    } | {('torch', name): dtype for name, dtype in STORAGES.items()}

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in self._globals:
      wanted = f'{module}.{name}'
      raise UserError(
        f"The checkpoint '{self._path}' asks for {wanted!r}, which no state dict needs, and was refused; "
        'save only the state_dict, and trust no file that needs more.'
      )
    return self._globals[module, name]

  def persistent_load(self, pid: Any) -> np.ndarray:
    key = pid[2]
    if not isinstance(key, str):
      raise ValueError('unknown persistent id')
    if key not in self._storages:  # tensors may share a storage
      self._storages[key] = self._storage(pid)
    return self._storages[key]


def _strided(values: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
  """A read-only view of a storage [n] as a tensor; refuses one that leaves it."""
  if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
    raise ValueError(f'impossible tensor of size {size}, stride {stride}, offset {offset}')
  if math.prod(size) == 0:
    return np.empty(size, values.dtype)
  # No copy: a small pickle could describe many large tensors of one storage.
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if last >= len(values) or math.prod(size) > len(values):
    raise ValueError(f'tensor of size {size}, stride {stride}, offset {offset} leaves its storage of {len(values)}')
  steps = tuple(step * values.itemsize for step in stride)
  return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)
