"""Activations of classifiers by name: shown, added to, and of no consequence otherwise."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import classifiers
from adversarial_augment.classifiers import CLASSIFIERS, layers, preact_resnet
from adversarial_augment.config.tables import CLASSIFIER_DEPTHS
from adversarial_augment.errors import UserError

IMAGES = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
MODES = ({'is_training': True}, {'is_training': False}, {'is_training': False, 'test_local_stats': True})


@functools.cache
def make(name, **options):
  """A small network away from where it starts, with running statistics of nobody's."""
  network = CLASSIFIERS[name](5, depth=min(CLASSIFIER_DEPTHS[name]), width=2, **options)
  trees = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGES, is_training=True))
  rng = np.random.default_rng(1)
  draw = {'w': lambda shape: rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)}
  positive = lambda shape: rng.uniform(0.5, 1, shape)
  return network, *jax.tree.map_with_path(lambda p, x: draw.get(p[-1].key, positive)(x.shape).astype(x.dtype), trees)


@functools.cache
def run(name):
  network, params, state = make(name)
  mode = {'is_training': False, 'with_activations': True}
  return jax.jit(lambda offsets: network.apply(params, state, None, IMAGES, offsets=offsets, **mode)[0])


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_a_tap_does_not_change_the_program(name, monkeypatch):
  network, params, state = make(name)
  apply = lambda options, *trees: network.apply(*trees, jax.random.key(0), IMAGES, **options)
  programs = lambda **options: [
    str(jax.make_jaxpr(functools.partial(apply, mode | options))(params, state)) for mode in MODES
  ]
  tapped, empty = programs(), programs(offsets={})
  monkeypatch.setattr(layers.Layers, 'tap', lambda self, name, x: x)
  assert tapped == empty == programs()


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_an_offset_is_added_where_its_name_says(name):
  """It changes the activation of that name by that much, nothing before it, and all behind it."""
  network, params, state = make(name)
  mode = {'is_training': False, 'with_activations': True}
  order = []
  jax.eval_shape(lambda: order.extend(network.apply(params, state, None, IMAGES, **mode)[0][1]))
  zero = jax.tree.map(jnp.zeros_like, run(name)({})[1])
  logits, shown = run(name)(zero)
  assert set(order) == set(zero)
  np.testing.assert_allclose(logits, classifiers.logits_fn(network, params, state)(IMAGES), rtol=1e-4, atol=1e-4)
  for index, tapped in enumerate(order):
    offset = np.random.default_rng(index).uniform(0.5, 1, shown[tapped].shape).astype(np.float32)
    moved, other = run(name)(zero | {tapped: offset})
    np.testing.assert_allclose(other[tapped], shown[tapped] + offset, rtol=1e-5, atol=1e-5)
    for before in order[:index]:
      np.testing.assert_array_equal(other[before], shown[before])
    for behind in order[index + 1 :]:
      assert np.abs(other[behind] - shown[behind]).max() > 1e-4
    assert np.abs(moved - logits).max() > 1e-4


def test_the_head_sees_the_last_activation_of_a_resnext():
  logits, shown = run('resnext')({})
  head = make('resnext')[1]['resnext/head']
  np.testing.assert_allclose(logits, np.asarray(shown['stage3']).mean((1, 2)) @ head['w'] + head['b'], rtol=1e-4)


def test_shapes_are_those_of_the_published_relaxed_perturbations():
  """PreActResNet-18 has 65536, 65536, 32768, 16384 and 8192 numbers in the layers that RLAT perturbs."""
  network = preact_resnet(10, depth=18)
  params, state = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGES, is_training=True))
  options = {'is_training': True, 'with_activations': True}
  (_, shown), _ = jax.eval_shape(lambda *trees: network.apply(*trees, None, IMAGES, **options), params, state)
  sizes = {name: math.prod(value.shape[1:]) for name, value in shown.items()}
  assert sizes == {'stem': 65536, 'stage1': 65536, 'stage2': 32768, 'stage3': 16384, 'stage4': 8192}


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_features_are_all_but_the_stem(name):
  shown = run(name)({})[1]
  found = jax.jit(classifiers.features(*make(name)))(IMAGES)
  expected = [shown[name] for name in sorted(shown) if name != 'stem']
  assert len(found) == len(expected) >= 3
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_offsets_have_the_type_of_activations():
  network, params, state = make('preact_resnet', dtype=jnp.bfloat16)
  options = {'is_training': True, 'with_activations': True, 'offsets': {'stem': jnp.ones((1, 32, 32, 2))}}
  (logits, shown), _ = jax.eval_shape(lambda: network.apply(params, state, None, IMAGES, **options))
  assert {value.dtype for value in shown.values()} == {jnp.dtype('bfloat16')}
  assert logits.dtype == jnp.float32


def test_unknown_names_are_refused():
  network, params, state = make('preact_resnet')
  offsets = {'layer1': jnp.zeros((1, 1, 1, 1))}
  with pytest.raises(
    UserError, match="offsets of preact_resnet have the name 'layer1', which must be one of stem, sta"
  ):
    network.apply(params, state, None, IMAGES, is_training=True, offsets=offsets)
