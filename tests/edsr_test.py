"""EDSR against NumPy, its published sizes, and finite differences."""

import functools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest
from scipy.signal import correlate2d

from adversarial_augment import attacks, corruption_nets, datasets, per_example_conv
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.corruption_nets import torch_layouts
from adversarial_augment.corruption_nets.edsr import MEAN, edsr
from adversarial_augment.corruption_nets.layers import pixel_shuffle
from adversarial_augment.errors import UserError
from adversarial_augment.ssim import ssim
from tests import oracle

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 6, 3))


def init(network, dtype=jnp.float32):
  """Parameters of torch's default scale, drawn by NumPy: no initialiser to compile."""
  shapes = jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
  rng = np.random.default_rng(3)
  draw = lambda p: jnp.asarray(rng.uniform(-1, 1, p.shape) / np.sqrt(9 * max(p.shape[-2:])), dtype)
  return jax.tree.map(draw, shapes)


def _size(shapes):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize('scale, count, blocks', [(1, 1_222_147, 70), (2, 1_369_859, 72), (4, 1_517_571, 74)])
def test_baseline_has_the_published_number_of_parameters_and_blocks(scale, count, blocks):
  phi = jax.eval_shape(edsr(scale=scale).init, KEY, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
  assert _size(phi) == count
  assert len(jax.tree.leaves(phi)) == blocks
  assert sum(layer['b'].size for layer in phi.values()) == sum(layer['w'].shape[-1] for layer in phi.values())


@pytest.mark.parametrize('blocks, features, scale', [(1, 4, 1), (3, 5, 2), (2, 16, 4)])
def test_shapes_of_a_weight_file_are_those_of_the_network(blocks, features, scale):
  sizes = {'blocks': blocks, 'features': features, 'scale': scale}
  phi = jax.eval_shape(edsr(**sizes).init, KEY, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
  found = {name: {key: p.shape for key, p in layer.items()} for name, layer in phi.items()}
  assert found == corruption_nets.shapes('edsr', sizes)


def test_networks_too_large_for_a_weight_file_are_not_converted():
  layers = {'sub_mean': (3, 3, 1, 1), 'add_mean': (3, 3, 1, 1), 'head.0': (1, 3, 3, 3), 'body.65': (1, 1, 3, 3)}
  layers |= {f'body.{i}.body.{j}': (1, 1, 3, 3) for i in range(65) for j in (0, 2)} | {'tail.1': (3, 1, 3, 3)}
  state = {f'{name}.weight': np.ones(shape, np.float32) for name, shape in layers.items()}
  state |= {f'{name}.bias': np.zeros(shape[0], np.float32) for name, shape in layers.items()}
  for name, sign in (('sub_mean', -255), ('add_mean', 255)):
    state |= {f'{name}.weight': np.eye(3)[:, :, None, None], f'{name}.bias': sign * MEAN}
  with pytest.raises(UserError, match='blocks=65, which must be an integer from 1 to 64'):
    torch_layouts.edsr_from_torch(state)


def test_pixel_shuffle_has_the_order_of_torch():
  n, h, w, c, r = 2, 3, 2, 3, 2
  x = np.arange(n * h * w * c * r * r).reshape(n, h, w, c * r * r)
  expected = np.zeros((n, r * h, r * w, c), int)
  for b, i, j, k, a, d in np.ndindex(n, h, w, c, r, r):
    expected[b, r * i + a, r * j + d, k] = x[b, i, j, k * r * r + a * r + d]
  np.testing.assert_array_equal(pixel_shuffle(x, r), expected)


def forward_numpy(phi, image, blocks, scale):
  """[h, w, 3] -> [scale h, scale w, 3] in [0, 1] and beyond, by correlations of planes."""

  def layer(x, name):
    w, b = (np.asarray(phi[f'edsr/{name}'][key]) for key in ('w', 'b'))
    planes = [
      sum(correlate2d(x[..., i], w[..., i, o], mode='same') for i in range(x.shape[-1])) + b[o] for o in range(b.size)
    ]
    return np.stack(planes, -1)

  x = skip = layer(255 * image - 255 * MEAN, 'head')
  for i in range(blocks):
    x = x + layer(np.maximum(layer(x, f'block_{i}/conv_0'), 0), f'block_{i}/conv_1')
  x = skip + layer(x, 'body_out')
  for i in range(scale // 2):
    x = np.asarray(pixel_shuffle(layer(x, f'up_{i}')[None], 2)[0])
  return (layer(x, 'out') + 255 * MEAN) / 255


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('scale', [1, 4])
def test_forward_is_that_of_numpy_and_native_is_its_average_in_range(scale):
  make = functools.partial(edsr, blocks=1, features=4, scale=scale)
  phi = init(make(), jnp.float64)
  expected = np.stack([forward_numpy(phi, image, 1, scale) for image in IMAGES])
  raw = jax.jit(make(native=False).apply)(phi, jnp.asarray(IMAGES))
  np.testing.assert_allclose(raw, expected, atol=1e-10)
  average = expected.reshape(2, 8, scale, 6, scale, 3).mean((2, 4)).clip(0, 1)
  native = jax.jit(make().apply)(phi, jnp.asarray(IMAGES))
  assert native.shape == IMAGES.shape
  np.testing.assert_allclose(native, average, atol=1e-10)


def test_no_block_starts_at_zero_and_all_have_the_default_scale_of_torch():
  network = edsr(blocks=1, features=16, scale=1)
  for name, layer in jax.jit(network.init)(KEY, jnp.zeros((1, 8, 8, 3))).items():
    bound = 1 / np.sqrt(9 * layer['w'].shape[2])
    for array in layer.values():
      assert 0 < np.abs(array).max() <= bound, name
    assert np.std(layer['w']) == pytest.approx(bound / np.sqrt(3), rel=0.15)


@pytest.mark.usefixtures('x64')
def test_perturbations_of_each_example_are_those_of_the_network():
  """No perturbation is c_phi itself; every formulation equals the network run on one image."""
  network = edsr(blocks=1, features=4, scale=2)
  phi = init(network, jnp.float64)
  rng = np.random.default_rng(1)
  betas = jax.tree.map(lambda p: jnp.asarray(0.1 * rng.normal(size=(2, *p.shape))), phi)
  zeros = jax.tree.map(jnp.zeros_like, betas)
  images = jnp.asarray(IMAGES)

  @jax.jit
  def run(betas):
    sets = {impl: attacks.weight_ball(network.apply, nu=0.1, impl=impl) for impl in ('map', 'im2col', 'vmap')}
    return {impl: ball.apply_batch(phi, images, betas) for impl, ball in sets.items()}

  for got in run(zeros).values():
    np.testing.assert_allclose(got, jax.jit(network.apply)(phi, images), atol=1e-12)
  for got in run(betas).values():
    for i in range(2):
      moved = jax.tree.map(lambda p, b, i=i: p + b[i], phi, betas)
      expected = forward_numpy(moved, IMAGES[i], 1, 2).reshape(8, 2, 6, 2, 3).mean((1, 3)).clip(0, 1)
      np.testing.assert_allclose(got[i], expected, atol=1e-10)


@pytest.mark.usefixtures('x64')
def test_gradients_of_the_attacked_loss_are_those_of_finite_differences():
  """Through phi + beta, the network, its clip, a classifier and the loss."""
  network = edsr(blocks=1, features=4, scale=2)
  phi = init(network, jnp.float64)
  ball = attacks.weight_ball(network.apply, nu=0.1)
  head = jnp.asarray(np.random.default_rng(2).normal(size=(8 * 6 * 3, 4)) / 10)
  images = jnp.asarray(IMAGES)

  @jax.jit
  def loss(betas):
    logits = jnp.tanh(ball.apply_batch(phi, images, betas).reshape(2, -1) @ head)
    return cross_entropy(logits, jnp.array([1, 3])).sum()

  betas = jax.tree.map(lambda p: jnp.zeros((2, *p.shape), p.dtype) + 1e-3, phi)
  check_grads(loss, (betas,), order=1, modes=['rev'], atol=1e-5, rtol=1e-5, eps=1e-7)


def test_saturated_pixels_pass_no_gradient():
  network = edsr(blocks=1, features=4, scale=1)
  phi = init(network)
  phi['edsr/out']['b'] = jnp.full((3,), 1e4)
  gradient = jax.jit(jax.grad(lambda phi: network.apply(phi, jnp.float32(IMAGES)).sum()))(phi)
  assert not any(np.any(g) for g in jax.tree.leaves(gradient))


def test_mean_shift_layers_change_the_blocks_and_not_the_function():
  plain, shifted = (edsr(blocks=1, features=4, scale=1, perturb_mean_shift=flag) for flag in (False, True))
  phi, more = init(plain), init(shifted)
  assert {name.partition('/')[2] for name in more.keys() - phi.keys()} == {'sub_mean', 'add_mean'}
  for name, sign in (('edsr/sub_mean', -1), ('edsr/add_mean', 1)):
    more[name] = {'w': jnp.eye(3), 'b': jnp.float32(sign * 255 * MEAN)}
  assert len(jax.tree.leaves(more)) == len(jax.tree.leaves(phi)) + 4
  images = jnp.float32(IMAGES)
  same = {name: phi.get(name, more[name]) for name in more}
  np.testing.assert_allclose(jax.jit(shifted.apply)(same, images), jax.jit(plain.apply)(phi, images), atol=1e-5)


def test_convolution_forms_agree_and_bfloat16_is_near():
  make = functools.partial(edsr, blocks=1, features=4, scale=1)
  phi, images = init(make()), jnp.float32(IMAGES)
  expected = jax.jit(make().apply)(phi, images)
  np.testing.assert_allclose(jax.jit(make(conv=per_example_conv.conv).apply)(phi, images), expected, atol=1e-5)
  half = jax.jit(make(dtype=jnp.bfloat16).apply)(phi, images)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, expected, atol=0.02)


def test_sizes_follow_from_the_file_and_fixed_layers_from_the_network():
  assert corruption_nets.read('edsr', 'edsr_4x16_x1')[1] == {'blocks': 4, 'features': 16, 'scale': 1}
  _, phi = corruption_nets.load('edsr', 'edsr_4x16_x1', perturb_mean_shift=True)
  np.testing.assert_allclose(phi['edsr/add_mean']['b'], 255 * MEAN, rtol=1e-6)
  with pytest.raises(UserError, match='^weights=.*cannot be the name'):
    corruption_nets.load('edsr', '~no_such_user/phi.safetensors')


def test_shipped_small_weights_give_images_back():
  """On test images that no pretraining saw; and as the plain oracle computes it."""
  network, phi = corruption_nets.load('edsr', 'edsr_4x16_x1')
  dataset = datasets.load('embedded', 'test', '')
  images = dataset.read(np.arange(64)).images.astype(np.float32) / 255
  restored = jax.jit(network.apply)(phi, images)
  assert float(ssim(images, restored).mean()) >= 0.97
  np.testing.assert_allclose(restored[0], jax.jit(oracle.edsr_x1, static_argnums=2)(phi, images[0], 4), atol=1e-4)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(phi))


@pytest.mark.parametrize('scale', [2, 4])
@pytest.mark.parametrize('perturb_mean_shift', [False, True])
@pytest.mark.parametrize('shape', [(2, 11, 13, 3), (1, 3, 4, 3), (1, 2, 2, 3)])
def test_composed_tail_is_that_of_the_layers(scale, perturb_mean_shift, shape):
  """In values, and in gradients by every weight and by the image; for images that are little but border, too."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    images, slope = jnp.asarray(rng.uniform(size=shape)), jnp.asarray(rng.normal(size=shape))
    found = {}
    for tail in ('layers', 'composed'):
      network = edsr(
        blocks=1, features=5, scale=scale, perturb_mean_shift=perturb_mean_shift, tail=tail, conv=per_example_conv.conv
      )
      phi = init(network, jnp.float64)
      y, pull = jax.vjp(network.apply, phi, images)
      found[tail] = jax.tree.flatten((y, pull(slope)))
    (expected, structure), (composed, other) = found['layers'], found['composed']
    assert structure == other
    assert any(float(jnp.abs(x).max()) > 0 for x in expected[1:])
    for a, b in zip(expected, composed, strict=True):
      np.testing.assert_allclose(b, a, rtol=0, atol=1e-10 * float(jnp.abs(a).max()))


def test_composed_tail_draws_the_same_initial_weights():
  image = jnp.zeros((1, 8, 8, 3))
  phis = [edsr(blocks=1, features=4, tail=tail).init(KEY, image) for tail in ('layers', 'composed')]
  assert jax.tree.structure(phis[0]) == jax.tree.structure(phis[1])
  assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, phis), strict=True))
