"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, Algorithm 1): ascent with momentum, whose step halves by itself."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import registry
from adversarial_augment.attacks import losses
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.lp_ball import check_ball, norms, project
from adversarial_augment.attacks.restarts import (
  RestartedAttack,
  attack_result,
  better,
  check_counts,
  choose,
  ranked_target,
  restart_keys,
)
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

LOSSES: dict[str, Callable[..., Array]] = {
  'ce': losses.cross_entropy,
  'dlr': losses.dlr,
  'targeted': losses.targeted_dlr,
}
RHO = 0.75  # the share of steps that must raise the loss between two checkpoints
MOMENTUM = 0.75

Objective = Callable[[Array], Array]  # logits [n, k] -> the loss [n]


def apgd(
  *,
  norm: str,
  epsilon: float,
  loss: str = 'ce',
  num_steps: int = 100,
  restarts: int = 1,
  num_targets: int = 9,
) -> RestartedAttack:
  """Makes Auto-PGD on an l_p ball; of each restart, the iterate of the highest margin is kept.

  Args:
    norm: 'linf' or 'l2'.
    epsilon: radius of the ball, for images in [0, 1].
    loss: 'ce' (cross-entropy), 'dlr' (difference of logits ratio, of 3 classes or more), or 'targeted' (APGD-T: the
      targeted ratio, of 4 classes or more, to the classes of the largest clean logits in turn).
    num_steps: steps of a restart.
    restarts: tries, each from a random start of its own; for 'targeted', of every target.
    num_targets: targets of 'targeted', at most the number of classes - 1; other losses have none.

  Returns:
    A `RestartedAttack` with the metrics `success` and `margin`: restarts, or num_targets * restarts of them.

  Raises:
    UserError: no ball, an unknown loss, a number out of its range, or, when traced, too few classes for the loss.
  """
  epsilon = check_ball(norm, epsilon)
  climbed = registry.lookup(LOSSES, loss, 'loss')
  check_counts('apgd', {'num_steps': num_steps, 'restarts': restarts, 'num_targets': num_targets})
  targeted = loss == 'targeted'

  def make(index: Array | int) -> Attack:
    @fast_in_loops
    def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
      logits = logits_fn(images)
      clean = attack_result(logits, images, labels)
      targets = (ranked_target(logits, labels, index % num_targets, num_targets),) if targeted else ()
      objective = lambda logits: climbed(logits, labels, *targets)
      starts = _starts(norm, epsilon, restart_keys(keys, index), images)
      found = _climb(norm, epsilon, num_steps, logits_fn, objective, images, labels, starts)
      return better(clean, attack_result(logits_fn(found), found, labels))

    return attack

  return RestartedAttack(restarts * (num_targets if targeted else 1), make)


def checkpoints(num_steps: int) -> np.ndarray:
  """Returns the steps after which the step size may halve: 22, 41, 57, 70, 80, 87, 93 and 99 of 100.

  The first period is 22 % of the steps, each next one 3 % of them shorter, and none shorter than 6 %.
  """
  share = lambda percent: max(num_steps * percent // 100, 1)
  periods: list[int] = []
  period = share(22)
  while sum(periods) + period <= num_steps:
    periods.append(period)
    period = max(period - share(3), share(6))
  return np.cumsum(periods, dtype=int)


class _Climb(NamedTuple):
  """The state of n ascents."""

  points: Array
  previous: Array  # the points before them
  best: Array  # of the highest loss
  best_gradient: Array
  best_loss: Array  # [n]
  loss: Array  # [n], of `points`, after the last step
  strongest: Array  # the points of the highest margin
  margin: Array  # [n], theirs
  size: Array  # [n], of a step
  num_rises: Array  # [n], steps since the last checkpoint that raised the loss
  best_loss_before: Array  # [n], at the last checkpoint
  halved_before: Array  # [n], whether the step halved there


def _climb(
  norm: str, epsilon: float, num_steps: int, logits_fn: LogitsFn, objective: Objective,
  images: Array, labels: Array, starts: Array,
) -> Array:  # fmt: skip
  """Returns, of each image, the iterate of the highest margin."""
  onto = lambda points: project(norm, epsilon, images, points)
  periods = np.zeros(num_steps + 1)  # the length of that which ends at a checkpoint, elsewhere 0
  periods[checkpoints(num_steps)] = np.diff(checkpoints(num_steps), prepend=0)

  def measured(points):
    def total(points):
      logits = logits_fn(points)
      values = objective(logits)
      return values.sum(), (values, losses.margin(logits, labels))

    (_, (values, margins)), gradient = jax.value_and_grad(total, has_aux=True)(points)
    return values, jnp.nan_to_num(gradient), margins

  def body(i, state: _Climb) -> _Climb:
    loss, gradient, margins = measured(state.points)
    strongest, margin = _stronger((state.points, margins), (state.strongest, state.margin))
    rises = state.num_rises + (loss > state.loss)
    higher = loss > state.best_loss
    best, best_gradient = choose(higher, (state.points, gradient), (state.best, state.best_gradient))
    best_loss = jnp.where(higher, loss, state.best_loss)

    # Condition 1 or 2 of the paper's section 3.1.
    stuck = ~state.halved_before & (best_loss <= state.best_loss_before)
    period = jnp.asarray(periods, loss.dtype)[i]
    due = period > 0
    halve = due & ((rises <= RHO * period) | stuck)
    size = jnp.where(halve, state.size / 2, state.size)
    points, gradient = choose(halve, (best, best_gradient), (state.points, gradient))

    ahead = onto(points + _per_image(size) * _direction(norm, gradient))
    momentum = jnp.where(i == 0, 1, MOMENTUM)
    moved = onto(points + momentum * (ahead - points) + (1 - momentum) * (points - state.previous))
    return _Climb(
      points=moved,
      previous=points,
      best=best,
      best_gradient=best_gradient,
      best_loss=best_loss,
      loss=jnp.where(halve, best_loss, loss),
      strongest=strongest,
      margin=margin,
      size=size,
      num_rises=jnp.where(due, 0, rises),
      best_loss_before=jnp.where(due, best_loss, state.best_loss_before),
      halved_before=jnp.where(due, halve, state.halved_before),
    )

  lowest = jnp.full(len(starts), -jnp.inf, jax.eval_shape(measured, starts)[0].dtype)
  state = _Climb(
    points=starts,
    previous=starts,
    best=starts,
    best_gradient=jnp.zeros_like(starts),
    best_loss=lowest,
    loss=-lowest,  # so that the start counts as no rise
    strongest=starts,
    margin=lowest,
    size=jnp.full(len(starts), 2 * epsilon, starts.dtype),
    num_rises=jnp.zeros(len(starts), jnp.int32),
    best_loss_before=lowest,
    halved_before=jnp.ones(len(starts), bool),
  )
  state = jax.lax.fori_loop(0, num_steps, body, state)
  last = (state.points, losses.margin(logits_fn(state.points), labels))
  return _stronger(last, (state.strongest, state.margin))[0]


def _stronger(new: tuple[Array, Array], old: tuple[Array, Array]) -> tuple[Array, Array]:
  """Takes, image by image, the (points, margin) of the higher margin; never one that is NaN."""
  return choose(new[1] > old[1], new, old)


def _starts(norm: str, epsilon: float, keys: Key, images: Array) -> Array:
  """Returns random points on the surface of the ball, moved into the box."""
  draw = jax.random.normal if norm == 'l2' else functools.partial(jax.random.uniform, minval=-1, maxval=1)
  deltas = jax.vmap(lambda key: draw(key, images.shape[1:], images.dtype))(keys)
  return project(norm, epsilon, images, images + _per_image(epsilon / norms(norm, deltas)) * deltas)


def _direction(norm: str, gradient: Array) -> Array:
  """Returns the steepest direction of norm 1; 0 where the gradient is."""
  if norm == 'linf':
    return jnp.sign(gradient)
  lengths = norms(norm, gradient)
  return gradient / _per_image(jnp.where(lengths > 0, lengths, 1))


def _per_image(values: Array) -> Array:
  return values[:, None, None, None]
