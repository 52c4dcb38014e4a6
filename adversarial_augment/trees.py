"""Norms, balls and projections of pytrees block by block: AdA's feasible set is a product of l2 balls (section 2).

A block is one leaf: one weight or bias array. All functions take the perturbation of one example; `vmap` them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import threefry
from adversarial_augment.types import PyTree

_CHUNK = 2**14  # normal numbers drawn at once


def block_norms(tree: PyTree) -> PyTree:
  """Returns the l2 norm of every leaf; finite wherever the norm itself is."""
  return jax.tree.map(_norm, tree)


def project(tree: PyTree, radii: PyTree) -> PyTree:
  """Returns the nearest point whose every block lies in the l2 ball of its radius; inside points stay as they are."""
  return jax.tree.map(_project_block, tree, radii)


@jax.jit  # traced once for each shape, as _norm
def _project_block(x: jax.Array, radius: jax.Array) -> jax.Array:
  norm = _norm(x)
  outside = norm > radius
  # The margin keeps the norm below the radius whatever the order in which the square sum is rounded.
  shrink = radius / jnp.where(outside, norm, 1) * (1 - 4 * jnp.finfo(norm.dtype).eps)
  return jnp.where(outside, x * shrink, x)


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
  # Drawn in chunks of all leaves together: one draw per leaf costs seconds of compile time each, and a draw outside a
  # loop XLA repeats in every use.
  dtype = jnp.result_type(*leaves)
  sizes = np.array([x.size for x in leaves])
  keys = jax.random.split(directions_key, -(-sizes.sum() // _CHUNK))
  flat = jax.lax.map(lambda key: threefry.normal(key, _CHUNK, dtype), keys).ravel()[: sizes.sum()]
  directions = jnp.split(flat, np.cumsum(sizes)[:-1])
  distances = jax.random.uniform(distances_key, (len(leaves),), dtype)
  if radius == 'ball':
    distances = distances ** (1 / sizes).astype(dtype)
  lengths = jnp.sqrt(jnp.stack([jnp.sum(jnp.square(x)) for x in directions]))  # no square of a normal draw overflows
  scales = jnp.stack(jax.tree.leaves(radii)) * distances / jnp.maximum(lengths, jnp.finfo(dtype).tiny)
  return jax.tree.unflatten(treedef, [directions[i].reshape(x.shape) * scales[i] for i, x in enumerate(leaves)])


def median_radius(radii: PyTree) -> jax.Array:
  """Returns the median over the blocks of non-zero radius (the mean of the middle two where their count is even)."""
  stacked = jnp.stack(jax.tree.leaves(radii))
  return jnp.nan_to_num(jnp.nanmedian(jnp.where(stacked > 0, stacked, jnp.nan)))


@jax.jit  # traced once for each shape
def _norm(x: jax.Array) -> jax.Array:
  """[]: the l2 norm of an array, scaled so that no square overflows or vanishes; with gradient 0 at 0."""
  # Two reductions, which XLA vectorises, as it does not that of the absolute value. The scale cancels.
  largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(x, initial=0.0), -jnp.min(x, initial=0.0)))
  limits = jnp.finfo(x.dtype)
  # The scale and its reciprocal are normal numbers: XLA flushes others to zero.
  scale = jnp.where(largest >= limits.tiny, jnp.minimum(largest, limits.max / 8), 1)
  squares = jnp.sum(jnp.square(x / scale))
  is_zero = squares == 0
  return jnp.where(is_zero, 0, scale * jnp.sqrt(jnp.where(is_zero, 1, squares)))  # the root has no gradient at zero


def where(condition: jax.Array, tree: PyTree, other: PyTree) -> PyTree:
  """Returns `tree` where the scalar `condition` holds, else `other`."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def count(tree: PyTree) -> int:
  """Returns the number of scalars in a pytree of arrays or shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
