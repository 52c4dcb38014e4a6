"""FAB-T, the targeted Fast Adaptive Boundary attack (Croce & Hein 2020, arXiv 1907.02044): small perturbations."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment.attacks import lp_ball
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.losses import targeted_margin
from adversarial_augment.attacks.restarts import (
  RestartedAttack,
  attack_result,
  check_counts,
  choose,
  ranked_target,
  restart_keys,
)
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

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
    norm: 'linf' or 'l2'.
    epsilon: radius within which a perturbation counts, in units of pixels in [0, 1].
    num_steps: steps for each target; one gradient and one more forward pass each. An image that is broken within
      epsilon stays as it is, and the loop ends when all are.
    restarts: tries of every target; the first starts at the image, the others at random within epsilon / 2.
    num_targets: classes to aim at, those of the largest logits on the image; at most the number of classes - 1.

  Returns:
    A `RestartedAttack` with the metrics `success` and `margin`: every target from the image, then again from each
    random start.

  Raises:
    UserError: no ball, a number below 1, or, when traced, too few classes for the targets.
  """
  epsilon = lp_ball.check_ball(norm, epsilon)
  check_counts('fab', {'num_steps': num_steps, 'restarts': restarts, 'num_targets': num_targets})

  def make(index: Array | int) -> Attack:
    return fast_in_loops(functools.partial(_attack, norm, epsilon, num_steps, num_targets, index))

  return RestartedAttack(restarts * num_targets, make)


class _State(NamedTuple):
  """Of n images: where the walk is, and what it has found."""

  step: Array  # []
  points: Array  # [n, h, w, c], of the walk
  nearest: Array  # [n, h, w, c], adversarial ones of the smallest distance
  distances: Array  # [n], of `nearest`; infinite before there is one
  feasible: Array  # [n, h, w, c], within epsilon, of the highest margin
  margins: Array  # [n], of `feasible`


def _attack(
  norm: str,
  epsilon: float,
  num_steps: int,
  num_targets: int,
  index: Array | int,
  keys: Key,
  logits_fn: LogitsFn,
  images: Array,
  labels: Array,
  frozen: PyTree = None,
) -> AttackResult:
  """Walks towards one target of every image."""
  logits = logits_fn(images)
  clean = attack_result(logits, images, labels)
  restart, rank = index // num_targets, index % num_targets
  targets = ranked_target(logits, labels, rank, num_targets)

  def distance(points):
    return lp_ball.norms(norm, points - images)

  def boundary(points):
    """The logit of the target less that of the label, summed for its gradient and one by one."""
    differences = targeted_margin(logits_fn(points), labels, targets)
    return differences.sum(), differences

  def visit(points, state):
    """Measures points, keeps what is better, and returns which are adversarial."""
    margins, distances = attack_result(logits_fn(points), points, labels).metrics['margin'], distance(points)
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

  start = jax.vmap(functools.partial(lp_ball.random_start, norm, epsilon / 2))(restart_keys(keys, index), images)
  points = jnp.where(jnp.asarray(restart) > 0, start, images)
  nowhere = jnp.full(len(images), jnp.inf, images.dtype)
  state = _State(jnp.array(0), points, images, nowhere, images, clean.metrics['margin'])
  state = jax.lax.while_loop(lambda s: (s.step < num_steps) & (s.margins < 0).any(), walk, state)
  # The line search at the paper's end, for the distance that counts: what is adversarial and too far is pulled in.
  _, state = visit(lp_ball.project(norm, epsilon, images, state.nearest), state)
  return AttackResult(state.feasible, {'success': state.margins >= 0, 'margin': state.margins})


def nearest_moves(norm: str, points: jax.Array, normals: jax.Array, offsets: jax.Array) -> jax.Array:
  """Returns the smallest moves that bring points onto their hyperplanes without leaving [0, 1] (arXiv 1907.02044).

  A move of this form is optimal, with t the number for which <normal, move> = offset, and room the way to the box:

      move_i = sign(normal_i) min(t g_i, room_i),  g = 1 in l_inf, |normal| in l_2 (for an offset > 0).

  <normal, move> is concave and piecewise linear in t. Newton's method from t = 0 therefore climbs to the solution
  and is there as soon as a step meets no further bound: a few sums over the pixels where sorting them would be slow.

  Args:
    norm: 'linf' or 'l2'.
    points: [n, ...] in [0, 1].
    normals: [n, ...].
    offsets: [n], what is missing at each point: the move is to satisfy <normal, move> = offset.

  Returns:
    [n, ...]. Where the hyperplane does not meet the box, the corner nearest to it; zero where the normal is zero.
  """
  return jax.vmap(lambda x, w, c: _nearest_move(norm, x, w, c))(points, normals, offsets)


def _nearest_move(norm: str, point: jax.Array, normal: jax.Array, offset: jax.Array) -> jax.Array:
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
