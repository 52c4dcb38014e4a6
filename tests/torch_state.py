"""Checkpoints written by hand: pickles of protocol 2, opcode by opcode, so that the tests need no PyTorch."""

from collections import OrderedDict
import struct
import zipfile

import numpy as np


def text(value):
  raw = value.encode()
  return b'X' + struct.pack('<I', len(raw)) + raw


def integer(value):
  return b'J' + struct.pack('<i', value)


def tuple_of(*items):
  return b'(' + b''.join(items) + b't'


def tensor(key, shape, *, kind='FloatStorage', count=None, offset=0, stride=None, parameter=False, view=b''):
  """The opcodes by which torch.save describes a tensor whose storage is the member data/`key`."""
  count = int(np.prod(shape)) if count is None else count
  stride = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))] if stride is None else stride
  storage = tuple_of(text('storage'), f'ctorch\n{kind}\n'.encode(), text(key), text('cpu'), integer(count), view) + b'Q'
  hooks = b'ccollections\nOrderedDict\n)R'
  sizes, steps = (tuple_of(*map(integer, numbers)) for numbers in (shape, stride))
  described = (
    b'ctorch._utils\n_rebuild_tensor_v2\n' + tuple_of(storage, integer(offset), sizes, steps, b'\x89', hooks) + b'R'
  )
  if parameter:
    described = b'ctorch._utils\n_rebuild_parameter\n' + tuple_of(described, b'\x88', hooks) + b'R'
  return described


def mapping(entries):
  return b'ccollections\nOrderedDict\n)R(' + b''.join(text(key) + value for key, value in entries.items()) + b'u'


def write(path, body, storages, *, byteorder=b'little', compression=zipfile.ZIP_STORED, root='archive'):
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr(f'{root}/data.pkl', b'\x80\x02' + body + b'.')
    archive.writestr(f'{root}/byteorder', byteorder)
    for key, raw in storages.items():
      archive.writestr(f'{root}/data/{key}', raw)
    archive.writestr(f'{root}/version', b'3\n')
  return path


def write_state(path, state, **options):
  """A checkpoint of float32 arrays; `wrap` names the keys to nest the state dict under."""
  wrap = options.pop('wrap', ())
  body = mapping({key: tensor(str(i), value.shape) for i, (key, value) in enumerate(state.items())})
  for name in reversed(wrap):
    body = b'}(' + text('epoch') + integer(3) + text(name) + body + b'u'
  return write(path, body, {str(i): value.astype('<f4').tobytes() for i, value in enumerate(state.values())}, **options)


def write_legacy(path, body, storages, *, machine=b'}(X\r\0\0\0little_endian\x88u', keys=None, version=1001):
  """A file of PyTorch before 1.6; the tensors of `body` are made with view=b'N', `storages` are flat arrays."""
  keys = list(storages) if keys is None else keys
  magic, names = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19', b'](' + b''.join(map(text, keys)) + b'e'
  pickles = [magic, integer(version), machine, body, names]
  with open(path, 'wb') as file:
    file.write(b''.join(b'\x80\x02' + pickled + b'.' for pickled in pickles))
    for values in storages.values():
      file.write(struct.pack('<q', len(values)) + values.tobytes())
  return path


def write_legacy_state(path, state):
  """A file of float32 arrays as PyTorch before 1.6 writes them."""
  body = mapping({key: tensor(str(i), value.shape, view=b'N') for i, (key, value) in enumerate(state.items())})
  return write_legacy(path, body, {str(i): value.astype('<f4').ravel() for i, value in enumerate(state.values())})


def edsr_state(*, blocks=2, features=4, scale=4, seed=0):
  """A state dict with the keys and shapes of EDSR-PyTorch, and random values."""
  rng = np.random.default_rng(seed)
  state = OrderedDict()

  def layer(name, outputs, inputs):
    state[f'{name}.weight'] = rng.normal(0, 0.1, (outputs, inputs, 3, 3)).astype(np.float32)
    state[f'{name}.bias'] = rng.normal(0, 0.1, outputs).astype(np.float32)

  for name, sign in (('sub_mean', -1), ('add_mean', 1)):
    state[f'{name}.weight'] = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    state[f'{name}.bias'] = (sign * 255 * np.array([0.4488, 0.4371, 0.4040])).astype(np.float32)
  layer('head.0', features, 3)
  for i in range(blocks):
    layer(f'body.{i}.body.0', features, features)
    layer(f'body.{i}.body.2', features, features)
  layer(f'body.{blocks}', features, features)
  for i in range({1: 0, 2: 1, 4: 2}[scale]):
    layer(f'tail.0.{2 * i}', 4 * features, features)
  layer('tail.1', 3, features)
  return state


def cae_layers(f=64):
  """Prefix -> shape of the weight, as methods of the published network have them; f is the width of its first layer."""
  block = lambda name: {f'{name}_{i}.{j}': (2 * f, 2 * f, 3, 3) for i in (1, 2, 3) for j in (1, 4)}
  return {
    'e_conv_1.1': (f, 3, 5, 5),
    'e_conv_2.1': (2 * f, f, 5, 5),
    **block('e_block'),
    'e_conv_3.0': (32, 2 * f, 5, 5),
    'd_up_conv_1.0': (f, 32, 3, 3),
    'd_up_conv_1.3': (f, 2 * f, 2, 2),  # transposed: in, out
    **block('d_block'),
    'd_up_conv_2.0': (f // 2, 2 * f, 3, 3),
    'd_up_conv_2.3': (f // 2, 4 * f, 2, 2),  # transposed
    'd_up_conv_3.0': (f // 4, 4 * f, 3, 3),
    'd_up_conv_3.3': (3, f // 4, 3, 3),
  }


def cae_state(f=4):
  """A state dict with the published keys and random values, large enough that bits are of both signs."""
  rng, state = np.random.default_rng(0), OrderedDict()
  for name, shape in cae_layers(f).items():
    outputs = shape[1] if shape[2] == 2 else shape[0]
    scale = 2 / np.sqrt(shape[0] if shape[2] == 2 else np.prod(shape[1:]))
    state[f'{name}.weight'] = rng.normal(0, scale, shape).astype(np.float32)
    state[f'{name}.bias'] = rng.normal(0, 0.1, outputs).astype(np.float32)
  return state
