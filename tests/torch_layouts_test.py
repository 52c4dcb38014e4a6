"""The published networks from their PyTorch checkpoints, key by key."""

import jax
import numpy as np
import pytest

from adversarial_augment import corruption_nets
from adversarial_augment.corruption_nets import torch_checkpoint, torch_layouts, weights
from adversarial_augment.corruption_nets.cae import cae
from adversarial_augment.corruption_nets.edsr import MEAN, edsr
from adversarial_augment.errors import UserError
from tests.torch_state import cae_state, edsr_state


def test_the_published_network_has_21_layers_and_its_number_of_parameters():
  state = cae_state(64)
  assert len(state) == 42
  params, sizes = torch_layouts.cae_from_torch({f'module.{key}': value for key, value in state.items()})
  assert sizes == {'features': 64}
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_241_859
  weights.check(params, corruption_nets.shapes('cae', sizes), 'converted')
  kernel, doubling = state['e_block_2.4.weight'], state['d_up_conv_2.3.weight']
  assert params['cae/e_block_2/conv_1']['w'][0, 2, 5, 7] == kernel[7, 5, 0, 2]
  assert params['cae/d_up_conv_2/up']['w'][0, 1, 5, 200] == doubling[5, 200, 0, 1]
  np.testing.assert_array_equal(params['cae/d_up_conv_3/out']['b'], state['d_up_conv_3.3.bias'])


@pytest.mark.parametrize('scale', [1, 2, 4])
@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', 'module.model.'])
def test_edsr_keys_and_layout(scale, prefix):
  state = edsr_state(blocks=3, features=5, scale=scale)
  params, sizes = torch_layouts.edsr_from_torch({prefix + key: value for key, value in state.items()})
  assert sizes == {'blocks': 3, 'features': 5, 'scale': scale}
  weights.check(params, corruption_nets.shapes('edsr', sizes), 'converted')
  kernel = state['body.2.body.2.weight']
  assert params['edsr/block_2/conv_1']['w'][0, 2, 3, 4] == kernel[4, 3, 0, 2]
  np.testing.assert_array_equal(params['edsr/out']['b'], state['tail.1.bias'])


def test_the_baseline_of_edsr_has_the_published_size():
  state = edsr_state(blocks=16, features=64, scale=4)
  assert len(state) == 78
  params, _ = torch_layouts.edsr_from_torch(state)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_517_571


@pytest.mark.parametrize(
  'net, change, word',
  [
    ('edsr', {'body.1.body.2.bias': None}, "lacks 'body.1.body.2.bias', which must have shape [4]"),
    ('edsr', {'head.0.weight': None}, "'head.0.weight'"),
    ('edsr', {'sub_mean.bias': None}, "lacks 'sub_mean.bias'"),
    ('edsr', {'tail.0.0.weight': None}, "lacks 'tail.0.0.weight'"),
    ('edsr', {'extra\nkey': np.zeros(3)}, r"'extra\nkey'"),
    ('edsr', {'k' * 1000: np.zeros(3)}, 'kkk... of shape [3], which the network does not have'),
    ('edsr', {'body.7.body.0.weight': np.zeros((4, 4, 3, 3))}, "lacks 'body.2.body.0.weight'"),
    ('edsr', {'tail.0.0.weight': np.zeros((36, 4, 3, 3))}, 'shape [36, 4, 3, 3] and must have [16, 4, 3, 3]'),
    ('edsr', {'head.0.bias': np.zeros(3)}, "'head.0.bias', which has shape [3] and must have [4]"),
    ('edsr', {'sub_mean.weight': 2 * np.eye(3).reshape(3, 3, 1, 1)}, "'sub_mean.weight' of the state dict must be the"),
    ('edsr', {'add_mean.bias': MEAN}, "around DIV2K's mean"),  # grey levels 0 to 1
    ('cae', {'e_block_3.4.bias': None}, "lacks 'e_block_3.4.bias', which must have shape [8]"),
    ('cae', {'e_conv_1.1.weight': None}, "not CAE's: it lacks a convolution 'e_conv_1.1.weight'"),
    ('cae', {'d_up_conv_1.3.weight': np.zeros((8, 4, 2, 2))}, 'has shape [8, 4, 2, 2] and must have [4, 8, 2, 2]'),
    ('cae', {'e_conv_3.0.weight': np.zeros((8, 8, 5, 5))}, 'must have [32, 8, 5, 5]'),
    ('cae', {'e_conv_1.1.weight': np.zeros((513, 3, 5, 5))}, 'features=513, which must be an integer from 1 to 512'),
    ('cae', {'extra\nkey': np.zeros(3)}, r"holds 'extra\nkey' of shape [3], which the network does not have"),
  ],
)
def test_other_networks_are_refused_by_key(net, change, word):
  state = {'edsr': edsr_state, 'cae': cae_state}[net]()
  state = {key: value for key, value in (state | change).items() if value is not None}
  with pytest.raises(UserError) as error:
    torch_layouts.FROM_TORCH[net](state)
  assert word in str(error.value)
  assert len(str(error.value)) < 400
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('net', torch_layouts.FROM_TORCH)
def test_empty_state_is_refused(net):
  with pytest.raises(UserError, match=f'not {net.upper()}'):
    torch_layouts.FROM_TORCH[net]({})


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


@pytest.mark.slow
def test_converted_cae_computes_what_torch_computes(tmp_path):
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  state = cae_state(8)
  torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / 'c.pt')
  images = np.random.default_rng(1).random((2, 16, 20, 3), np.float32)

  weight = {key: torch.from_numpy(value) for key, value in state.items()}
  conv = lambda x, name, **options: functional.conv2d(x, weight[f'{name}.weight'], weight[f'{name}.bias'], **options)
  leaky = lambda x: functional.leaky_relu(x, 0.01)

  def blocks(x, name):
    for i in (1, 2, 3):
      x = x + conv(leaky(conv(x, f'{name}_{i}.1', padding=1)), f'{name}_{i}.4', padding=1)
    return x

  def double(x, name):
    x = functional.pad(leaky(conv(x, f'{name}.0')), (1, 1, 1, 1))
    return functional.conv_transpose2d(x, weight[f'{name}.3.weight'], weight[f'{name}.3.bias'], stride=2)

  x = torch.from_numpy(images).permute(0, 3, 1, 2)
  for name in ('e_conv_1.1', 'e_conv_2.1'):
    x = leaky(conv(functional.pad(x, (1, 2, 1, 2)), name, stride=2))
  z = torch.tanh(conv(blocks(x, 'e_block'), 'e_conv_3.0', padding=2))
  assert 0.2 < (z > 0).float().mean() < 0.8
  x = blocks(double(torch.where(z > 0, 1.0, -1.0), 'd_up_conv_1'), 'd_block')
  x = functional.pad(leaky(conv(double(x, 'd_up_conv_2'), 'd_up_conv_3.0')), (2, 2, 2, 2), mode='reflect')
  expected = torch.tanh(conv(x, 'd_up_conv_3.3')).permute(0, 2, 3, 1).numpy()

  params, sizes = torch_layouts.cae_from_torch(torch_checkpoint.read(tmp_path / 'c.pt'))
  found = jax.jit(cae(**sizes, deterministic=True, native=False).apply)(params, images)
  assert np.std(expected) > 0.05
  np.testing.assert_allclose(found, expected, atol=1e-4)
