"""The l_p balls within the box, against their definition; losses and restarts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from adversarial_augment.attacks import lp_ball
from adversarial_augment.attacks.losses import dlr, margin, targeted_dlr
from adversarial_augment.attacks.restarts import RestartedAttack, attack_result
from adversarial_augment.errors import UserError
from adversarial_augment.types import AttackResult

RNG = np.random.default_rng(0)
SHAPE = (8, 8, 3)
EPSILONS = {'linf': (0.0, 1 / 255, 8 / 255, 0.3, 1.0), 'l2': (0.0, 0.01, 0.5, 3.0, 100.0)}
BALLS = [(norm, epsilon) for norm, epsilons in EPSILONS.items() for epsilon in epsilons]


def hard_images(shape=SHAPE) -> np.ndarray:
  """Random, black, white, grey, black-and-white, and almost black images."""
  constant = [np.full(shape, value) for value in (0.0, 1.0, 0.5, 1 / 3, 1e-9, 1 - 2**-24)]
  return np.float32([*RNG.uniform(size=(4, *shape)), RNG.integers(0, 2, shape), *constant])


def distances(norm, images, others) -> np.ndarray:
  deltas = (np.asarray(others, float) - np.asarray(images, float)).reshape(len(images), -1)
  return np.abs(deltas).max(1) if norm == 'linf' else np.sqrt((deltas**2).sum(1))


def assert_within(norm, epsilon, images, others) -> None:
  others = np.asarray(others)
  assert np.isfinite(others).all()
  assert others.min() >= 0
  assert others.max() <= 1
  assert (distances(norm, images, others) <= epsilon * (1 + 1e-6) + 1e-7).all()


@pytest.mark.parametrize('norm, epsilon', BALLS)
@pytest.mark.parametrize('shape', [SHAPE, (64, 64, 3)])
def test_projections_and_starts_are_feasible(norm, epsilon, shape):
  images = hard_images(shape)
  project = jax.jit(lambda points: lp_ball.project(norm, epsilon, images, points))
  for far in (0.0, 1e-6, 0.1, 1.0, 1e6, 3e38):
    for direction in (RNG.normal(size=images.shape), np.ones(images.shape), -np.ones(images.shape)):
      points = np.float32(np.clip(images + far * direction, -3e38, 3e38))
      assert_within(norm, epsilon, images, project(points))
  starts = jax.vmap(lambda key, image: lp_ball.random_start(norm, epsilon, key, image))
  assert_within(norm, epsilon, images, starts(jax.random.split(jax.random.key(1), len(images)), images))


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_feasible_points_stay_and_what_is_no_number_becomes_feasible(norm):
  images = hard_images()
  points = lp_ball.project(norm, 0.2, images, images + np.float32(RNG.normal(size=images.shape)))
  np.testing.assert_allclose(lp_ball.project(norm, 0.2, images, points), points, atol=1e-6)
  np.testing.assert_array_equal(lp_ball.project(norm, 0.2, images, images), images)
  np.testing.assert_array_equal(lp_ball.project(norm, 0.0, images, images + 1), images)
  points = np.where(RNG.uniform(size=images.shape) < 0.3, np.float32(np.nan), images + np.float32(np.inf))
  assert_within(norm, 0.3, images, lp_ball.project(norm, 0.3, images, points))


@pytest.mark.parametrize('epsilon', [0.05, 0.5, 1.5])
def test_the_l2_projection_is_the_nearest_point_of_ball_and_box(epsilon):
  """Against a solver: the nearest point is the box's nearest to x + t d, for the t at which the ball is reached."""
  images = np.float32([*hard_images((4, 4, 3))[:5], *RNG.uniform(0, 0.02, (3, 4, 4, 3))])
  points = images + np.float32(RNG.normal(size=images.shape) * 0.5)
  found = lp_ball.project('l2', epsilon, images, points)
  for image, point, mine in zip(images.astype(float), points.astype(float), np.asarray(found, float), strict=True):
    along = lambda t, x=image, p=point: np.clip(x + t * (p - x), 0, 1)
    beyond = lambda t, x=image, along=along: np.linalg.norm(along(t) - x) - epsilon
    nearest = along(1.0 if beyond(1.0) <= 0 else scipy.optimize.brentq(beyond, 0, 1))
    assert np.linalg.norm(mine - point) <= np.linalg.norm(nearest - point) + 0.01 * epsilon
    np.testing.assert_allclose(np.linalg.norm(mine - image), np.linalg.norm(nearest - image), rtol=0.01)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_starts_fill_the_ball(norm):
  image = np.full(SHAPE, 0.5, np.float32)
  keys = jax.random.split(jax.random.key(0), 400)
  points = jax.vmap(lambda key: lp_ball.random_start(norm, 0.1, key, image))(keys)
  deltas = np.asarray(points, float) - 0.5
  np.testing.assert_allclose(deltas.mean(), 0, atol=1e-3)
  if norm == 'linf':  # uniform: mean |delta| is half of epsilon
    np.testing.assert_allclose(np.abs(deltas).mean(), 0.05, rtol=0.02)
  else:  # uniform: (r / epsilon)^192 is uniform in [0, 1]
    radii = distances('l2', [image] * 400, points) / 0.1
    np.testing.assert_allclose((radii ** np.prod(SHAPE)).mean(), 0.5, atol=0.06)


def test_norms_are_those_of_numpy():
  deltas = np.float32(RNG.normal(size=(5, *SHAPE))) * np.float32([0, 1e-30, 1, 1e10, 1e30]).reshape(5, 1, 1, 1)
  for norm in ('linf', 'l2'):
    np.testing.assert_allclose(lp_ball.norms(norm, deltas), distances(norm, 0 * deltas, deltas), rtol=1e-6)


def test_the_set_is_the_ball_of_offsets():
  images = hard_images()
  ball = lp_ball.lp_ball('l2', 0.5)
  deltas = jax.vmap(lambda image: ball.project(None, image, jnp.ones(SHAPE)))(images)
  moved = ball.apply_batch(None, images, deltas, None)
  assert_within('l2', 0.5, images, moved)
  np.testing.assert_allclose(moved, lp_ball.project('l2', 0.5, images, images + 1), atol=1e-6)
  assert float(ball.radii(None)) == 0.5
  with pytest.raises(UserError, match='group=1'):
    ball.apply_batch(None, images, deltas[:1], None)


@pytest.mark.parametrize('norm, epsilon, message', [
  ('l_inf', 0.1, "Did you mean 'linf'"),
  ('linf', 8, 'did you mean 8/255'),
  ('linf', -0.1, 'at least 0'),
  ('l2', float('nan'), 'finite'),
  ('l2', float('inf'), 'finite'),
  ('l2', '8/255', 'must be a number of Python or NumPy'),
  ('l2', np.array([0.1]), 'must be a number of Python or NumPy'),
  (None, 0.1, "Unknown norm 'None'"),
])  # fmt: skip
def test_what_is_no_ball_is_refused(norm, epsilon, message):
  with pytest.raises(UserError, match=message.replace('?', r'\?')):
    lp_ball.lp_ball(norm, epsilon)


LOGITS = np.float32([[3.0, 1.0, -2.0, 0.5], [3.0, 1.0, -2.0, 0.5], [0.0, 0.0, -1.0, -3.0]])
CLASSES = np.array([0, 3, 1])


def test_losses_by_hand():
  np.testing.assert_allclose(margin(LOGITS, CLASSES), [-2.0, 2.5, 0.0])
  np.testing.assert_allclose(dlr(LOGITS, CLASSES), [-2 / 2.5, 2.5 / 2.5, 0.0])
  targets = np.array([1, 0, 2])
  spread = [3 - (0.5 - 2) / 2, 3 - (0.5 - 2) / 2, 0 - (-1 - 3) / 2]
  np.testing.assert_allclose(targeted_dlr(LOGITS, CLASSES, targets), np.array([-2.0, 2.5, -1.0]) / spread, rtol=1e-6)


def test_losses_do_not_change_with_shift_or_scale():
  logits = np.float32(RNG.normal(size=(50, 7)))
  labels, targets = RNG.integers(0, 7, (2, 50))
  shifted = logits + np.float32(RNG.normal(size=(50, 1)))
  np.testing.assert_allclose(margin(shifted, labels), margin(logits, labels), atol=1e-5)
  for other in (shifted, logits * 1e3, logits * 1e-3):
    np.testing.assert_allclose(dlr(other, labels), dlr(logits, labels), rtol=1e-4, atol=1e-5)
    mine, theirs = targeted_dlr(other, labels, targets), targeted_dlr(logits, labels, targets)
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_restarts_keep_the_first_success_else_the_highest_margin():
  """Four restarts whose images say their number; margins of each image by hand."""
  margins = jnp.array([[-3.0, 1.0, -1.0, 2.0], [-1.0, -2.0, jnp.nan, -2.0], [jnp.nan] * 4])

  def make(index):
    def attack(keys, logits_fn, images, labels, frozen=None):
      values = margins[:, index]
      return AttackResult(jnp.full_like(images, index + 1), {'success': values >= 0, 'margin': values})

    return attack

  images, keys = jnp.zeros((3, 1, 1, 1)), jax.random.split(jax.random.key(0), 3)
  result = jax.jit(lambda: RestartedAttack(4, make)(keys, lambda x: jnp.zeros((3, 2)), images, jnp.zeros(3, int)))()
  np.testing.assert_array_equal(result.images.ravel(), [2, 1, 0])
  np.testing.assert_array_equal(result.metrics['success'], [True, False, False])
  np.testing.assert_array_equal(result.metrics['margin'], [1.0, -1.0, np.nan])


def test_ties_and_nan_are_broken():
  logits = jnp.array([[1.0, 1.0], [2.0, 1.0], [jnp.nan, 1.0], [1.0, jnp.nan]])
  result = attack_result(logits, jnp.zeros((4, 1, 1, 1)), jnp.zeros(4, int))
  np.testing.assert_array_equal(result.metrics['success'], [True, False, True, True])
