"""DeepAugment's damage to features: EDSR's before and inside its body, and the CAE's latent image."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adversarial_augment import corruption_nets, per_example_conv
from adversarial_augment.deepaugment import features
from tests import deepaugment_oracle

RARE = 1e-3  # a p-value below is a failure; seeds are fixed


# EDSR.


def keys(n: int) -> jax.Array:
  return jax.random.split(jax.random.key(0), n)


def module(x, i):
  return 0.9 * x + 0.1 * (i + 1)


def chain(x, numbers):
  for i in numbers:
    x = module(x, i)
  return x


def expected_bodies(x: np.ndarray) -> dict[str, np.ndarray]:
  five = chain(x, range(5))
  gelu = deepaugment_oracle.gelu(five)
  after = {
    'none': five,
    'negate': -five,
    'relu': np.maximum(five, 0),
    'gelu': gelu,
    'height': five[:, ::-1, :, ::-1],
    'width': five[:, :, ::-1, ::-1],
  }
  outputs = {name: chain(y, range(5, 17)) for name, y in after.items()}
  return outputs | {f'last {i}': module(x, i) for i in (16, 15, 14, 13)}


def test_body():
  x = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
  body = jax.jit(jax.vmap(lambda key: features._body(key, jnp.asarray(x), module, 16, True)))
  found = np.asarray(body(keys(3000)))
  names, outputs = zip(*expected_bodies(x).items(), strict=True)
  distance = abs(found[:, None] - np.stack(outputs)[None]).max((2, 3, 4, 5))
  assert distance.min(1).max() < 1e-5
  counts = collections.Counter(np.array(names)[distance.argmin(1)].tolist())
  skips = {16: (14 / 15) ** 3, 15: (14 / 15) ** 3 - (13 / 15) ** 3}
  law = {'none': 3, 'negate': 3, 'relu': 1, 'gelu': 2, 'height': 1, 'width': 2}
  law = {name: parts / 15 for name, parts in law.items()} | {f'last {i}': p / 5 for i, p in skips.items()}
  rest = counts['last 14'] + counts['last 13']
  expected = [3000 * p for p in law.values()] + [3000 * (1 - sum(skips.values())) / 5]
  assert stats.chisquare([*(counts[name] for name in law), rest], expected).pvalue > RARE


def test_body_as_it_was_meant_skips_modules():
  x = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
  body = jax.jit(jax.vmap(lambda key: features._body(key, jnp.asarray(x), module, 16, False)))
  found = np.asarray(body(keys(400)))
  others = [output for name, output in expected_bodies(x).items() if not name.startswith('last')]
  skipping = [y for y in found if min(abs(y - other).max() for other in others) > 1e-5]
  assert 50 < len(skipping) < 110  # a fifth
  sets = {frozenset((i, j, k)) for i in range(2, 17) for j in range(i, 17) for k in range(j, 17)}
  chains = np.stack([chain(x, [i for i in range(17) if i not in skipped]) for skipped in sets])
  assert all(abs(chains - y).max((1, 2, 3, 4)).min() < 1e-5 for y in skipping)


@pytest.mark.parametrize('bug_compatible', [True, False])
def test_before_body(bug_compatible):
  x = np.random.default_rng(0).normal(size=(1, 4, 4, 64)).astype(np.float32)
  before = jax.jit(jax.vmap(lambda key: features._before_body(key, jnp.asarray(x), bug_compatible)))
  counts, dropped, negated = collections.Counter(), [], []
  for y in np.asarray(before(keys(800))):
    if (y == x).all():
      counts['none'] += 1
    elif ((y == x) | (y == 0)).all():
      counts['mask'] += 1
      dropped.append((y == 0).mean())
    elif ((y == x) | (y == -x)).all():
      counts['sign'] += 1
      negated.append((y != x).mean())
    else:
      counts['swap'] += 1
      moved = (y != x).any((0, 1, 2)).sum()
      assert moved <= (5 if bug_compatible else 10)
      sources = [int(np.argmin(abs(x - y[..., c : c + 1]).sum((0, 1, 2)))) for c in range(64)]
      np.testing.assert_array_equal(y, x[..., sources])
      assert (len(set(sources)) < 64) == bug_compatible, 'a swap loses no channel, a copy does'
  assert np.mean(dropped) == pytest.approx(0.05, abs=0.003)
  assert np.mean(negated) == pytest.approx(0.025, abs=0.002)
  assert stats.chisquare([counts[name] for name in ('none', 'mask', 'sign', 'swap')]).pvalue > RARE


# CAE.


Z = np.random.default_rng(0).uniform(-1, 1, (1, 6, 5, 32)).astype(np.float32)


def damaged(option: int, n: int = 60) -> np.ndarray:
  """Returns n latent images after one kind of damage, [n, 6, 5, 32]."""
  damage = lambda key: features.damage_latents(jnp.asarray(option), key, jnp.asarray(Z), per_example_conv.conv)[0]
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
  factors = jax.vmap(lambda key: features._factors(key, (1, 4, 4, 8), bug_compatible))
  found = np.asarray(factors(jax.random.split(jax.random.key(0), 100)))
  assert low <= found.min() < low + 0.2
  assert high - 0.5 < found.max() <= high
  assert found.reshape(100, -1).std(1).max() > 0.5, 'one factor for each bit, not for each image'


# Without damage.


@pytest.mark.parametrize('net, size', [('edsr', (8, 10)), ('cae', (16, 12)), ('cae', (13, 10))])
def test_undamaged_image_is_that_of_the_network(monkeypatch, net, size):
  in_order = lambda key, x, module, blocks, bug: module(module(module(x, 0), 1), 2)
  certain = lambda option, key, z, conv: 1e3 * jnp.sign(z)  # no bit is left to chance
  monkeypatch.setattr(features, '_before_body', lambda key, x, bug_compatible: x)
  monkeypatch.setattr(features, '_body', in_order)
  monkeypatch.setattr(features, 'damage_latents', certain)
  monkeypatch.setattr(features, '_factors', lambda key, shape, bug_compatible: jnp.ones(shape))
  params = deepaugment_oracle.params_of(net)
  options = deepaugment_oracle.SMALL[net] | ({'deterministic': True} if net == 'cae' else {})
  network = corruption_nets.CORRUPTION_NETS[net](**options, native=False)
  image = np.random.default_rng(2).random((*size, 3), np.float32)
  found = getattr(features, net)(params, jnp.asarray(255 * image), jax.random.key(0), bug_compatible=True)
  expected = 255 * network.apply(params, jnp.asarray(image)[None])[0]
  assert abs(expected).max() > 1
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
