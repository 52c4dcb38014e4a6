"""DeepAugment's CAE from its PyTorch checkpoint, key by key (EDSR: torch_checkpoint_test.py)."""

from collections import OrderedDict

import jax
import numpy as np
import pytest

from adversarial_augment import cli, convert, corruption_nets
from adversarial_augment.corruption_nets import torch_checkpoint, torch_layouts, weights
from adversarial_augment.corruption_nets.cae import cae
from adversarial_augment.errors import UserError
from tests.torch_state import edsr_state, mapping, tensor, write, write_state


def layers(f=64):
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
  for name, shape in layers(f).items():
    outputs = shape[1] if shape[2] == 2 else shape[0]
    scale = 2 / np.sqrt(shape[0] if shape[2] == 2 else np.prod(shape[1:]))
    state[f'{name}.weight'] = rng.normal(0, scale, shape).astype(np.float32)
    state[f'{name}.bias'] = rng.normal(0, 0.1, outputs).astype(np.float32)
  return state


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


@pytest.mark.parametrize(
  'change, word',
  [
    ({'e_block_3.4.bias': None}, "lacks 'e_block_3.4.bias', which in this CAE has shape [8]"),
    ({'e_conv_1.1.weight': None}, "not CAE's: it lacks a convolution 'e_conv_1.1.weight'"),
    ({'d_up_conv_1.3.weight': np.zeros((8, 4, 2, 2))}, 'has shape [8, 4, 2, 2]; in this CAE it must have [4, 8, 2, 2]'),
    ({'e_conv_3.0.weight': np.zeros((8, 8, 5, 5))}, 'it must have [32, 8, 5, 5]'),
    ({'e_conv_1.1.weight': np.zeros((513, 3, 5, 5))}, 'CAE with features=513, which must be an integer from 1 to 512'),
    ({'extra\nkey': np.zeros(3)}, r"holds 'extra\nkey', which CAE does not have"),
  ],
)
def test_other_networks_are_refused_by_key(change, word):
  state = {key: value for key, value in (cae_state() | change).items() if value is not None}
  with pytest.raises(UserError) as error:
    torch_layouts.cae_from_torch(state)
  assert word in str(error.value)
  assert '\n' not in str(error.value)


def run_convert(*arguments):
  with pytest.raises(SystemExit) as exit_:
    cli.run(convert.main, [str(argument) for argument in arguments])
  return exit_.value.code


def test_convert_writes_a_file_that_load_takes(tmp_path, capsys):
  source, target = write_state(tmp_path / 'model_final.state', cae_state()), tmp_path / 'cae.safetensors'
  assert run_convert('--net=cae', source, target) == 0
  assert f'cae, features 4. Use it with --config.corruption_net.name=cae --config.corruption_net.weights={target}' in (
    capsys.readouterr().out
  )
  _, phi = corruption_nets.load('cae', target)
  np.testing.assert_array_equal(
    phi['cae/d_up_conv_1/up']['w'], cae_state()['d_up_conv_1.3.weight'].transpose(2, 3, 0, 1)
  )
  assert weights.load(target)[1]['network'] == {'name': 'cae', 'features': 4}


def test_convert_refuses_what_is_not_a_cae_on_one_line(tmp_path, capsys):
  good = write_state(tmp_path / 'good.state', cae_state())
  (tmp_path / 'cut.state').write_bytes(good.read_bytes()[:-900])
  for source, net, word in (
    (good, 'edsr', "not EDSR's"),
    (tmp_path / 'cut.state', 'cae', 'cut.state'),
    (tmp_path / 'none.state', 'cae', 'No such file'),
  ):
    assert run_convert(f'--net={net}', source, tmp_path / 'out.safetensors') == 2
    said = capsys.readouterr().err
    assert word in said
    assert said.count('\n') == 1
  assert not (tmp_path / 'out.safetensors').exists()


def test_convert_names_the_file_and_a_way_out(tmp_path, capsys):
  state = edsr_state()
  lacking = {key: value for key, value in state.items() if key != 'body.1.body.2.bias'}
  for changed, word in (
    (lacking, "the state dict lacks 'body.1.body.2.bias', which in this EDSR has shape [4]"),
    (state | {'k' * 1000: np.zeros(3)}, 'kkk..., which EDSR does not have'),
    (
      state | {'head.0.bias': np.zeros(3)},
      "'head.0.bias' of the state dict has shape [3]; in this EDSR it must have [4]",
    ),
    (state | {'add_mean.bias': np.zeros(3)}, "around DIV2K's mean"),
    (state | {'sub_mean.weight': np.zeros((3, 3, 1, 1))}, 'must be the identity'),
    (cae_state(), "is not EDSR's"),
  ):
    source = write_state(tmp_path / 'c.pt', changed)
    assert run_convert(source, tmp_path / 'out.safetensors') == 2
    said = capsys.readouterr().err
    assert f"Cannot convert '{source}': " in said
    assert word in said
    assert 'take another checkpoint, or name the network that this one is of' in said
    assert said.count('\n') == 1
    assert len(said) < 400 + len(str(source))


def test_convert_refuses_numbers_that_are_too_large_on_one_line(tmp_path, capsys):
  values = cae_state() | {'e_conv_3.0.bias': np.full(32, 1e39)}
  body = mapping({key: tensor(key, value.shape, kind='DoubleStorage') for key, value in values.items()})
  source = write(tmp_path / 'c.pt', body, {key: value.astype('<f8').tobytes() for key, value in values.items()})
  assert run_convert('--net=cae', source, tmp_path / 'out.safetensors') == 2
  said = capsys.readouterr().err
  assert 'not finite in float32' in said
  assert said.count('\n') == 1


def test_convert_leaves_its_source_alone(tmp_path, capsys):
  source = write_state(tmp_path / 'a.safetensors', cae_state())
  held, link = source.read_bytes(), tmp_path / 'link.safetensors'
  link.symlink_to(source)
  for target in (source, link):
    assert run_convert('--net=cae', source, target) == 2
    assert f"OUT.safetensors='{target}' is the checkpoint itself" in capsys.readouterr().err
  assert source.read_bytes() == held
  assert run_convert('', tmp_path / 'z.safetensors') == 2
  assert 'CHECKPOINT.pt is empty' in capsys.readouterr().err


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


@pytest.mark.parametrize('dtype', ['HalfStorage', 'BFloat16Storage'])
def test_edsr_in_half_precision_is_converted(tmp_path, dtype):
  """Its mean colour is off by up to half a grey level then."""
  state = edsr_state()
  half = lambda x: x.astype('<f2') if dtype == 'HalfStorage' else ((x.view('<u4') + 0x8000) >> 16).astype('<u2')
  body = mapping({key: tensor(str(i), value.shape, kind=dtype) for i, (key, value) in enumerate(state.items())})
  stored = {str(i): half(value).tobytes() for i, value in enumerate(state.values())}
  source = write(tmp_path / 'half.pt', body, stored)
  assert run_convert(source, tmp_path / 'out.safetensors') == 0
  params, _ = weights.load(tmp_path / 'out.safetensors')
  np.testing.assert_allclose(params['edsr/head']['w'], state['head.0.weight'].transpose(2, 3, 1, 0), rtol=2**-8)
