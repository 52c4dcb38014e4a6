"""The nearest point of a hyperplane within the box [0, 1], in l_inf or l_2: the inner problem of FAB."""

import jax
import jax.numpy as jnp


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
