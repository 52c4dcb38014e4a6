"""AugMix: the operations against Pillow, the laws of its draws, and the mixture written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest
import scipy.stats

from adversarial_augment import augmentations
from adversarial_augment.augmentations import augmix_ops
from adversarial_augment.augmentations.augmix import ALL_OPS, OPS, Draws, draw, jensen_shannon, mix
from adversarial_augment.datasets import photographs

pytestmark = pytest.mark.usefixtures('quick_compile')

AUGMIX, AUGMIX_ALL_OPS = augmentations.AUGMENTATIONS['augmix'], augmentations.AUGMENTATIONS['augmix_all_ops']


def natural(height=32, width=32, num=4):
  """Crops of photographs."""
  whole = photographs.load()[0][1]
  return [whole[60 * i : 60 * i + height, 80 * i : 80 * i + width] for i in range(num)]


def random_images(height=32, width=32):
  """Noise over several ranges of levels, and images of one level."""
  rng = np.random.default_rng(0)
  ranges = [(0, 256), (3, 90), (100, 230), (5, 8), (0, 2), (1, 256), (0, 255)]
  noise = [rng.integers(low, high, (height, width, 3), dtype=np.uint8) for low, high in ranges]
  return noise + [np.full((height, width, 3), level, np.uint8) for level in (0, 7, 128, 255)]


def both(ours, pillows, images, *arguments):
  """Returns what we and Pillow make of images, as integers."""
  ours = jax.jit(ours)
  a = np.stack([ours(jnp.asarray(image, jnp.int32), *arguments) for image in images])
  b = np.stack([np.asarray(pillows(Image.fromarray(image)), np.int32) for image in images])
  return a, b


@pytest.mark.parametrize('size', [(32, 32), (33, 47)])
@pytest.mark.parametrize('name', ['autocontrast', 'equalize', 'posterize', 'solarize'])
def test_operations_on_levels_are_those_of_pillow_bit_for_bit(name, size):
  arguments = {'posterize': (3, 4), 'solarize': (180, 201, 254, 256)}.get(name, ((),))
  for value in arguments:
    values = () if value == () else (value,)
    pillows = lambda image, values=values: getattr(ImageOps, name)(image, *values)
    a, b = both(getattr(augmix_ops, name), pillows, random_images(*size) + natural(*size), *values)
    np.testing.assert_array_equal(a, b)


def test_autocontrast_is_that_of_pillow_for_every_pair_of_extremes():
  """Also where Pillow's float64 falls short of a whole level, so that the brightest level becomes 254."""
  low, high = np.triu_indices(256, 1)
  ours = jax.jit(jax.vmap(augmix_ops.autocontrast))
  for part in np.array_split(np.arange(low.size), 8):
    steps = np.linspace(low[part], high[part], 36).round().astype(np.int32)
    images = steps.T.reshape(-1, 6, 6, 1)
    lows, highs = (edge[part].reshape(-1, 1, 1, 1) for edge in (low, high))
    scale = 255.0 / (highs - lows)
    expected = (images * scale + -lows * scale).astype(np.int64).clip(0, 255)  # as Pillow's source has it
    np.testing.assert_array_equal(ours(jnp.asarray(images)), expected)
  image = np.linspace(3, 51, 1024).round().astype(np.uint8).reshape(32, 32, 1).repeat(3, -1)
  a, b = both(augmix_ops.autocontrast, ImageOps.autocontrast, [image])
  np.testing.assert_array_equal(a, b)


def affine(matrix):
  return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


SLOPES, PIXELS = [-0.09, -0.031, 0.003, 0.0871], [-3.0, -1.0, 0.0, 2.0]
AFFINE = {
  'rotate': (range(-9, 10), lambda v: lambda image: image.rotate(v, resample=Image.Resampling.BILINEAR)),
  'shear_x': (SLOPES, lambda v: affine((1, v, 0, 0, 1, 0))),
  'shear_y': (SLOPES, lambda v: affine((1, 0, 0, v, 1, 0))),
  'translate_x': (PIXELS, lambda v: affine((1, 0, v, 0, 1, 0))),
  'translate_y': (PIXELS, lambda v: affine((1, 0, 0, 0, 1, v))),
}


@pytest.mark.parametrize('size', [(32, 32), (40, 33)])
@pytest.mark.parametrize('name', AFFINE)
def test_resampling_is_within_a_level_of_pillow(name, size):
  values, pillows = AFFINE[name]
  images = [random_images(*size)[0], random_images(*size)[-1], natural(*size)[1]]
  ours = jax.jit(getattr(augmix_ops, name))
  for value in values:
    a, b = both(ours, pillows(float(np.float32(value))), images, jnp.float32(value))
    assert np.abs(a - b).max() <= 1
    assert (a != b).mean() < 2e-3
    if value:
      assert (a[0] != images[0]).any()


@pytest.mark.parametrize('name', ['color', 'contrast', 'brightness', 'sharpness'])
def test_enhancements_are_within_a_level_of_pillow(name):
  images = [random_images()[0], random_images()[3], natural()[2]]
  ours = jax.jit(getattr(augmix_ops, name))
  for factor in (0.118, 0.4, 0.64):
    pillows = lambda image, factor=factor: getattr(ImageEnhance, name.capitalize())(image).enhance(factor)
    a, b = both(ours, pillows, images, jnp.float32(factor))
    assert np.abs(a - b).max() <= 1


@functools.cache
def many_draws(num_ops=9):
  keys = jax.random.split(jax.random.key(3), 4000)
  return jax.device_get(jax.jit(jax.vmap(lambda key: draw(key, num_ops)))(keys))


@pytest.mark.parametrize('num_ops', [9, 13])
def test_operations_and_depths_are_equally_frequent(num_ops):
  draws = many_draws(num_ops)
  counts = np.bincount(draws.ops.ravel())
  assert counts.size == num_ops
  assert scipy.stats.chisquare(counts).pvalue > 1e-3
  depths = np.bincount(draws.depths.ravel())
  assert depths[0] == 0
  assert depths.size == 4
  assert scipy.stats.chisquare(depths[1:]).pvalue > 1e-3


def test_levels_weights_and_shares_have_their_laws():
  draws = many_draws()
  uniform = lambda values, low, high: scipy.stats.kstest(values, 'uniform', (low, high - low)).pvalue
  assert uniform(np.abs(draws.levels).ravel(), 0.1, 3.0) > 1e-3
  assert scipy.stats.binomtest(int((draws.levels > 0).sum()), draws.levels.size).pvalue > 1e-3
  # Each weight of Dirichlet(1, 1, 1) is Beta(1, 2); two of them sum to Beta(2, 1).
  np.testing.assert_allclose(draws.weights.sum(1), 1, atol=1e-6)
  for i in range(3):
    assert scipy.stats.kstest(draws.weights[:, i], 'beta', (1, 2)).pvalue > 1e-3
    assert scipy.stats.kstest(1 - draws.weights[:, i], 'beta', (2, 1)).pvalue > 1e-3
  assert scipy.stats.kstest(draws.share, 'beta', (1, 1)).pvalue > 1e-3
  columns = np.concatenate([draws.levels.reshape(4000, -1), draws.weights[:, :2], draws.share[:, None]], 1)
  correlations = np.corrcoef(columns.T) - np.eye(columns.shape[1])
  correlations[9, 10] = correlations[10, 9] = 0  # two weights of one image
  assert np.abs(correlations).max() < 0.07


@pytest.mark.parametrize(
  'index, name, level, value',
  [
    *((2, 'posterize', level, bits) for level, bits in ((0.1, 4), (2.49, 4), (-2.51, 3), (3.0, 3))),
    *((4, 'solarize', level, threshold) for level, threshold in ((0.1, 254), (-1.0, 231), (3.0, 180))),
    *((3, 'rotate', sign * 2.9, sign * 8) for sign in (1, -1)),  # int(2.9 * 30 / 10)
    *((5, 'shear_x', sign * 2.9, sign * 0.087) for sign in (1, -1)),
    *((6, 'shear_y', sign * 2.9, sign * 0.087) for sign in (1, -1)),
    *((7, 'translate_x', sign * 2.9, sign * 4) for sign in (1, -1)),  # int(2.9 * 48 / 3 / 10)
    *((8, 'translate_y', sign * 2.9, sign * 3) for sign in (1, -1)),  # int(2.9 * 32 / 3 / 10)
    *((9, 'color', sign * 2.9, 0.622) for sign in (1, -1)),
    *((10, 'contrast', sign * 2.9, 0.622) for sign in (1, -1)),
    *((11, 'brightness', sign * 2.9, 0.622) for sign in (1, -1)),
    *((12, 'sharpness', sign * 2.9, 0.622) for sign in (1, -1)),
  ],
)
def test_levels_set_what_the_operations_do(monkeypatch, index, name, level, value):
  """And whether the sign of a level is a direction."""
  seen = []
  monkeypatch.setattr(augmix_ops, name, lambda image, value: seen.append(float(value)))
  ALL_OPS[index](jnp.zeros((32, 48, 3), jnp.int32), jnp.float32(level))
  assert seen == pytest.approx([value], rel=0 if isinstance(value, int) else 1e-6)


def test_the_mixture_is_the_weighted_mean_of_chains_and_image():
  image = natural()[0] / np.float32(255) + np.float32(0.001)  # the levels are rounded, the image's own term is not
  draws = Draws(
    ops=jnp.array([[4, 7, 0], [8, 0, 0], [4, 4, 2]]),
    levels=jnp.array([[3.0, -2.0, 1.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]]),
    depths=jnp.array([2, 1, 3]),
    weights=jnp.array([0.5, 0.2, 0.3]),
    share=jnp.float32(0.6),
  )
  levels = natural()[0].astype(int)
  solarized = np.where(levels < 180, levels, 255 - levels)
  first = np.zeros_like(levels)
  first[:, 2:] = solarized[:, :-2]  # int(-2 * 32 / 3 / 10) = -2 moves to the right
  second = np.zeros_like(levels)
  second[:-1] = levels[1:]
  third = np.where(solarized < 180, solarized, 255 - solarized) // 32 * 32
  chains = (0.5 * first + 0.2 * second + 0.3 * third) / 255
  np.testing.assert_allclose(mix(draws, jnp.asarray(image)), 0.4 * image + 0.6 * chains, atol=1e-6)
  untouched = mix(draws._replace(share=jnp.float32(0)), jnp.asarray(image))
  np.testing.assert_array_equal(untouched, image)


def batch(num=6, height=32, width=32):
  images = np.random.default_rng(1).random((num, height, width, 3), np.float32)
  return jax.random.split(jax.random.key(5), num), jnp.asarray(images)


@pytest.mark.parametrize('augment, size', [(AUGMIX, (40, 33)), (AUGMIX_ALL_OPS, (32, 32))], ids=['nine', 'all'])
def test_every_image_has_a_key_of_its_own(augment, size):
  keys, images = batch(6, *size)
  run = jax.jit(jax.vmap(augment))
  mixed = np.asarray(run(keys, images))
  assert mixed.shape == images.shape
  assert mixed.dtype == np.float32
  assert mixed.min() >= 0
  assert mixed.max() <= 1
  rows = np.array([4, 1])
  np.testing.assert_array_equal(run(keys[rows], images[rows]), mixed[rows])
  same_image = np.asarray(run(keys, jnp.broadcast_to(images[:1], images.shape)))
  assert len({image.tobytes() for image in same_image}) == 6


def test_the_form_for_accelerators_gives_the_same_images():
  keys, images = batch(12)
  picked = jax.jit(jax.vmap(lambda key, image: mix(draw(key, len(OPS)), image)))(keys, images)
  difference = np.abs(np.asarray(picked) - jax.jit(jax.vmap(AUGMIX))(keys, images))
  assert difference.max() <= 1.01 / 255
  assert np.median(difference) < 1e-6


@pytest.mark.usefixtures('x64')
def test_float64_images_stay_float64_and_the_draws_the_same():
  keys, images = batch(8)
  run = jax.jit(jax.vmap(AUGMIX_ALL_OPS))
  precise = run(keys, images.astype(jnp.float64))
  assert precise.dtype == jnp.float64
  with jax.enable_x64(False):
    expected = run(keys, images)
  np.testing.assert_allclose(precise, expected, rtol=0, atol=1e-6)


# -- the loss


def test_views_that_agree_have_no_divergence_and_opposite_ones_that_of_three_sides():
  logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (5, 1, 10)), jnp.float32)
  np.testing.assert_allclose(jensen_shannon(jnp.tile(logits, (1, 3, 1))), 0, atol=1e-6)
  certain = 200 * jnp.eye(10)[None, :3]  # three views, each sure of another class
  np.testing.assert_allclose(jensen_shannon(certain), np.log(3), rtol=1e-5)


def test_the_divergence_is_the_mean_of_scipys_and_symmetric():
  logits = np.random.default_rng(1).normal(0, 4, (50, 3, 10))
  p = scipy.special.softmax(logits, -1)
  expected = scipy.special.rel_entr(p, p.mean(1, keepdims=True)).sum(-1).mean(1)
  found = np.asarray(jensen_shannon(jnp.asarray(logits, jnp.float32)))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  assert (found <= np.log(3)).all()
  assert found.min() > 0
  np.testing.assert_allclose(jensen_shannon(jnp.asarray(logits[:, [2, 0, 1]], jnp.float32)), found, rtol=1e-4)


def test_the_mixture_is_kept_from_zero():
  """Where all views are sure, its other probabilities count as 1e-7, and no gradient is infinite."""
  logits = jnp.array([[[0.0, -200.0], [0.0, -200.0], [0.0, -18.0]]])
  tiny = float(np.exp(-18))  # of the mixture a third: below 1e-7
  expected = tiny * (-18 - np.log(1e-7)) / 3
  np.testing.assert_allclose(jensen_shannon(logits)[0], expected, rtol=0.05, atol=1e-9)
  assert np.isfinite(jax.grad(lambda x: jensen_shannon(x).sum())(logits)).all()
