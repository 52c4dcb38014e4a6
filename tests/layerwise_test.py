"""RLAT: radii, the step of the adversary, and the train step that it is a part of."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment import config as configs
from adversarial_augment.attacks import losses
from adversarial_augment.config.tables import CLASSIFIER_DEPTHS, CLASSIFIER_LAYERS
from adversarial_augment.errors import UserError
from adversarial_augment.run import summary
from adversarial_augment.training import recipe as recipes
from tests import oracle, tiny, train_step_test

pytestmark = pytest.mark.usefixtures('quick_compile')

RLAT = {'attack__name': 'rlat', 'attack__epsilon': '0.08'}
SHAPES = {'input': (3, 3, 2), 'deep': (2, 2, 4), 'flat': (1, 2, 3)}
PUBLISHED = (0.08, 0.8533, 0.5689, 0.2133, 0.0853, 0.0356)


def test_radii_of_the_published_network():
  shapes = [(32, 32, 3), (32, 32, 64), (32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]
  assert attacks.layerwise_radii(shapes, 0.08) == pytest.approx(PUBLISHED, abs=5e-5)
  assert attacks.layerwise_radii(shapes[1:], 0.08, image_size=3072)[:2] == pytest.approx([1.7067, 0.8533], abs=5e-5)
  config = configs.load('configs/rlat.py')
  layers = recipes.moved_layers(config, recipes.build_classifier(config, 10), (32, 32, 3))
  assert [*layers] == ['input', 'stem', 'stage1', 'stage2', 'stage3', 'stage4']
  assert [layer.shape for layer in layers.values()] == shapes
  assert [layer.radius for layer in layers.values()] == pytest.approx(PUBLISHED, abs=5e-5)


def test_radii_of_images_of_another_size_and_of_some_layers():
  config = configs.override(configs.load('configs/rlat.py:smoke'), {'attack.layers': 'stage2,input'})
  layers = recipes.moved_layers(config, recipes.build_classifier(config, 10), (64, 48, 3))
  assert [*layers] == ['input', 'stage2']
  assert layers['input'].radius == pytest.approx(0.08)
  assert layers['stage2'] == ((32, 24, 8), pytest.approx(0.08 * (32 * 24 * 8) / (64 * 48 * 3) / 2))


@pytest.mark.parametrize('name', CLASSIFIER_LAYERS)
def test_layers_are_those_that_the_classifier_names(name):
  sizes = {'classifier.name': name, 'classifier.depth': str(CLASSIFIER_DEPTHS[name][0]), 'classifier.width': '1'}
  config = configs.override(configs.load('configs/rlat.py:smoke'), sizes)
  layers = recipes.moved_layers(config, recipes.build_classifier(config, 10), (32, 32, 3))
  assert [*layers] == ['input', *CLASSIFIER_LAYERS[name]]


@pytest.mark.parametrize('epsilon', [-1.0, math.nan, '0.08'])
def test_radii_need_a_radius(epsilon):
  with pytest.raises(UserError, match='epsilon='):
    attacks.layerwise_radii([(32, 32, 3)], epsilon)


@pytest.mark.parametrize(('shapes', 'image_size'), [([], None), ([(2, 2, 1)], 0), ([(2, 2, 1)], float('nan'))])
def test_radii_are_of_layers_and_images_with_numbers(shapes, image_size):
  with pytest.raises(UserError, match='of attacks.layerwise_radii must be'):
    attacks.layerwise_radii(shapes, 0.08, image_size=image_size)


def test_a_step_of_a_linear_classifier_has_a_closed_form():
  """Of two classes: the gradient has the direction of the difference of their weights, away from the label."""
  rng = np.random.default_rng(0)
  weights = {name: jnp.asarray(rng.normal(size=(*shape, 2))) for name, shape in SHAPES.items()}
  weights['flat'] *= 0
  images = jnp.asarray(rng.uniform(0.4, 0.6, (4, *SHAPES['input']))).at[0].set(1.0)
  labels = jnp.asarray([0, 1, 1, 0])

  def classify(images, offsets):
    values = {'input': images} | offsets
    return sum(jnp.einsum('nhwc,hwck->nk', values[name], weights[name]) for name in values), len(offsets)

  layers = {name: attacks.Layer(shape, 0.1 * (index + 1)) for index, (name, shape) in enumerate(SHAPES.items())}
  moved = attacks.layerwise(classify, images, labels, layers)
  sign = np.where(np.asarray(labels) == 0, 1, -1).reshape(-1, 1, 1, 1)
  for index, name in enumerate(('input', 'deep')):
    away = np.asarray(weights[name][..., 1] - weights[name][..., 0])
    delta = sign * 0.1 * (index + 1) * away / np.linalg.norm(away)
    wanted = np.clip(images + delta, 0, 1) if name == 'input' else delta
    found = moved.images if name == 'input' else moved.offsets[name]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
  assert (moved.images == 1).any()
  assert (moved.offsets['flat'] == 0).all()
  assert moved.offsets.keys() == {'deep', 'flat'}
  assert moved.state == 2
  np.testing.assert_allclose(moved.loss, losses.cross_entropy(classify(images, {})[0], labels), rtol=1e-5)


@pytest.mark.usefixtures('x64')
def test_steps_on_1_and_on_8_devices_equal_the_oracle():
  made = {num_devices: tiny.make(num_devices, **RLAT) for num_devices in (1, 8)}
  _, recipe, phi, state = made[1]
  assert phi == {}
  params, model_state = jax.device_get((state.params, state.model_state))
  wanted, losses = (0, params, model_state, jax.tree.map(np.zeros_like, params)), []
  step = jax.jit(
    functools.partial(oracle.rlat_step, before=recipe.before, seed=0, momentum=0.9, decay=1e-4, epsilon=0.08)
  )
  for index in range(3):
    images, labels = tiny.dataset().read((np.arange(8) + 8 * index) % 64)
    wanted, loss, start = step(wanted, images, labels, train_step_test.learning_rate(index + 1))
    assert start < loss
    losses.append({'attack_loss_start': float(start), 'loss': float(loss), 'attack_loss_end': float(loss)})
  for _, recipe, phi, state in made.values():
    end, metrics = tiny.run(recipe, phi, state, 3)
    for found, expected in zip(metrics, losses, strict=True):
      assert found['finite']
      assert {name: float(found[name]) for name in expected} == pytest.approx(expected, abs=1e-9)
    assert train_step_test.largest_difference(end.params, wanted[1]) < 1e-9
    assert train_step_test.largest_difference(end.model_state, wanted[2]) < 1e-9
    assert {int(one['count']) for one in end.model_state.values()} == {6}


@pytest.mark.slow
def test_a_frozen_body_is_moved_with_the_statistics_that_it_keeps(tmp_path):
  fields = {'init_from': str(tmp_path), 'freeze': 'body', 'attack__batch_norm': 'running'}
  _, recipe, phi, state = tiny.make(2, **RLAT, **fields)
  before = jax.device_get(state)
  end, (metrics,) = tiny.run(recipe, phi, state, 1)
  assert metrics['attack_loss_start'] < metrics['attack_loss_end']
  assert train_step_test.largest_difference(end.model_state, before.model_state) == 0
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), end.params, before.params)
  assert {name for name, leaves in moved.items() if any(leaves.values())} == {'preact_resnet/head'}


def test_a_run_says_what_it_moves_and_what_its_augmentations_are_like():
  after_augmix = {'augment__before': 'pad_crop,augmix_all_ops', 'attack__layers': 'input,stage2'}
  config, recipe, phi, state = tiny.make(1, **RLAT, **after_augmix)
  lines = list(summary.opening(config, recipe, {'train': tiny.dataset()}, state, phi))
  assert 'adversary: epsilon 0.08, input, stage2, one step' in lines
  assert any('operations of augmix_all_ops are like' in line for line in lines)
  assert not any(line.startswith(('memory', 'departs')) for line in lines)
  assert 'attacked_steps = 100  # epsilon 0.08, input, stage2, one step' in recipes.derived(config, 64)


@pytest.mark.parametrize(
  'fields, words',
  [
    (
      {'attack__epsilon': 'none'},
      'name=rlat must have a radius above 0, but config.attack.epsilon=none; set for example',
    ),
    ({'attack__layers': ''}, 'layers= names no layer; set some, such as input,stem, or none for all of them.'),
    ({'attack__fraction': '0.5'}, 'fraction=0.5 cannot go with config.attack.name=rlat, whose .* set .*fraction=1.'),
    ({'attack__warmup_epochs': '1'}, 'set config.attack.warmup_epochs=0.'),
    ({'attack__batch_norm': 'running'}, 'set config.attack.batch_norm=batch.'),
    ({'augment__after': 'augmix'}, 'after=augmix cannot go with .*rlat, .* set config.augment.after to nothing, and'),
    ({'augment__jsd': '12'}, 'jsd=12.0 cannot go with .*rlat, .* set config.augment.jsd=0.'),
    ({'attack__trades': '6'}, 'trades=6.0 cannot go with .*rlat, but only with lp; set '),
    (
      {'attack__name': 'none'},
      'epsilon=0.08 cannot go with .*none, but only with lp, rlat or pat; set .*epsilon=none, or',
    ),
    (
      {'attack__layers': 'input,stage9'},
      'layers=input,stage9 must be of input, stem, .*stage4 with .*preact_resnet.* Did',
    ),
    ({'attack__layers': 'stem,stem'}, 'layers=.* must be a comma-separated list, each at most once'),
  ],
)
def test_what_does_not_go_with_it_is_refused(fields, words):
  with pytest.raises(UserError, match=words):
    tiny.make(1, **RLAT | fields)
