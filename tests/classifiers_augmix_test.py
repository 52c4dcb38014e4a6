"""The classifiers of AugMix, WRN-40-2 and ResNeXt-29, against the literature's counts and the networks written out."""

import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import per_example_conv
from adversarial_augment.classifiers import CLASSIFIERS, preact_resnet, resnext, wide_resnet
from adversarial_augment.config.tables import CLASSIFIER_DEPTHS
from adversarial_augment.errors import UserError
from adversarial_augment.training import recipe

SMALL = {'wide_resnet': (wide_resnet, {'depth': 10, 'width': 1}), 'resnext': (resnext, {'depth': 11, 'width': 2})}


def images(n=4, seed=0, side=32):
  return jnp.asarray(np.random.default_rng(seed).random((n, side, side, 3), np.float32))


def shapes(network):
  init = lambda key: network.init(key, images(1), is_training=True)
  return jax.eval_shape(init, jax.random.key(0))


@functools.cache
def small(name, **options):
  """A small network, its parameters away from where they start, and its state."""
  factory, sizes = SMALL[name]
  network = factory(10, **sizes, **options)
  init = lambda key: network.init(key, images(), is_training=True)
  params, state = jax.jit(init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params)
  apply = jax.jit(network.apply, static_argnames=('is_training', 'test_local_stats'))
  return hk.TransformedWithState(network.init, apply), params, state


def wide_resnet_count(depth, k, classes):
  """3x3 convolutions without bias, two numbers a channel for every norm, a linear layer."""
  blocks, total, inputs = (depth - 4) // 6, 9 * 3 * 16, 16
  for channels in (16 * k, 32 * k, 64 * k):
    for _ in range(blocks):
      total += 2 * inputs + 9 * inputs * channels + 2 * channels + 9 * channels * channels
      total += inputs * channels if inputs != channels else 0
      inputs = channels
  return total + 2 * inputs + inputs * classes + classes


def resnext_count(classes):
  """ResNeXt-29 4x32d: 1x1 to 4 groups of 32, 64 and 128 channels, 3x3 inside the groups, 1x1 to 256, 512 and 1024."""
  total, inputs = 9 * 3 * 64 + 2 * 64, 64
  for group, outputs in ((32, 256), (64, 512), (128, 1024)):
    for index in range(3):
      inner = 4 * group
      total += inputs * inner + 2 * inner + 4 * 9 * group * group + 2 * inner + inner * outputs + 2 * outputs
      total += inputs * outputs + 2 * outputs if index == 0 else 0
      inputs = outputs
  return total + inputs * classes + classes


def test_parameter_counts_are_those_of_the_literature():
  count = lambda network: hk.data_structures.tree_size(shapes(network)[0])
  assert count(wide_resnet(10)) == wide_resnet_count(40, 2, 10) == 2_243_546
  assert count(wide_resnet(10, depth=28, width=10)) == wide_resnet_count(28, 10, 10) == 36_479_194
  assert count(resnext(10)) == resnext_count(10) == 6_807_882
  assert count(resnext(100)) == resnext_count(100)


@pytest.mark.parametrize('name', SMALL)
def test_feature_maps_shrink_twice_at_3x3_convolutions_padded_on_all_sides(name):
  seen = []

  def conv(x, w, *, stride, padding):
    y = per_example_conv.conv(x, w, stride=stride, padding=padding)
    seen.append((w.shape[0], stride, x.shape[1], y.shape[1], padding))
    return y

  factory, sizes = SMALL[name]
  shapes(factory(10, **sizes, conv=conv))
  strided = [(before, after) for size, stride, before, after, _ in seen if (size, stride) == (3, 2)]
  groups = 4 if name == 'resnext' else 1
  assert strided == [(32, 16)] * groups + [(16, 8)] * groups
  assert all(padding == [(1, 1), (1, 1)] for size, stride, *_, padding in seen if (size, stride) == (3, 2))
  assert {after for *_, after, _ in seen} == {32, 16, 8}


def conv(x, w, stride=1, groups=1):
  pads = 2 * [(w.shape[0] // 2,) * 2]
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(
    x, w, (stride, stride), pads, dimension_numbers=numbers, feature_group_count=groups
  )


def norm(x, module):
  mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
  flat = lambda name: module[name].reshape(1, 1, 1, -1)
  return (x - mean) / jnp.sqrt(var + 1e-5) * flat('scale') + flat('offset')


def wide_resnet_oracle(params, x):
  get = lambda name: params[f'wide_resnet/{name}']
  x = conv(x, get('stem')['w'])
  for stage in range(3):
    block, stride = f'stage_{stage}_block_0', 2 if stage else 1
    y = jax.nn.relu(norm(x, get(f'{block}/norm_0')))
    skip = conv(y, get(f'{block}/shortcut')['w'], stride) if stage else x  # 16 channels in and out of the first
    y = conv(y, get(f'{block}/conv_0')['w'], stride)
    x = skip + conv(jax.nn.relu(norm(y, get(f'{block}/norm_1'))), get(f'{block}/conv_1')['w'])
  x = jax.nn.relu(norm(x, get('norm'))).mean((1, 2))
  return x @ get('head')['w'] + get('head')['b'][None]


def resnext_oracle(params, x):
  get = lambda name: params[f'resnext/{name}']
  x = jax.nn.relu(norm(conv(x, get('stem')['w']), get('norm')))
  for stage in range(3):
    block, stride = f'stage_{stage}_block_0', 2 if stage else 1
    y = jax.nn.relu(norm(conv(x, get(f'{block}/conv_0')['w']), get(f'{block}/norm_0')))
    y = jax.nn.relu(norm(conv(y, get(f'{block}/conv_1')['w'], stride, groups=4), get(f'{block}/norm_1')))
    y = norm(conv(y, get(f'{block}/conv_2')['w']), get(f'{block}/norm_2'))
    skip = norm(conv(x, get(f'{block}/shortcut')['w'], stride), get(f'{block}/shortcut_norm'))
    x = jax.nn.relu(y + skip)
  return x.mean((1, 2)) @ get('head')['w'] + get('head')['b'][None]


@pytest.mark.parametrize('name, oracle', [('wide_resnet', wide_resnet_oracle), ('resnext', resnext_oracle)])
def test_computes_what_the_architecture_written_out_computes(name, oracle):
  network, params, state = small(name)
  x = images()
  mean, std = jnp.array([0.4914, 0.4822, 0.4465]), jnp.array([0.2471, 0.2435, 0.2616])
  expected = jax.jit(oracle)(params, (x - mean.reshape(1, 1, 1, 3)) / std.reshape(1, 1, 1, 3))
  logits, _ = network.apply(params, state, None, x, is_training=True)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize('name', SMALL)
def test_statistics_are_those_of_all_devices_and_evaluation_leaves_them(name):
  network, params, state = small(name)
  synced, *_ = small(name, axis_name='batch')
  x = images(8)
  expected, expected_state = network.apply(params, state, None, x, is_training=True)
  mesh = jax.make_mesh((4,), ('batch',), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
  data = PartitionSpec('batch')
  apply = lambda x: synced.apply(params, state, None, x, is_training=True)
  logits, new_state = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=data, out_specs=(data, PartitionSpec())))(x)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new_state, expected_state)
  local, kept = network.apply(params, state, None, x, is_training=False, test_local_stats=True)
  np.testing.assert_allclose(local, expected, rtol=0, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, kept, state)


@pytest.mark.parametrize('name', SMALL)
def test_gradients_reach_every_parameter_and_at_the_start_the_images(name):
  factory, sizes = SMALL[name]
  network = factory(10, **sizes)
  params, state = jax.jit(lambda key: network.init(key, images(), is_training=True))(jax.random.key(0))

  @jax.jit
  def gradient(params, x):
    def loss(params, x):
      logits, _ = network.apply(params, state, None, x, is_training=True)
      return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].sum()

    return jax.grad(loss, (0, 1))(params, x)

  of_params, of_images = gradient(params, images())
  for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
    assert 0 < np.abs(leaf).max() < math.inf, jax.tree_util.keystr(path)
  assert np.abs(of_images).max((1, 2, 3)).min() > 1e-6


def test_bfloat16_computes_nearly_the_same():
  network, params, state = small('resnext')
  fast, *_ = small('resnext', dtype=jnp.bfloat16)
  expected, _ = network.apply(params, state, None, images(16), is_training=True)
  logits, _ = fast.apply(params, state, None, images(16), is_training=True)
  assert logits.dtype == jnp.float32
  assert float(jnp.abs(logits - expected).max()) < 0.1 * float(jnp.abs(expected).max())


@pytest.mark.parametrize(
  'factory, options, word',
  [
    (wide_resnet, {'depth': 41}, '6 n \\+ 4'),
    (wide_resnet, {'depth': 4}, 'at least 10'),
    (wide_resnet, {'width': 0}, 'width=0 of wide_resnet'),
    (wide_resnet, {'shortcut': 'none'}, "'preact' or 'input'"),
    (resnext, {'depth': 28}, '9 n \\+ 2'),
    (resnext, {'width': 0}, 'width=0 of resnext'),
    (resnext, {'padding': 'valid'}, "of resnext must be 'torch' or 'same'"),
  ],
)
def test_bad_arguments_are_refused(factory, options, word):
  with pytest.raises(UserError, match=word):
    factory(10, **options)


def accepts(factory, depth):
  try:
    factory(10, depth=depth)
  except UserError:
    return False
  return True


def test_configs_know_the_depths_of_every_classifier():
  assert CLASSIFIER_DEPTHS.keys() == CLASSIFIERS.keys()
  known = sorted({depth for depths in CLASSIFIER_DEPTHS.values() for depth in depths})
  for name, depths in CLASSIFIER_DEPTHS.items():
    assert [depth for depth in known if accepts(CLASSIFIERS[name], depth)] == [d for d in known if d in depths]
  assert accepts(preact_resnet, 50)


def config_of(**fields):
  changes = {f'classifier.{name}': str(value) for name, value in fields.items()}
  return configs.override(configs.base_config(), changes)


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'name': 'wide_resnet'}, 'config.classifier.depth=50 must be one of 10, 16, .* with .*name=wide_resnet'),
    ({'name': 'resnext', 'depth': 28}, 'config.classifier.depth=28 must be one of 11, 20, 29, .* with .*name=resnext'),
    ({'depth': 40}, 'config.classifier.depth=40 must be one of 10, 18, 34, 50, 101 with .*name=preact_resnet'),
    ({'name': 'wide_resnet', 'depth': 40}, 'config.classifier.width=64 must be at most 16 .*WRN-40-2 has'),
    (
      {'name': 'resnext', 'depth': 29, 'shortcut': 'input'},
      'config.classifier.shortcut=input cannot go with',
    ),
  ],
)
def test_fields_that_an_architecture_cannot_have_are_one_line(fields, words):
  with pytest.raises(UserError, match=words) as error:
    configs.validate(config_of(**fields))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('fields', [{'name': 'wide_resnet', 'depth': 40, 'width': 2}, {'name': 'resnext', 'depth': 29}])
def test_recipes_build_them(fields):
  config = config_of(**fields)
  configs.validate(config)
  params, _ = shapes(recipe.build_classifier(config, 7))
  assert params[f'{fields["name"]}/head']['w'].shape[1] == 7
