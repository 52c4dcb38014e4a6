"""The AdvMix-style adversary: mixtures of offsets of a linear network's parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from adversarial_augment import attacks, deepaugment
from adversarial_augment import config as configs
from adversarial_augment.attacks.ascent import STEPS, ascend
from adversarial_augment.config.adversaries import NUM_OFFSETS
from adversarial_augment.config.tables import NETWORK_SIZES
from adversarial_augment.errors import UserError
from adversarial_augment.training import recipe
from tests import tiny
from tests.linear_attack import IMAGES, KEYS, LABELS, PHI, TEMPLATE, linear_logits, linear_network

NUM = 5
RNG = np.random.default_rng(1)
OFFSETS = {name: np.float32(RNG.normal(size=(NUM, *value.shape))) for name, value in PHI.items()}
HULL = attacks.Hull(PHI, OFFSETS)


def climb(hull, images, *, step, num_steps, fraction, init):
  perturbations = attacks.weight_hull(linear_network, init=init)
  return ascend(
    perturbations, KEYS, linear_logits, images, LABELS, hull,
    num_steps=num_steps, step=STEPS[step], step_fraction=fraction,
  )  # fmt: skip


def corners() -> np.ndarray:
  """The margin of the right class of each image with each offset alone, [6, NUM], in float64."""
  score = []
  for m in range(NUM):
    w, b, dead = (PHI[name].astype(float) + OFFSETS[name][m] for name in ('w', 'b', 'dead'))
    score.append(np.einsum('nhwc,hwc->n', IMAGES.astype(float) @ w + b + dead.sum(), TEMPLATE))
  return 2 * np.stack(score, 1) * np.where(LABELS == 0, 1, -1)[:, None]


def softmax(a):
  e = np.exp(a - a.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


@pytest.mark.usefixtures('x64')
def test_gradient_steps_are_those_of_numpy():
  """The margin is linear in the weights of the mixture, whose gradient passes through the softmax."""
  run = functools.partial(climb, step='sgd', num_steps=4, fraction=0.5, init='zero')
  ascent = jax.jit(run)(*tiny.to_default_float((HULL, IMAGES)))
  a, margins = np.zeros((6, NUM)), corners()
  for i in range(5):
    weights = softmax(a)
    margin = (weights * margins).sum(1, keepdims=True)
    if i == 0:
      np.testing.assert_allclose(ascent.loss_start, np.log1p(np.exp(-margin[:, 0])), rtol=1e-9)
    if i < 4:
      a += 0.5 * weights * (margin - margins) / (1 + np.exp(margin))
  np.testing.assert_allclose(ascent.perturbations, a, atol=1e-9)
  np.testing.assert_allclose(ascent.loss_end, np.log1p(np.exp(-margin[:, 0])), rtol=1e-9)


def test_sign_steps_find_the_worst_offset_of_each_image():
  """The largest loss over a hull is at a corner, because a linear margin has its minimum there."""
  ascent = jax.jit(functools.partial(climb, step='sign', num_steps=60, fraction=0.25, init='ball'))(HULL, IMAGES)
  margins = corners()
  np.testing.assert_array_equal(np.asarray(ascent.perturbations).argmax(1), margins.argmin(1))
  assert (softmax(np.asarray(ascent.perturbations, float)).max(1) > 0.99).all()
  largest = np.log1p(np.exp(-margins.min(1)))
  assert (np.asarray(ascent.loss_end) < largest * (1 + 1e-5)).all()
  np.testing.assert_allclose(ascent.loss_end, largest, rtol=0.02)


def test_starts_are_uniform_over_all_mixtures():
  hull = attacks.weight_hull(linear_network)
  keys = jax.random.split(jax.random.key(2), 2000)
  weights = jax.vmap(lambda key: jax.nn.softmax(hull.init(key, HULL, IMAGES[0])))(keys)
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
  for column in np.asarray(weights).T:  # each weight of a flat Dirichlet distribution
    assert scipy.stats.kstest(column, scipy.stats.beta(1, NUM - 1).cdf).pvalue > 1e-3


@pytest.mark.parametrize('impl', ['map', 'im2col'])
def test_an_image_goes_through_the_mixture_of_its_weights(impl):
  hull = attacks.weight_hull(linear_network, impl=impl)
  a = np.float32(RNG.normal(size=(6, NUM)))
  moved = {name: PHI[name] + np.einsum('nm,m...->n...', softmax(a), OFFSETS[name]) for name in PHI}
  shift = (moved['b'] + moved['dead'].sum(1, keepdims=True))[:, None, None]
  expected = np.einsum('nhwc,ncd->nhwd', IMAGES, moved['w']) + shift
  np.testing.assert_allclose(hull.apply_batch(HULL, IMAGES, a), expected, atol=1e-5)
  pairs = hull.apply_batch(HULL, IMAGES[[0, 0, 2, 2]], a[[0, 2]])
  np.testing.assert_allclose(pairs, expected[[0, 0, 2, 2]], atol=1e-5)


def test_a_run_draws_its_offsets_from_its_seed():
  config = configs.override(configs.base_config(), tiny.OVERRIDES | {'attack.name': 'advmix'})
  build = lambda seed: recipe.build(configs.override(config, {'seed': seed}), tiny.dataset(), tiny.make_mesh(1))[1]
  hull, again, other = build('3'), build('3'), build('4')
  jax.tree.map(np.testing.assert_array_equal, hull, again)
  assert all(len(leaf) == NUM_OFFSETS for leaf in jax.tree.leaves(hull.offsets))
  jax.tree.map(np.testing.assert_array_equal, hull.phi, other.phi)
  norms = lambda hull: np.sqrt(sum((leaf.reshape(8, -1) ** 2).sum(1) for leaf in jax.tree.leaves(hull.offsets)))
  assert not np.array_equal(norms(hull), norms(other))
  assert len(np.unique(norms(hull))) > NUM_OFFSETS // 2
  pristine = jax.tree.map(np.asarray, hull.phi)
  third = deepaugment.damaged_weights(pristine, deepaugment.Settings('edsr', 3), 2, 0)
  moved = jax.tree.map(lambda p, offsets: p + offsets[2], pristine, hull.offsets)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, third)


@pytest.mark.parametrize('name', NETWORK_SIZES)
def test_networks_that_deepaugment_does_not_know_are_refused(name):
  config = configs.override(configs.base_config(), {'attack.name': 'advmix', 'corruption_net.name': name})
  if name in deepaugment.NETS:
    configs.validate(config)
    return
  with pytest.raises(UserError, match=rf'name=advmix .* config.corruption_net.name={name}; set one of edsr, cae\.'):
    configs.validate(config)


def test_severe_mixtures_are_pulled_back():
  identity = {'w': np.eye(3, dtype=np.float32), 'b': np.zeros(3, np.float32), 'dead': np.zeros(4, np.float32)}
  clipped = lambda phi, images: jnp.clip(linear_network(phi, images), 0, 1)
  attack = attacks.advmix(clipped, num_steps=3)
  hull = attacks.Hull(identity, jax.tree.map(lambda x: 3 * x, OFFSETS))
  result = jax.jit(lambda keys: attack(keys, linear_logits, IMAGES, LABELS, hull))(KEYS)
  assert float(result.metrics['ssim_corrected'].mean()) > 0
  assert not np.any(result.metrics['ssim_below_min'])
