"""Norms, balls and projections of pytrees block by block: AdA's feasible set is a product of l2 balls (section 2).

A block is one leaf: one weight or bias array. All functions take the perturbation of one example; `vmap` them.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.types import PyTree

_CHUNK = 2**14  # normal numbers drawn at once


def block_norms(tree: PyTree) -> PyTree:
  """Returns the l2 norm of every leaf; finite wherever the norm itself is."""
  leaves, treedef = jax.tree.flatten(tree)
  return jax.tree.unflatten(treedef, list(_norms(leaves)))


def project(tree: PyTree, radii: PyTree) -> PyTree:
  """Returns the nearest point whose every block lies in the l2 ball of its radius; inside points stay as they are."""
  leaves, treedef = jax.tree.flatten(tree)
  norms, limits = _norms(leaves), jnp.stack(jax.tree.leaves(radii))
  outside = norms > limits
  # The margin keeps the norm below the radius whatever the order in which the square sum is rounded.
  shrink = limits / jnp.where(outside, norms, 1) * (1 - 4 * jnp.finfo(norms.dtype).eps)
  return jax.tree.unflatten(treedef, [jnp.where(outside[i], x * shrink[i], x) for i, x in enumerate(leaves)])


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
  flat = jax.lax.map(lambda key: jax.random.normal(key, (_CHUNK,), dtype), keys).ravel()[: sizes.sum()]
  directions = jnp.split(flat, np.cumsum(sizes)[:-1])
  distances = jax.random.uniform(distances_key, (len(leaves),), dtype)
  if radius == 'ball':
    distances = distances ** (1 / sizes).astype(dtype)
  scales = jnp.stack(jax.tree.leaves(radii)) * distances / _norms(directions)
  return jax.tree.unflatten(treedef, [directions[i].reshape(x.shape) * scales[i] for i, x in enumerate(leaves)])


def median_radius(radii: PyTree) -> jax.Array:
  """Returns the median over the blocks of non-zero radius (the mean of the middle two where their count is even)."""
  stacked = jnp.stack(jax.tree.leaves(radii))
  return jnp.nan_to_num(jnp.nanmedian(jnp.where(stacked > 0, stacked, jnp.nan)))


def _norms(blocks: Sequence[jax.Array]) -> jax.Array:
  """[len(blocks)]: the l2 norm of each array, scaled so that no square overflows or vanishes; with gradient 0 at 0.

  Arrays of one shape are stacked first: networks have few shapes and many blocks, and kernels of their own for each
  block were most of the train step's compile time.
  """
  by_shape: dict[tuple[int, ...], list[int]] = {}
  for index, block in enumerate(blocks):
    by_shape.setdefault(block.shape, []).append(index)
  norms = [_row_norms(jnp.stack([blocks[i].ravel() for i in same])) for same in by_shape.values()]
  return jnp.concatenate(norms)[np.argsort(np.concatenate(list(by_shape.values())))]


def _row_norms(rows: jax.Array) -> jax.Array:
  """[m, k] -> [m]"""
  # Two reductions, which XLA vectorises, as it does not that of the absolute value. The scale cancels.
  largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(rows, 1, initial=0.0), -jnp.min(rows, 1, initial=0.0)))
  limits = jnp.finfo(rows.dtype)
  # The scale and its reciprocal are normal numbers: XLA flushes others to zero.
  scale = jnp.where(largest >= limits.tiny, jnp.minimum(largest, limits.max / 8), 1)
  squares = jnp.sum(jnp.square(rows / scale[:, None]), axis=1)
  is_zero = squares == 0
  return jnp.where(is_zero, 0, scale * jnp.sqrt(jnp.where(is_zero, 1, squares)))  # the root has no gradient at zero


def where(condition: jax.Array, tree: PyTree, other: PyTree) -> PyTree:
  """Returns `tree` where the scalar `condition` holds, else `other`."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def count(tree: PyTree) -> int:
  """Returns the number of scalars in a pytree of arrays or shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
