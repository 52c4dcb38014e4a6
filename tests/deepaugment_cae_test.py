"""DeepAugment's damage to the CAE: each option against the published tables, and what is done to the latent image."""

import collections
import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adversarial_augment import corruption_nets, per_example_conv
from adversarial_augment.deepaugment import cae_features, cae_weights, kernels
from tests import deepaugment_oracle

RARE = 1e-3  # a p-value below is a failure; seeds are fixed
SHAPES = [  # of the published file: PyTorch's order, transposed convolutions [in, out, height, width]
  *[(64, 3, 5, 5), (128, 64, 5, 5)],
  *[(128, 128, 3, 3)] * 6,
  *[(32, 128, 5, 5), (64, 32, 3, 3), (64, 128, 2, 2)],
  *[(128, 128, 3, 3)] * 6,
  *[(32, 128, 3, 3), (32, 256, 2, 2), (16, 256, 3, 3), (3, 16, 3, 3)],
]
TRANSPOSED = (10, 18)
LAYERS = {0: range(11, 16), 3: range(10, 14)}


def generator(seed: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(seed))


@pytest.fixture(scope='module')
def published() -> list[list[np.ndarray]]:
  """Random weights of the published network; not to be changed."""
  rng, layers = np.random.default_rng(0), []
  for i, shape in enumerate(SHAPES):
    biases = shape[1] if i in TRANSPOSED else shape[0]
    layers.append([rng.normal(size=size).astype(np.float32) for size in (shape, (biases,))])
  return layers


def ours(published) -> kernels.Params:
  params = {}
  for i, (kernel, bias) in enumerate(published):
    axes = (2, 3, 0, 1) if i in TRANSPOSED else (2, 3, 1, 0)
    params[f'cae/{cae_weights.LAYERS[i]}'] = {'w': kernel.transpose(axes).copy(), 'b': bias.copy()}
  return params


def tiny() -> kernels.Params:
  rng = np.random.default_rng(1)
  draw = lambda shape: (rng.normal(size=shape) / np.sqrt(9 * shape[0])).astype(np.float32)
  shapes = corruption_nets.shapes('cae', {'features': 4})
  return {module: {name: draw(shape) for name, shape in layer.items()} for module, layer in shapes.items()}


def assert_equal(found: kernels.Params, expected: kernels.Params) -> None:
  assert found.keys() == expected.keys()
  for module, layer in found.items():
    for name, array in layer.items():
      assert array.dtype == np.float32
      np.testing.assert_allclose(array, expected[module][name], rtol=1e-5, atol=1e-6, err_msg=f'{module}/{name}')


def test_layers_are_those_of_the_published_network(published):
  shapes = corruption_nets.shapes('cae', {'features': 64})
  assert {
    module: {name: array.shape for name, array in layer.items()} for module, layer in ours(published).items()
  } == (shapes)


@pytest.mark.parametrize('option', range(9))
def test_option_is_that_of_the_table(published, option):
  for i in LAYERS.get(option, range(8, 14)):
    j = 21 - i  # 8 to 13
    weights = cae_weights.Weights(ours(published))
    cae_weights.OPTIONS[option][0](weights, generator(i), i, j, True)
    expected = copy.deepcopy(published)
    deepaugment_oracle.cae(option, expected, i, j, generator(i))
    assert any((a != b).any() for a, b in zip(expected[i], published[i], strict=True))
    assert_equal(weights.params, ours(expected))


def test_bugs_and_what_was_meant(published):
  for bug_compatible in (True, False):
    weights = cae_weights.Weights(ours(published))
    cae_weights.OPTIONS[0][0](weights, generator(0), 11, 13, bug_compatible)
    second = weights.get(13)[0]
    np.testing.assert_array_equal(second, published[13][0] if bug_compatible else published[13][0][::-1])
    weights = cae_weights.Weights(ours(published))
    cae_weights.OPTIONS[4][0](weights, generator(0), 11, 13, bug_compatible)
    factors = np.concatenate([(weights.get(i)[0] / published[i][0]).ravel() for i in (11, 13)])
    low, high = (1, 9) if bug_compatible else (-1, 7)
    assert low - 1e-4 <= factors.min()
    assert factors.max() <= high + 1e-4
    assert (factors.min() < 0.99) != bug_compatible


@pytest.mark.parametrize('bug_compatible', [True, False])
def test_options_and_layers_are_drawn_uniformly(monkeypatch, bug_compatible):
  drawn = []
  record = lambda number: lambda weights, rng, i, j, bug_compatible: drawn.append((number, i, j))
  ranges = [layers for _, layers in cae_weights.OPTIONS]
  assert ranges == [LAYERS.get(option, range(8, 14)) for option in range(9)]
  monkeypatch.setattr(cae_weights, 'OPTIONS', tuple((record(k), layers) for k, layers in enumerate(ranges)))
  rng = generator(5)
  for _ in range(2000):
    cae_weights.distort(tiny(), rng, bug_compatible)
  counts = collections.Counter(number for number, _, _ in drawn)
  assert counts.keys() == set(range(8 if bug_compatible else 9))
  assert stats.chisquare(list(counts.values())).pvalue > RARE
  pairs = collections.Counter((i, j) for number, i, j in drawn if number not in LAYERS)
  assert pairs.keys() == {(i, j) for i in range(8, 14) for j in range(8, 14)}
  assert stats.chisquare(list(pairs.values())).pvalue > RARE


def test_pristine_weights_stay_as_they_are():
  params = tiny()
  before = copy.deepcopy(params)
  for seed in range(60):
    damaged = cae_weights.distort(params, generator(seed), bool(seed % 2))
    assert all(np.isfinite(array).all() for layer in damaged.values() for array in layer.values())
  assert_equal(params, before)


Z = np.random.default_rng(0).uniform(-1, 1, (1, 6, 5, 32)).astype(np.float32)


def damaged(option: int, n: int = 60) -> np.ndarray:
  """Returns n latent images after one kind of damage, [n, 6, 5, 32]."""
  damage = lambda key: cae_features.damage(jnp.asarray(option), key, jnp.asarray(Z), per_example_conv.conv)[0]
  return np.asarray(jax.jit(jax.vmap(damage))(jax.random.split(jax.random.key(option), n)))


def test_spatial_mask_and_sign():
  np.testing.assert_array_equal(damaged(0, 2), np.repeat(Z, 2, 0))
  for option, value, probability in ((1, 0, 0.2), (2, -Z[0], 0.1)):
    found = damaged(option)
    changed = (found != Z).any(3)
    np.testing.assert_array_equal(found, np.where(changed[..., None], value, Z))
    assert changed.mean() == pytest.approx(probability, abs=0.03)


def test_permutation_of_the_first_ten_channels():
  found = damaged(3)
  np.testing.assert_array_equal(found[..., 10:], np.repeat(Z[..., 10:], 60, 0))
  orders = [tuple(int(abs(Z[0] - y[..., c : c + 1]).sum((0, 1)).argmin()) for c in range(10)) for y in found]
  assert all(sorted(order) == list(range(10)) for order in orders)
  assert len(set(orders)) == 60


@pytest.mark.parametrize('option, most', [(4, 5), (5, 32)])
def test_mirrored_channels(option, most):
  ways = {'height': Z[0, ::-1], 'width': Z[0, :, ::-1], 'both': Z[0, ::-1, ::-1]}
  counts = collections.Counter()
  for y in damaged(option, 200):
    changed = (y != Z[0]).any((0, 1))
    assert changed.sum() == 32 if most == 32 else changed.sum() in (1, 3, 5)  # what is drawn twice is mirrored back
    counts += collections.Counter(name for name, way in ways.items() if (y == np.where(changed, way, Z[0])).all())
  assert counts.total() == 200
  assert stats.chisquare(list(counts.values())).pvalue > RARE


def shifted(z: np.ndarray, row: int, column: int) -> np.ndarray:
  """What a kernel with a 1 at this tap gives of [h, w]."""
  h, w = z.shape
  return np.pad(z, 1)[row : row + h, column : column + w]


def test_noisy_identity():
  noise = damaged(6) - Z
  taps = np.stack([[shifted(Z[0, :, :, c], a, b) for a in range(3) for b in range(3)] for c in range(32)])
  # Each output is the sum of 288 values times uniform ones in (-.1, .1).
  assert noise.std() == pytest.approx(0.1 / np.sqrt(3) * np.sqrt((taps**2).sum((0, 1)).mean()), rel=0.05)
  assert abs(noise.mean()) < 0.02


def test_extra_taps():
  candidates = np.stack([
    shifted(Z[0, :, :, c], a, b) for c in range(32) for a in range(3) for b in range(3)
  ])  # fmt: skip
  extra = damaged(7, 20) - Z
  used = collections.Counter()
  without = 0
  for y in extra:
    for c in range(32):
      if abs(y[..., c]).max() < 1e-6:
        without += 1
        continue
      distance = abs(candidates - y[..., c]).max((1, 2))
      assert distance.min() < 1e-5
      used[int(distance.argmin()) % 9] += 1
  assert without == pytest.approx(320, abs=60)
  assert used.keys() == set(range(9))
  assert stats.chisquare(list(used.values())).pvalue > RARE


def test_shifts():
  anew, total, used = 0, 0, collections.Counter()
  for y in damaged(8, 40):
    taps = []
    for c in range(32):
      match = [(a, b) for a in range(3) for b in range(3) if abs(y[..., c] - shifted(Z[0, :, :, c], a, b)).max() < 1e-6]
      assert len(match) == 1
      taps += match
    used[taps[0]] += 1
    anew += sum(a != b for a, b in zip(taps[1:], taps[:-1], strict=True))
    total += 31
  assert anew / total == pytest.approx(0.2 * 8 / 9, abs=0.035)
  assert len(used) > 6


@pytest.mark.parametrize('bug_compatible, low, high', [(True, 3, 7), (False, 1, 5)])
def test_factors_of_the_bits(bug_compatible, low, high):
  factors = jax.vmap(lambda key: cae_features._factors(key, (1, 4, 4, 8), bug_compatible))
  found = np.asarray(factors(jax.random.split(jax.random.key(0), 100)))
  assert low <= found.min() < low + 0.2
  assert high - 0.5 < found.max() <= high
  assert found.reshape(100, -1).std(1).max() > 0.5, 'one factor for each bit, not for each image'


@pytest.mark.parametrize('size', [(16, 12), (13, 10)])
def test_undamaged_image_is_that_of_the_network(monkeypatch, size):
  certain = lambda option, key, z, conv: 1e3 * jnp.sign(z)  # no bit is left to chance
  monkeypatch.setattr(cae_features, 'damage', certain)
  monkeypatch.setattr(cae_features, '_factors', lambda key, shape, bug_compatible: jnp.ones(shape))
  params = tiny()
  network = corruption_nets.CORRUPTION_NETS['cae'](features=4, deterministic=True, native=False)
  image = np.random.default_rng(2).random((*size, 3), np.float32)
  found = cae_features.apply(params, jnp.asarray(255 * image), jax.random.key(0), bug_compatible=True)
  expected = 255 * network.apply(params, jnp.asarray(image)[None])[0]
  assert abs(expected).max() > 1
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
