"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, Algorithm 1): ascent with momentum, whose step halves by itself."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import checks
from adversarial_augment.attacks import losses
from adversarial_augment.attacks.lp_ball import check_ball, norms, project
from adversarial_augment.attacks.restarts import Restart, RestartedAttack, attack_result, check_numbers, restarted
from adversarial_augment.attacks.trees import choose
from adversarial_augment.types import Array, AttackResult, Key

LOSSES: dict[str, Callable[..., Array]] = {
  'ce': losses.cross_entropy,
  'dlr': losses.dlr,
  'targeted': losses.targeted_dlr,
}
RHO = 0.75  # the share of steps that must raise the loss between two checkpoints
MOMENTUM = 0.75


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
    norm, epsilon: the ball, see `lp_ball`.
    loss: 'ce' (cross-entropy), 'dlr' (difference of logits ratio, of 3 classes or more), or 'targeted' (APGD-T: the
      targeted ratio, of 4 classes or more, to the classes of the largest clean logits in turn).
    num_steps: steps of a restart.
    restarts: tries, each from a random start of its own; for 'targeted', of every target.
    num_targets: targets of 'targeted', at most the number of classes - 1; other losses have none.
  """
  epsilon = check_ball(norm, epsilon)
  maximised = checks.lookup(LOSSES, loss, 'loss')
  check_numbers('apgd', {'num_steps': num_steps, 'restarts': restarts, 'num_targets': num_targets})

  def search(given: Restart) -> AttackResult:
    targets = (given.targets,) if loss == 'targeted' else ()
    found = _climb(norm, epsilon, num_steps, given, lambda logits: maximised(logits, given.labels, *targets))
    return attack_result(given.logits_fn(found), found, given.labels)

  return restarted(search, restarts, num_targets if loss == 'targeted' else 0)


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
  best: tuple[Array, Array, Array]  # points of the highest loss, their gradient, and that loss [n]
  strongest: tuple[Array, Array]  # points of the highest margin, and that margin [n], which is never NaN
  loss: Array  # [n], of `points`, after the last step
  size: Array  # [n], of a step
  num_rises: Array  # [n], steps since the last checkpoint that raised the loss
  best_loss_before: Array  # [n], at the last checkpoint
  halved_before: Array  # [n], whether the step halved there


def _climb(norm: str, epsilon: float, num_steps: int, given: Restart, objective: Callable[[Array], Array]) -> Array:
  """Returns, of each image, the iterate of the highest margin; `objective` is the loss [n] of logits [n, k]."""
  onto = lambda points: project(norm, epsilon, given.images, points)
  margin = lambda logits: losses.margin(logits, given.labels)
  stronger = lambda new, old: choose(new[1] > old[1], new, old)
  periods = np.zeros(num_steps + 1)  # the length of that which ends at a checkpoint, elsewhere 0
  periods[checkpoints(num_steps)] = np.diff(checkpoints(num_steps), prepend=0)

  def measured(points):
    def total(points):
      logits = given.logits_fn(points)
      values = objective(logits)
      return values.sum(), (values, margin(logits))

    (_, (values, margins)), gradient = jax.value_and_grad(total, has_aux=True)(points)
    return values, jnp.nan_to_num(gradient), margins

  def body(i, state: _Climb) -> _Climb:
    loss, gradient, margins = measured(state.points)
    rises = state.num_rises + (loss > state.loss)
    best = choose(loss > state.best[2], (state.points, gradient, loss), state.best)

    # Condition 1 or 2 of the paper's section 3.1.
    stuck = ~state.halved_before & (best[2] <= state.best_loss_before)
    period = jnp.asarray(periods, loss.dtype)[i]
    due = period > 0
    halve = due & ((rises <= RHO * period) | stuck)
    size = jnp.where(halve, state.size / 2, state.size)
    points, gradient, loss_there = choose(halve, best, (state.points, gradient, loss))

    ahead = onto(points + _per_image(size) * _direction(norm, gradient))
    momentum = jnp.where(i == 0, 1, MOMENTUM)
    moved = onto(points + momentum * (ahead - points) + (1 - momentum) * (points - state.previous))
    return _Climb(
      points=moved,
      previous=points,
      best=best,
      strongest=stronger((state.points, margins), state.strongest),
      loss=loss_there,
      size=size,
      num_rises=jnp.where(due, 0, rises),
      best_loss_before=jnp.where(due, best[2], state.best_loss_before),
      halved_before=jnp.where(due, halve, state.halved_before),
    )

  starts = _starts(norm, epsilon, given.keys, given.images)
  lowest = jnp.full(len(starts), -jnp.inf, jax.eval_shape(measured, starts)[0].dtype)
  state = _Climb(
    points=starts,
    previous=starts,
    best=(starts, jnp.zeros_like(starts), lowest),
    strongest=(starts, lowest),
    loss=-lowest,  # so that the start counts as no rise
    size=jnp.full(len(starts), 2 * epsilon, starts.dtype),
    num_rises=jnp.zeros(len(starts), jnp.int32),
    best_loss_before=lowest,
    halved_before=jnp.ones(len(starts), bool),
  )
  state = jax.lax.fori_loop(0, num_steps, body, state)
  return stronger((state.points, margin(given.logits_fn(state.points))), state.strongest)[0]


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
