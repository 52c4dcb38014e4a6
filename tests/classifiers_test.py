"""The pre-activation ResNet against published counts, PyTorch, and its own promises."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from adversarial_augment.classifiers.layers import EPSILON, _batch_norm
from adversarial_augment.classifiers.preact_resnet import preact_resnet
from adversarial_augment.errors import UserError
from adversarial_augment.per_example_conv import conv as plain_conv


def images(n=4, seed=0):
  return jnp.asarray(np.random.default_rng(seed).random((n, 32, 32, 3), np.float32))


def jitted(network):
  apply = jax.jit(network.apply, static_argnames=('is_training', 'test_local_stats'))
  return hk.TransformedWithState(network.init, apply)


@functools.cache
def small(depth=10, width=4, **options):
  """A small network with a compiled `apply`, its parameters and state."""
  network = preact_resnet(10, depth=depth, width=width, **options)
  params, state = jax.jit(lambda key, x: network.init(key, x, is_training=True))(jax.random.key(0), images())
  return jitted(network), params, state


def trained_state(network, params, state):
  """A state that has seen batches, so that running statistics differ from the initial ones."""
  for seed in range(2):
    _, state = network.apply(params, state, None, images(seed=10 + seed), is_training=True)
  return state


@pytest.mark.parametrize('depth, count', [(18, 11_172_170), (50, 23_513_162)])
def test_parameter_count_is_the_published_one(depth, count):
  network = preact_resnet(10, depth=depth)
  params, _ = jax.eval_shape(lambda key, x: network.init(key, x, is_training=True), jax.random.key(0), images())
  assert hk.data_structures.tree_size(params) == count


@pytest.mark.parametrize('depth, convolutions', [(10, 9 + 3), (34, 33 + 3), (101, 100 + 4)])
def test_depth_counts_the_weighted_layers(depth, convolutions):
  # Depth = stem + those of the blocks + head; projections do not count.
  network = preact_resnet(7, depth=depth, width=2)
  params, _ = jax.eval_shape(lambda key, x: network.init(key, x, is_training=True), jax.random.key(0), images())
  kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
  assert len(kernels) == convolutions
  assert params['preact_resnet/head']['w'].shape == (2 * 8 * (4 if depth == 101 else 1), 7)


@pytest.mark.parametrize('padding', ['torch', 'same'])
@pytest.mark.parametrize('depth', [10, 50])
def test_feature_maps_and_strides(depth, padding):
  seen = []

  def conv(x, w, *, stride, padding):
    y = plain_conv(x, w, stride=stride, padding=padding)
    seen.append((w.shape[0], stride, x.shape[1], y.shape[1], padding))
    return y

  network = preact_resnet(10, depth=depth, width=4, padding=padding, conv=conv)
  jax.eval_shape(lambda key, x: network.init(key, x, is_training=True), jax.random.key(0), images())
  assert [(before, after) for size, stride, before, after, _ in seen if stride == 2 and size == 3] == [
    (32, 16),
    (16, 8),
    (8, 4),
  ]
  assert {after for *_, after, _ in seen} == {32, 16, 8, 4}
  explicit = [(1, 1), (1, 1)]
  assert all(
    (pads == explicit) == (padding == 'torch' and size == 3 and stride == 2) for size, stride, *_, pads in seen
  )


def test_running_statistics_treat_each_image_alone():
  network, params, state = small()
  state = trained_state(network, params, state)
  apply = lambda x: network.apply(params, state, None, x, is_training=False)[0]
  x = images(4)
  alone = jnp.concatenate([apply(x[i : i + 1]) for i in range(4)])
  np.testing.assert_allclose(apply(x), alone, rtol=0, atol=1e-5)
  np.testing.assert_array_equal(apply(x), apply(x))


@pytest.mark.parametrize('local', [False, True])
def test_evaluation_leaves_the_state_untouched(local):
  network, params, state = small()
  state = trained_state(network, params, state)
  _, after = network.apply(params, state, None, images(), is_training=False, test_local_stats=local)
  jax.tree.map(np.testing.assert_array_equal, state, after)


def test_batch_statistics_are_those_of_training():
  network, params, state = small()
  train, _ = network.apply(params, state, None, images(), is_training=True)
  local, _ = network.apply(params, state, None, images(), is_training=False, test_local_stats=True)
  running, _ = network.apply(params, state, None, images(), is_training=False)
  np.testing.assert_array_equal(train, local)
  assert np.abs(np.asarray(train - running)).max() > 1e-3


def test_running_statistics_are_the_debiased_average():
  decay = 0.9
  network, params, state = small(batch_norm_decay=decay)
  name = 'preact_resnet/stage_0_block_0/norm_0'  # normalises the stem's output
  means, variances = [], []
  for seed in range(3):
    x = images(seed=seed)
    _, state = network.apply(params, state, None, x, is_training=True)
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2471, 0.2435, 0.2616])
    normalised = jnp.asarray((np.asarray(x) - mean) / std, jnp.float32)
    stem = np.asarray(plain_conv(normalised, params['preact_resnet/stem']['w'], stride=1, padding='SAME'), np.float64)
    means.append(stem.mean((0, 1, 2)))
    variances.append(stem.var((0, 1, 2)))
  weights = np.array([decay**2, decay, 1.0])
  np.testing.assert_allclose(state[name]['mean'], np.average(means, axis=0, weights=weights), atol=1e-5)
  np.testing.assert_allclose(state[name]['var'], np.average(variances, axis=0, weights=weights), rtol=1e-4)
  assert int(state[name]['count']) == 3


@pytest.mark.parametrize('mapping', ['vmap', 'shard_map'])
def test_axis_name_makes_statistics_global(mapping):
  network, params, state = small()
  synced, init_params, _ = small(axis_name='batch')  # init needs no axis
  jax.tree.map(np.testing.assert_array_equal, params, init_params)
  x = images(16)

  def apply(x):
    return synced.apply(params, state, None, x, is_training=True)

  if mapping == 'vmap':
    logits, states = jax.vmap(apply, axis_name='batch')(x.reshape(8, 2, 32, 32, 3))
    logits, new_state = logits.reshape(16, 10), jax.tree.map(lambda leaf: leaf[0], states)
  else:
    mesh = jax.make_mesh((8,), ('batch',), (jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(apply, mesh=mesh, in_specs=P('batch'), out_specs=(P('batch'), P()))
    logits, new_state = jax.jit(sharded)(x)
  expected, expected_state = network.apply(params, state, None, x, is_training=True)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, new_state, expected_state)


def loss(logits, labels):
  return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels.reshape(-1, 1), axis=1))


@pytest.mark.parametrize('depth', [10, 50])
def test_gradient_reaches_every_parameter(depth):
  network, params, state = small(depth)
  labels = jnp.arange(4)

  @jax.jit
  def gradient(params):
    return jax.grad(lambda p: loss(network.apply(p, state, None, images(), is_training=True)[0], labels))(params)

  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
    assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize('depth', [10, 50])
@pytest.mark.parametrize('local', [False, True])
def test_fresh_network_gives_the_adversary_a_gradient(depth, local):
  # Before the first update, too, and with running statistics, which have seen nothing then.
  network, params, state = small(depth)

  @jax.jit
  def gradient(x):
    apply = lambda x: network.apply(params, state, None, x, is_training=False, test_local_stats=local)[0]
    return jax.grad(lambda x: loss(apply(x), jnp.arange(4)))(x)

  norms = jnp.sqrt(jnp.sum(gradient(images()) ** 2, axis=(1, 2, 3)))
  assert np.isfinite(norms).all()
  assert (norms > 1e-4).all()


def test_first_logits_are_small():
  network, params, state = small()
  logits, _ = network.apply(params, state, None, images(16), is_training=True)
  assert 0 < np.abs(np.asarray(logits)).max() < 1.0  # the first loss is close to that of guessing


def test_bfloat16_is_close_to_float32():
  exact, params, state = small()
  fast, fast_params, fast_state = small(dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(fast_params)} == {jnp.dtype('float32')}
  x = images(32)
  expected, expected_state = exact.apply(params, state, None, x, is_training=True)
  logits, new_state = fast.apply(params, state, None, x, is_training=True)
  assert logits.dtype == jnp.float32
  assert [a.dtype for a in jax.tree.leaves(new_state)] == [a.dtype for a in jax.tree.leaves(fast_state)]
  assert float(jnp.abs(logits - expected).max()) < 0.1 * float(jnp.abs(expected).max())
  name = 'preact_resnet/norm'
  np.testing.assert_allclose(new_state[name]['mean'], expected_state[name]['mean'], rtol=0.05, atol=0.05)


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
    precise = jitted(preact_resnet(10, depth=10, width=4, conv=conv))
    logits, new_state = precise.apply(wide(params), wide(state), None, x, is_training=True)
    assert set(dtypes) == {jnp.dtype('float64')}
    assert logits.dtype == jnp.float64
    assert new_state['preact_resnet/norm']['mean'].dtype == jnp.float64
    halves, _ = precise.apply(wide(params), wide(state), None, x[::-1], is_training=True)
    np.testing.assert_allclose(logits, halves[::-1], rtol=0, atol=1e-13)  # a hidden float32 would show
  expected, _ = network.apply(params, state, None, images(), is_training=True)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('shortcut, raw', [('preact', False), ('input', True)])
def test_shortcut_option(shortcut, raw):
  network, params, state = small(shortcut=shortcut)
  x = images()
  # With the norms of block 1 switched off, only a projection of the raw input passes anything on.
  params = {k: dict(v) for k, v in params.items()}
  name = 'preact_resnet/stage_1_block_0/norm_0'
  params[name]['scale'] = 0.0 * params[name]['scale']
  grad = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, state, None, x, is_training=True)[0][:, 0])))(params)
  stem = np.abs(grad['preact_resnet/stem']['w']).max()
  assert (stem > 1e-8) == raw


@pytest.mark.parametrize(
  'options, word',
  [
    ({'depth': 20}, '10, 18, 34, 50, 101'),
    ({'width': 0}, 'width=0'),
    ({'batch_norm_decay': 1.0}, '[0, 1)'),
    ({'shortcut': 'none'}, "'preact' or 'input'"),
    ({'padding': 'valid'}, "'torch' or 'same'"),
    ({'dtype': jnp.float16}, 'bfloat16'),
  ],
)
def test_bad_arguments_are_refused(options, word):
  with pytest.raises(UserError) as error:
    preact_resnet(10, **options)
  assert word in str(error.value)


def test_integer_images_are_refused():
  network, params, state = small()
  with pytest.raises(UserError, match='uint8'):
    network.apply(params, state, None, jnp.zeros((1, 32, 32, 3), jnp.uint8), is_training=False)


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
  network, params, state = small(depth, width=16)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype(np.float32), params)
  mean, std = np.array([0.4914, 0.4822, 0.4465], np.float32), np.array([0.2471, 0.2435, 0.2616], np.float32)
  x = np.asarray(images(8))
  normalised = torch.from_numpy((x - mean) / std).permute(0, 3, 1, 2)
  expected = torch_forward(torch, params, normalised, depth, train).numpy()
  logits, _ = network.apply(params, state, None, x, is_training=train)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
