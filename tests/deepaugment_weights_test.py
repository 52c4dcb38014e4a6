"""DeepAugment's damage to weights: each option against the published tables, and how often each is drawn."""

import collections
import copy

import numpy as np
import pytest
from scipy import stats

from adversarial_augment import corruption_nets
from adversarial_augment.deepaugment import weights
from tests import deepaugment_oracle
from tests.deepaugment_oracle import params_of

RARE = 1e-3  # a p-value below is a failure; seeds are fixed
OPTIONS = [(net, option) for net, options in weights.OPTIONS.items() for option in range(len(options))]

CAE = [  # shapes of the published file: PyTorch's order, transposed convolutions [in, out, height, width]
  *[(64, 3, 5, 5), (128, 64, 5, 5)],
  *[(128, 128, 3, 3)] * 6,
  *[(32, 128, 5, 5), (64, 32, 3, 3), (64, 128, 2, 2)],
  *[(128, 128, 3, 3)] * 6,
  *[(32, 128, 3, 3), (32, 256, 2, 2), (16, 256, 3, 3), (3, 16, 3, 3)],
]
TRANSPOSED = (10, 18)

THIRDS = (0, 3, 6, 9)
BLOCKS = dict.fromkeys((0, 2, 3, 4, 5, 6, 7, 9), THIRDS) | {1: (1, 4, 7), 8: (1, 5, 9), 10: (1, 5, 9), 11: range(15)}


def generator(seed: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(seed))


def published(net: str):
  """Random weights of the published network, as the oracle takes them."""
  draw = np.random.default_rng(0).normal
  if net == 'cae':
    biases = [shape[1] if i in TRANSPOSED else shape[0] for i, shape in enumerate(CAE)]
    return [[np.float32(draw(size=s)), np.float32(draw(size=b))] for s, b in zip(CAE, biases, strict=True)]
  shapes = {'weight': (64, 64, 3, 3), 'bias': (64,)}
  names = [(i, c, kind) for i in range(16) for c in (0, 2) for kind in shapes]
  return {f'body.{i}.body.{c}.{kind}': np.float32(draw(size=shapes[kind])) for i, c, kind in names}


def ours(net: str, theirs) -> weights.Params:
  if net == 'edsr':
    pairs = {
      f'edsr/block_{i}/conv_{conv}': [theirs[f'body.{i}.body.{2 * conv}.{kind}'] for kind in ('weight', 'bias')]
      for i, conv in np.ndindex(16, 2)
    }
  else:
    pairs = {f'cae/{name}': pair for name, pair in zip(weights.CAE, theirs, strict=True)}
  transposed = [f'cae/{list(weights.CAE)[i]}' for i in TRANSPOSED]
  axes = {name: (2, 3, 0, 1) if name in transposed else (2, 3, 1, 0) for name in pairs}
  return {name: {'w': w.transpose(axes[name]).copy(), 'b': b.copy()} for name, (w, b) in pairs.items()}


def damaged(net: str, option: int, params: weights.Params, rng, bug_compatible: bool = True) -> weights.Params:
  found = weights.Weights(params)
  weights.OPTIONS[net][option](found, weights.Draws(rng, bug_compatible))
  return found.params


def changed(params: weights.Params, found: weights.Params) -> list[str]:
  return [name for name in params if found[name]['w'] is not params[name]['w']]


def assert_equal(found: weights.Params, expected: weights.Params) -> None:
  assert found.keys() == expected.keys()
  for module, layer in found.items():
    for name, array in layer.items():
      assert array.dtype == np.float32
      assert array.shape == expected[module][name].shape
      np.testing.assert_allclose(array, expected[module][name], rtol=1e-5, atol=1e-5, err_msg=f'{module}/{name}')


def test_layers_of_the_cae_are_those_of_the_published_network():
  shapes = {
    module: {name: array.shape for name, array in layer.items()}
    for module, layer in ours('cae', published('cae')).items()
  }
  assert shapes == corruption_nets.shapes('cae', {'features': 64})


@pytest.mark.parametrize('net, option', OPTIONS)
def test_option_is_that_of_the_table(net, option):
  before = ours(net, published(net))
  for seed in range(2 if net == 'edsr' else 8):
    expected = published(net)
    getattr(deepaugment_oracle, net)(option, expected, generator(seed))
    found = damaged(net, option, before, generator(seed))
    assert_equal(found, ours(net, expected))
    assert any((found[name]['w'] != before[name]['w']).any() for name in changed(before, found))


@pytest.mark.parametrize('option', [0, 1, 7, 12, 13, 15])
def test_these_keep_the_norm_of_every_block(option):
  before = ours('edsr', published('edsr'))
  for module, layer in damaged('edsr', option, before, generator(3)).items():
    for name, array in layer.items():
      assert np.linalg.norm(array) == pytest.approx(np.linalg.norm(before[module][name]), rel=1e-5)


@pytest.mark.parametrize('option', [0, 1, 7])
def test_these_are_undone_by_a_second_time(option):
  before = ours('edsr', published('edsr'))
  once = damaged('edsr', option, before, generator(4))
  assert_equal(damaged('edsr', option, once, generator(4)), before)


@pytest.mark.parametrize('net, option, bug, meant', [('edsr', 6, (1, 5), (-1, 3)), ('cae', 4, (1, 9), (-1, 7))])
def test_bug_of_the_scale_and_what_was_meant(net, option, bug, meant):
  before = ours(net, published(net))
  for bug_compatible, (low, high) in ((True, bug), (False, meant)):
    found = damaged(net, option, before, generator(1), bug_compatible)
    names = changed(before, found)
    assert len(names) == (1 if net == 'edsr' else 2)
    factors = np.concatenate([(found[name]['w'] / before[name]['w']).ravel() for name in names])
    assert low - 1e-3 <= factors.min()
    assert factors.max() <= high + 1e-3
    assert (factors.min() < 0.99) != bug_compatible


def test_bug_of_the_reversal_and_what_was_meant():
  params = params_of('cae')
  numbers = [changed(params, damaged('cae', 0, params, generator(1), bug)) for bug in (True, False)]
  assert [len(names) for names in numbers] == [1, 2]


@pytest.mark.parametrize('net, bug_compatible, expected', [('edsr', True, 17), ('cae', True, 8), ('cae', False, 9)])
def test_options_are_drawn_uniformly(monkeypatch, net, bug_compatible, expected):
  drawn = []
  record = lambda number: lambda found, draws: drawn.append(number)
  monkeypatch.setitem(weights.OPTIONS, net, tuple(record(k) for k in range(len(weights.OPTIONS[net]))))
  rng = generator(5)
  for _ in range(1000):
    weights.distort(net, {}, rng, bug_compatible)
  assert len(drawn) == 1000 * {'edsr': 3, 'cae': 1}[net]
  assert set(drawn) == set(range(expected))
  assert stats.chisquare(np.bincount(drawn)).pvalue > RARE


@pytest.mark.parametrize('net, option', [pair for pair in OPTIONS if pair[0] == 'cae' or pair[1] in BLOCKS])
def test_layers_are_drawn_uniformly_from_those_of_the_table(net, option):
  params, rng = params_of(net, **({'blocks': 16, 'features': 2} if net == 'edsr' else {})), generator(option)
  counts = collections.Counter()
  for _ in range(300):
    names = changed(params, damaged(net, option, params, rng))
    counts.update({name.split('/')[1] if net == 'edsr' else name.removeprefix('cae/') for name in names})
  if net == 'edsr':
    assert counts.keys() == {f'block_{i}' for i in BLOCKS[option]}
  else:
    numbers = deepaugment_oracle.CAE_LAYERS.get(option, range(8, 14))
    assert counts.keys() == {list(weights.CAE)[i] for i in numbers}
  both = (net, option) == ('cae', 4)  # of six layers, one drawn twice counts once
  assert counts.total() == (pytest.approx(300 * 11 / 6, abs=30) if both else 300)
  assert stats.chisquare(list(counts.values())).pvalue > RARE


def test_negated_filters_are_about_25_of_64():
  params, rng = ours('edsr', published('edsr')), generator(0)
  numbers = []
  for _ in range(40):
    found = damaged('edsr', 15, params, rng)
    numbers += [(found[name]['w'] == -params[name]['w']).all((0, 1, 2)).sum() for name in changed(params, found)]
  once = [number for number in numbers if number <= 32]  # of blocks that were drawn once
  assert np.mean(once) == pytest.approx(64 * (1 - (63 / 64) ** 32), abs=1.5)


def test_a_smaller_network_has_its_own_blocks_in_their_place():
  small = weights.Weights(params_of('edsr', blocks=4))
  assert [small.block(i) for i in range(16)] == [f'edsr/block_{i // 4}' for i in range(16)]
  assert weights.scaled(32, 16, 64) == 8
  assert weights.scaled(5, 4, 64) == 1


@pytest.mark.parametrize('net', weights.OPTIONS)
def test_damaged_weights_are_finite_and_the_others_stay_as_they_are(net):
  params = params_of(net)
  before = copy.deepcopy(params)
  for seed in range(60):
    found = weights.distort(net, params, generator(seed), bool(seed % 2))
    assert all(np.isfinite(array).all() for layer in found.values() for array in layer.values())
  for module, layer in before.items():
    for name, array in layer.items():
      np.testing.assert_array_equal(params[module][name], array)
