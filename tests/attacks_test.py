"""The adversary on a linear network, whose best perturbations have a closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, ssim
from adversarial_augment.attacks.ascent import STEPS, ascend
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.errors import UserError
from tests import linear_attack
from tests.linear_attack import IMAGES, KEYS, LABELS, PHI, ascent_directions, linear_logits, linear_network, radius

LONG = 60  # steps; one compilation of each rule serves several tests
ZERO = {'w': np.zeros((6, 3, 3)), 'b': np.zeros((6, 3))}


@functools.partial(jax.jit, static_argnames=('step', 'num_steps', 'init', 'keep_best'))
def climb(labels, *, step, num_steps, fraction, nu=0.1, init='ball', keep_best=False):
  ball = attacks.weight_ball(linear_network, nu=nu, init=init)
  return ascend(
    ball, KEYS, linear_logits, IMAGES, labels, PHI,
    num_steps=num_steps, step=STEPS[step], step_fraction=fraction, keep_best=keep_best,
  )  # fmt: skip


def test_radii_are_relative_to_each_block():
  radii = attacks.weight_ball(linear_network, nu=0.015).radii(PHI)
  assert radii['w'] == pytest.approx(0.015 * np.linalg.norm(PHI['w']), rel=1e-6)
  assert radii['b'] == pytest.approx(0.015 * np.linalg.norm(PHI['b']), rel=1e-6)
  assert radii['dead'] == 0


def test_one_l2_step_of_the_radius_reaches_the_maximum_of_a_linear_loss():
  ascent = climb(LABELS, step='l2', num_steps=1, fraction=1.0, init='zero')
  for block, direction in ascent_directions(LABELS).items():
    flat = direction.reshape(6, -1)
    best = radius(block) * flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(ascent.perturbations[block]).reshape(6, -1), best, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('step', ['sign', 'sign_l2'])
def test_sign_steps_end_at_the_rescaled_sign_of_the_gradient(step):
  ascent = climb(LABELS, step=step, num_steps=LONG, fraction=0.25)
  for block, direction in ascent_directions(LABELS).items():
    flat, beta = direction.reshape(6, -1), np.asarray(ascent.perturbations[block], float).reshape(6, -1)
    np.testing.assert_allclose(np.linalg.norm(beta, axis=1), radius(block), rtol=1e-5)
    reached = (beta * flat).sum(1)
    expected = radius(block) * np.abs(flat).sum(1) / np.sqrt(flat.shape[1])
    np.testing.assert_allclose(reached, expected, rtol=0.01)


@pytest.mark.parametrize('step', list(STEPS))
def test_every_step_climbs_towards_the_maximum(step):
  ascent = climb(LABELS, step=step, num_steps=LONG, fraction=0.25 if step != 'sgd' else 100.0)
  start, end = np.asarray(ascent.loss_start), np.asarray(ascent.loss_end)
  assert (end > start).all()
  reached = {
    block: (np.asarray(ascent.perturbations[block], float) * direction).reshape(6, -1).sum(1)
    / (radius(block) * np.linalg.norm(direction.reshape(6, -1), axis=1))
    for block, direction in ascent_directions(LABELS).items()
  }
  least = 0.99 if step in ('l2', 'sgd') else 0.6  # signs reach ||G||_1 / (sqrt(n) ||G||_2) of it
  assert all((share > least).all() for share in reached.values()), reached
  assert not np.any(ascent.perturbations['dead'])  # a block of norm zero
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ascent))


def margins(beta) -> np.ndarray:
  """The margins of the right classes, in float64, with each image's own perturbation."""
  phi = {name: PHI[name] + np.asarray(beta[name], float) for name in ('w', 'b')}
  corrupted = np.einsum('nhwc,ncd->nhwd', IMAGES, phi['w']) + phi['b'][:, None, None]
  return 2 * np.einsum('nhwc,hwc->n', corrupted, linear_attack.TEMPLATE) * np.where(LABELS == 0, 1, -1)


def test_the_loss_is_that_of_the_closed_form():
  ascent = climb(LABELS, step='l2', num_steps=1, fraction=1.0, init='zero')
  np.testing.assert_allclose(ascent.loss_start, np.log1p(np.exp(-margins(ZERO))), rtol=1e-4)
  np.testing.assert_allclose(ascent.loss_end, np.log1p(np.exp(-margins(ascent.perturbations))), rtol=1e-4)


def test_the_step_is_a_quarter_of_the_median_radius():
  phi = {str(i): np.float32([scale, 0, 0]) for i, scale in enumerate((1.0, 3.0, 5.0, 11.0))}  # median 4
  radii = attacks.weight_ball(lambda phi, images: images, nu=0.5).radii(phi)
  rule = STEPS['sign'](radii, 0.25)
  move, _ = rule.update(jax.tree.map(lambda p: jnp.array([2.0, -3.0, 0.0]), phi), rule.init(phi))
  for leaf in jax.tree.leaves(move):
    np.testing.assert_allclose(leaf, [0.5, -0.5, 0.0], rtol=1e-6)


@pytest.mark.parametrize('step', ['l2', 'sign_l2'])
def test_per_block_steps_have_the_length_of_their_own_block(step):
  radii = {'a': jnp.float32(2.0), 'b': jnp.float32(0.1), 'zero': jnp.float32(0.0)}
  gradient = {'a': jnp.array([3.0, 4.0]), 'b': jnp.zeros(3), 'zero': jnp.ones(2)}
  rule = STEPS[step](radii, 0.25)
  move, _ = rule.update(gradient, rule.init(gradient))
  assert float(jnp.linalg.norm(move['a'])) == pytest.approx(0.5)
  assert not np.any(move['b'])
  assert not np.any(move['zero'])


def test_adam_is_that_of_numpy_with_a_state_of_each_image():
  ascent = climb(LABELS, step='adam', num_steps=2, fraction=0.01, init='zero', nu=1.0)
  size = 0.01 * np.median([radius('w', 1.0), radius('b', 1.0)])

  def gradient(beta):
    weight = 2 / (1 + np.exp(margins(beta)))
    return {name: weight.reshape(-1, *[1] * (d.ndim - 1)) * d for name, d in ascent_directions(LABELS).items()}

  beta = dict(ZERO)
  first = second = dict.fromkeys(beta, 0.0)
  for t in (1, 2):
    g = gradient(beta)
    first = {name: 0.9 * first[name] + 0.1 * g[name] for name in beta}
    second = {name: 0.999 * second[name] + 0.001 * g[name] ** 2 for name in beta}
    for name in beta:
      move = (first[name] / (1 - 0.9**t)) / (np.sqrt(second[name] / (1 - 0.999**t)) + 1e-9)
      beta[name] = beta[name] + size * move
  for name, expected in beta.items():
    np.testing.assert_allclose(ascent.perturbations[name], expected, rtol=1e-3, atol=1e-5)


def test_cross_entropy_is_finite_and_in_float32():
  logits = jnp.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], jnp.bfloat16)
  losses = cross_entropy(logits, jnp.array([1, 2]))
  assert losses.dtype == jnp.float32
  np.testing.assert_allclose(losses, [np.float32(logits[0, 0]) * 2, np.log(3)], rtol=1e-5)


def clipped_network(phi, images):
  return jnp.clip(linear_network(phi, images), 0, 1)


@functools.partial(jax.jit, static_argnames='microbatch')
def run_ada(nu, microbatch=None):
  identity = {'w': np.eye(3, dtype=np.float32), 'b': np.float32([0.01, -0.01, 0.02]), 'dead': PHI['dead']}
  attack = attacks.ada(clipped_network, nu=nu, num_steps=4)
  attack = attacks.in_microbatches(attack, microbatch) if microbatch else attack
  return attack(KEYS, linear_logits, IMAGES, LABELS, identity)


def test_parts_of_a_batch_give_what_the_batch_gives():
  whole, parts = run_ada(0.015), run_ada(0.015, microbatch=2)
  np.testing.assert_allclose(parts.images, whole.images, atol=1e-6)
  for name, value in whole.metrics.items():
    np.testing.assert_allclose(parts.metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_severe_corruptions_are_pulled_back_and_reported():
  mild, severe = run_ada(0.015), run_ada(30.0)
  assert not np.any(mild.metrics['ssim_corrected'])
  assert float(mild.metrics['ssim'].min()) > 0.9
  corrected = np.asarray(severe.metrics['ssim_corrected'])
  np.testing.assert_array_equal(corrected, np.asarray(severe.metrics['ssim']) < 0.3)
  assert corrected.mean() > 0
  assert not np.any(severe.metrics['ssim_below_min'])
  assert float(ssim.ssim(IMAGES, severe.images).min()) >= 0.3 - 1e-4
  for name, value in severe.metrics.items():
    assert value.shape == (6,), name
    assert np.isfinite(value).all(), name


def test_a_network_of_zeros_is_refused():
  zeros = jax.tree.map(np.zeros_like, PHI)
  with pytest.raises(UserError, match='load trained weights'):
    attacks.ada(linear_network)(KEYS, linear_logits, IMAGES, LABELS, zeros)


@pytest.mark.parametrize('options, word', [({'step': 'sing'}, "'sign'"), ({'root': 'strikt'}, "'strict'")])
def test_unknown_rules_are_refused(options, word):
  with pytest.raises(UserError, match=f'Did you mean {word}'):
    attacks.ada(linear_network, **options)
