"""Square, the attack by random search (Andriushchenko et al. 2020, arXiv 1912.00049): no gradients, only logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.attacks import lp_ball
from adversarial_augment.attacks.restarts import (
  Restart,
  RestartedAttack,
  attack_result,
  check_numbers,
  restart_keys,
  restarted,
)
from adversarial_augment.attacks.trees import choose
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, AttackResult, Key

# After each of these queries the share of the image that a square covers is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SUMS = np.concatenate([[0], np.cumsum(1 / np.arange(1.0, 2048) ** 2)])  # of 1 / j^2


def square(
  *, norm: str, epsilon: float, num_queries: int = 5000, p_init: float = 0.8, restarts: int = 1
) -> RestartedAttack:
  """Makes Square: changes a random square of the perturbation, and keeps the change where the margin rises.

  Args:
    norm, epsilon: the ball, see `lp_ball`.
    num_queries: forward passes of each restart, the one of its start included. An image that is broken stays as it
      is, and the loop ends when all are.
    p_init: share of the image that the first squares cover, in (0, 1]. It is halved by number of query, whatever
      num_queries is, as in AutoAttack's standard version.
    restarts: tries.
  """
  epsilon = lp_ball.check_ball(norm, epsilon)
  check_numbers('square', {'num_queries': num_queries, 'restarts': restarts})
  if not 0 < p_init <= 1:
    raise UserError(f'p_init={p_init} of attacks.square is a share of the image; use a number in (0, 1], like 0.8.')

  return restarted(functools.partial(_search, norm, epsilon, num_queries, p_init), restarts)


def _search(norm: str, epsilon: float, num_queries: int, p_init: float, given: Restart) -> AttackResult:
  """Searches at random from one start."""
  begin, change = _MOVES[norm]
  images = given.images
  sides = jnp.array(square_sides(norm, p_init, *images.shape[1:3]))

  def measure(points):
    points = lp_ball.project(norm, epsilon, images, points)
    return attack_result(given.logits_fn(points), points, given.labels)

  def query(state):
    i, best = state
    side = sides[(i > jnp.array(HALVINGS)).sum()]
    draw = jax.vmap(functools.partial(change, epsilon, side))
    tried = measure(draw(restart_keys(given.keys, i), images, best.images))
    return i + 1, choose(_is_open(best) & (tried.metrics['margin'] > best.metrics['margin']), tried, best)

  start = measure(jax.vmap(functools.partial(begin, epsilon))(restart_keys(given.keys, 0), images))
  state = (jnp.array(1), choose(_is_open(given.clean), start, given.clean))
  return jax.lax.while_loop(lambda s: (s[0] < num_queries) & _is_open(s[1]).any(), query, state)[1]


def _is_open(result: AttackResult) -> Array:
  return result.metrics['margin'] < 0


def square_sides(norm: str, p_init: float, height: int, width: int) -> np.ndarray:
  """Returns the side of the squares before the first halving, after it, after the second, and so on."""
  shares = p_init / 2.0 ** np.arange(len(HALVINGS) + 1)
  sides = np.round(np.sqrt(shares * height * width)).astype(np.int32)
  if norm == 'l2':  # two halves with a peak in each: odd, and no smaller than 3
    sides = np.maximum(sides, 3) // 2 * 2 + 1
  return np.clip(sides, 1, min(height, width))


def linf_begin(epsilon: float, key: Key, image: Array) -> Array:
  """Stripes from top to bottom, one pixel wide, of +epsilon or -epsilon in each channel."""
  signs = jax.random.rademacher(key, (1, *image.shape[1:]), image.dtype)
  return image + epsilon * signs


def linf_change(epsilon: float, side: Array, key: Key, image: Array, point: Array) -> Array:
  """Sets a square to +epsilon or -epsilon, one sign in each channel."""
  bits = jax.random.bits(key, (2 + image.shape[2],))
  rows, columns = _local(bits[:2], side, image)
  return jnp.where(_inside(rows, columns, side), image + epsilon * _signs(bits[2:], image), point)


def l2_begin(epsilon: float, key: Key, image: Array) -> Array:
  """Tiles a fifth of the image wide with the profile in each, one sign in each tile and channel."""
  height, width, channels = image.shape
  side = max(min(height, width) // 5, 1)
  tiles = np.array([height // side, width // side])
  rows, columns = (
    np.arange(size) - (size - number * side) // 2 for size, number in zip((height, width), tiles, strict=True)
  )
  eta = profile(jnp.array(rows % side)[:, None], jnp.array(columns % side)[None, :], jnp.array(side))
  inside = ((rows >= 0) & (rows < tiles[0] * side))[:, None] & ((columns >= 0) & (columns < tiles[1] * side))[None, :]
  signs = jax.random.rademacher(key, (*tiles, channels), image.dtype)
  at = np.ix_(np.clip(rows // side, 0, tiles[0] - 1), np.clip(columns // side, 0, tiles[1] - 1))
  delta = jnp.where(inside[:, :, None], signs[at] * eta.astype(image.dtype)[:, :, None], 0)
  return image + epsilon * _unit(delta, (0, 1, 2))


def l2_change(epsilon: float, side: Array, key: Key, image: Array, point: Array) -> Array:
  """Moves the perturbation of a second square, and what of epsilon is unused, into the profile of a first one."""
  bits = jax.random.bits(key, (5 + image.shape[2],))
  rows, columns = _local(bits[:2], side, image)
  first = _inside(rows, columns, side)
  second = _inside(*_local(bits[2:4], side, image), side)
  turned = bits[4] % 2 == 0
  size = rows.shape[0], columns.shape[1]
  along, across = jnp.broadcast_to(rows, size), jnp.broadcast_to(columns, size)
  eta = profile(jnp.where(turned, across, along), jnp.where(turned, along, across), side)
  eta = jnp.where(first, eta.astype(image.dtype)[:, :, None], 0)
  delta = point - image
  unused = jnp.maximum(epsilon**2 - (delta**2).sum(), 0)
  available = jnp.sqrt(jnp.where(first | second, delta**2, 0).sum((0, 1)) + unused / image.shape[2])
  old = _unit(jnp.where(first, delta, 0), (0, 1))
  new = _unit(_signs(bits[5:], image) * _unit(eta, (0, 1)) + old, (0, 1))
  return image + jnp.where(first, available[None, None, :] * new, jnp.where(second, 0, delta))


def profile(rows: Array, columns: Array, side: Array) -> Array:
  """Returns the values of eta (equation 3 and its split) at rows and columns of a window, counted from 0.

  The window is split into a left half, where eta is positive, and a right half, where it is negative. In either it
  rises towards the centre in rectangles: a pixel of distance d is the sum of 1 / j^2 over j = d + 1 .. side // 2 + 1.
  """
  split = side // 2
  left = columns < split
  width = jnp.where(left, split, side - split)
  column = jnp.where(left, columns, columns - split)
  top = side // 2
  distance = jnp.maximum(jnp.abs(rows - top), jnp.abs(column - width // 2))
  sums = jnp.array(_SUMS)
  return jnp.where(left, 1, -1) * (sums[top + 1] - sums[jnp.clip(distance, 0, top + 1)])


def places(size: Array, side: Array) -> Array:
  """Returns the number of places where a window of that side may begin: the last one ends at the edge."""
  return size - side + 1


def _local(bits: Array, side: Array, image: Array) -> tuple[Array, Array]:
  """Draws a window within the image; returns the rows [h, 1] and columns [1, w] of pixels, counted from its corner."""
  height, width, _ = image.shape
  corner = (bits % places(jnp.array([height, width]), side).astype(jnp.uint32)).astype(jnp.int32)
  return jnp.arange(height)[:, None] - corner[0], jnp.arange(width)[None, :] - corner[1]


def _inside(rows: Array, columns: Array, side: Array) -> Array:
  """Returns which pixels are in the window, [h, w, 1]."""
  return (((rows >= 0) & (rows < side)) & ((columns >= 0) & (columns < side)))[:, :, None]


def _signs(bits: Array, image: Array) -> Array:
  """Returns -1 or 1 for each channel, [1, 1, c]."""
  return jnp.where(bits % 2 == 0, -1, 1).astype(image.dtype)[None, None, :]


def _unit(values: Array, axes: tuple[int, ...]) -> Array:
  """Divides by the l2 norm over some axes; zeros stay zero."""
  norms = jnp.sqrt((values**2).sum(axes, keepdims=True))
  return values / jnp.where(norms > 0, norms, 1)


# Name of the norm -> start, change.
_MOVES = {'linf': (linf_begin, linf_change), 'l2': (l2_begin, l2_change)}
