"""Norms, projections and random points of products of l2 balls, against NumPy, SciPy and optax in float64."""

import functools

from hypothesis import example, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats

from adversarial_augment.attacks import trees

SIZE = 7
FUZZ = settings(max_examples=100, deadline=None, derandomize=True)
VALUES = st.one_of(
  st.sampled_from([0.0, -0.0, 1e-40, 1e-30, -1e-20, 1e20, -1e20, 3e38]), st.floats(-10, 10, width=32, allow_nan=False)
)
VECTORS = st.lists(VALUES, min_size=SIZE, max_size=SIZE).map(lambda values: np.array(values, np.float32))
RADII = st.sampled_from([0.0, 1e-30, 1e-3, 0.015, 1.0, 3.7, 1e30])

jitted_project = jax.jit(trees.project)


def project(vector, radius) -> np.ndarray:
  return np.asarray(jitted_project({'w': vector}, {'w': np.float32(radius)})['w'])


def norm64(x) -> float:
  return float(np.linalg.norm(np.asarray(x, np.float64)))


@pytest.mark.parametrize('scale', [0.0, 1e-30, 1e-20, 1.0, 1e20, 1e37])
def test_block_norms_neither_overflow_nor_vanish(scale):
  tree = {'w': scale * jnp.array([[3.0, 0.0], [0.0, -4.0]]), 'b': scale * jnp.ones(4)}
  norms = trees.block_norms(tree)
  assert norms['w'] == pytest.approx(5 * scale, rel=1e-6)
  assert norms['b'] == pytest.approx(2 * scale, rel=1e-6)


@FUZZ
@given(VECTORS, RADII)
@example(np.full(SIZE, 1e20, np.float32), 1.0)
@example(np.zeros(SIZE, np.float32), 0.0)
def test_projection_is_feasible_idempotent_and_the_identity_inside(vector, radius):
  projected = project(vector, radius)
  assert np.isfinite(projected).all()
  # Numbers below 1e-37 are zero to a CPU that flushes them.
  assert norm64(projected) <= radius * (1 + 1e-6) + 1e-37
  np.testing.assert_array_equal(project(projected, radius), projected)
  if norm64(vector) < radius * (1 - 1e-5):
    np.testing.assert_array_equal(projected, vector)


@FUZZ
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 3.0]), st.floats(1.5, 1e6))
def test_projection_keeps_the_direction_and_contracts(seed, radius, factor):
  rng = np.random.default_rng(seed)
  a, b = (rng.normal(size=SIZE).astype(np.float32) for _ in range(2))
  pa, pb = project(a, radius).astype(float), project(b, radius).astype(float)
  assert norm64(pa - pb) <= norm64(a.astype(float) - b) * (1 + 1e-6)
  far = a * np.float32(factor * radius / norm64(a))
  np.testing.assert_allclose(project(far, radius), radius * a / norm64(a), rtol=1e-5, atol=1e-7 * radius)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('seed', range(3))
def test_projection_is_the_nearest_feasible_point(seed):
  rng = np.random.default_rng(seed)
  point = 2 * rng.normal(size=5)
  radius = 0.7
  got = np.asarray(trees.project({'w': jnp.asarray(point)}, {'w': radius})['w'])
  constraint = {'type': 'ineq', 'fun': lambda q: radius**2 - q @ q}
  found = scipy.optimize.minimize(
    lambda q: ((q - point) ** 2).sum(), np.zeros(5), method='SLSQP', constraints=[constraint], tol=1e-14
  )
  np.testing.assert_allclose(got, found.x, atol=1e-6)
  np.testing.assert_allclose(got, optax.projections.projection_l2_ball(jnp.asarray(point), radius), rtol=1e-12)


def test_blocks_and_examples_are_projected_independently():
  rng = np.random.default_rng(0)
  tree = {'a': rng.normal(size=(2, 3, 4)).astype(np.float32), 'b': rng.normal(size=(2, 5)).astype(np.float32)}
  mapped = jax.jit(jax.vmap(lambda x: trees.project(x, {'a': np.float32(0.5), 'b': np.float32(0.25)})))
  first, second = mapped(tree), mapped({'a': tree['a'] * np.float32([1, 50]).reshape(2, 1, 1), 'b': 100 * tree['b']})
  np.testing.assert_array_equal(first['a'][0], second['a'][0])
  assert norm64(first['a'][0]) == pytest.approx(0.5)
  assert norm64(second['b'][0]) == pytest.approx(0.25)


@pytest.mark.parametrize('radius', [0.0, 1.0])
def test_gradients_at_zero_are_finite(radius):
  zero = jnp.zeros(4)
  through_projection = jax.grad(lambda x: trees.project({'w': x}, {'w': radius})['w'].sum())(zero)
  through_norm = jax.grad(lambda x: trees.block_norms({'w': x})['w'])(zero)
  assert jnp.isfinite(through_projection).all()
  assert jnp.isfinite(through_norm).all()


@pytest.mark.usefixtures('x64')
def test_gradient_of_a_norm_is_the_direction():
  x = jnp.array([3.0, -4.0, 12.0])
  np.testing.assert_allclose(jax.grad(trees.block_norms)(x), x / 13, rtol=1e-14)


@functools.partial(jax.jit, static_argnames='radius')
def draw(keys, radius):
  like = {'w': jnp.zeros((2,)), 'v': jnp.zeros((5, 3)), 'zero': jnp.zeros(3)}
  radii = {'w': 2.0, 'v': 0.5, 'zero': 0.0}
  return jax.vmap(lambda key: trees.random_in_balls(key, like, radii, radius=radius))(keys)


@pytest.mark.parametrize(
  'radius, power', [('ball', {'w': 2, 'v': 15}), ('uniform', {'w': 1, 'v': 1})], ids=['ball', 'uniform']
)
def test_random_points_have_the_stated_law(radius, power):
  points = draw(jax.random.split(jax.random.key(0), 4000), radius)
  for name, limit in (('w', 2.0), ('v', 0.5)):
    norms = np.linalg.norm(np.asarray(points[name], float).reshape(4000, -1), axis=1) / limit
    assert norms.max() <= 1 + 1e-6
    # P(norm <= t) = t ** n in a ball of n dimensions.
    assert scipy.stats.kstest(norms ** power[name], 'uniform').pvalue > 1e-3
  angles = np.arctan2(*np.asarray(points['w'], float).T) / (2 * np.pi) + 0.5
  assert scipy.stats.kstest(angles, 'uniform').pvalue > 1e-3
  assert not np.any(points['zero'])
  # Blocks are independent, and no two points are alike.
  first_entries = np.stack([points['w'][:, 0], points['v'][:, 0, 0]])
  assert abs(np.corrcoef(first_entries)[0, 1]) < 0.06
  assert len(np.unique(np.asarray(points['w'])[:, 0])) > 3990
  assert not any(np.any(leaf) for leaf in draw(jax.random.split(jax.random.key(0), 2), 'zero').values())


@pytest.mark.parametrize(
  'radii', [[4.0, 1.0, 2.0, 8.0], [4.0, 1.0, 2.0], [0.0, 3.0, 0.0, 1.0], [5.0], [0.0, 0.0]], ids=str
)
def test_median_is_over_blocks_that_can_move(radii):
  moving = [radius for radius in radii if radius]
  expected = np.median(moving) if moving else 0
  assert trees.median_radius({str(i): jnp.float32(r) for i, r in enumerate(radii)}) == expected


def test_stacks_hold_blocks_of_one_shape_whose_names_differ_in_numbers_in_the_order_of_these():
  tree = {
    f'net/block_{i}/conv_{j}': {'w': np.full((2, 3), 10 * i + j), 'b': np.ones(3)} for i in (0, 2, 10) for j in (0, 1)
  }
  tree |= {'net/out': {'w': np.full((2, 3), -1), 'b': np.zeros(3)}, 'net/block_1/conv_0': {'w': np.ones((4, 3))}}
  stacks = trees.Stacks(tree)
  stacked = stacks.stack(tree)
  assert sorted(x.shape for x in stacked) == [(2, 3), (3,), (4, 3), (6, 2, 3), (6, 3)]
  weights = next(x for x in stacked if x.shape == (6, 2, 3))
  np.testing.assert_array_equal(weights[:, 0, 0], [0, 1, 20, 21, 100, 101])
  jax.tree.map(np.testing.assert_array_equal, stacks.unstack(stacked), tree)


@pytest.mark.usefixtures('x64')
def test_norms_projections_and_gradients_of_stacks_are_those_of_their_blocks():
  rng = np.random.default_rng(0)
  tree = {f'layer_{i}': rng.normal(size=(4, 3)) * 10.0**i for i in range(-3, 3)} | {'zero': np.zeros(5)}
  radii = {name: jnp.asarray(1.5) for name in tree}
  stacks = trees.Stacks(tree)
  stacked, stacked_radii = stacks.stack(tree), stacks.stack(radii)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14)
  jax.tree.map(close, stacks.unstack(trees.block_norms(stacked, stacked_radii)), trees.block_norms(tree))
  jax.tree.map(close, stacks.unstack(trees.project(stacked, stacked_radii)), trees.project(tree, radii))
  total = lambda tree: sum((x**3).sum() for x in jax.tree.leaves(tree))
  gradient = jax.grad(lambda stacked: total(stacks.unstack(stacked)))(stacked)
  jax.tree.map(close, stacks.unstack(gradient), jax.grad(total)(tree))
  assert trees.median_radius(stacked_radii) == 1.5
