"""The reader of PyTorch checkpoints: reads what PyTorch writes, and runs nothing of what a file asks for."""

import functools
import os
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment.corruption_nets import torch_checkpoint
from adversarial_augment.errors import UserError
from tests.torch_state import (
  cae_state,
  edsr_state,
  integer,
  mapping,
  tensor,
  text,
  tuple_of,
  write,
  write_legacy,
  write_legacy_state,
  write_state,
)

STATES = [edsr_state, cae_state]
NUMBERS = {'0': np.arange(6, dtype='<f4')}


def one(shape=(2, 3), **options):
  return mapping({'x': tensor('0', shape, view=b'N', **options)})


def refused(path):
  with pytest.raises(UserError) as error:
    torch_checkpoint.read(path)
  assert '\n' not in str(error.value)
  assert str(path) in str(error.value)
  return str(error.value)


# ---- Reading.


@pytest.mark.parametrize('make', STATES)
@pytest.mark.parametrize(
  'write_as',
  [
    write_legacy_state,
    *(functools.partial(write_state, wrap=wrap) for wrap in ((), ('state_dict',), ('model',), ('model', 'state_dict'))),
  ],
)
def test_reads_a_state_dict_and_nested_ones(tmp_path, make, write_as):
  state = make()
  found = torch_checkpoint.read(write_as(tmp_path / 'c.pt', state))
  assert list(found) == list(state)
  for key, value in state.items():
    np.testing.assert_array_equal(found[key], value)
    assert not found[key].flags.writeable


@pytest.mark.parametrize('form, view', [(write, b''), (write_legacy, b'N')])
@pytest.mark.parametrize(
  'kind, dtype, read_as',
  [
    ('FloatStorage', 'float32', 'float32'),
    ('HalfStorage', 'float16', 'float16'),
    ('DoubleStorage', 'float64', 'float64'),
    ('LongStorage', 'int64', 'int64'),
    ('IntStorage', 'int32', 'int32'),
    ('ShortStorage', 'int16', 'int16'),
    ('CharStorage', 'int8', 'int8'),
    ('ByteStorage', 'uint8', 'uint8'),
    ('BoolStorage', 'bool', 'bool'),
    ('BFloat16Storage', jnp.bfloat16, 'float32'),
  ],
)
def test_types(tmp_path, form, view, kind, dtype, read_as):
  values = np.array([0, 1, 1, 1, 0, 1], dtype)
  stored = values.view('<u2') if dtype == jnp.bfloat16 else values
  body = mapping({'x': tensor('0', (2, 3), kind=kind, view=view)})
  found = torch_checkpoint.read(form(tmp_path / 'c', body, {'0': stored}))['x']
  assert found.dtype == read_as
  np.testing.assert_array_equal(found, values.reshape(2, 3).astype(read_as))


def test_views_shared_storages_parameters_and_scalars(tmp_path):
  values = np.arange(12, dtype='<f4')
  body = mapping(
    {
      'transposed': tensor('0', (4, 3), stride=(1, 4), count=12),
      'tail': tensor('0', (2,), offset=10, count=12, parameter=True),
      'scalar': tensor('0', (), offset=7, count=12),
      'empty': tensor('0', (0, 3), count=12),
    }
  )
  found = torch_checkpoint.read(write(tmp_path / 'c', body, {'0': values.tobytes()}))
  np.testing.assert_array_equal(found['transposed'], values.reshape(3, 4).T)
  np.testing.assert_array_equal(found['tail'], [10, 11])
  assert found['scalar'] == 7
  assert found['empty'].shape == (0, 3)


def test_views_and_the_tensors_of_older_versions(tmp_path):
  body = one((3, 2), stride=(1, 3), count=6)
  np.testing.assert_array_equal(
    torch_checkpoint.read(write_legacy(tmp_path / 'a', body, NUMBERS))['x'], NUMBERS['0'].reshape(2, 3).T
  )
  storage = tuple_of(text('storage'), b'ctorch\nFloatStorage\n', text('0'), text('cuda:0'), integer(6), b'N') + b'Q'
  first = tuple_of(storage, integer(2), tuple_of(integer(3)), tuple_of(integer(1)))
  body = mapping({'x': b'ctorch._utils\n_rebuild_tensor\n' + first + b'R'})
  np.testing.assert_array_equal(torch_checkpoint.read(write_legacy(tmp_path / 'a', body, NUMBERS))['x'], [2, 3, 4])


def test_the_magic_number_is_that_of_pytorch():
  assert torch_checkpoint._LEGACY[4:-1] == (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')


# ---- Refusing.


class Payload:
  def __init__(self, function, argument):
    self.reduction = (function, (argument,))

  def __reduce__(self):
    return self.reduction


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
  canary = tmp_path / 'canary'
  attack = pickle.dumps({'weight': Payload(os.system, f'touch {canary}')}, protocol)
  pickle.loads(attack)
  assert canary.exists()  # the attack is real
  canary.unlink()
  with zipfile.ZipFile(tmp_path / 'c.pt', 'w') as archive:
    archive.writestr('archive/data.pkl', attack)
  assert "'posix.system'" in refused(tmp_path / 'c.pt')
  assert not canary.exists()


@pytest.mark.parametrize(
  'module, name',
  [
    ('builtins', 'eval'),
    ('torch.storage', '_load_from_bytes'),  # unpickles its argument
    ('torch', 'load'),
    ('collections', 'OrderedDict.__init__.__globals__'),
    ('torch._utils', '_rebuild_sparse_tensor'),
    ('__torch__', 'Module'),
    ('numpy.core.multiarray', '_reconstruct'),
  ],
)
def test_every_other_global_is_refused_by_name(tmp_path, module, name):
  body = f'c{module}\n{name}\n'.encode() + tuple_of(text('1')) + b'R'
  assert repr(f'{module}.{name}') in refused(write(tmp_path / 'c', body, {}))


@pytest.mark.parametrize(
  'options',
  [
    {'count': 7},  # more than the storage holds
    {'offset': 1},
    {'offset': -1},
    {'stride': (3, 2)},
    {'stride': (-3, 1)},
    {'stride': (3,)},
    {'kind': 'DoubleStorage'},
  ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, options):
  refused(write(tmp_path / 'c', mapping({'x': tensor('0', (2, 3), **options)}), {'0': bytes(24)}))


def test_small_files_cannot_ask_for_much_memory(tmp_path):
  expanded = mapping({'x': tensor('0', (2**30, 2**10), stride=(0, 0), count=1)})
  refused(write(tmp_path / 'stride_0', expanded, {'0': bytes(4)}))
  refused(write(tmp_path / 'memo', b'Nr' + struct.pack('<I', 2**32 - 2), {}))
  bomb = write(tmp_path / 'zip', mapping({}), {'0': bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
  assert 'compressed' in refused(bomb)


@pytest.mark.parametrize('make', STATES)
def test_a_legacy_file_that_is_cut_off_anywhere_is_refused(tmp_path, make):
  whole = write_legacy_state(tmp_path / 'whole.pt', make()).read_bytes()
  for end in [0, 1, 2, 5, 14, 15, 16, 40, *np.random.default_rng(0).integers(0, len(whole), 40), len(whole) - 1]:
    (tmp_path / 'cut.pt').write_bytes(whole[:end])
    assert any(word in refused(tmp_path / 'cut.pt') for word in ('cut off', 'damaged', 'empty'))


def test_damaged_files_are_refused(tmp_path):
  path = write_state(tmp_path / 'c.pt', edsr_state())
  raw = path.read_bytes()
  for keep in (0, 10, len(raw) // 2, len(raw) - 1):
    path.write_bytes(raw[:keep])
    assert ('is cut off; download it' if keep else 'is empty; download it') in refused(path)
  position = raw.index(b'archive/data/4') + 200  # inside the tensors
  path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
  assert 'CRC' in refused(path)


def test_other_files_are_refused(tmp_path):
  assert 'No such file' in refused(tmp_path / 'missing')
  legacy = tmp_path / 'legacy.pt'  # what torch < 1.6 wrote begins with these numbers
  legacy.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
  assert 'damaged' in refused(legacy)
  (tmp_path / 'text.pt').write_text('weights')
  assert 'torch.save its state_dict again' in refused(tmp_path / 'text.pt')
  with zipfile.ZipFile(tmp_path / 'plain.zip', 'w') as archive:
    archive.writestr('readme.txt', 'hello')
  assert 'data.pkl' in refused(tmp_path / 'plain.zip')
  assert 'big-endian' in refused(write(tmp_path / 'big', mapping({}), {}, byteorder=b'big'))
  assert 'no state dict' in refused(write(tmp_path / 'number', integer(3), {}))
  assert 'no state dict' in refused(write(tmp_path / 'empty', mapping({}), {}))
  assert "'lr'" in refused(write(tmp_path / 'mixed', mapping({'lr': integer(3)}), {}))


HOSTILE = {
  'a function': lambda p: write_legacy(p, b'cposix\nsystem\n' + tuple_of(text('true')) + b'R', {}),
  'a function in the keys': lambda p: write_legacy(p, one(), NUMBERS, keys=[])
  and p.write_bytes(p.read_bytes().replace(b'](e.', b'cposix\nsystem\n(X\4\0\0\0truetR.')),
  'a function in the machine': lambda p: write_legacy(p, one(), NUMBERS, machine=b'cbuiltins\neval\n(X\1\0\0\0001tR'),
  'a key of tuples': lambda p: write_legacy(p, b'})' + b'q\0h\0h\0\x86' * 40 + b'Ns', {}),
  'a storage that is huge': lambda p: write_legacy(p, one(count=2**31 - 1), NUMBERS),
  'a storage below zero': lambda p: write_legacy(p, one(count=-1), NUMBERS),
  'many storages that are huge': lambda p: write_legacy(
    p,
    mapping({str(i): tensor(str(i), (1,), count=2**31 - 1, kind='DoubleStorage', view=b'N') for i in range(1000)}),
    {str(i): np.zeros(0) for i in range(1000)},
  ),
  'a length that is another': lambda p: write_legacy(p, one(), NUMBERS)
  and p.write_bytes(p.read_bytes()[:-32] + struct.pack('<q', 2**40) + bytes(24)),
  'a storage of two kinds': lambda p: write_legacy(
    p, mapping({'x': tensor('0', (6,), view=b'N'), 'y': tensor('0', (6,), kind='LongStorage', view=b'N')}), NUMBERS
  ),
  'a part of a storage': lambda p: write_legacy(
    p, mapping({'x': tensor('0', (2, 3), view=tuple_of(text('0'), integer(0), integer(9)))}), NUMBERS
  ),
  'other keys': lambda p: write_legacy(p, one(), NUMBERS, keys=['1']),
  'a key twice': lambda p: write_legacy(p, one(), NUMBERS, keys=['0', '0']),
  'another version': lambda p: write_legacy(p, one(), NUMBERS, version=1002),
  'another machine': lambda p: write_legacy(p, one(), NUMBERS, machine=b'}(X\r\0\0\0little_endian\x89u'),
  'a module': lambda p: write_legacy(
    p, tuple_of(text('module'), b'ctorch.nn\nLinear\n', text('a.py'), text('import os')) + b'Q', {}
  ),
  'no tensors': lambda p: write_legacy(p, b'}', {}),
  'a tensor that leaves its storage': lambda p: write_legacy(p, one((3, 3), count=6), NUMBERS),
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_what_is_no_state_dict_is_refused(tmp_path, name):
  HOSTILE[name](tmp_path / 'c.pt')
  refused(tmp_path / 'c.pt')


# ---- Against PyTorch itself.


@pytest.mark.slow
@pytest.mark.parametrize('wrap', [False, True])
def test_reads_what_torch_saves(tmp_path, wrap):
  torch = pytest.importorskip('torch')
  module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 2).bfloat16())
  module.tied = module[0]
  state = module.state_dict() | {'view': torch.arange(12.0).reshape(3, 4).T, 'parameter': module[0].bias}
  torch.save({'state_dict': state, 'epoch': 3} if wrap else state, tmp_path / 'c.pt')
  found = torch_checkpoint.read(tmp_path / 'c.pt')
  assert set(found) == set(state)
  for key, value in state.items():
    value = value.detach()
    np.testing.assert_array_equal(found[key], (value.float() if value.dtype == torch.bfloat16 else value).numpy())
