"""State dicts of the published PyTorch classes: to ours and back, what is ignored, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment.classifiers import CLASSIFIERS, torch_layouts
from adversarial_augment.errors import UserError

SIZES = {
  'preact_resnet': (10, 4), 'wide_resnet': (16, 1), 'resnext': (11, 2), 'resnet': (10, 4), 'alexnet': (8, 2),
}  # fmt: skip
NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


@functools.cache
def trees(name: str, depth: int | None = None, width: int | None = None):
  """Random parameters and statistics of a classifier of 7 classes."""
  sizes = {'depth': depth or SIZES[name][0], 'width': width or SIZES[name][1]}
  network = CLASSIFIERS[name](7, **sizes)
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), is_training=True))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: (10 * rng.random(leaf.shape) + 1).astype(leaf.dtype), shapes)


def state_of(name: str, **sizes) -> dict[str, np.ndarray]:
  return torch_layouts.to_torch(*trees(name, **sizes))


@pytest.mark.parametrize('prefix', ['', 'module.', 'model.net.'])
@pytest.mark.parametrize('name, sizes', [
  *((name, {}) for name in SIZES), ('preact_resnet', {'depth': 50, 'width': 2}), ('resnet', {'depth': 50, 'width': 2}),
  ('wide_resnet', {'width': 3}),
])  # fmt: skip
def test_to_pytorch_and_back(name, sizes, prefix):
  state = {prefix + key: value for key, value in state_of(name, **sizes).items()}
  found = torch_layouts.from_torch(state)
  depth, width = SIZES[name]
  assert found.architecture == {'name': name, 'depth': depth, 'width': width} | sizes
  assert (found.num_classes, found.normalisation) == (7, {})
  jax.tree.map(np.testing.assert_array_equal, (found.params, found.model_state), trees(name, **sizes))
  assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype(np.float32)}


def test_keys_are_the_published_ones():
  keys = lambda name: set(state_of(name))
  assert {f'block2.layer.0.bn1.{leaf}' for leaf in NORM} <= keys('wide_resnet')
  assert {'conv1.weight', 'block3.layer.1.conv2.weight', 'bn1.bias', 'fc.bias'} <= keys('wide_resnet')
  assert {'block2.layer.0.convShortcut.weight'} == {
    key for key in keys('wide_resnet') if 'block2.' in key and 'S' in key
  }
  inside = {'conv_reduce', 'bn_reduce', 'conv_conv', 'bn', 'conv_expand', 'bn_expand', 'downsample'}
  assert {key.split('.')[2] for key in keys('resnext') if key.startswith('stage_')} == inside
  assert {'conv_1_3x3.weight', 'bn_1.running_var', 'classifier.weight', 'stage_3.0.downsample.1.bias'} <= keys(
    'resnext'
  )
  assert {'layer2.0.shortcut.0.weight', 'bn.weight', 'linear.weight'} <= keys('preact_resnet')
  assert {'layer2.0.shortcut.1.running_var', 'layer1.0.bn2.bias', 'bn1.weight', 'linear.bias'} <= keys('resnet')
  layers = [f'features.{index}' for index in (0, 3, 6, 8, 10)] + [f'classifier.{index}' for index in (1, 4, 6)]
  assert keys('alexnet') == {f'{layer}.{leaf}' for layer in layers for leaf in ('weight', 'bias')}


def test_augmix_spells_the_projection_otherwise_and_trades_has_an_idle_block():
  state = state_of('wide_resnet', width=3)
  spelled = {key.replace('convShortcut', 'conv_shortcut'): value for key, value in state.items()}
  idle = {f'sub_{key}': value for key, value in state.items() if key.startswith('block1.')}
  for other in (spelled, state | idle):
    found = torch_layouts.from_torch(other)
    jax.tree.map(np.testing.assert_array_equal, found.params, trees('wide_resnet', width=3)[0])


@pytest.mark.parametrize('keys', [('mu', 'sigma'), ('normalize.mean', 'normalize.std')])
def test_buffers_give_the_normalisation(keys):
  channels = [np.float32([value] * 3).reshape(1, 3, 1, 1) for value in (0.5, 0.25)]
  state = {f'model.{key}': value for key, value in state_of('wide_resnet').items()}
  found = torch_layouts.from_torch(dict(zip(keys, channels, strict=True)) | state)
  assert found.normalisation == {'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.25, 0.25)}
  with pytest.raises(UserError, match='holds the mean of images and not'):
    torch_layouts.from_torch({keys[0]: channels[0]} | state)
  with pytest.raises(UserError, match='must be above 0'):
    torch_layouts.from_torch({keys[0]: channels[0], keys[1]: 0 * channels[1]} | state)


def test_statistics_without_a_count_are_settled_and_a_head_may_have_no_bias():
  state = state_of('preact_resnet')
  del state['linear.bias']
  older = {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')}
  zero = {key: 0 * value if key.endswith('num_batches_tracked') else value for key, value in state.items()}
  for other in (older, zero):
    found = torch_layouts.from_torch(other)
    assert {int(leaves['count']) for leaves in found.model_state.values()} == {2**30}
    np.testing.assert_array_equal(found.params['preact_resnet/head']['b'], np.zeros(7))


def changed(name: str, key: str, shape: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
  """A state dict without a key, or with another shape of it."""
  state = state_of(name)
  return state | {key: np.zeros(shape)} if shape is not None else {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize('state, said', [
  (dict, "its keys, such as '', are not those of RobustBench's PreActResNet"),
  (lambda: {'conv.0.weight': np.zeros((96, 3, 3, 3))}, "such as 'conv.0.weight', are not those"),
  (lambda: {'features.0.weight': np.zeros((96, 3, 3, 3))}, "lacks a linear layer 'classifier.6.weight'"),  # AllConv
  (lambda: changed('alexnet', 'features.3.weight', (6, 2, 5, 5)), r'alexnet-8 of width 2, but .* \[6, 2, 3, 3\]'),
  (lambda: {'conv1.weight': np.zeros(3)}, 'are not those'),
  (lambda: changed('preact_resnet', 'bn.weight'), r"preact_resnet-10 of width 4, but lacks 'bn.weight'.*\[32\]"),
  (lambda: changed('preact_resnet', 'linear.weight'), "lacks a linear layer 'linear.weight'"),
  (lambda: changed('preact_resnet', 'layer1.1.bn1.weight', (4,)), 'its stages have 2, 1, 1, 1 blocks'),
  (lambda: changed('preact_resnet', 'layer1.0.shortcut.1.weight', (4,)), 'which the network does not have'),
  (lambda: changed('wide_resnet', 'block3.layer.0.conv1.weight', (64, 32, 1, 1)), r'must have \[64, 32, 3, 3\]'),
  (lambda: {f'block1.layer.{i}.bn1.weight': np.ones(1) for i in range(2000)} | state_of('wide_resnet'), 'whose depth'),
  (lambda: changed('preact_resnet', 'conv1.weight', (0, 3, 3, 3)), 'are not those'),
  (lambda: changed('resnext', 'stage_1.0.conv_conv.weight', (8, 1, 3, 3)), r'must have \[8, 2, 3, 3\]'),  # 8 groups
  (lambda: {f'a.{k}': v for k, v in state_of('resnext').items()} | {'b.fc.weight': np.zeros(3)}, "'a' it holds 'b.fc"),
])  # fmt: skip
def test_other_networks_are_refused(state, said):
  with pytest.raises(UserError, match=said) as error:
    torch_layouts.from_torch(state())
  assert '\n' not in str(error.value)
