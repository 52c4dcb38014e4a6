"""The classifiers against published counts, PyTorch, the architectures written out, and their own promises."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment.classifiers import CLASSIFIERS, alexnet, preact_resnet, resnet, resnext, wide_resnet
from adversarial_augment.classifiers.layers import EPSILON, _batch_norm
from adversarial_augment.config.tables import CLASSIFIER_DEPTHS
from adversarial_augment.errors import UserError
from adversarial_augment.per_example_conv import conv as plain_conv
from adversarial_augment.training import recipe

pytestmark = pytest.mark.usefixtures('quick_compile')

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10
SMALL = {
  'preact_resnet': {'depth': 10, 'width': 4},
  'wide_resnet': {'depth': 10, 'width': 1},
  'resnext': {'depth': 11, 'width': 2},
  'resnet': {'depth': 10, 'width': 4},
}
NORMED = ('preact_resnet', 'wide_resnet', 'resnext')  # with blocks of every kind


def images(n=4, seed=0):
  return jnp.asarray(np.random.default_rng(seed).random((n, 32, 32, 3), np.float32))


def shapes(network):
  return jax.eval_shape(lambda key: network.init(key, images(1), is_training=True), jax.random.key(0))


@functools.cache
def small(name='preact_resnet', **options):
  """A small network with a compiled `apply`, its parameters and state."""
  network = CLASSIFIERS[name](10, **SMALL[name] | options)
  params, state = jax.jit(lambda key, x: network.init(key, x, is_training=True))(jax.random.key(0), images())
  apply = jax.jit(network.apply, static_argnames=('is_training', 'test_local_stats'))
  return hk.TransformedWithState(network.init, apply), params, state


def moved(params, scale=0.1):
  """Parameters away from where they start."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: leaf + rng.normal(0, scale, leaf.shape).astype(np.float32), params)


def trained_state(network, params, state):
  """A state that has seen batches, so that running statistics differ from the initial ones."""
  for seed in range(2):
    _, state = network.apply(params, state, None, images(seed=10 + seed), is_training=True)
  return state


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
  assert count(preact_resnet(10, depth=18)) == 11_172_170
  assert count(preact_resnet(10, depth=50)) == 23_513_162
  assert count(wide_resnet(10)) == wide_resnet_count(40, 2, 10) == 2_243_546
  assert count(wide_resnet(10, depth=28, width=10)) == wide_resnet_count(28, 10, 10) == 36_479_194
  assert count(resnext(10)) == resnext_count(10) == 6_807_882
  assert count(resnext(100)) == resnext_count(100)
  assert count(resnet(10)) == 23_520_842
  assert count(resnet(10, depth=18)) == 11_173_962
  assert count(alexnet(10)) == 23_272_266


@pytest.mark.parametrize('depth, convolutions', [(10, 9 + 3), (34, 33 + 3), (101, 100 + 4)])
def test_depth_counts_the_weighted_layers(depth, convolutions):
  """Those of stem, blocks and head; projections do not count."""
  params, _ = shapes(preact_resnet(7, depth=depth, width=2))
  assert sum(leaf.ndim == 4 for leaf in jax.tree.leaves(params)) == convolutions
  assert params['preact_resnet/head']['w'].shape == (2 * 8 * (4 if depth == 101 else 1), 7)


@pytest.mark.parametrize('name, depth', [*((name, None) for name in SMALL), ('preact_resnet', 50)])
@pytest.mark.parametrize('padding', ['torch', 'same'])
def test_feature_maps_shrink_at_3x3_convolutions(name, depth, padding):
  seen = []

  def conv(x, w, *, stride, padding):
    y = plain_conv(x, w, stride=stride, padding=padding)
    seen.append(((w.shape[0], stride) == (3, 2), x.shape[1], y.shape[1], padding))
    return y

  shapes(CLASSIFIERS[name](10, **SMALL[name] | ({'depth': depth} if depth else {}), padding=padding, conv=conv))
  halvings = [(32, 16), (16, 8), (8, 4)] if name in ('preact_resnet', 'resnet') else [(32, 16), (16, 8)]
  groups = 4 if name == 'resnext' else 1
  assert [(before, after) for strided, before, after, _ in seen if strided] == [
    h for h in halvings for _ in range(groups)
  ]
  assert {after for *_, after, _ in seen} == {32, *(after for _, after in halvings)}
  assert all((pads == [(1, 1), (1, 1)]) == (padding == 'torch' and strided) for strided, *_, pads in seen)


def test_running_statistics_treat_each_image_alone():
  network, params, state = small()
  state = trained_state(network, params, state)
  apply = lambda x: network.apply(params, state, None, x, is_training=False)[0]
  x = images(4)
  alone = jnp.concatenate([apply(x[i : i + 1]) for i in range(4)])
  np.testing.assert_allclose(apply(x), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', NORMED)
def test_evaluation_leaves_the_state_and_can_take_the_statistics_of_its_batch(name):
  network, params, state = small(name)
  state = trained_state(network, params, state)
  train, _ = network.apply(params, state, None, images(), is_training=True)
  local, after_local = network.apply(params, state, None, images(), is_training=False, test_local_stats=True)
  running, after = network.apply(params, state, None, images(), is_training=False)
  np.testing.assert_allclose(train, local, rtol=0, atol=1e-6)
  assert np.abs(np.asarray(train - running)).max() > 1e-3
  for kept in (after_local, after):
    jax.tree.map(np.testing.assert_array_equal, state, kept)


def test_running_statistics_are_the_debiased_average():
  decay = 0.9
  network, params, state = small(batch_norm_decay=decay)
  name = 'preact_resnet/stage_0_block_0/norm_0'  # normalises the stem's output
  means, variances = [], []
  for seed in range(3):
    x = images(seed=seed)
    _, state = network.apply(params, state, None, x, is_training=True)
    normalised = jnp.asarray((np.asarray(x) - np.array(MEAN)) / np.array(STD), jnp.float32)
    stem = np.asarray(plain_conv(normalised, params['preact_resnet/stem']['w'], stride=1, padding='SAME'), np.float64)
    means.append(stem.mean((0, 1, 2)))
    variances.append(stem.var((0, 1, 2)))
  weights = np.array([decay**2, decay, 1.0])
  np.testing.assert_allclose(state[name]['mean'], np.average(means, axis=0, weights=weights), atol=1e-5)
  np.testing.assert_allclose(state[name]['var'], np.average(variances, axis=0, weights=weights), rtol=1e-4)
  assert int(state[name]['count']) == 3


@pytest.mark.parametrize('name, mapping', [('preact_resnet', 'vmap'), *((name, 'shard_map') for name in NORMED)])
def test_axis_name_makes_statistics_global(name, mapping):
  network, params, state = small(name)
  synced, init_params, _ = small(name, axis_name='batch')  # init needs no axis
  jax.tree.map(np.testing.assert_array_equal, params, init_params)
  x = images(16)
  apply = lambda x: synced.apply(params, state, None, x, is_training=True)
  if mapping == 'vmap':
    logits, states = jax.vmap(apply, axis_name='batch')(x.reshape(8, 2, 32, 32, 3))
    logits, new_state = logits.reshape(16, 10), jax.tree.map(lambda leaf: leaf[0], states)
  else:
    mesh = jax.make_mesh((8,), ('batch',), (jax.sharding.AxisType.Auto,))
    data = PartitionSpec('batch')
    logits, new_state = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=data, out_specs=(data, PartitionSpec())))(x)
  expected, expected_state = network.apply(params, state, None, x, is_training=True)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new_state, expected_state)


@pytest.mark.parametrize(
  'name, depth', [*((name, None) for name in NORMED), pytest.param('preact_resnet', 50, marks=pytest.mark.slow)]
)
def test_a_fresh_network_has_gradients_of_every_parameter_and_image(name, depth):
  """With running statistics, too, which have seen nothing then: the adversary needs a gradient from the start."""
  network, params, state = small(name, **{'depth': depth} if depth else {})

  @functools.partial(jax.jit, static_argnames=('is_training', 'test_local_stats'))
  def gradients(params, x, **mode):
    logits = lambda params, x: network.apply(params, state, None, x, **mode)[0]
    loss = lambda params, x: -jax.nn.log_softmax(logits(params, x))[jnp.arange(4), jnp.arange(4)].mean()
    return jax.grad(loss, (0, 1))(params, x)

  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(params, images(), is_training=True)[0]):
    assert 0 < np.abs(leaf).max() < np.inf, jax.tree_util.keystr(path)
  for local in (False, True):
    of_images = gradients(params, images(), is_training=False, test_local_stats=local)[1]
    norms = np.sqrt(np.sum(np.square(of_images), axis=(1, 2, 3)))
    assert ((norms > 1e-4) & (norms < np.inf)).all()


def test_first_logits_are_small():
  network, params, state = small()
  logits, _ = network.apply(params, state, None, images(16), is_training=True)
  assert 0 < np.abs(np.asarray(logits)).max() < 1.0  # the first loss is close to that of guessing


@pytest.mark.parametrize('name, last', [('preact_resnet', 'norm'), ('resnext', 'stage_2_block_0/norm_2')])
def test_bfloat16_is_close_to_float32(name, last):
  exact, params, state = small(name)
  fast, fast_params, fast_state = small(name, dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(fast_params)} == {jnp.dtype('float32')}
  expected, expected_state = exact.apply(params, state, None, images(32), is_training=True)
  logits, new_state = fast.apply(params, state, None, images(32), is_training=True)
  assert logits.dtype == jnp.float32
  assert [a.dtype for a in jax.tree.leaves(new_state)] == [a.dtype for a in jax.tree.leaves(fast_state)]
  assert float(jnp.abs(logits - expected).max()) < 0.1 * float(jnp.abs(expected).max())
  mean = lambda state: state[f'{name}/{last}']['mean']
  np.testing.assert_allclose(mean(new_state), mean(expected_state), rtol=0.05, atol=0.05)


def test_statistics_of_bfloat16_activations_are_taken_in_float32():
  x = jnp.asarray(np.random.default_rng(0).normal(3.0, 0.25, (8, 6, 6, 4)), jnp.bfloat16)
  norm = hk.transform_with_state(lambda x: _batch_norm(x, 0.9, None, True, False))
  params, state = norm.init(None, x)
  normalised, state = norm.apply(params, state, None, x)
  exact = np.asarray(x, np.float64)
  np.testing.assert_allclose(state['~']['var'], exact.var((0, 1, 2)), rtol=1e-4)
  assert normalised.dtype == jnp.bfloat16
  expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + EPSILON)
  np.testing.assert_allclose(np.asarray(normalised, np.float64), expected, rtol=0.01, atol=1e-3)


def test_float64_is_float64_throughout():
  network, params, state = small()
  with jax.enable_x64(True):
    dtypes = []

    def conv(x, w, *, stride, padding):
      dtypes.extend([x.dtype, w.dtype])
      return plain_conv(x, w, stride=stride, padding=padding)

    wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)
    x = jnp.asarray(np.asarray(images()), jnp.float64)
    precise = jax.jit(functools.partial(preact_resnet(10, **SMALL['preact_resnet'], conv=conv).apply, is_training=True))
    logits, new_state = precise(wide(params), wide(state), None, x)
    assert set(dtypes) == {jnp.dtype('float64')}
    assert logits.dtype == jnp.float64
    assert new_state['preact_resnet/norm']['mean'].dtype == jnp.float64
    halves, _ = precise(wide(params), wide(state), None, x[::-1])
    np.testing.assert_allclose(logits, halves[::-1], rtol=0, atol=1e-13)  # a hidden float32 would show
  expected, _ = network.apply(params, state, None, images(), is_training=True)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('shortcut, raw', [('preact', False), ('input', True)])
def test_shortcut_option(shortcut, raw):
  network, params, state = small('preact_resnet', shortcut=shortcut)
  x = images()
  # With the norms of block 1 switched off, only a projection of the raw input passes anything on.
  params = {k: dict(v) for k, v in params.items()}
  name = 'preact_resnet/stage_1_block_0/norm_0'
  params[name]['scale'] = 0.0 * params[name]['scale']
  grad = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, state, None, x, is_training=True)[0][:, 0])))(params)
  stem = np.abs(grad['preact_resnet/stem']['w']).max()
  assert (stem > 1e-8) == raw


@pytest.mark.parametrize('factory, options, word', [
  (preact_resnet, {'depth': 20}, '10, 18, 34, 50, 101'),
  (preact_resnet, {'width': 0}, 'width=0'),
  (preact_resnet, {'batch_norm_decay': 1.0}, r'batch_norm_decay=1.0 of preact_resnet must be in \[0, 1\)'),
  (preact_resnet, {'shortcut': 'none'}, "'preact' or 'input'"),
  (preact_resnet, {'padding': 'valid'}, "padding='valid' of preact_resnet must be 'torch' or 'same'"),
  (preact_resnet, {'dtype': jnp.float16}, "dtype='float16' of preact_resnet must be float32 or bfloat16"),
  (preact_resnet, {'num_classes': 0}, 'num_classes=0 of preact_resnet must be at least 1'),
  (wide_resnet, {'depth': 41}, r'6 n \+ 4'),
  (wide_resnet, {'depth': 4}, 'at least 10'),
  (wide_resnet, {'width': 0}, 'width=0 of wide_resnet'),
  (wide_resnet, {'shortcut': 'none'}, "'preact' or 'input'"),
  (resnext, {'depth': 28}, r'9 n \+ 2'),
  (resnext, {'width': 0}, 'width=0 of resnext'),
  (resnet, {'depth': 20}, 'depth=20 of resnet must be one of 10, 18, 34, 50, 101'),
  (resnet, {'width': 0}, 'width=0 of resnet'),
  (alexnet, {'depth': 10}, 'depth=10 of alexnet must be 8'),
  (alexnet, {'width': 0}, 'width=0 of alexnet'),
  (resnext, {'padding': 'valid'}, "of resnext must be 'torch' or 'same'"),
])  # fmt: skip
def test_bad_arguments_are_refused(factory, options, word):
  with pytest.raises(UserError, match=word):
    factory(**{'num_classes': 10} | options)


def test_integer_images_are_refused():
  network, params, state = small()
  with pytest.raises(UserError, match='uint8'):
    network.apply(params, state, None, jnp.zeros((1, 32, 32, 3), jnp.uint8), is_training=False)


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


def resnet_oracle(params, x):
  get = lambda name: params[f'resnet/{name}']
  x = jax.nn.relu(norm(conv(x, get('stem')['w']), get('norm')))
  for stage in range(4):
    block, stride = f'stage_{stage}_block_0', 2 if stage else 1
    y = jax.nn.relu(norm(conv(x, get(f'{block}/conv_0')['w'], stride), get(f'{block}/norm_0')))
    y = norm(conv(y, get(f'{block}/conv_1')['w']), get(f'{block}/norm_1'))
    if stage:
      x = norm(conv(x, get(f'{block}/shortcut')['w'], stride), get(f'{block}/shortcut_norm'))
    x = jax.nn.relu(y + x)
  return x.mean((1, 2)) @ get('head')['w'] + get('head')['b'][None]


@pytest.mark.parametrize(
  'name, oracle', [('wide_resnet', wide_resnet_oracle), ('resnext', resnext_oracle), ('resnet', resnet_oracle)]
)
def test_computes_what_the_architecture_written_out_computes(name, oracle):
  network, params, state = small(name)
  params = moved(params)
  mean, std = (jnp.array(values).reshape(1, 1, 1, 3) for values in (MEAN, STD))
  expected = jax.jit(oracle)(params, (images() - mean) / std)
  logits, _ = network.apply(params, state, None, images(), is_training=True)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * float(jnp.abs(expected).max()))


def torch_forward(torch, params, x, depth, train):
  """The network of He et al. in PyTorch's functions, with the parameters of Haiku; `x` is normalised, NCHW."""
  functional = torch.nn.functional
  counts, bottleneck = {18: ([2, 2, 2, 2], False), 50: ([3, 4, 6, 3], True)}[depth]
  get = lambda module, name: torch.from_numpy(np.array(params[f'preact_resnet/{module}'][name]))

  def conv(x, module, stride=1):
    kernel = get(module, 'w').permute(3, 2, 0, 1)
    return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

  def norm(x, module):
    running = (None, None) if train else (torch.zeros(x.shape[1]), torch.ones(x.shape[1]))
    return functional.relu(functional.batch_norm(x, *running, get(module, 'scale'), get(module, 'offset'), train))

  x = conv(x, 'stem')
  for stage, count in enumerate(counts):
    for index in range(count):
      name, stride = f'stage_{stage}_block_{index}', 2 if stage and not index else 1
      y = norm(x, f'{name}/norm_0')
      skip = conv(y, f'{name}/shortcut', stride) if f'preact_resnet/{name}/shortcut' in params else x
      if bottleneck:
        y = conv(y, f'{name}/conv_0')
        y = conv(norm(y, f'{name}/norm_1'), f'{name}/conv_1', stride)
        y = conv(norm(y, f'{name}/norm_2'), f'{name}/conv_2')
      else:
        y = conv(y, f'{name}/conv_0', stride)
        y = conv(norm(y, f'{name}/norm_1'), f'{name}/conv_1')
      x = y + skip
  return norm(x, 'norm').mean((2, 3)) @ get('head', 'w') + get('head', 'b')


@pytest.mark.slow
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('depth', [18, 50])
def test_computes_what_torch_computes(depth, train):
  torch = pytest.importorskip('torch')
  network, params, state = small('preact_resnet', depth=depth, width=16)
  params, mean, std = moved(params, 0.05), np.float32(MEAN), np.float32(STD)
  x = np.asarray(images(8))
  normalised = torch.from_numpy((x - mean) / std).permute(0, 3, 1, 2)
  expected = torch_forward(torch, params, normalised, depth, train).numpy()
  logits, _ = network.apply(params, state, None, x, is_training=train)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


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


@pytest.mark.parametrize('fields, words', [
  ({'name': 'wide_resnet'}, 'config.classifier.depth=50 must be one of 10, 16, .* with .*name=wide_resnet'),
  ({'name': 'resnext', 'depth': 28}, 'config.classifier.depth=28 must be one of 11, 20, 29, .* with .*name=resnext'),
  ({'depth': 40}, 'config.classifier.depth=40 must be one of 10, 18, 34, 50, 101 with .*name=preact_resnet'),
  ({'name': 'wide_resnet', 'depth': 40}, 'config.classifier.width=64 must be at most 16 .*WRN-40-2 has'),
  ({'name': 'resnext', 'depth': 29, 'shortcut': 'input'}, 'config.classifier.shortcut=input cannot go with'),
  ({'name': 'resnet', 'shortcut': 'input'}, 'config.classifier.shortcut=input cannot go with'),
  ({'name': 'alexnet'}, 'config.classifier.depth=50 must be one of 8 with config.classifier.name=alexnet'),
])  # fmt: skip
def test_fields_that_an_architecture_cannot_have_are_one_line(fields, words):
  with pytest.raises(UserError, match=words) as error:
    configs.validate(config_of(**fields))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('fields', [
  {'name': 'wide_resnet', 'depth': 40, 'width': 2}, {'name': 'resnext', 'depth': 29}, {'name': 'resnet', 'width': 4},
  {'name': 'alexnet', 'depth': 8, 'width': 4},
])  # fmt: skip
def test_recipes_build_them(fields):
  config = config_of(**fields)
  configs.validate(config)
  params, _ = shapes(recipe.build_classifier(config, 7))
  assert params[f'{fields["name"]}/head']['w'].shape[1] == 7
