"""The reader of PyTorch checkpoints: reads what PyTorch writes, and runs nothing of what a file asks for."""

import os
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment.corruption_nets import torch_checkpoint, torch_layouts, weights
from adversarial_augment.corruption_nets.edsr import MEAN, edsr
from adversarial_augment.errors import UserError
from tests.torch_state import edsr_state, integer, mapping, tensor, text, tuple_of, write, write_state


def refused(path):
  with pytest.raises(UserError) as error:
    torch_checkpoint.read(path)
  assert '\n' not in str(error.value)
  assert str(path) in str(error.value)
  return str(error.value)


# ---- Reading.


@pytest.mark.parametrize('wrap', [(), ('state_dict',), ('model',), ('model', 'state_dict')])
def test_reads_a_state_dict_and_nested_ones(tmp_path, wrap):
  state = edsr_state()
  found = torch_checkpoint.read(write_state(tmp_path / 'c.pt', state, wrap=wrap))
  assert list(found) == list(state)
  for key, value in state.items():
    np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize(
  'kind, dtype',
  [
    ('FloatStorage', 'float32'),
    ('HalfStorage', 'float16'),
    ('DoubleStorage', 'float64'),
    ('LongStorage', 'int64'),
    ('IntStorage', 'int32'),
    ('ShortStorage', 'int16'),
    ('CharStorage', 'int8'),
    ('ByteStorage', 'uint8'),
    ('BoolStorage', 'bool'),
  ],
)
def test_types(tmp_path, kind, dtype):
  values = np.array([[0, 1, 1], [1, 0, 1]], dtype)
  found = torch_checkpoint.read(write(tmp_path / 'c', mapping({'x': tensor('0', (2, 3), kind=kind)}), {'0': values}))
  assert found['x'].dtype == dtype
  np.testing.assert_array_equal(found['x'], values)


def test_bfloat16_becomes_float32(tmp_path):
  values = np.random.default_rng(0).normal(size=6).astype(jnp.bfloat16)
  body = mapping({'x': tensor('0', (6,), kind='BFloat16Storage')})
  found = torch_checkpoint.read(write(tmp_path / 'c', body, {'0': values.tobytes()}))
  assert found['x'].dtype == np.float32
  np.testing.assert_array_equal(found['x'], values.astype(np.float32))


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


# ---- EDSR.


@pytest.mark.parametrize('scale', [1, 2, 4])
@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', 'module.model.'])
def test_edsr_keys_and_layout(scale, prefix):
  state = edsr_state(blocks=3, features=5, scale=scale)
  params, sizes = torch_layouts.edsr_from_torch({prefix + key: value for key, value in state.items()})
  assert sizes == {'blocks': 3, 'features': 5, 'scale': scale}
  network = edsr(**sizes)
  weights.check(params, jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))), 'converted')
  kernel = state['body.2.body.2.weight']
  assert params['edsr/block_2/conv_1']['w'][0, 2, 3, 4] == kernel[4, 3, 0, 2]
  np.testing.assert_array_equal(params['edsr/out']['b'], state['tail.1.bias'])


def test_the_baseline_has_the_published_size():
  state = edsr_state(blocks=16, features=64, scale=4)
  assert len(state) == 78
  params, _ = torch_layouts.edsr_from_torch(state)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_517_571


@pytest.mark.parametrize(
  'change, word',
  [
    ({'body.1.body.2.bias': None}, "lacks 'body.1.body.2.bias', which in this EDSR has shape [4]"),
    ({'head.0.weight': None}, "'head.0.weight'"),
    ({'sub_mean.bias': None}, "lacks 'sub_mean.bias'"),
    ({'tail.0.0.weight': None}, "lacks 'tail.0.0.weight'"),
    ({'extra\nkey': np.zeros(3)}, r"'extra\nkey'"),
    ({'body.7.body.0.weight': np.zeros((4, 4, 3, 3))}, "lacks 'body.2.body.0.weight'"),
    ({'tail.0.0.weight': np.zeros((36, 4, 3, 3))}, 'shape [36, 4, 3, 3]; in this EDSR it must have [16, 4, 3, 3]'),
    ({'sub_mean.weight': 2 * np.eye(3).reshape(3, 3, 1, 1)}, "'sub_mean.weight'"),
    ({'add_mean.bias': MEAN}, "'add_mean.bias'"),  # grey levels 0 to 1
  ],
)
def test_other_networks_are_refused_by_key(change, word):
  state = edsr_state()
  for key, value in change.items():
    if value is None:
      del state[key]
    else:
      state[key] = value
  with pytest.raises(UserError) as error:
    torch_layouts.edsr_from_torch(state)
  assert word in str(error.value)
  assert '\n' not in str(error.value)


def test_empty_state_is_refused():
  with pytest.raises(UserError, match='not EDSR'):
    torch_layouts.edsr_from_torch({})


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


@pytest.mark.slow
@pytest.mark.parametrize('scale', [1, 2, 4])
def test_converted_edsr_computes_what_torch_computes(tmp_path, scale):
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  state = edsr_state(blocks=3, features=8, scale=scale)
  torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / 'c.pt')
  images = np.random.default_rng(1).random((2, 16, 12, 3), np.float32)

  weight = {key: torch.from_numpy(value) for key, value in state.items()}
  conv = lambda x, name: functional.conv2d(x, weight[f'{name}.weight'], weight[f'{name}.bias'], padding='same')
  x = conv(255 * torch.from_numpy(images).permute(0, 3, 1, 2), 'sub_mean')
  head = x = conv(x, 'head.0')
  for i in range(3):
    x = x + conv(functional.relu(conv(x, f'body.{i}.body.0')), f'body.{i}.body.2')
  x = head + conv(x, 'body.3')
  for i in range({1: 0, 2: 1, 4: 2}[scale]):
    x = functional.pixel_shuffle(conv(x, f'tail.0.{2 * i}'), 2)
  x = conv(conv(x, 'tail.1'), 'add_mean') / 255
  expected = x.permute(0, 2, 3, 1).numpy()

  params, sizes = torch_layouts.edsr_from_torch(torch_checkpoint.read(tmp_path / 'c.pt'))
  network = edsr(**sizes, native=False)
  found = jax.jit(network.apply)(params, images)
  assert found.shape == (2, 16 * scale, 12 * scale, 3)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
