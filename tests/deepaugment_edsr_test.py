"""DeepAugment's damage to EDSR: each option against the published tables, how often each is drawn, and the features."""

import collections
import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adversarial_augment import corruption_nets
from adversarial_augment.deepaugment import edsr_features, edsr_weights, kernels
from tests import deepaugment_oracle

RARE = 1e-3  # a p-value below is a failure; seeds are fixed
THIRDS = (0, 3, 6, 9)
FIRST = {
  **dict.fromkeys((0, 2, 3, 4, 5, 6, 7, 9), THIRDS),
  1: (1, 4, 7),
  8: (1, 5, 9),
  10: (1, 5, 9),
  11: tuple(range(15)),
}


def generator(seed: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(seed))


@pytest.fixture(scope='module')
def published() -> dict[str, np.ndarray]:
  """The body of the published network with random weights, in PyTorch's order; not to be changed."""
  rng = np.random.default_rng(0)
  shapes = {'weight': (64, 64, 3, 3), 'bias': (64,)}
  names = [(i, c, kind) for i in range(16) for c in (0, 2) for kind in shapes]
  return {f'body.{i}.body.{c}.{kind}': rng.normal(size=shapes[kind]).astype(np.float32) for i, c, kind in names}


def ours(published) -> kernels.Params:
  params = {}
  for i in range(16):
    for conv, c in enumerate((0, 2)):
      kernel, bias = (published[f'body.{i}.body.{c}.{kind}'] for kind in ('weight', 'bias'))
      params[f'edsr/block_{i}/conv_{conv}'] = {'w': kernel.transpose(2, 3, 1, 0).copy(), 'b': bias.copy()}
  return params


def tiny(blocks: int = 16, features: int = 4) -> kernels.Params:
  rng = np.random.default_rng(1)
  shapes = corruption_nets.shapes('edsr', {'blocks': blocks, 'features': features, 'scale': 2})
  return {
    module: {name: rng.normal(size=shape).astype(np.float32) for name, shape in layer.items()}
    for module, layer in shapes.items()
  }


@pytest.mark.parametrize('option', range(17))
def test_option_is_that_of_the_table(published, option):
  for seed in (0, 1):
    weights = edsr_weights.Weights(ours(published))
    edsr_weights.OPTIONS[option](weights, generator(seed), True)
    expected = copy.deepcopy(published)
    deepaugment_oracle.edsr(option, expected, generator(seed))
    assert any((expected[name] != published[name]).any() for name in published)
    expected = ours(expected)
    for module, layer in weights.params.items():
      for name, array in layer.items():
        assert array.dtype == np.float32
        assert array.shape == expected[module][name].shape
        np.testing.assert_allclose(array, expected[module][name], rtol=1e-5, atol=1e-5, err_msg=f'{module}/{name}')


@pytest.mark.parametrize('option', [0, 1, 7, 12, 13, 15])
def test_these_keep_the_norm_of_every_block(published, option):
  weights = edsr_weights.Weights(ours(published))
  edsr_weights.OPTIONS[option](weights, generator(3), True)
  for module, layer in ours(published).items():
    for name, array in layer.items():
      assert np.linalg.norm(weights.params[module][name]) == pytest.approx(np.linalg.norm(array), rel=1e-5)


@pytest.mark.parametrize('option', [0, 1, 7])
def test_these_are_undone_by_a_second_time(published, option):
  weights = edsr_weights.Weights(ours(published))
  for _ in range(2):
    edsr_weights.OPTIONS[option](weights, generator(4), True)  # the same block
  for module, layer in ours(published).items():
    for name, array in layer.items():
      np.testing.assert_array_equal(weights.params[module][name], array)


def test_bug_of_option_6_and_what_was_meant():
  factors = {}
  for bug_compatible in (True, False):
    params = tiny()
    weights = edsr_weights.Weights(params)
    edsr_weights.OPTIONS[6](weights, generator(0), bug_compatible)
    changed = [name for name in params if weights.params[name]['w'] is not params[name]['w']]
    assert len(changed) == 1
    assert changed[0].endswith('conv_1')
    factors[bug_compatible] = weights.params[changed[0]]['w'] / params[changed[0]]['w']
  assert factors[True].min() >= 1
  assert factors[True].max() < 5
  assert factors[False].min() < 1
  assert abs(factors[False] - 1).max() <= 2


def test_options_are_drawn_uniformly_three_at_a_time(monkeypatch):
  drawn = []
  record = lambda number: lambda weights, rng, bug_compatible: drawn.append(number)
  monkeypatch.setattr(edsr_weights, 'OPTIONS', tuple(record(number) for number in range(17)))
  rng = generator(5)
  for _ in range(1000):
    edsr_weights.distort(tiny(), rng, True)
  assert len(drawn) == 3000
  counts = collections.Counter(drawn)
  assert stats.chisquare([counts[number] for number in range(17)]).pvalue > RARE


@pytest.mark.parametrize('option', FIRST)
def test_blocks_are_drawn_uniformly_from_those_of_the_table(option):
  params, rng = tiny(features=2), generator(option)
  counts = collections.Counter()
  for _ in range(300):
    weights = edsr_weights.Weights(params)
    edsr_weights.OPTIONS[option](weights, rng, True)
    changed = {name.split('/')[1] for name in params if weights.params[name]['w'] is not params[name]['w']}
    counts.update(changed)
  assert counts.keys() == {f'block_{i}' for i in FIRST[option]}
  assert counts.total() == 300
  assert stats.chisquare(list(counts.values())).pvalue > RARE


def test_negated_filters_are_about_25_of_64(published):
  params, rng = ours(published), generator(0)
  numbers = []
  for _ in range(40):
    weights = edsr_weights.Weights(params)
    edsr_weights.OPTIONS[15](weights, rng, True)
    for name in params:
      negated = (weights.params[name]['w'] == -params[name]['w']).all((0, 1, 2)).sum()
      numbers += [int(negated)] if negated else []
  assert max(numbers) <= 64
  once = [number for number in numbers if number <= 32]  # of blocks that were drawn once
  assert np.mean(once) == pytest.approx(64 * (1 - (63 / 64) ** 32), abs=1.5)


def test_a_smaller_network_has_its_own_blocks_in_their_place():
  weights = edsr_weights.Weights(tiny(blocks=4))
  names = [weights._name(i, 0) for i in range(16)]
  assert names == [f'edsr/block_{i // 4}/conv_0' for i in range(16)]
  assert kernels.scaled(32, 16, 64) == 8
  assert kernels.scaled(5, 4, 64) == 1
  for option in edsr_weights.OPTIONS:
    option(weights, generator(0), True)
  assert all(np.isfinite(array).all() for layer in weights.params.values() for array in layer.values())


def test_pristine_weights_stay_as_they_are():
  params = tiny()
  before = copy.deepcopy(params)
  for seed in range(60):
    edsr_weights.distort(params, generator(seed), bool(seed % 2))
  for module, layer in before.items():
    for name, array in layer.items():
      np.testing.assert_array_equal(params[module][name], array)


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
  body = jax.jit(jax.vmap(lambda key: edsr_features._body(key, jnp.asarray(x), module, 16, True)))
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
  body = jax.jit(jax.vmap(lambda key: edsr_features._body(key, jnp.asarray(x), module, 16, False)))
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
  before = jax.jit(jax.vmap(lambda key: edsr_features._before_body(key, jnp.asarray(x), bug_compatible)))
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


def test_undamaged_features_are_those_of_the_network(monkeypatch):
  monkeypatch.setattr(edsr_features, '_before_body', lambda key, x, bug_compatible: x)
  in_order = lambda key, x, module, blocks, bug: module(module(module(x, 0), 1), 2)
  monkeypatch.setattr(edsr_features, '_body', in_order)
  params = tiny(blocks=2)
  network = corruption_nets.CORRUPTION_NETS['edsr'](blocks=2, features=4, scale=2, native=False)
  image = np.random.default_rng(2).random((8, 10, 3), np.float32)
  found = edsr_features.apply(params, jnp.asarray(255 * image), jax.random.key(0), bug_compatible=True)
  expected = 255 * network.apply(params, jnp.asarray(image)[None])[0]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(abs(expected).max()))
