"""The adversaries of training within l_p balls, on linear classifiers whose strongest perturbations are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from adversarial_augment import attacks
from adversarial_augment.attacks import lp_ball
from adversarial_augment.attacks.losses import kl_divergence
from adversarial_augment.errors import UserError
from tests.linear_attack import IMAGES, KEYS, LABELS, TEMPLATE, linear_logits

EPSILON = 8 / 255
UPHILL = np.where(LABELS == 0, -1, 1)[:, None, None, None] * TEMPLATE.astype(float)  # of the loss, at every point
INNER = np.float32(0.25 + 0.5 * IMAGES)  # whose balls the box does not cut


def run(images=IMAGES, labels=LABELS, logits_fn=linear_logits, keys=KEYS, **options):
  attack = attacks.lp(**options)
  return jax.jit(lambda keys, images, labels: attack(keys, logits_fn, images, labels))(keys, images, labels)


def probabilities(images) -> np.ndarray:
  score = np.einsum('nhwc,hwc->n', np.asarray(images, float), TEMPLATE.astype(float))
  return scipy.special.softmax(np.stack([score, -score], -1), -1)


def divergences(images, others) -> np.ndarray:
  return scipy.special.rel_entr(probabilities(images), probabilities(others)).sum(-1)


@pytest.mark.parametrize('init', ['ball', 'gaussian', 'zero'])
def test_ten_steps_of_a_quarter_end_in_the_corner_of_every_cut_ball(init):
  """Right and wrong images alike: x + epsilon sign(gradient), clipped."""
  result = run(norm='linf', epsilon=EPSILON, init=init)
  expected = np.clip(IMAGES + EPSILON * np.sign(UPHILL), 0, 1)
  assert 0 < (probabilities(IMAGES).argmax(-1) == LABELS).sum() < len(LABELS)
  np.testing.assert_allclose(result.images, expected, rtol=0, atol=1e-6)
  loss = lambda images: -np.log(probabilities(images)[np.arange(6), LABELS])
  np.testing.assert_allclose(result.metrics['attack_loss_end'], loss(expected), rtol=1e-4)
  assert (np.asarray(result.metrics['attack_loss_start']) < loss(expected)).all()
  if init == 'zero':
    np.testing.assert_allclose(result.metrics['attack_loss_start'], loss(IMAGES), rtol=1e-4)


def test_steps_have_the_length_that_is_asked_for():
  step = np.asarray(run(INNER, norm='linf', epsilon=EPSILON, init='zero', num_steps=1).images) - INNER
  np.testing.assert_allclose(step, EPSILON / 4 * np.sign(UPHILL), atol=1e-6)
  half = {'num_steps': 1, 'step': 'l2', 'step_fraction': 0.5}
  step = np.asarray(run(INNER, norm='l2', epsilon=0.5, init='zero', **half).images) - INNER
  np.testing.assert_allclose(step, 0.25 * UPHILL / np.linalg.norm(TEMPLATE), atol=1e-6)


def test_normalised_gradients_end_where_an_l_2_ball_is_farthest():
  result = run(INNER, norm='l2', epsilon=0.5, step='l2', num_steps=60)
  expected = INNER + 0.5 * UPHILL / np.linalg.norm(TEMPLATE)
  np.testing.assert_allclose(result.images, expected, atol=2e-3)
  distance = np.sqrt(((np.asarray(result.images, float) - INNER) ** 2).sum((1, 2, 3)))
  np.testing.assert_allclose(distance, 0.5, rtol=1e-3)
  assert (distance <= 0.5 * (1 + 1e-6)).all()


def test_the_divergence_is_that_of_the_definition_and_survives_extreme_logits():
  rng = np.random.default_rng(0)
  logits, reference = rng.normal(0, 5, (2, 50, 10))
  p, q = (scipy.special.softmax(z, -1) for z in (reference, logits))
  with jax.enable_x64(True):
    got = kl_divergence(jnp.asarray(logits), jnp.asarray(reference))
  np.testing.assert_allclose(got, scipy.special.rel_entr(p, q).sum(-1), rtol=1e-10)
  far = jnp.float32([[1e4, 0, -1e4]])
  np.testing.assert_allclose(kl_divergence(far, far), 0)
  np.testing.assert_allclose(kl_divergence(-far, far), 2e4)


def test_the_adversary_of_trades_moves_the_probabilities_and_sees_no_labels():
  result = run(norm='linf', epsilon=EPSILON, init='gaussian', loss='kl')
  ends = [np.clip(IMAGES + sign * EPSILON * np.sign(TEMPLATE), 0, 1) for sign in (1, -1)]
  misses = [np.abs(np.asarray(result.images) - end).max((1, 2, 3)) for end in ends]
  assert (np.minimum(*misses) < 1e-6).all()  # the score has moved as far as it can, one way or the other
  np.testing.assert_allclose(result.metrics['attack_loss_end'], divergences(IMAGES, result.images), rtol=1e-3)
  assert (result.metrics['attack_loss_end'] > 100 * result.metrics['attack_loss_start']).all()
  other = run(labels=1 - LABELS, norm='linf', epsilon=EPSILON, init='gaussian', loss='kl')
  np.testing.assert_array_equal(other.images, result.images)
  start = run(norm='linf', epsilon=EPSILON, init='gaussian', loss='kl', num_steps=0)
  assert (np.abs(np.asarray(start.images) - IMAGES) < 0.006).all()
  np.testing.assert_array_equal(start.metrics['attack_loss_start'], start.metrics['attack_loss_end'])
  flat = run(norm='linf', epsilon=EPSILON, init='zero', loss='kl')  # at the image itself
  np.testing.assert_allclose(flat.metrics['gradient_norm'], 0, atol=1e-6)


@pytest.mark.parametrize('options', [{'norm': 'linf', 'loss': 'kl'}, {'norm': 'l2', 'step': 'l2'}], ids=str)
def test_an_image_is_moved_the_same_alone_and_in_a_batch(options):
  options = {'epsilon': EPSILON, 'init': 'gaussian'} | options
  together, alone = run(**options), run(IMAGES[:1], LABELS[:1], keys=KEYS[:1], **options)
  np.testing.assert_allclose(alone.images, together.images[:1], atol=1e-6)


def test_the_best_iterate_has_a_loss_no_lower_than_the_last():
  curved = lambda images: jnp.sin(40 * linear_logits(images))  # so that steps overshoot
  options = {'norm': 'linf', 'epsilon': 0.1, 'num_steps': 7}
  last, best = (run(logits_fn=curved, keep_best=keep, **options).metrics['attack_loss_end'] for keep in (False, True))
  assert (best >= last - 1e-6).all()
  assert (best > last + 1e-3).any()


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_starts_are_feasible_and_as_wide_as_they_say(norm):
  grey = jnp.full((64, 8, 8, 3), 0.5)
  keys = jax.random.split(jax.random.key(2), 64)
  draw = lambda init, epsilon, images: np.asarray(
    jax.vmap(lambda key, x: lp_ball.lp_ball(norm, epsilon, init=init).init(key, None, x))(keys, images)
  )
  assert not draw('zero', 0.5, grey).any()
  assert draw('gaussian', 0.5, grey).std() == pytest.approx(0.001, rel=0.03)
  narrow = draw('gaussian', 0.0005, grey)
  assert lp_ball.norms(norm, jnp.asarray(narrow)).max() <= 0.0005 * (1 + 1e-6)
  assert draw('gaussian', 0.5, jnp.zeros_like(grey)).min() == 0  # none leaves the box


@pytest.mark.parametrize('options, words', [
  ({'norm': 'linv'}, "Unknown norm 'linv'; known: l2, linf. Did you mean 'linf'"),
  ({'epsilon': 8}, 'did you mean 8/255'),
  ({'norm': 'l2', 'epsilon': -0.1}, 'epsilon=-0.1 must be a finite number, at least 0'),
  ({'init': 'uniform'}, "Unknown init 'uniform'"),
  ({'loss': 'KL'}, "Unknown loss 'KL'"),
  ({'step': 'sing'}, "Unknown attack step 'sing'.*Did you mean 'sign'"),
])  # fmt: skip
def test_wrong_options_are_refused_in_one_line(options, words):
  with pytest.raises(UserError, match=words) as error:
    attacks.lp(**{'norm': 'linf', 'epsilon': 0.1} | options)
  assert '\n' not in str(error.value)
