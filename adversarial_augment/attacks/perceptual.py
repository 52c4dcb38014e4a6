"""Attacks bounded by a perceptual distance: Fast-LPA, LPA and PPGD (Laidlaw et al., arXiv 2006.12655)."""

from collections.abc import Callable
import functools
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import checks, threefry
from adversarial_augment.attacks import inputs, lp_ball
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.feature_distance import PROJECTIONS, SELF, Ball, Distance, FeatureDistance, make_view
from adversarial_augment.attacks.losses import margin
from adversarial_augment.attacks.restarts import Restart, RestartedAttack, attack_result, check_numbers, restarted
from adversarial_augment.attacks.trees import choose
from adversarial_augment.errors import UserError, show
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

# The constants of the published code.
_NOISE = 0.01  # standard deviation of the start, of each number of an image
_DECAY = 0.1  # of a step's length from the first to the last
_WEIGHT = 10.0  # of the excess distance in Fast-LPA, at the end
_PROBE = 0.1  # along the gradient, in pixels, over which the distance of a step is measured
_ROUNDS, _FIRST_WEIGHT, _GROWTH = 5, 0.01, 10  # of LPA's weight of the excess distance
_KAPPA = 1.0  # beyond which LPA and PPGD raise no margin
_CONJUGATE = 5  # steps of the conjugate gradients in one of PPGD
_LARGEST = 1e3  # radius

Project = Callable[[Array], Array]  # points -> points


def perceptual(
  *,
  distance: Distance | str,
  epsilon: float,
  num_steps: int | None = None,
  projection: str | None = None,
  method: str = 'fast_lpa',
  only_correct: bool = False,
) -> Attack:
  """Makes an attack within a ball of a perceptual distance.

    distance = attacks.feature_distance(classifiers.features(network, params, state))
    attack = attacks.perceptual(distance=distance, epsilon=0.5, num_steps=40, method='lpa')
    result = attack(keys, logits_fn, images, labels)

  Its strength depends on the network of the distance. Compare classifiers by that of one and the same network: where
  each is attacked within its own distance, a classifier can look robust because its features move easily.

  Args:
    distance: (images, other) -> [n], such as from `feature_distance`; of functions without features, every distance is
      computed anew. 'self': that of the classifier under attack, whose `logits_fn` then is of `classifiers.logits_fn`.
    epsilon: radius of the ball, above 0 and at most 1,000.
    num_steps: of the search, of `lpa` in each of five rounds; None: 20 of `fast_lpa`, 40 of the others.
    projection: at the end, and in `ppgd` after every step. 'bisection' and 'newton' return points within the ball;
      'none', the choice of PAT's training, leaves points where they are. None: 'none' for `fast_lpa`, else 'newton'.
    method: 'fast_lpa' climbs the margin less a growing weight of the distance beyond epsilon; 'lpa' does so in five
      rounds, in which the weight of images that end outside grows; 'ppgd' maximises the linearised margin within the
      linearised ball. The latter two stop at a success.
    only_correct: leaves images as they are that are misclassified already, as PAT does.

  Returns:
    An `Attack` of images [n, h, w, c] in [0, 1], labels [n] and one key per image; `frozen` is unused. Its metrics, one
    value per image: `success` (misclassified within the ball), `margin` and `distance` of what is returned, and
    `clean_margin`, of the image. A pixel whose next value would be NaN stays as it is.

  Raises:
    UserError: an argument is not one of these; when called, images, labels, keys or logits that do not fit.
  """
  search = _search('perceptual', epsilon, num_steps, projection, method)
  if distance != SELF if isinstance(distance, str) else not callable(distance):
    raise UserError(f"distance={show(distance)} of attacks.perceptual must be a function, or 'self'.")
  if method == 'ppgd' and not (distance == SELF or isinstance(distance, FeatureDistance)):
    raise UserError("method='ppgd' linearises features; make its distance by attacks.feature_distance.")

  @fast_in_loops
  def checked(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    view = make_view(distance, logits_fn)
    logits, centre = view.look(images)
    clean_margins, ball = margin(logits, labels), Ball(view, images, centre, float(epsilon))
    points = search(ball, threefry.own(keys), labels)
    if only_correct:
      points = choose(clean_margins < 0, points, images)
    logits, places = view.look(points)
    margins, distances = margin(logits, labels), view.between(centre, places)
    success = (margins >= 0) & (distances <= epsilon)
    return AttackResult(
      points, {'success': success, 'margin': margins, 'distance': distances, 'clean_margin': clean_margins}
    )

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    inputs.check(keys, logits_fn, images, labels)
    return checked(keys, logits_fn, images, labels, frozen)

  return attack


def restarted_perceptual(
  *,
  distance: Callable[[PyTree], Distance | str],
  epsilon: float,
  method: str,
  num_steps: int | None = None,
  restarts: int = 1,
) -> RestartedAttack:
  """Makes the same attack for a suite, projected by Newton's method; each restart has a start of its own.

  Args:
    distance: `frozen` of the attack -> the distance, see `perceptual`.
    epsilon, method, num_steps: as there.
    restarts: tries.
  """
  search = _search('restarted_perceptual', epsilon, num_steps, 'newton', method)
  check_numbers('restarted_perceptual', {'restarts': restarts})

  def one(given: Restart) -> AttackResult:
    view = make_view(distance(given.frozen), given.logits_fn)
    points = search(Ball(view, given.images, view.locate(given.images), float(epsilon)), given.keys, given.labels)
    return attack_result(given.logits_fn(points), points, given.labels)

  return restarted(one, restarts)


def fast_lpa(ball: Ball, labels: Array, start: Array, num_steps: int, project: Project) -> Array:
  """Returns the points of Fast-LPA (Algorithm 2 there), projected at the end; the others alike."""
  shares = np.arange(num_steps) / num_steps
  sizes, weights = (jnp.asarray(x, start.dtype) for x in (_sizes(ball, num_steps), _WEIGHT * _DECAY ** (1 - shares)))
  every = jnp.ones(len(start), start.dtype)
  climb = lambda t, points: lagrangian_step(ball, labels, points, weights[t] * every, math.inf)[0](sizes[t])
  return project(jax.lax.fori_loop(0, num_steps, climb, start))


def lpa(ball: Ball, labels: Array, start: Array, num_steps: int, project: Project) -> Array:
  """Returns the points of LPA (Algorithm 1 there): rounds, after which the excess of points outside weighs more."""
  sizes = jnp.asarray(_sizes(ball, num_steps), start.dtype)

  def climb(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    i, points, weights, is_live = state
    move, margins, distances = lagrangian_step(ball, labels, points, weights, _KAPPA)
    is_live &= (margins < 0) | (distances > ball.epsilon)
    t = i % num_steps
    grown = (t == num_steps - 1) & (distances >= ball.epsilon)
    return i + 1, choose(is_live, move(sizes[t]), points), jnp.where(grown, _GROWTH * weights, weights), is_live

  goes_on = lambda state: (state[0] < _ROUNDS * num_steps) & state[3].any()
  state = jnp.array(0), _in_box(start), jnp.full(len(start), _FIRST_WEIGHT, start.dtype), jnp.ones(len(start), bool)
  return project(jax.lax.while_loop(goes_on, climb, state)[1])


def ppgd(ball: Ball, labels: Array, start: Array, num_steps: int, project: Project) -> Array:
  """Returns the points of PPGD: steps of the length 2 epsilon / T by the linearised features, each then projected."""
  size = 2 * ball.epsilon / num_steps

  def climb(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    t, points, _ = state
    (logits, places), push = jax.linearize(ball.view.look, points)
    pull = jax.linear_transpose(push, points)
    slopes = jax.grad(lambda logits: jnp.minimum(margin(logits, labels), _KAPPA).sum())(logits)
    gradient = jnp.nan_to_num(pull((slopes, jax.tree.map(jnp.zeros_like, places)))[0])
    onto = lambda v: push(v)[1]
    square = lambda v: pull((jnp.zeros_like(logits), onto(v)))[0]  # J^T J v
    direction = conjugate_gradients(square, _scaled(gradient, 1 / _positive(lp_ball.norms('l2', gradient))))
    lengths = _positive(_length(onto(direction)))
    is_live = (margin(logits, labels) < 0) | (ball.view.between(ball.centre, places) > ball.epsilon)
    moved = project(_moved(points, _scaled(direction, size / lengths)))
    return t + 1, choose(is_live, moved, points), is_live

  goes_on = lambda state: (state[0] < num_steps) & state[2].any()
  return jax.lax.while_loop(goes_on, climb, (jnp.array(0), _in_box(start), jnp.ones(len(start), bool)))[1]


class _Method(NamedTuple):
  search: Callable[[Ball, Array, Array, int, Project], Array]
  num_steps: int
  projection: str


METHODS = {
  'fast_lpa': _Method(fast_lpa, 20, 'none'),
  'lpa': _Method(lpa, 40, 'newton'),
  'ppgd': _Method(ppgd, 40, 'newton'),
}


def starts(keys: Key, images: Array) -> Array:
  """Returns the images with a little noise, where all of them start; it may leave [0, 1]."""
  return images + _NOISE * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)


def _in_box(start: Array) -> Array:
  """Returns a start at which a point may stay; a first step would bring it there anyway."""
  return jnp.clip(start, 0, 1)


def _search(
  attack: str, epsilon: float, num_steps: int | None, projection: str | None, method: str
) -> Callable[[Ball, Key, Array], Array]:
  """Returns the search of a method: (ball, keys, labels) -> points; raises UserError for wrong arguments."""
  chosen = checks.lookup(METHODS, method, 'method')
  project = checks.lookup(PROJECTIONS, chosen.projection if projection is None else projection, 'projection')
  steps = chosen.num_steps if num_steps is None else num_steps
  check_numbers(attack, {'num_steps': steps})
  if isinstance(epsilon, bool) or not isinstance(epsilon, numbers.Real) or not 0 < epsilon <= _LARGEST:
    raise UserError(
      f'epsilon={show(epsilon)} of attacks.{attack} must be a number above 0 and at most {_LARGEST:g}, such as 0.5.'
    )
  return lambda ball, keys, labels: chosen.search(
    ball, labels, starts(keys, ball.images), steps, functools.partial(project, ball)
  )


def _sizes(ball: Ball, num_steps: int) -> np.ndarray:
  """Returns the length of each step, by the distance."""
  return ball.epsilon * _DECAY ** (np.arange(num_steps) / num_steps)


def lagrangian_step(
  ball: Ball, labels: Array, points: Array, weights: Array, kappa: float
) -> tuple[Callable[[Array], Array], Array, Array]:
  """Returns how a step of a length moves points, down the gradient of -margin + weight * excess; margins, distances."""
  view = ball.view

  def objective(points: Array) -> tuple[Array, tuple[Array, Array, PyTree]]:
    logits, places = view.look(points)
    margins, distances = margin(logits, labels), view.between(ball.centre, places)
    losses = weights * jax.nn.relu(distances - ball.epsilon) - jnp.minimum(margins, kappa)
    return losses.sum(), (margins, distances, places)

  gradient, (margins, distances, places) = jax.grad(objective, has_aux=True)(points)
  gradient = jnp.nan_to_num(gradient)
  direction = _scaled(gradient, 1 / (lp_ball.norms('l2', gradient) + 1e-8))
  slopes = view.between(places, view.locate(points - _PROBE * direction)) / _PROBE
  return lambda size: _moved(points, _scaled(direction, -size / (slopes + 1e-4))), margins, distances


def conjugate_gradients(square: Callable[[Array], Array], right: Array) -> Array:
  """Returns nearly v with square(v) = right, by conjugate gradients from 0, image by image."""
  dot = lambda a, b: (a * b).sum((1, 2, 3))

  def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    found, rest, way = state
    image = square(way)
    length = dot(rest, rest) / _positive(dot(way, image))
    found, left = found + _scaled(way, length), rest - _scaled(image, length)
    return found, left, left + _scaled(way, dot(left, left) / _positive(dot(rest, rest)))

  return jax.lax.fori_loop(0, _CONJUGATE, step, (jnp.zeros_like(right), right, right))[0]


def _moved(points: Array, move: Array) -> Array:
  """Returns points after a move, within [0, 1]; a pixel that would be NaN stays."""
  moved = jnp.clip(points + move, 0, 1)
  return jnp.where(jnp.isnan(moved), points, moved)


def _length(layers: list[Array]) -> Array:
  return jnp.sqrt(sum(jnp.square(x).sum((1, 2, 3)) for x in layers))


def _positive(values: Array) -> Array:
  """Returns values [n] that one can divide by: what divides zero is infinite elsewhere, and here leaves no move."""
  return jnp.where(values > 0, values, jnp.inf)


def _scaled(points: Array, factors: Array) -> Array:
  return factors.astype(points.dtype).reshape(-1, 1, 1, 1) * points
