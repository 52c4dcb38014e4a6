"""The perceptual distance of Laidlaw et al. (arXiv 2006.12655), and projections onto its balls."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment.attacks import lp_ball
from adversarial_augment.attacks.trees import choose
from adversarial_augment.errors import UserError, show
from adversarial_augment.types import Array, LogitsFn, PyTree

Distance = Callable[[Array, Array], Array]  # images [n, h, w, c] twice -> [n]

SELF = 'self'  # the distance of the classifier under attack

_TINY = 1e-10  # beside the norm of the channels of a position
_HALVINGS = 10  # of the bisection
_NEWTON_STEPS = 10
_SHORTFALL = 0.1  # Newton aims that far within the ball
_OVERSHOOT = 1.1  # and goes so much farther


@dataclasses.dataclass(frozen=True)
class FeatureDistance:
  """d(x, x') = ||phi(x) - phi(x')||_2 for phi made of the activations of a network; see `feature_distance`."""

  features: Callable[[Array], Sequence[Array]]

  def __call__(self, images: Array, other: Array) -> Array:
    return _norm_of_difference(self.embed(images), self.embed(other))

  def embed(self, images: Array) -> list[Array]:
    """Returns phi of images, layer by layer."""
    layers = self.features(images)
    shapes = [jnp.shape(layer) for layer in layers] if isinstance(layers, list | tuple) else []
    if not shapes or any(len(shape) != 4 or shape[0] != len(images) for shape in shapes):
      raise UserError(
        f'features of attacks.feature_distance must return a list of activations [{len(images)}, h, w, c] for '
        f'{len(images)} images, not {shapes or type(layers).__name__}.'
      )
    return [_normalised(layer) for layer in layers]


def feature_distance(features: Callable[[Array], Sequence[Array]]) -> FeatureDistance:
  """Makes the perceptual distance of a network.

  phi is the activations of all layers, those of each position over their norm, and of each layer over the root of the
  number of its positions. So each layer counts alike, whatever its scale. There are no learned weights.

  Args:
    features: images [n, h, w, c] -> activations of layers [n, h', w', c'], as from `classifiers.features`.

  Returns:
    A function (images, other) -> distances [n], which `perceptual` takes. Where an activation is NaN, so is the
    distance, and no ball has the image.

  Raises:
    UserError: `features` is no function; when called, it returns something else.
  """
  if not callable(features):
    raise UserError(f'features={show(features)} of attacks.feature_distance must be a function of images.')
  return FeatureDistance(features)


class View(NamedTuple):
  """How an attack sees images: `place` is where distances are measured."""

  look: Callable[[Array], tuple[Array, PyTree]]  # images -> logits [n, k], place
  locate: Callable[[Array], PyTree]  # images -> place
  between: Callable[[PyTree, PyTree], Array]  # two places -> distances [n]


class Ball(NamedTuple):
  """The balls around n images."""

  view: View
  images: Array  # [n, h, w, c]
  centre: PyTree  # their place
  epsilon: float

  def distances(self, points: Array) -> Array:
    """Returns the distance of each point from its image, [n]."""
    return self.view.between(self.centre, self.view.locate(points))


def make_view(distance: Distance | str, logits_fn: LogitsFn) -> View:
  """Returns the view of a distance and a classifier; of features, each image needs one pass."""
  if distance == SELF:
    observe = getattr(logits_fn, 'observe', None)
    if observe is None:
      raise UserError(
        "distance='self' needs a classifier that shows its activations: that of classifiers.logits_fn, or any with a "
        'method observe, images -> (logits, activations).'
      )

    def look(images: Array) -> tuple[Array, list[Array]]:
      logits, activations = observe(images)
      return logits, [_normalised(layer) for layer in activations]

    return View(look, lambda images: look(images)[1], _norm_of_difference)
  assert not isinstance(distance, str)
  if isinstance(distance, FeatureDistance):
    return View(lambda images: (logits_fn(images), distance.embed(images)), distance.embed, _norm_of_difference)

  def between(images: Array, other: Array) -> Array:
    found = distance(images, other)
    if jnp.shape(found) != images.shape[:1]:
      raise UserError(
        f'distance of attacks.perceptual must return a number for each of the {len(images)} images, '
        f'[{len(images)}], not {list(jnp.shape(found))}.'
      )
    return found

  return View(lambda images: (logits_fn(images), images), lambda images: images, between)


def bisection(ball: Ball, points: Array) -> Array:
  """Returns points within the ball on the way from its images to `points`, [n, h, w, c].

  Points within it stay. Others end within 2^-10 of the way before its surface, where the way crosses that once.
  """
  at = lambda share: ball.images + share.reshape(-1, 1, 1, 1) * (points - ball.images)

  def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = ends
    middle = (low + high) / 2
    inside = ball.distances(at(middle)) <= ball.epsilon
    return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

  zeros = jnp.zeros(len(points), points.dtype)
  low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, (zeros, zeros + 1))
  return choose(ball.distances(points) <= ball.epsilon, points, at(low))


def newton(ball: Ball, points: Array) -> Array:
  """Returns points within the ball, of those outside by Newton's method on the distance, with an overshoot.

  Of points that it does not bring inside in ten steps, the bisection.
  """

  def measure(moved: Array) -> tuple[Array, Array]:
    distances = ball.distances(moved)
    return distances.sum(), distances

  def step(_: Any, moved: Array) -> Array:
    gradient, distances = jax.grad(measure, has_aux=True)(moved)
    outside = distances > ball.epsilon
    squares = jnp.square(lp_ball.norms('l2', gradient))
    lengths = _OVERSHOOT * (distances - ball.epsilon + _SHORTFALL) / jnp.where(squares > 0, squares, 1)
    lengths = lengths.astype(moved.dtype).reshape(-1, 1, 1, 1)
    return choose(outside, jnp.clip(moved - lengths * gradient, 0, 1), moved)

  moved = jax.lax.fori_loop(0, _NEWTON_STEPS, step, points)
  return choose(ball.distances(moved) <= ball.epsilon, moved, bisection(ball, points))


PROJECTIONS: dict[str, Callable[[Ball, Array], Array]] = {
  'bisection': bisection,
  'newton': newton,
  'none': lambda ball, points: points,
}


def _normalised(layer: Array) -> Array:
  """Returns the part of phi of one layer [n, h, w, c]."""
  wide = layer.astype(jnp.promote_types(layer.dtype, jnp.float32))
  squares = jnp.square(wide).sum(-1, keepdims=True)
  norms = _root(squares)
  return wide / ((norms + _TINY) * (layer.shape[1] * layer.shape[2]) ** 0.5)


def _norm_of_difference(place: Sequence[Array], other: Sequence[Array]) -> Array:
  return _root(jnp.asarray(sum(jnp.square(a - b).sum((1, 2, 3)) for a, b in zip(place, other, strict=True))))


def _root(squares: Array) -> Array:
  """Returns the roots of numbers of at least 0, with a gradient of 0 at 0, where it has none; NaN stays NaN."""
  return jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))
