"""AlexNet: the architecture written out, its dropout, and images of other sizes."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import classifiers, inference
from adversarial_augment.classifiers import alexnet
from adversarial_augment.errors import UserError
from adversarial_augment.training import recipe as recipes
from tests import tiny

IMAGES = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
MEAN_64, STD_64 = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet
MEAN, STD = np.float32(MEAN_64), np.float32(STD_64)


@functools.cache
def make(**options):
  network = alexnet(5, width=2, mean=MEAN_64, std=STD_64, **options)
  params, state = jax.jit(lambda key: network.init(key, IMAGES, is_training=True))(jax.random.key(0))
  rng = np.random.default_rng(1)
  params = {
    name: {'w': leaves['w'] * 1.5, 'b': rng.normal(0, 0.1, leaves['b'].shape).astype(np.float32)}
    for name, leaves in params.items()
  }
  apply = jax.jit(network.apply, static_argnames='is_training')
  return hk.TransformedWithState(network.init, apply), params, state


def oracle(params, images):
  """The published layers, one after the other."""
  x = (images - MEAN.reshape(1, 1, 1, 3)) / STD.reshape(1, 1, 1, 3)
  for index in range(1, 6):
    leaves, stride = params[f'alexnet/conv{index}'], 2 if index == 1 else 1
    x = jax.lax.conv_general_dilated(
      x, leaves['w'], (stride, stride), [(1, 1), (1, 1)], dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    x = jnp.maximum(x + leaves['b'].reshape(1, 1, 1, -1), 0)
    if index in (1, 2, 5):
      x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
  assert x.shape[1:3] == (2, 2)
  x = jnp.stack([x[:, i, j, c] for c in range(x.shape[3]) for i in range(2) for j in range(2)], 1)
  for name in ('fc1', 'fc2', 'head'):
    x = x @ params[f'alexnet/{name}']['w'] + params[f'alexnet/{name}']['b'][None]
    x = x if name == 'head' else jnp.maximum(x, 0)
  return x


def test_computes_what_the_architecture_written_out_computes():
  network, params, state = make()
  logits, _ = network.apply(params, state, None, IMAGES, is_training=False)
  expected = jax.jit(oracle)(params, IMAGES)
  assert np.ptp(expected, axis=0).max() > 1e-2
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_dropout_is_of_the_key_and_the_place_of_an_image():
  network, params, state = make()
  apply = lambda key, x: network.apply(params, state, jax.random.key(key), x, is_training=True)[0]
  first = apply(0, IMAGES)
  np.testing.assert_array_equal(first, apply(0, IMAGES))
  np.testing.assert_allclose(first[:2], apply(0, IMAGES[:2]), rtol=1e-4, atol=1e-5)
  assert np.abs(first - apply(1, IMAGES)).min() > 0
  same = apply(0, np.repeat(IMAGES[:1], 4, axis=0))
  assert all(np.abs(same[i] - same[j]).max() > 0 for i in range(4) for j in range(i))


def test_dropout_keeps_half_of_the_inputs_and_their_mean():
  """The head is the identity of the second hidden layer's, which is that of its inputs: they are seen as dropped."""
  network, params, state = make()
  eye = np.eye(128, dtype=np.float32)
  params = params | {
    'alexnet/fc1': {'w': np.zeros((32, 128), np.float32), 'b': np.ones(128, np.float32)},
    'alexnet/fc2': {'w': eye, 'b': np.zeros(128, np.float32)},
    'alexnet/head': {'w': eye[:, :5], 'b': np.zeros(5, np.float32)},
  }
  run = jax.vmap(lambda key: network.apply(params, state, key, IMAGES, is_training=True)[0])
  seen = np.asarray(run(jax.random.split(jax.random.key(0), 400)))
  assert set(np.unique(seen)) == {0, 2}
  assert abs(seen.mean() - 1) < 5 / np.sqrt(seen.size)


@pytest.mark.parametrize('height, width', [(15, 32), (37, 50), (64, 64)])
def test_the_size_of_images_is_no_part_of_the_parameters(height, width):
  network, params, state = make()
  images = np.random.default_rng(0).random((2, height, width, 3), np.float32)
  shapes, _ = jax.eval_shape(lambda: network.init(jax.random.key(0), images, is_training=True))
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  assert np.isfinite(network.apply(params, state, None, images, is_training=False)[0]).all()


def test_images_too_small_for_three_halvings_are_refused():
  network, params, state = make()
  with pytest.raises(UserError, match='alexnet takes images of at least 15 pixels a side, not 14x32'):
    network.apply(params, state, None, IMAGES[:, :14], is_training=False)


def test_a_small_one_ships():
  shipped = classifiers.SHIPPED_ALEXNET
  assert shipped.stat().st_size < 2_000_000
  found = inference.read_file(shipped)
  sizes = ('name', 'width', 'mean', 'std')
  assert tuple(found.config.classifier[size] for size in sizes) == ('alexnet', 8, tuple(MEAN_64), tuple(STD_64))
  assert (found.classes.num, found.classes.names[3]) == (10, 'cat')
  network = recipes.build_classifier(found.config, 10)
  features = classifiers.features(network, found.restored.state.params, found.restored.state.model_state)
  values = jax.jit(features)(IMAGES)
  assert [value.shape[1:] for value in values] == [(16, 16, 8), (8, 8, 24), (4, 4, 48), (4, 4, 32), (4, 4, 32)]
  assert all(0.01 < (value > 0).mean() < 0.9 for value in values)


@pytest.mark.usefixtures('x64')
def test_steps_with_dropout_do_not_depend_on_the_number_of_devices():
  overrides = {
    'classifier__name': 'alexnet',
    'classifier__depth': '8',
    'classifier__width': '1',
    'attack__name': 'none',
  }
  runs = {}
  for devices in (1, 8):
    _, recipe, phi, state = tiny.make(devices, **overrides)
    runs[devices], metrics = tiny.run(recipe, phi, state, 3)
  assert len({float(one['loss']) for one in metrics}) == 3
  one, eight = (jax.device_get(state.params) for state in (runs[1], runs[8]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), one, eight)
