"""Square, the attack by random search (Andriushchenko et al. 2020, arXiv 1912.00049): no gradients, only logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import registry
from adversarial_augment.attacks import lp_ball, square_moves
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.rounds import Rounds, better, choose, judged, repeated, round_keys
from adversarial_augment.attacks.targets import check_counts
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

_MOVES = {
  'linf': (square_moves.linf_begin, square_moves.linf_change),
  'l2': (square_moves.l2_begin, square_moves.l2_change),
}

# After each of these queries the share of the image that a square covers is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(*, norm: str, epsilon: float, num_queries: int = 5000, p_init: float = 0.8, restarts: int = 1) -> Attack:
  """Makes Square: changes a random square of the perturbation, and keeps the change where the margin rises.

  Args:
    norm: 'linf' or 'l2'.
    epsilon: radius, in units of pixels in [0, 1].
    num_queries: forward passes of each restart, the one of its start included. An image that is broken stays as it
      is, and the loop ends when all are.
    p_init: share of the image that the first squares cover, in (0, 1]. It is halved by number of query, whatever
      num_queries is, as in AutoAttack's standard version.
    restarts: tries.

  Returns:
    An `Attack` with the metrics `success` and `margin`.

  Raises:
    UserError: no ball, a p_init out of range, or a number below 1.
  """
  rounds = functools.partial(square_rounds, norm=norm, epsilon=epsilon, num_queries=num_queries, p_init=p_init)
  return repeated(rounds(restarts=restarts))


def square_rounds(
  *, norm: str, epsilon: float, num_queries: int = 5000, p_init: float = 0.8, restarts: int = 1
) -> Rounds:
  """Returns the rounds of `square`: its restarts."""
  epsilon = lp_ball.check_ball(norm, epsilon)
  check_counts('square', num_queries=num_queries, restarts=restarts)
  if not 0 < p_init <= 1:
    raise UserError(f'p_init={p_init} of attacks.square is a share of the image; use a number in (0, 1], like 0.8.')

  def make(index: Array | int) -> Attack:
    return fast_in_loops(functools.partial(_attack, norm, epsilon, num_queries, p_init, index))

  return Rounds(restarts, make)


def _attack(
  norm: str,
  epsilon: float,
  num_queries: int,
  p_init: float,
  restart: Array | int,
  keys: Key,
  logits_fn: LogitsFn,
  images: Array,
  labels: Array,
  frozen: PyTree = None,
) -> AttackResult:
  """Searches at random from one start."""
  begin, change = registry.lookup(_MOVES, norm, 'norm')
  keys = round_keys(keys, restart)
  sides = jnp.array(square_sides(norm, p_init, *images.shape[1:3]))

  def measure(points):
    points = lp_ball.project(norm, epsilon, images, points)
    return judged(logits_fn(points), points, labels)

  def query(state):
    i, best = state
    side = sides[(i > jnp.array(HALVINGS)).sum()]
    draw = jax.vmap(functools.partial(change, epsilon, side))
    tried = measure(draw(round_keys(keys, i), images, best.images))
    return i + 1, choose(_is_open(best) & (tried.metrics['margin'] > best.metrics['margin']), tried, best)

  clean = judged(logits_fn(images), images, labels)
  start = measure(jax.vmap(functools.partial(begin, epsilon))(round_keys(keys, 0), images))
  state = (jnp.array(1), choose(_is_open(clean), start, clean))
  _, best = jax.lax.while_loop(lambda s: (s[0] < num_queries) & _is_open(s[1]).any(), query, state)
  return better(clean, best)


def _is_open(result: AttackResult) -> Array:
  return result.metrics['margin'] < 0


def square_sides(norm: str, p_init: float, height: int, width: int) -> np.ndarray:
  """Returns the side of the squares before the first halving, after it, after the second, and so on."""
  shares = p_init / 2.0 ** np.arange(len(HALVINGS) + 1)
  sides = np.round(np.sqrt(shares * height * width)).astype(np.int32)
  if norm == 'l2':  # two halves with a peak in each: odd, and no smaller than 3
    sides = np.maximum(sides, 3) // 2 * 2 + 1
  return np.clip(sides, 1, min(height, width))
