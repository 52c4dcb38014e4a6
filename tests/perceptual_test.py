"""The perceptual distance and what is bounded by it, beside closed forms on linear functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment.attacks import losses, suites
from adversarial_augment.attacks.feature_distance import Ball, bisection, make_view, newton
from adversarial_augment.attacks.perceptual import conjugate_gradients, lagrangian_step
from adversarial_augment.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compile')

RNG = np.random.default_rng(0)
SHAPE = (4, 4, 3)
IMAGES = np.float32(RNG.uniform(0.3, 0.7, (8, *SHAPE)))
POINTS = np.float32(RNG.uniform(0, 1, (8, *SHAPE)))
MATRIX = np.float32(RNG.normal(size=(48, 20)))
WEIGHTS = np.float32(RNG.normal(size=(48, 5)))
KEYS = jax.random.split(jax.random.key(0), 8)


def logits_fn(images):
  return (images - 0.5).reshape(len(images), -1) @ WEIGHTS


LABELS = np.array(logits_fn(IMAGES).argmax(1), np.int32)


def linear_distance(images, other):
  return jnp.linalg.norm((other - images).reshape(len(images), -1) @ MATRIX, axis=-1)


def exact_distances(points) -> np.ndarray:
  return np.linalg.norm((np.asarray(points, float) - IMAGES).reshape(8, -1) @ MATRIX, axis=-1)


def features(images):
  """Two layers; ReLUs leave some positions without any channel."""
  first = jax.nn.relu(images @ MATRIX[:3, :4] - 1.0)
  second = jnp.tanh(images.reshape(len(images), 2, 2, 2, 2, 3).mean((2, 4)) @ MATRIX[3:6, :7])
  return [first, second]


class Observed:
  """The classifier with these features as its own."""

  def __call__(self, images):
    return logits_fn(images)

  def observe(self, images):
    return logits_fn(images), features(images)


def ball(distance, epsilon: float) -> Ball:
  view = make_view(distance, logits_fn)
  return Ball(view, jnp.asarray(IMAGES), view.locate(jnp.asarray(IMAGES)), epsilon)


def test_the_distance_is_that_of_the_published_formula():
  parts = []
  for a, b in zip(features(IMAGES), features(POINTS), strict=True):
    a, b = np.asarray(a, float), np.asarray(b, float)
    unit = lambda x: x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10) / np.sqrt(x.shape[1] * x.shape[2])
    parts.append((unit(a) - unit(b)).reshape(8, -1))
  expected = np.linalg.norm(np.concatenate(parts, 1), axis=1)
  found = attacks.feature_distance(features)(IMAGES, POINTS)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert (expected > 0.1).all()


def test_equal_images_have_no_distance_and_no_gradient_that_is_not_finite():
  distance = attacks.feature_distance(features)
  np.testing.assert_array_equal(distance(IMAGES, IMAGES), 0)
  assert (np.asarray(features(IMAGES)[0]).sum(-1) == 0).any()
  gradient = jax.jit(jax.grad(lambda images, other: distance(images, other).sum()))
  assert np.isfinite(gradient(IMAGES, IMAGES)).all()
  assert np.isfinite(gradient(IMAGES, POINTS)).all()


def test_the_scale_of_a_layer_does_not_matter():
  scaled = lambda images: [1e3 * features(images)[0], 1e-3 * features(images)[1]]
  expected, found = (attacks.feature_distance(f)(IMAGES, POINTS) for f in (features, scaled))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('epsilon', [0.5, 3.0])
def test_bisection_is_within_2_to_the_minus_10_of_the_surface_and_never_outside(epsilon):
  found = bisection(ball(linear_distance, epsilon), POINTS)
  exact = epsilon / exact_distances(POINTS)
  assert (exact < 1).all()
  offset = lambda points: (np.asarray(points, float) - IMAGES).reshape(8, -1)
  share = (offset(found) * offset(POINTS)).sum(1) / (offset(POINTS) ** 2).sum(1)
  assert (share <= exact + 1e-6).all()
  assert (exact - share <= 2**-10 + 1e-6).all()
  assert (exact_distances(found) <= epsilon * (1 + 1e-6)).all()


@pytest.mark.parametrize('project', [bisection, newton])
def test_projections_leave_points_that_are_inside(project):
  inside = ball(linear_distance, float(exact_distances(POINTS).max()) * 1.001)
  np.testing.assert_array_equal(project(inside, POINTS), POINTS)


def test_a_newton_step_on_a_line_has_the_published_length():
  """Where the distance is |<w, x - x0>|, its gradient is constant, and one step goes 1.1 (excess + 0.1) too far."""
  w = jnp.full(48, 0.25)
  along = lambda images, other: jnp.abs((other - images).reshape(len(images), -1) @ w)
  points = jnp.asarray(IMAGES) + 0.1
  before = 48 * 0.25 * 0.1
  found = along(IMAGES, newton(ball(along, 0.7), points))
  np.testing.assert_allclose(found, before - 1.1 * (before - 0.7 + 0.1), rtol=1e-4)


def test_newton_is_inside_and_bisects_what_does_not_converge():
  found = newton(ball(linear_distance, 1.0), POINTS)
  assert (exact_distances(found) <= 1 + 1e-6).all()
  # The gradient of this one points nowhere, so that no step moves.
  stuck = lambda images, other: jax.lax.stop_gradient(linear_distance(images, other)) + 0 * other.sum((1, 2, 3))
  np.testing.assert_array_equal(newton(ball(stuck, 1.0), POINTS), bisection(ball(stuck, 1.0), POINTS))


def test_the_margin_is_that_of_brute_force():
  logits = RNG.normal(size=(8, 5))
  others = lambda row, label: [value for index, value in enumerate(row) if index != label]
  expected = [max(others(row, label)) - row[label] for row, label in zip(logits, LABELS, strict=True)]
  np.testing.assert_allclose(losses.margin(jnp.asarray(logits), LABELS), expected, rtol=1e-5)


@pytest.mark.parametrize('size', [0.3, 1.0])
def test_a_step_has_the_length_it_is_given_in_the_units_of_a_linear_distance(size):
  points = jnp.asarray(IMAGES) + 0.01
  move, margins, distances = lagrangian_step(ball(linear_distance, 5.0), LABELS, points, jnp.ones(8), np.inf)
  np.testing.assert_allclose(margins, losses.margin(logits_fn(points), LABELS), rtol=1e-5)
  np.testing.assert_allclose(distances, exact_distances(points), rtol=1e-4)
  np.testing.assert_allclose(linear_distance(points, move(0.1 * size)), 0.1 * size, rtol=1e-3)


def test_a_step_of_ppgd_is_the_best_within_the_linearised_ball():
  """Of a linear phi whose J^T J has five different eigenvalues, five conjugate gradients find the maximum exactly."""
  scales = np.float32(np.resize([1, 2, 3, 4, 5], 48))
  gradient = RNG.normal(size=(8, 48))
  square = lambda v: v * scales.reshape(1, *SHAPE) ** 2
  found = conjugate_gradients(square, jnp.asarray(gradient, jnp.float32).reshape(8, *SHAPE))
  np.testing.assert_allclose(found.reshape(8, -1), gradient / scales**2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  ('method', 'of'),
  [
    ('fast_lpa', 'self'),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (('fast_lpa', 'features'), ('lpa', 'features'))),
    pytest.param('ppgd', 'self', marks=pytest.mark.slow),
  ],
)
def test_attacks_raise_the_margin_and_stay_inside(method, of):
  distance = 'self' if of == 'self' else attacks.feature_distance(features)
  attack = attacks.perceptual(distance=distance, epsilon=0.3, num_steps=10, projection='newton', method=method)
  classifier = Observed() if of == 'self' else logits_fn
  result = jax.jit(lambda keys, images: attack(keys, classifier, images, LABELS))(KEYS, IMAGES)
  clean, margins = (losses.margin(logits_fn(x), LABELS) for x in (IMAGES, result.images))
  assert (margins > clean + 0.2).all()
  np.testing.assert_allclose(result.metrics['margin'], margins, rtol=1e-4)
  np.testing.assert_allclose(result.metrics['clean_margin'], clean, rtol=1e-4)
  exact = attacks.feature_distance(features)(IMAGES, result.images)
  np.testing.assert_allclose(result.metrics['distance'], exact, rtol=1e-4)
  assert (exact <= 0.3 * (1 + 1e-5)).all()
  np.testing.assert_array_equal(result.metrics['success'], margins >= 0)
  assert ((result.images >= 0) & (result.images <= 1)).all()


@pytest.mark.parametrize('method', ['fast_lpa', 'lpa', 'ppgd'])
def test_points_of_misclassified_images_at_the_border_stay_in_the_box(method):
  images, wrong = np.round(IMAGES), (LABELS + 1) % 5
  wrong = np.where(logits_fn(images).argmax(1) == wrong, (wrong + 1) % 5, wrong)
  distance = attacks.feature_distance(features)
  attack = attacks.perceptual(distance=distance, epsilon=5.0, num_steps=3, method=method, projection='newton')
  found = jax.jit(lambda keys: attack(keys, Observed(), images, wrong))(KEYS).images
  assert (np.asarray(found) != images).any()
  assert found.min() >= 0
  assert found.max() <= 1


def test_misclassified_images_stay_if_they_are_to():
  labels = LABELS.copy()
  labels[:3] = (labels[:3] + 1) % 5
  distance = attacks.feature_distance(features)
  attack = attacks.perceptual(distance=distance, epsilon=0.3, num_steps=np.int64(2), only_correct=True)
  result = jax.jit(lambda keys: attack(keys, logits_fn, IMAGES, labels))(KEYS)
  np.testing.assert_array_equal(result.images[:3], IMAGES[:3])
  assert (result.metrics['distance'][3:] > 0.01).all()


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'epsilon': -1}, 'epsilon=-1'),
    ({'epsilon': np.nan}, 'epsilon=nan'),
    ({'num_steps': 0}, 'num_steps=0'),
    ({'projection': 'newtons'}, "Unknown projection 'newtons'.*Did you mean 'newton'"),
    ({'method': 'flpa'}, "Unknown method 'flpa'"),
    ({'distance': 'alexnet'}, "distance='alexnet' of attacks.perceptual must be a function, or 'self'"),
    ({'method': 'ppgd', 'distance': linear_distance}, 'attacks.feature_distance'),
  ],
)
def test_wrong_arguments_are_refused(wrong, message):
  arguments = {'distance': attacks.feature_distance(features), 'epsilon': 0.5} | wrong
  with pytest.raises(UserError, match=message):
    attacks.perceptual(**arguments)


def test_only_a_classifier_that_shows_its_activations_has_a_distance_of_its_own():
  attack = attacks.perceptual(distance='self', epsilon=0.5, num_steps=1)
  with pytest.raises(UserError, match=r'distance=.self. needs a classifier that shows its activations'):
    attack(KEYS, logits_fn, IMAGES, LABELS)


@pytest.mark.parametrize('method', ['fast_lpa', 'lpa', 'ppgd'])
def test_a_gradient_that_is_nan_leaves_images_in_the_box_and_in_the_ball(method):
  """The logits are finite throughout; the root has no gradient where the image is dark."""
  root = lambda images: jnp.where(images > 0.5, jnp.sqrt(images - 0.5), 0)
  logits = lambda images: root(images).reshape(len(images), -1) @ WEIGHTS
  labels = np.array(logits(IMAGES).argmax(1), np.int32)
  gradient = jax.grad(lambda images: losses.margin(logits(images), labels).sum())(jnp.asarray(IMAGES))
  assert np.isnan(gradient).any()
  distance = attacks.feature_distance(features)
  attack = attacks.perceptual(distance=distance, epsilon=0.5, num_steps=3, method=method, projection='newton')
  result = attack(KEYS, logits, IMAGES, labels)
  assert (result.images >= 0).all()
  assert (result.images <= 1).all()
  assert (result.metrics['distance'] <= 0.5 + 1e-5).all()


def test_an_image_that_is_nan_is_at_no_distance():
  distance = attacks.feature_distance(lambda images: [images])
  assert np.isnan(distance(IMAGES, IMAGES * np.nan)).all()
  assert (distance(IMAGES, IMAGES) == 0).all()


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'labels': LABELS + 5}, r'labels hold \d; with 5 logits'),
    ({'keys': KEYS[:3]}, r'keys have shape \(3,\)'),
    ({'images': np.uint8(255 * IMAGES)}, 'uint8'),
    ({'images': IMAGES + 1}, r'\[0, 1\]'),
  ],
)
def test_what_does_not_fit_is_refused_before_the_search(given, message):
  whole = {'keys': KEYS, 'logits_fn': logits_fn, 'images': IMAGES, 'labels': LABELS} | given
  with pytest.raises(UserError, match=message):
    attacks.perceptual(distance=linear_distance, epsilon=0.5, num_steps=1)(*whole.values())


@pytest.mark.parametrize('epsilon', [0, -1, 1e4, 10**400, float('nan'), True, '0.5'])
def test_a_radius_is_a_number_up_to_a_thousand(epsilon):
  with pytest.raises(UserError, match='above 0 and at most 1000'):
    attacks.perceptual(distance=linear_distance, epsilon=epsilon)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (
      lambda images, other: jnp.square(images - other).sum(),
      r'distance of .* for each of the \d images, \[\d\], not \[\]',
    ),
    (attacks.feature_distance(lambda images: []), 'must return a list of activations .*, not list'),
    (attacks.feature_distance(lambda images: images), r'a list of activations \[\d, h, w, c\] .*, not \w+\.'),
    (attacks.feature_distance(lambda images: [images.sum(3)]), r'a list of activations .*, not \[\(\d, \d, \d\)\]'),
  ],
)
def test_a_distance_of_another_shape_is_refused(given, message):
  with pytest.raises(UserError, match=message):
    attacks.perceptual(distance=given, epsilon=0.5, num_steps=1)(KEYS, logits_fn, IMAGES, LABELS)


def test_the_suite_has_the_published_searches_and_then_a_longer_one(monkeypatch):
  made = []
  monkeypatch.setattr(suites, 'restarted_perceptual', lambda **options: made.append(options))
  arguments = {'norm': 'alexnet', 'epsilon': 0.5, 'num_classes': 10, 'distance': lambda frozen: None}
  stages = suites.stages('perceptual', **arguments)
  suites.longer('perceptual', **arguments)
  assert [stage.name for stage in stages] == ['lpa', 'ppgd', 'ppgd-200']
  assert [(one['method'], one.get('num_steps'), one.get('restarts')) for one in made] == [
    ('lpa', None, 1), ('ppgd', None, 1), ('ppgd', 200, 2), ('ppgd', 400, None),
  ]  # fmt: skip


def test_features_are_a_function():
  with pytest.raises(UserError, match='features=3 of attacks.feature_distance must be a function'):
    attacks.feature_distance(3)


@pytest.mark.parametrize('distance', [None, 0.5, 'other'])
def test_a_distance_is_a_function(distance):
  with pytest.raises(UserError, match="must be a function, or 'self'"):
    attacks.perceptual(distance=distance, epsilon=0.5)
