"""EDSR against NumPy, and its gradients against finite differences."""

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
from tests import oracle
from tests.torch_state import edsr_state

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 6, 3))


def init(network, dtype=jnp.float32):
  """Parameters of torch's default scale, drawn by NumPy: no initialiser to compile."""
  shapes = jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
  rng = np.random.default_rng(3)
  draw = lambda p: jnp.asarray(rng.uniform(-1, 1, p.shape) / np.sqrt(9 * max(p.shape[-2:])), dtype)
  return jax.tree.map(draw, shapes)


def test_networks_too_large_for_a_weight_file_are_not_converted():
  with pytest.raises(UserError, match='blocks=65, which must be an integer from 1 to 64'):
    torch_layouts.edsr_from_torch(edsr_state(blocks=65, features=1, scale=1))


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


def test_bfloat16_is_near():
  make = functools.partial(edsr, blocks=1, features=4, scale=1)
  phi, images = init(make()), jnp.float32(IMAGES)
  half, full = (jax.jit(make(dtype=dtype).apply)(phi, images) for dtype in (jnp.bfloat16, None))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, full, atol=0.02)


def test_sizes_follow_from_the_file_and_fixed_layers_from_the_network():
  assert corruption_nets.read('edsr', 'edsr_4x16_x1')[1] == {'blocks': 4, 'features': 16, 'scale': 1}
  _, phi = corruption_nets.load('edsr', 'edsr_4x16_x1', perturb_mean_shift=True)
  np.testing.assert_allclose(phi['edsr/add_mean']['b'], 255 * MEAN, rtol=1e-6)
  with pytest.raises(UserError, match='^weights=.*cannot be the name'):
    corruption_nets.load('edsr', '~no_such_user/phi.safetensors')


def test_shipped_small_weights_are_used_as_by_the_plain_oracle():
  network, phi = corruption_nets.load('edsr', 'edsr_4x16_x1')
  image = datasets.load('embedded', 'test', '').read(np.arange(1)).images.astype(np.float32) / 255
  expected = jax.jit(oracle.edsr_x1, static_argnums=2)(phi, image[0], 4)
  np.testing.assert_allclose(jax.jit(network.apply)(phi, image)[0], expected, atol=1e-4)
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
