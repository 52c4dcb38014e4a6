"""Norms, balls and projections of pytrees block by block: AdA's feasible set is a product of l2 balls (section 2).

A block is one leaf: one weight or bias array. All functions take the perturbation of one example; `vmap` them.
"""

import math

import jax
import jax.numpy as jnp

from adversarial_augment.types import PyTree


def block_norms(tree: PyTree) -> PyTree:
  """Returns the l2 norm of every leaf; finite wherever the norm itself is."""
  return jax.tree.map(_norm, tree)


def project(tree: PyTree, radii: PyTree) -> PyTree:
  """Returns the nearest point whose every block lies in the l2 ball of its radius; inside points stay as they are."""

  def one(x, radius):
    norm = _norm(x)
    # The margin keeps the norm below the radius whatever the order in which the square sum is rounded.
    shrink = radius / jnp.where(norm > radius, norm, 1) * (1 - 4 * jnp.finfo(x.dtype).eps)
    return jnp.where(norm > radius, x * shrink, x)

  return jax.tree.map(one, tree, radii)


def random_in_balls(key: jax.Array, like: PyTree, radii: PyTree, *, radius: str = 'ball') -> PyTree:
  """Draws a point of the product of balls.

  Args:
    key: PRNG key.
    like: pytree with the shapes and dtypes of the result.
    radii: one radius per leaf.
    radius: 'ball' is uniform in each ball, 'uniform' takes a uniform distance from the centre, 'zero' is the centre.

  Returns:
    A pytree like `like`.
  """
  leaves, treedef = jax.tree.flatten(like)
  if radius == 'zero':
    return jax.tree.map(jnp.zeros_like, like)
  directions_key, distances_key = jax.random.split(key)
  # One flat draw: one draw per leaf costs seconds of compile time each.
  dtype = jnp.result_type(*leaves)
  flat = jax.random.normal(directions_key, (sum(x.size for x in leaves),), dtype)
  distances = jax.random.uniform(distances_key, (len(leaves),), dtype)
  points, start = [], 0
  for x, r, distance in zip(leaves, jax.tree.leaves(radii), distances, strict=True):
    direction = flat[start : start + x.size].reshape(x.shape)
    start += x.size
    power = 1 / x.size if radius == 'ball' else 1.0
    points.append(direction * (r * distance**power / _norm(direction)))
  return jax.tree.unflatten(treedef, points)


def median_radius(radii: PyTree) -> jax.Array:
  """Returns the median over the blocks of non-zero radius (the mean of the middle two where their count is even)."""
  stacked = jnp.stack(jax.tree.leaves(radii))
  return jnp.nan_to_num(jnp.nanmedian(jnp.where(stacked > 0, stacked, jnp.nan)))


def _norm(x: jax.Array) -> jax.Array:
  """The l2 norm, scaled so that no square overflows or vanishes; its gradient at zero is zero."""
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0.0))  # the scale cancels
  is_zero = largest == 0
  scale = jnp.where(is_zero, 1, largest)
  squares = jnp.where(is_zero, 1, jnp.sum(jnp.square(x / scale)))  # the root has no gradient at zero
  return jnp.where(is_zero, 0, scale * jnp.sqrt(squares))


def count(tree: PyTree) -> int:
  """Returns the number of scalars in a pytree of arrays or shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
