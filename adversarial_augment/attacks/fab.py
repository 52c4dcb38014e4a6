"""FAB-T, the targeted Fast Adaptive Boundary attack (Croce & Hein 2020, arXiv 1907.02044): small perturbations."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment.attacks import lp_ball
from adversarial_augment.attacks.losses import margin, targeted_margin
from adversarial_augment.attacks.restarts import Restart, RestartedAttack, check_numbers, restarted
from adversarial_augment.attacks.trees import choose
from adversarial_augment.types import Array, AttackResult

# The constants of the paper.
_MAX_ALPHA = 0.1  # largest weight of the step that starts at the original image
_OVERSHOOT = 1.05  # eta: how far beyond the hyperplane the steps go
_BACKWARD = 0.9  # beta: where an adversarial point is pulled to, between the image (0) and itself (1)


def fab(*, norm: str, epsilon: float, num_steps: int = 100, restarts: int = 1, num_targets: int = 9) -> RestartedAttack:
  """Makes FAB-T: for one target class after the other, the smallest perturbation that it finds.

  Every step linearises the difference of the target's logit and the label's, and moves beyond the point where that
  is zero, seen from the present point and, with a little weight, from the image. An adversarial point is pulled back
  towards the image. So the attack walks along the decision boundary, and needs no step size and no epsilon.

  Args:
    norm, epsilon: the ball within which a perturbation counts, see `lp_ball`.
    num_steps: steps for each target; one gradient and one more forward pass each. An image that is broken within
      epsilon stays as it is, and the loop ends when all are.
    restarts: tries of every target; the first starts at the image, the others at random within epsilon / 2.
    num_targets: classes to aim at, those of the largest logits on the image; at most the number of classes - 1.
  """
  epsilon = lp_ball.check_ball(norm, epsilon)
  check_numbers('fab', {'num_steps': num_steps, 'restarts': restarts, 'num_targets': num_targets})
  return restarted(functools.partial(_search, norm, epsilon, num_steps), restarts, num_targets)


class _State(NamedTuple):
  """Of n images: where the walk is, and what it has found."""

  step: Array  # []
  points: Array  # [n, h, w, c], of the walk
  nearest: Array  # [n, h, w, c], adversarial ones of the smallest distance
  distances: Array  # [n], of `nearest`; infinite before there is one
  feasible: Array  # [n, h, w, c], within epsilon, of the highest margin
  margins: Array  # [n], of `feasible`


def _search(norm: str, epsilon: float, num_steps: int, given: Restart) -> AttackResult:
  """Walks towards one target of every image."""
  images, labels = given.images, given.labels

  def boundary(points):
    """The logit of the target less that of the label, summed for its gradient and one by one."""
    differences = targeted_margin(given.logits_fn(points), labels, given.targets)
    return differences.sum(), differences

  def visit(points, state):
    """Measures points, keeps what is better, and returns which are adversarial."""
    margins = margin(given.logits_fn(points), labels)
    distances = lp_ball.norms(norm, points - images)
    broken, inside, is_open = margins >= 0, distances <= epsilon, state.margins < 0
    nearer = broken & is_open & (distances < state.distances)
    higher = inside & is_open & (margins > state.margins)
    return broken, state._replace(
      nearest=choose(nearer, points, state.nearest),
      distances=jnp.where(nearer, distances, state.distances),
      feasible=choose(higher, points, state.feasible),
      margins=jnp.where(higher, margins, state.margins),
    )

  def walk(state):
    points = state.points
    gradients, differences = jax.grad(boundary, has_aux=True)(points)
    # The hyperplane is f(x) + <g, z - x> = 0. Seen from the image, <g, image - x> is missing as well.
    missing = -differences.astype(points.dtype)
    on_way = (gradients * (images - points)).sum((1, 2, 3))
    moves = nearest_moves(norm, points, gradients, missing)
    moves_of_images = nearest_moves(norm, images, gradients, missing - on_way)
    lengths, lengths_of_images = lp_ball.norms(norm, moves), lp_ball.norms(norm, moves_of_images)
    both = lengths + lengths_of_images
    alpha = jnp.minimum(lengths / jnp.where(both > 0, both, 1), _MAX_ALPHA)[:, None, None, None]
    from_points, from_images = points + _OVERSHOOT * moves, images + _OVERSHOOT * moves_of_images
    reached = jnp.clip((1 - alpha) * from_points + alpha * from_images, 0, 1)
    broken, state = visit(reached, state)
    back = (1 - _BACKWARD) * images + _BACKWARD * reached
    return state._replace(step=state.step + 1, points=choose(broken, back, reached))

  start = jax.vmap(functools.partial(lp_ball.random_start, norm, epsilon / 2))(given.keys, images)
  points = jnp.where(jnp.asarray(given.number) > 0, start, images)
  nowhere = jnp.full(len(images), jnp.inf, images.dtype)
  state = _State(jnp.array(0), points, images, nowhere, images, given.clean.metrics['margin'])
  state = jax.lax.while_loop(lambda s: (s.step < num_steps) & (s.margins < 0).any(), walk, state)
  # The line search at the paper's end, for the distance that counts: what is adversarial and too far is pulled in.
  _, state = visit(lp_ball.project(norm, epsilon, images, state.nearest), state)
  return AttackResult(state.feasible, {'success': state.margins >= 0, 'margin': state.margins})


def nearest_moves(norm: str, points: Array, normals: Array, offsets: Array) -> Array:
  """Returns the smallest moves that bring points onto their hyperplanes without leaving [0, 1] (arXiv 1907.02044).

  A move of this form is optimal, with t the number for which <normal, move> = offset, and room the way to the box:

      move_i = sign(normal_i) min(t g_i, room_i),  g = 1 in l_inf, |normal| in l_2 (for an offset > 0).

  <normal, move> is concave and piecewise linear in t. Newton's method from t = 0 therefore climbs to the solution
  and is there as soon as a step meets no further bound: a few sums over the pixels where sorting them would be slow.

  Args:
    norm: 'linf' or 'l2'.
    points: [n, ...] in [0, 1].
    normals: of the same shape; where one is zero, so is the move.
    offsets: [n], of <normal, move> = offset; where that is out of reach, the move leads to the nearest corner.
  """
  return jax.vmap(lambda x, w, c: _nearest_move(norm, x, w, c))(points, normals, offsets)


def _nearest_move(norm: str, point: Array, normal: Array, offset: Array) -> Array:
  scale = jnp.abs(normal).max()
  scale = jnp.where(scale > 0, scale, 1)  # squares of tiny gradients would be zero
  direction = jnp.sign(normal) * jnp.where(offset < 0, -1, 1).astype(normal.dtype)
  weights, missing = jnp.abs(normal) / scale, jnp.abs(offset) / scale
  room = jnp.where(direction > 0, 1 - point, point)
  growth = jnp.ones_like(weights) if norm == 'linf' else weights

  def newton(state):
    t, _ = state
    free = t * growth < room
    slope = jnp.where(free, weights * growth, 0).sum()
    rest = missing - jnp.where(free, 0, weights * room).sum()
    new = jnp.where(slope > 0, rest / jnp.where(slope > 0, slope, 1), t)
    return jnp.maximum(new, t), new > t

  t, _ = jax.lax.while_loop(lambda state: state[1], newton, (jnp.zeros_like(missing), jnp.array(True)))
  return direction * jnp.minimum(t * growth, room)
