"""Square: its squares and windows against the paper by hand, and what it breaks that gradients do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment.attacks.square import l2_change, profile, square_sides
from tests import boxed_linear
from tests.lp_ball_test import assert_within, distances

GREY = np.full((4, 16, 16, 3), 0.5, np.float32)
ZEROS = np.zeros(4, np.int32)


def attack(images, labels, logits_fn, seed=0, **options):
  square = attacks.square(**options)
  run = jax.jit(lambda keys, images, labels: square(keys, logits_fn, images, labels))
  return jax.device_get(run(boxed_linear.keys(len(images), seed), images, labels))


def tried_images(norm, num_queries, epsilon=0.1):
  """The images of every query on a classifier that nothing changes: the clean ones, the start, each try."""
  seen = []

  def constant(x):
    jax.debug.callback(lambda tried: seen.append(np.array(tried)), x, ordered=True)
    return jnp.array([[1.0, 0.0]]) + 0 * x.mean((1, 2, 3))[:, None]

  attack(GREY, ZEROS, constant, norm=norm, epsilon=epsilon, num_queries=num_queries)
  jax.effects_barrier()
  return np.array(seen)


def extent(changed) -> np.ndarray:
  """Rows and columns of the box around what has changed, [n, 2]."""
  spans = []
  for one in changed:
    rows, columns = np.nonzero(one.any(-1))
    spans.append((np.ptp(rows) + 1, np.ptp(columns) + 1) if len(rows) else (0, 0))
  return np.array(spans)


def test_sides_are_those_of_the_table():
  assert square_sides('linf', 0.8, 32, 32).tolist() == [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]  # sqrt(.8 * 1024) = 28.6, ...
  assert square_sides('l2', 0.8, 32, 32).tolist() == [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]
  assert square_sides('linf', 1.0, 8, 32).tolist() == [8, 8, 8, 6, 4, 3, 2, 1, 1, 1]  # within the image
  assert square_sides('l2', 0.8, 2, 2).tolist() == [2] * 10


def test_squares_shrink_at_the_queries_of_the_schedule():
  """Side 14 of 16 up to query 10, then 10 up to 50, 7 up to 200, 5 from there: sqrt(.8 * 256 / 2^i)."""
  clean, start, *tries = tried_images('linf', 220)
  assert len(tries) == 219
  np.testing.assert_array_equal(clean, GREY)
  spans = np.array([extent(tried != start) for tried in tries])  # [query, image, 2]
  assert (spans[:, :, 0] <= np.array([14] * 10 + [10] * 40 + [7] * 150 + [5] * 19)[:, None]).all()
  for query, side in ((1, 14), (11, 10), (51, 7), (201, 5)):
    assert spans[query - 1 : query + 9].max() == side


def test_linf_starts_with_stripes_and_changes_whole_squares():
  _, start, *tries = tried_images('linf', 40)
  np.testing.assert_allclose(np.abs(start - 0.5), 0.1, rtol=1e-5)
  assert (start == start[:, :1]).all()
  assert 0.35 < (start[:, 0] > 0.5).mean() < 0.65
  assert len({one.tobytes() for one in start}) == 4  # each image has stripes of its own
  corners = set()
  for tried in tries[10:]:
    np.testing.assert_allclose(np.abs(tried - 0.5), 0.1, rtol=1e-5)
    for one, before in zip(tried, start, strict=True):
      changed = (one != before).any(-1)
      rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
      if len(columns):
        assert len(rows) == 10
        window = one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (window == window[:1, :1]).all()  # one sign in each channel
        corners.add(rows[0])
  assert corners == set(range(7))  # up to the lower edge


def eta_of_the_paper(height: int, width: int) -> np.ndarray:
  """Equation 3, by loops and counted from 1."""
  eta = np.zeros((height, width))
  n = height // 2
  for r in range(1, height + 1):
    for s in range(1, width + 1):
      last = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
      eta[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(last + 1))
  return eta


@pytest.mark.parametrize('side', [3, 5, 7, 15, 29])
def test_the_profile_is_that_of_the_paper(side):
  rows, columns = np.arange(side)[:, None], np.arange(side)[None]
  found = jax.jit(profile)(rows, columns, side)
  k = side // 2
  expected = np.concatenate([eta_of_the_paper(side, k), -eta_of_the_paper(side, side - k)], axis=1)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_l2_starts_and_stays_on_the_sphere():
  _, start, *tries = tried_images('l2', 60, epsilon=0.7)
  for tried in (start, *tries):
    np.testing.assert_allclose(distances('l2', GREY, tried), 0.7, rtol=1e-4)
  assert len({one.tobytes() for one in start}) == 4
  tiles = start[:, :15, :15].reshape(4, 5, 3, 5, 3, 3) - 0.5  # 5 x 5 tiles of 3 pixels
  shapes = np.abs(tiles).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, 3)
  np.testing.assert_allclose(shapes, np.broadcast_to(shapes[:1], shapes.shape), rtol=1e-3, atol=1e-6)
  np.testing.assert_array_equal(start[:, 15], 0.5)


def test_l2_moves_mass_from_one_window_to_another():
  """Algorithm 3 on a grey image with mass everywhere."""
  rng = np.random.default_rng(0)
  delta = rng.normal(size=(16, 16, 3))
  delta *= 0.5 / np.linalg.norm(delta)
  image, point = GREY[0], np.float32(0.5 + delta)
  change = jax.jit(lambda key: l2_change(0.6, jnp.array(5), key, image, point))
  seen = set()
  for key in jax.random.split(jax.random.key(1), 30):
    new = np.asarray(change(key), float) - 0.5
    assert np.linalg.norm(new) == pytest.approx(0.6, rel=1e-4)
    emptied = (new == 0).all(-1)
    changed = (np.abs(new - delta) > 1e-6).any(-1)
    written = changed & ~emptied
    rows, columns = np.nonzero(written)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (5, 5)
    first = np.zeros((16, 16), bool)
    first[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    seen.add((rows.min(), columns.min()))
    assert emptied.sum() <= 25
    for channel in range(3):  # what the windows held, and a third of what was unused
      held = (delta[..., channel][first | emptied] ** 2).sum() + (0.6**2 - 0.5**2) / 3
      assert (new[..., channel][first] ** 2).sum() == pytest.approx(held, rel=1e-3)
      old = delta[..., channel][first]
      old /= np.linalg.norm(old)
      eta = np.concatenate([eta_of_the_paper(5, 2), -eta_of_the_paper(5, 3)], axis=1)
      eta /= np.linalg.norm(eta)
      options = [old + sign * turned.ravel() for sign in (1, -1) for turned in (eta, eta.T)]
      direction = new[..., channel][first] / np.linalg.norm(new[..., channel][first])
      assert min(np.abs(direction - option / np.linalg.norm(option)).max() for option in options) < 1e-3
  assert len(seen) > 20


def masked(x):
  """A classifier without gradients whose every image has adversarial examples: label 0 wins by a nose, in steps."""
  template = np.float32(np.random.default_rng(4).normal(size=x.shape[1:]).cumsum(0).cumsum(1))
  score = jnp.einsum('nhwc,hwc->n', x - 0.5, template) / np.abs(template).sum()
  score = jax.lax.stop_gradient(jnp.floor(score * 1000)) / 1000
  return jnp.stack([jnp.full_like(score, 0.03), score], axis=1)


@pytest.mark.parametrize('norm, epsilon', [('linf', 0.08), ('l2', 2.0)])
def test_masked_gradients_do_not_help(norm, epsilon):
  images = np.float32(np.random.default_rng(5).uniform(0.45, 0.55, size=(16, 16, 16, 3)))
  labels = np.zeros(16, np.int32)
  assert (np.asarray(masked(images)).argmax(1) == 0).all()
  square = attack(images, labels, masked, norm=norm, epsilon=epsilon, num_queries=2000)
  assert square.metrics['success'].all()
  assert (np.asarray(masked(square.images)).argmax(1) == 1).all()
  assert_within(norm, epsilon, images, square.images)
  fab = jax.jit(
    lambda keys: attacks.fab(norm=norm, epsilon=epsilon, num_steps=20, num_targets=1)(keys, masked, images, labels)
  )
  assert not fab(boxed_linear.keys(16)).metrics['success'].any()


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('num_classes', [2, 3])
def test_successes_on_linear_classifiers_are_true_many_and_more_with_more_queries(norm, num_classes):
  box = {} if norm == 'linf' else {'low': 0.4, 'high': 0.6}
  problem = boxed_linear.problem(num_classes, 64, **box)
  epsilon = boxed_linear.quantile_epsilon(norm, 0.3, *problem[1:])
  best = boxed_linear.best_margins(norm, epsilon, *problem[1:])
  result = attack(problem[2], problem[3], problem[0], norm=norm, epsilon=epsilon, num_queries=2000)
  assert not (result.metrics['success'] & (best < -1e-4)).any()
  assert (result.metrics['margin'] <= best + 1e-4).all()
  assert result.metrics['success'].sum() > 0.6 * (best >= 0).sum()
  fewer = attack(problem[2], problem[3], problem[0], norm=norm, epsilon=epsilon, num_queries=200).metrics['margin']
  assert (fewer <= result.metrics['margin']).all()
  assert (fewer < result.metrics['margin']).any()


def test_broken_images_stay_as_they_are():
  """Each image keeps its first success, whatever happens to the others; the wrong ones are not touched."""
  images = np.float32(np.random.default_rng(8).uniform(0.45, 0.55, size=(4, 16, 16, 3)))
  labels = np.array([0, 1, 0, 1], np.int32)  # `masked` says 0
  short, long = (attack(images, labels, masked, norm='linf', epsilon=0.08, num_queries=n) for n in (700, 2000))
  np.testing.assert_array_equal(short.images[1::2], images[1::2])
  assert short.metrics['success'].any()
  kept = short.metrics['success']
  np.testing.assert_array_equal(long.images[kept], short.images[kept])


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 3, 1), (4, 4, 3), (9, 5, 2)])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_small_and_oblong_images(norm, shape):
  images = np.full((3, *shape), 0.5, np.float32)
  bright = lambda x: jnp.stack([jnp.full(len(x), 0.51), x.mean((1, 2, 3))], axis=1)
  epsilon = {'linf': 0.05, 'l2': 0.05 * np.sqrt(np.prod(shape))}[norm]
  result = attack(images, np.zeros(3, np.int32), bright, norm=norm, epsilon=epsilon, num_queries=400)
  assert_within(norm, epsilon, images, result.images)
  # In l_2 a window is brighter in one half and darker in the other, which in a few pixels leads nowhere.
  assert result.metrics['success'].all() or (norm == 'l2' and result.metrics['success'].any())


def test_restarts_have_draws_of_their_own():
  restarted = attacks.square(norm='linf', epsilon=0.1, num_queries=1, restarts=3)
  bright = lambda x: jnp.stack([jnp.full(len(x), 5.0), x.max((1, 2, 3))], axis=1)
  run = jax.jit(lambda index: restarted.make(index)(boxed_linear.keys(4), bright, GREY, ZEROS).images)
  assert len({run(index).tobytes() for index in range(3)}) == 3
