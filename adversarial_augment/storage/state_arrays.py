"""A state as a flat dict from leaf path ('params/conv/w') to array, in host memory: what is saved and hashed."""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
  """The leaves of `tree` by path, in the tree's order."""
  leaves: dict[str, Any] = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path = jax.tree_util.keystr(keys, simple=True, separator='/')
    if path in leaves:
      raise ValueError(f"Two leaves of the state share the path '{path}'.")
    if not isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)) or 0 in leaf.shape:
      raise TypeError(f"The state's leaf '{path}' is no array with elements: {leaf!r}.")
    leaves[path] = leaf
  return leaves


def to_host(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The whole arrays in host memory, on every process."""

  def gather(leaf: Any) -> np.ndarray:
    if isinstance(leaf, np.ndarray) or leaf.is_fully_addressable:
      return np.asarray(leaf)
    if leaf.is_fully_replicated:
      return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

  return {path: gather(leaf) for path, leaf in leaves.items()}


def to_devices(array: np.ndarray, like: Any) -> jax.Array:
  """`array` with the sharding of `like`; each process contributes its own devices' parts."""
  sharding = getattr(like, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def describe(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
  """{path: [shape, dtype]}, the tree as the manifest has it."""
  return {path: [list(leaf.shape), np.dtype(leaf.dtype).name] for path, leaf in leaves.items()}


def array_bytes(array: np.ndarray) -> memoryview:
  """The array's bytes in row-major order, without a copy where it lies so already."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
  """SHA-256 over paths, shapes, dtypes and bytes, in the order of the paths."""
  digest = hashlib.sha256()
  for path, description in sorted(describe(arrays).items()):
    digest.update(json.dumps([path, description]).encode())
    digest.update(array_bytes(arrays[path]))
  return digest.hexdigest()
