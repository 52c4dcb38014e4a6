"""CAE, U-Net and VQ-VAE: their sizes, their noise, and every network of the table against plain convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, corruption_nets, datasets, per_example_conv
from adversarial_augment import config as configs
from adversarial_augment.attacks import trees
from adversarial_augment.attacks.ascent import STEPS, ascend
from adversarial_augment.config.tables import NETWORK_SIZES
from adversarial_augment.corruption_nets import layers
from adversarial_augment.corruption_nets.cae import cae
from adversarial_augment.corruption_nets.vqvae import CODEBOOK, quantise, vqvae
from adversarial_augment.errors import UserError
from adversarial_augment.ssim import ssim

pytestmark = pytest.mark.usefixtures('quick_compile')

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(2, 16, 12, 3))
SMALL = {'blocks': 1, 'features': 2, 'scale': 2, 'codes': 5}
NETWORKS = list(corruption_nets.CORRUPTION_NETS)


def make(name, **options):
  sizes = {size: SMALL[size] for size in NETWORK_SIZES[name]}
  return corruption_nets.CORRUPTION_NETS[name](**sizes, **options)


def init(name, dtype=jnp.float32, scale=1.0):
  """Parameters of PyTorch's scale, drawn by NumPy, with biases that leave no layer of few channels dead."""
  shapes = corruption_nets.shapes(name, {size: SMALL[size] for size in NETWORK_SIZES[name]})
  rng = np.random.default_rng(3)

  def draw(shape):
    if len(shape) == 1:
      return jnp.asarray(rng.uniform(0, 0.3, shape), dtype)
    return jnp.asarray(scale * rng.uniform(-1, 1, shape) / np.sqrt(np.prod(shape[:-1])), dtype)

  return {module: {key: draw(shape) for key, shape in layer.items()} for module, layer in shapes.items()}


# Sizes.


@pytest.mark.parametrize(
  'name, sizes, count, blocks',
  # By hand, for the U-Net down, back, and out; for the VQ-VAE encoder, codebook and decoder.
  [
    ('edsr', {'scale': 1}, 1_222_147, 70),
    ('edsr', {'scale': 2}, 1_369_859, 72),
    ('edsr', {}, 1_517_571, 74),
    ('cae', {}, 1_197_728 + 1_044_131, 42),
    ('unet', {}, 38_720 + 221_440 + 885_248 + 737_664 + 184_512 + 1_731, 26),
    ('vqvae', {}, 134_336 + 147_584 + 2 * 41_120 + 8_256 + 512 * 64 + 73_856 + 2 * 41_120 + 295_168 + 6_924, 31),
  ],
)
def test_parameters_and_blocks_are_as_many_as_published(name, sizes, count, blocks):
  shapes = corruption_nets.shapes(name, NETWORK_SIZES[name] | sizes)
  flat = [shape for layer in shapes.values() for shape in layer.values()]
  assert sum(int(np.prod(shape)) for shape in flat) == count
  assert len(flat) == blocks


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('changed', [{}, {'features': 5, 'blocks': 3, 'scale': 2}, {'features': 4, 'scale': 1}])
def test_shapes_of_a_weight_file_are_those_of_the_network(name, changed):
  sizes = {size: changed.get(size, value) for size, value in NETWORK_SIZES[name].items()}
  network = corruption_nets.CORRUPTION_NETS[name](**sizes)
  phi = jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
  found = {module: {key: p.shape for key, p in layer.items()} for module, layer in phi.items()}
  assert found == corruption_nets.shapes(name, sizes)


@pytest.mark.parametrize('name', NETWORKS)
def test_layers_in_half_precision_give_images_in_full(name):
  dtypes = []

  def spy(x, w, **options):
    dtypes.append((x.dtype, w.dtype))
    return per_example_conv.conv(x, w, **options)

  network, images = make(name, dtype=jnp.bfloat16, conv=spy), jax.ShapeDtypeStruct((1, 16, 12, 3), jnp.float32)
  assert jax.eval_shape(network.apply, init(name), images, KEY).dtype == jnp.float32
  assert set(dtypes) == {(jnp.dtype('bfloat16'), jnp.dtype('bfloat16'))}


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'name': 'cae', 'blocks': '4'}, 'config.corruption_net.blocks=4: .*name=cae has no such field, only features, '),
    ({'name': 'unet', 'scale': '1', 'codes': '9'}, 'set --config.corruption_net.codes=none .*scale=none.$'),
    ({'codes': '9'}, 'name=edsr has no such field, only blocks, features, scale, perturb_mean_shift; set'),
    ({'deterministic': 'true'}, 'set --config.corruption_net.deterministic=false'),
    ({'name': 'vqvae', 'perturb_mean_shift': 'true'}, 'name=vqvae has no such field'),
    ({'name': 'vqvae', 'codes': '1'}, 'codes=1 must be an integer from 2 to 65536, or none'),
  ],
)
def test_a_size_that_the_network_does_not_take_is_refused(fields, said):
  changed = {f'corruption_net.{name}': value for name, value in fields.items()}
  with pytest.raises(UserError, match=said):
    configs.validate(configs.override(configs.base_config(), changed))


def test_sizes_that_are_none_are_as_published():
  config = configs.override(configs.base_config(), {'corruption_net.name': 'vqvae', 'corruption_net.features': '8'})
  assert configs.network_sizes(config) == {'features': 8, 'codes': 512}
  assert configs.network_sizes(configs.pretrain_config()) == {'blocks': 16, 'features': 64, 'scale': 4}


# Layers.


@pytest.mark.usefixtures('x64')
def test_doubling_is_a_transposed_convolution_without_flip():
  import haiku as hk

  network = hk.without_apply_rng(hk.transform(lambda x: layers.doubling(x, 'up', 2)))
  w, b, x = RNG.normal(size=(2, 2, 3, 2)), RNG.normal(size=2), RNG.normal(size=(1, 2, 3, 3))
  expected = np.zeros((1, 4, 6, 2))
  for i, j, a, c in np.ndindex(2, 3, 2, 2):
    expected[0, 2 * i + a, 2 * j + c] = x[0, i, j] @ w[a, c] + b
  np.testing.assert_allclose(network.apply({'up': {'w': w, 'b': b}}, jnp.asarray(x)), expected, atol=1e-12)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', NETWORKS)
def test_every_form_equals_vmap_of_the_plain_network(name):
  """Values, and the gradients of all parameters, with weights of each example's own."""
  phi = init(name, jnp.float64)
  betas = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(1).normal(0, 0.05, (2, *p.shape))), phi)
  keys, images = jax.random.split(KEY, 2), jnp.asarray(IMAGES)
  weights = np.random.default_rng(2).normal(size=IMAGES.shape)

  @jax.jit
  def run(betas):
    def plain(beta, image, key):
      moved = jax.tree.map(jnp.add, phi, beta)
      return make(name, conv=per_example_conv.conv).apply(moved, image[None], jax.random.fold_in(key, 2))[0]

    out, pull = jax.vjp(lambda betas: jax.vmap(plain)(betas, images, keys), betas)
    results = {'vmap of plain': (out, pull(weights)[0])}
    for impl in ('map', 'im2col'):
      ball = attacks.weight_ball(make(name).apply, nu=0.1, impl=impl, noisy=True)
      out, pull = jax.vjp(lambda betas, ball=ball: ball.apply_batch(phi, images, betas, keys), betas)
      results[impl] = out, pull(weights)[0]
    return results

  results = run(betas)
  expected = results.pop('vmap of plain')
  assert np.std(expected[0]) > 1e-3
  for got in results.values():
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), got, expected)
  gradients = {module: max(np.abs(g).max() for g in layer.values()) for module, layer in expected[1].items()}
  assert {module for module, largest in gradients.items() if largest == 0} <= {CODEBOOK}


@pytest.mark.parametrize('name', [name for name in NETWORKS if name != 'edsr'])
def test_other_sizes_are_reflected_and_cut_back(name):
  network, phi = make(name), init(name)
  images = np.float32(IMAGES)[:, :13, :11]
  reflected = np.pad(images, ((0, 0), (0, 3), (0, 1), (0, 0)), mode='reflect')
  apply = jax.jit(network.apply)
  np.testing.assert_allclose(apply(phi, images, KEY), apply(phi, reflected, KEY)[:, :13, :11], atol=1e-6)


# Quantisers.


def test_bits_of_the_cae_are_drawn_by_key_and_rounded_without():
  phi, images = init('cae', scale=3.0), np.float32(IMAGES)
  drawn = jax.jit(make('cae').apply)
  first, again, other = (np.asarray(drawn(phi, images, jax.random.key(seed))) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  with pytest.raises(ValueError, match='PRNGKey'):
    make('cae').apply(phi, images)
  rounded = jax.jit(make('cae', deterministic=True).apply)
  np.testing.assert_array_equal(rounded(phi, images), rounded(phi, images, jax.random.key(5)))


def test_bits_have_the_mean_of_the_encoder_and_its_gradient():
  """With the encoder's last layer a constant z = tanh(b), all bits are +1 with probability (1 + z) / 2."""
  phi = init('cae')
  phi['cae/e_conv_3'] = {'w': 0 * phi['cae/e_conv_3']['w'], 'b': jnp.full(32, 0.5)}
  bits = []

  def spy(x, w, **options):
    if w.shape == (3, 3, 32, 2):
      bits.append(x)
    return per_example_conv.conv(x, w, **options)

  images = jnp.zeros((40, 32, 32, 3))
  cae(features=2, conv=spy).apply(phi, images, KEY)
  values = np.asarray(bits[0])
  assert set(np.unique(values)) == {-1.0, 1.0}
  assert values.mean() == pytest.approx(np.tanh(0.5), abs=4 / np.sqrt(values.size))

  def sum_of_bits(b):
    bits.clear()
    moved = phi | {'cae/e_conv_3': {'w': phi['cae/e_conv_3']['w'], 'b': b}}
    cae(features=2, conv=spy).apply(moved, images[:1], KEY)
    return bits[0].sum()

  gradient = jax.grad(sum_of_bits)(phi['cae/e_conv_3']['b'])
  np.testing.assert_allclose(gradient, 64 * (1 - np.tanh(0.5) ** 2), rtol=1e-5)


def test_the_nearest_code_is_taken():
  latents, codebook = RNG.normal(size=(3, 4, 2)), RNG.normal(size=(7, 2))
  quantised, indices = quantise(jnp.asarray(latents), jnp.asarray(codebook))
  expected = np.linalg.norm(latents[..., None, :] - codebook, axis=-1).argmin(-1)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_allclose(quantised, codebook[expected], rtol=1e-6)


def test_gradients_pass_the_codes_and_leave_the_codebook_alone():
  phi, images = init('vqvae', scale=2.0), jnp.float32(IMAGES)
  loss = lambda phi: jnp.sin(3 * vqvae(features=2, codes=5, native=False).apply(phi, images).images).sum()
  gradient = jax.jit(jax.grad(loss))(phi)
  assert not np.any(gradient[CODEBOOK]['codebook'])
  assert np.any(gradient['vqvae/down_0']['w'])


@pytest.mark.parametrize(
  'name, weights, similarity, ratio',
  [
    ('edsr', 'edsr_4x16_x1', 0.97, 30),
    ('cae', 'cae_16', 0.75, 22),
    ('unet', 'unet_16', 0.99, 45),
    ('vqvae', 'vqvae_16x512', 0.75, 23),
  ],
)
def test_shipped_weights_give_images_back(name, weights, similarity, ratio):
  """On test images that no pretraining saw; `ratio` is the PSNR in dB."""
  network, phi = corruption_nets.load(name, weights)
  images = datasets.load('embedded', 'test', '').read(np.arange(64)).images.astype(np.float32) / 255
  restored = np.asarray(jax.jit(network.apply)(phi, images, KEY))
  assert float(ssim(images, restored).mean()) >= similarity
  assert np.mean(-10 * np.log10(((images - restored) ** 2).mean((1, 2, 3)))) >= ratio
  assert corruption_nets.find(weights).stat().st_size < 1.5e6


# In the attack.


@functools.cache
def attack_of(name, num_devices):
  network, phi = make(name), init(name, scale=2.0)
  ball = attacks.weight_ball(network.apply, nu=0.05, noisy=True)
  images = jnp.float32(np.random.default_rng(4).uniform(size=(8, 12, 12, 3)))
  head = jnp.float32(np.random.default_rng(5).normal(size=(12 * 12 * 3, 4)))
  keys, labels = jax.random.split(KEY, 8), jnp.arange(8) % 4
  logits_fn = lambda images: images.reshape(len(images), -1) @ head

  def climb(keys, images, labels, phi):
    return ascend(ball, keys, logits_fn, images, labels, phi, num_steps=2, step=STEPS['sign'], step_fraction=0.25)

  if num_devices > 1:
    mesh = jax.make_mesh(
      (num_devices,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:num_devices]
    )
    of = jax.sharding.PartitionSpec
    climb = jax.shard_map(
      climb, mesh=mesh, in_specs=(of('data'), of('data'), of('data'), of()), out_specs=of('data'), check_vma=False
    )
  return jax.device_get(jax.jit(climb)(keys, images, labels, phi)), phi, ball.radii(phi)


@pytest.mark.parametrize('name', NETWORKS)
def test_two_steps_of_attack_raise_the_loss_within_the_balls(name):
  ascent, phi, radii = attack_of(name, 1)
  assert ascent.loss_end.sum() > ascent.loss_start.sum()
  assert (ascent.loss_end > ascent.loss_start).mean() >= 0.5
  assert (ascent.gradient_norm > 0).all()
  assert ascent.images.min() >= 0
  assert ascent.images.max() <= 1
  norms = jax.vmap(trees.block_norms)(ascent.perturbations)
  for module, layer in phi.items():
    for block, value in layer.items():
      found = np.asarray(norms[module][block])
      if block == 'codebook':
        assert not found.any()
        assert radii[module][block] == 0
      else:
        assert found.max() <= 0.05 * np.linalg.norm(value) * (1 + 1e-6), (module, block)
        assert found.min() > 0, (module, block)


@pytest.mark.parametrize(
  'name', ['edsr', 'cae', *(pytest.param(name, marks=pytest.mark.slow) for name in ('unet', 'vqvae'))]
)
def test_the_attack_on_8_devices_is_that_on_1(name):
  one, eight = attack_of(name, 1)[0], attack_of(name, 8)[0]
  np.testing.assert_allclose(eight.loss_start, one.loss_start, rtol=1e-4)
  np.testing.assert_allclose(eight.loss_end, one.loss_end, rtol=1e-3)
  assert (eight.gradient_norm > 0).all()
