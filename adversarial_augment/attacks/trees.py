"""Norms, balls and projections of pytrees block by block: AdA's feasible set is a product of l2 balls (section 2).

A block is one leaf: one weight or bias array. Blocks of one shape can lie in one array [k, ...], a stack, whose radii
are [k]: then norms and projections of all k are one operation. All functions but `choose` take the perturbation of one
example; `vmap` them.
"""

from collections.abc import Sequence
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import threefry
from adversarial_augment.types import Array, Key, PyTree

_CHUNK = 2**14  # normal numbers drawn at once


class Stacks:
  """The blocks of `like` as stacks: those of one shape whose names differ in numbers alone, in the order of these."""

  def __init__(self, like: PyTree):
    named: dict[tuple, list[tuple[list[int], int]]] = {}
    for index, (path, leaf) in enumerate(jax.tree.leaves_with_path(like)):
      name = jax.tree_util.keystr(path)
      kind = re.sub(r'\d+', '', name), leaf.shape, leaf.dtype
      named.setdefault(kind, []).append(([int(number) for number in re.findall(r'\d+', name)], index))
    self._members = [[index for _, index in sorted(members)] for members in named.values()]
    self._treedef = jax.tree.structure(like)

  def stack(self, tree: PyTree) -> list[Array]:
    """Returns one array [k, ...] for each stack, [...] for blocks that are alone; `tree` has one leaf per block."""
    leaves = jax.tree.leaves(tree)
    return [jnp.stack([leaves[i] for i in members]) if members[1:] else leaves[members[0]] for members in self._members]

  def unstack(self, stacks: Sequence[Array]) -> PyTree:
    """Returns the tree that `stack` was given."""
    leaves: dict[int, Array] = {}
    for members, stack in zip(self._members, stacks, strict=True):
      # The gradient of a split is one concatenation; that of as many slices, a sum of stacks of zeros.
      parts = jax.lax.split(stack, [1] * len(members)) if members[1:] else [stack[None]]
      leaves |= {i: part.squeeze(0) for i, part in zip(members, parts, strict=True)}
    return jax.tree.unflatten(self._treedef, [leaves[i] for i in sorted(leaves)])


def block_norms(tree: PyTree, radii: PyTree | None = None) -> PyTree:
  """Returns the l2 norm of every block; finite wherever the norm itself is.

  `radii` has [] for each block and [k] for each stack of k; without them there are no stacks.
  """
  if radii is None:
    return jax.tree.map(_norm, tree)
  return jax.tree.map(lambda x, radius: _norm(x, jnp.ndim(radius)), tree, radii)


def project(tree: PyTree, radii: PyTree) -> PyTree:
  """Returns the nearest point whose every block lies in the l2 ball of its radius; inside points stay as they are."""
  return jax.tree.map(_project_block, tree, radii)


@jax.jit  # traced once for each shape, as _norm
def _project_block(x: Array, radius: Array) -> Array:
  axes = tuple(range(jnp.ndim(radius), x.ndim))
  radius = jnp.expand_dims(radius, axes)
  limits = jnp.finfo(x.dtype)
  is_point = radius < limits.tiny
  # In units of the radius no square that matters vanishes, and x is read once for its norm. None overflows: an entry
  # beyond `far` radii counts as that far.
  far = float(limits.max) ** 0.375
  units = jnp.clip(x * jnp.where(is_point, 0, 1 / jnp.where(is_point, 1, radius)), -far, far)
  squares = jnp.sum(jnp.square(units), axis=axes, keepdims=True)
  outside = squares > 1
  # The margin keeps the norm below the radius whatever the order in which the square sum is rounded.
  shrink = radius / jnp.sqrt(jnp.where(outside, squares, 1)) * (1 - 4 * limits.eps)
  return jnp.where(outside | is_point, units * shrink, x)


def random_in_balls(key: Key, like: PyTree, radii: PyTree, *, radius: str = 'ball') -> PyTree:
  """Draws a point of the product of balls, of the shapes and dtypes of `like`, with one radius per leaf.

  `radius` is 'ball' (uniform in each ball), 'uniform' (at a uniform distance from the centre) or 'zero' (the centre).
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


def median_radius(radii: PyTree) -> Array:
  """Returns the median over the blocks of non-zero radius (the mean of the middle two where their count is even)."""
  stacked = jnp.concatenate([jnp.ravel(radius) for radius in jax.tree.leaves(radii)])
  return jnp.nan_to_num(jnp.nanmedian(jnp.where(stacked > 0, stacked, jnp.nan)))


def choose(condition: Array, tree: PyTree, other: PyTree) -> PyTree:
  """Takes, example by example, `tree` where the condition [n] holds, else `other`; all leaves are [n, ...]."""
  pick = lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
  return jax.tree.map(pick, tree, other)


@functools.partial(jax.jit, static_argnums=1)  # traced once for each shape
def _norm(x: Array, stacked: int = 0) -> Array:
  """The l2 norm over all axes but the first `stacked`; no square overflows or vanishes; with gradient 0 at 0."""
  # Two reductions, which XLA vectorises, as it does not that of the absolute value. The scale cancels.
  axes = tuple(range(stacked, x.ndim))
  over = lambda reduce, x: reduce(x, axis=axes, keepdims=True, initial=0.0)
  largest = jax.lax.stop_gradient(jnp.maximum(over(jnp.max, x), -over(jnp.min, x)))
  limits = jnp.finfo(x.dtype)
  # The scale and its reciprocal are normal numbers: XLA flushes others to zero.
  scale = jnp.where(largest >= limits.tiny, jnp.minimum(largest, limits.max / 8), 1)
  squares = jnp.sum(jnp.square(x / scale), axis=axes)
  is_zero = squares == 0
  root = jnp.sqrt(jnp.where(is_zero, 1, squares))  # it has no gradient at zero
  return jnp.where(is_zero, 0, scale.reshape(squares.shape) * root)
