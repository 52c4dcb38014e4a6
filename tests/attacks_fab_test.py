"""FAB: its projections against SciPy, and the attack against the closed form of linear classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from adversarial_augment import attacks
from adversarial_augment.attacks.fab import nearest_moves
from tests import boxed_linear
from tests.lp_ball_test import assert_within

pytestmark = pytest.mark.usefixtures('quick_compile')

SIZE = 7


def hyperplanes(number: int = 40):
  """Small problems: planes through the box, many of them where some pixels are at their bounds on the way."""
  rng = np.random.default_rng(0)
  points = rng.uniform(size=(number, SIZE))
  points[: number // 2] = rng.choice([0.0, 0.02, 0.5, 1.0], size=(number // 2, SIZE))
  normals = rng.normal(size=(number, SIZE)) * rng.choice([1.0, 1.0, 0.1, 0.0], size=(number, SIZE))
  normals[:, 0] += 1
  inside = rng.uniform(size=(number, SIZE))  # lies on the plane
  return points, normals, ((inside - points) * normals).sum(1)


def smallest_linf_move(point, normal, offset) -> float:
  """Linear programming: minimise t with |move| <= t, on the plane and in the box."""
  cost = np.r_[np.zeros(SIZE), 1]
  eye, one = np.eye(SIZE), np.ones((SIZE, 1))
  below = np.block([[eye, -one], [-eye, -one]])
  bounds = [*zip(-point, 1 - point, strict=True), (0, None)]
  solved = scipy.optimize.linprog(
    cost, A_ub=below, b_ub=np.zeros(2 * SIZE), A_eq=np.r_[normal, 0][None], b_eq=[offset], bounds=bounds
  )
  assert solved.status == 0
  return solved.fun


def smallest_l2_move(point, normal, offset) -> np.ndarray:
  solved = scipy.optimize.minimize(
    lambda move: (move**2).sum(), np.zeros(SIZE), jac=lambda move: 2 * move, method='SLSQP',
    bounds=list(zip(-point, 1 - point, strict=True)),
    constraints={'type': 'eq', 'fun': lambda move: normal @ move - offset, 'jac': lambda move: normal},
    options={'ftol': 1e-15, 'maxiter': 500},
  )  # fmt: skip
  assert solved.success
  return solved.x


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_moves_onto_hyperplanes_are_the_smallest(norm):
  points, normals, offsets = hyperplanes()
  moves = np.asarray(nearest_moves(norm, *map(jnp.asarray, (points, normals, offsets))))
  np.testing.assert_allclose((moves * normals).sum(1), offsets, atol=1e-12)
  assert (points + moves).min() >= 0
  assert (points + moves).max() <= 1
  at_bounds = (np.isclose(points + moves, 0) | np.isclose(points + moves, 1)) & (moves != 0)
  assert at_bounds.any(1).mean() > 0.2
  for move, problem in zip(moves, zip(points, normals, offsets, strict=True), strict=True):
    if norm == 'linf':
      assert np.abs(move).max() == pytest.approx(smallest_linf_move(*problem), abs=1e-9)
    else:
      np.testing.assert_allclose(move, smallest_l2_move(*problem), atol=1e-5)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_planes_out_of_reach_lead_to_the_nearest_corner(norm):
  points, normals = np.float32([[0.2, 0.9, 0.4]]), np.float32([[2.0, -1.0, 0.0]])
  up, down = (nearest_moves(norm, points, normals, jnp.float32([offset])) for offset in (50.0, -50.0))
  np.testing.assert_allclose(up, [[0.8, -0.9, 0]], rtol=1e-6)
  np.testing.assert_allclose(down, [[-0.2, 0.1, 0]], rtol=1e-6)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_moves_do_not_depend_on_the_scale_of_the_gradient(norm):
  points, normals, offsets = map(np.float32, hyperplanes())
  plain = nearest_moves(norm, points, normals, offsets)
  for scale in np.float32([1e-30, 1e30]):
    np.testing.assert_allclose(nearest_moves(norm, points, normals * scale, offsets * scale), plain, atol=1e-5)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_without_a_gradient_nothing_moves(norm):
  moves = nearest_moves(norm, jnp.full((2, 3), 0.5), jnp.zeros((2, 3)), jnp.array([1.0, 0.0]))
  assert not moves.any()


def attack_linear(norm, epsilon, problem, **options):
  logits_fn, _, images, labels, _ = problem
  attack = attacks.fab(norm=norm, epsilon=epsilon, **{'num_targets': len(problem[1]) - 1} | options)
  run = jax.jit(lambda keys, images, labels: attack(keys, logits_fn, images, labels))
  return run(boxed_linear.keys(len(images)), images, labels)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('num_classes, robust', [(2, 0.5), (3, 0.1), (6, 0.9), (6, 0.4)])
def test_linear_classifiers_are_broken_where_the_closed_form_says_so(norm, robust, num_classes):
  box = {} if norm == 'linf' else {'low': 0.4, 'high': 0.6}
  problem = boxed_linear.problem(num_classes, **box)
  epsilon = boxed_linear.quantile_epsilon(norm, robust, *problem[1:])
  expected = boxed_linear.best_margins(norm, epsilon, *problem[1:]) >= 0
  assert np.mean(~expected) == pytest.approx(robust, abs=0.01)
  result = attack_linear(norm, epsilon, problem, num_steps=20)
  success = np.asarray(result.metrics['success'])
  assert not (success & ~expected & (np.abs(boxed_linear.best_margins(norm, epsilon, *problem[1:])) > 1e-4)).any()
  assert abs((~success).mean() - (~expected).mean()) <= 0.01
  assert_within(norm, epsilon, problem[2], result.images)


def test_each_round_has_its_target_in_the_order_of_the_clean_logits():
  """Only class `rank` can be reached, since the gradients of the others are zero; 4 classes, 3 ranks, 2 restarts."""
  order = np.array([2.0, 1.0, 0.0])
  image = np.full((1, 4, 4, 1), 0.5, np.float32)
  restarted = attacks.fab(norm='linf', epsilon=0.4, num_steps=20, restarts=2, num_targets=3)

  @jax.jit
  def success(index, gains):
    def logits_fn(x):
      others = jnp.float32(order)[None] + gains[None] * (x.mean((1, 2, 3)) - 0.5)[:, None]
      return jnp.concatenate([jnp.full((len(x), 1), 5.0), others], axis=1)

    return restarted.make(index)(boxed_linear.keys(1), logits_fn, image, jnp.array([0])).metrics['success'][0]

  for reachable in range(3):
    gains = np.where(np.arange(3) == reachable, np.float32(60), 0)
    assert [bool(success(index, gains)) for index in range(6)] == [index % 3 == reachable for index in range(6)]


def test_the_smallest_perturbation_that_is_too_large_is_pulled_in():
  """Without steps enough to come within epsilon by itself: the first step overshoots by 5 %."""
  problem = boxed_linear.problem(2, low=0.4, high=0.6)
  needed = boxed_linear.quantile_epsilon('l2', 0.5, *problem[1:])
  expected = boxed_linear.best_margins('l2', needed, *problem[1:]) >= 0
  result = attack_linear('l2', needed, problem, num_steps=1)
  assert abs(np.mean(result.metrics['success']) - expected.mean()) <= 0.01
