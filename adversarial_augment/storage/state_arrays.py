"""A state as a flat dict from leaf path ('params/conv/w') to array: in host memory, hashed, and in files of Orbax.

Orbax gets all arrays as one array of bytes: for each array of its own, Orbax and TensorStore leak 400 bytes of memory,
and print a traceback when the disk fails. It is not compressed, because weights lose only 7 % by it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

PyTree = Any
_NAME = 'state'
_MARKER = 'commit_success.txt'  # Orbax names a folder of this machine in it, and never reads it


def flatten(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves of `tree` by path, in the tree's order; raises if a leaf is not an array with elements."""
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
  """Returns the whole arrays in host memory, on every process."""

  def gather(leaf: Any) -> np.ndarray:
    if isinstance(leaf, np.ndarray) or leaf.is_fully_addressable:
      return np.asarray(leaf)
    if leaf.is_fully_replicated:
      return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

  return {path: gather(leaf) for path, leaf in leaves.items()}


def to_devices(array: np.ndarray, like: Any) -> jax.Array:
  """Returns `array` with the sharding of `like`; each process contributes its own devices' parts."""
  sharding = getattr(like, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def describe(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
  """Returns {path: [shape, dtype]}, as in manifests."""
  return {path: [list(leaf.shape), np.dtype(leaf.dtype).name] for path, leaf in leaves.items()}


def num_bytes(description: Mapping[str, Any]) -> int:
  """Returns the bytes of all arrays that `describe` describes."""
  return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in description.values())


def array_bytes(array: np.ndarray) -> memoryview:
  """Returns the array's bytes in row-major order, without a copy if they are in that order."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
  """Returns the SHA-256 of paths, shapes, dtypes and bytes, in the order of the paths."""
  digest = hashlib.sha256()
  for path, description in sorted(describe(arrays).items()):
    digest.update(json.dumps([path, description]).encode())
    digest.update(array_bytes(arrays[path]))
  return digest.hexdigest()


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays into the new folder `path`; raises what Orbax raises, and prints nothing."""
  import orbax.checkpoint as ocp

  parts = [np.frombuffer(array_bytes(array), np.uint8) for _, array in sorted(arrays.items())]
  with _checkpointer(ocp.PyTreeCheckpointHandler, use_compression=False) as checkpointer:
    checkpointer.save(path, args=ocp.args.PyTreeSave({_NAME: np.concatenate(parts)}))
  (path / _MARKER).unlink(missing_ok=True)


def read(path: Path, description: Mapping[str, Any], *, packed: bool) -> dict[str, np.ndarray]:
  """Returns the arrays of a folder; raises what Orbax raises.

  Args:
    path: the folder.
    description: of the arrays, as by `describe`.
    packed: whether they are one array of bytes there, as `write` makes it, or each its own, as in format 1.
  """
  if not packed:
    return _restore(path, description)
  content = _restore(path, {_NAME: [[num_bytes(description)], 'uint8']})[_NAME]
  arrays, start = {}, 0
  for name, (shape, dtype) in sorted(description.items()):
    end = start + num_bytes({name: (shape, dtype)})
    arrays[name] = content[start:end].copy().view(dtype).reshape(shape)  # a copy is aligned, and holds its bytes alone
    start = end
  return arrays


def _restore(path: Path, description: Mapping[str, Any]) -> dict[str, np.ndarray]:
  import orbax.checkpoint as ocp

  # As NumPy's arrays, so that Orbax gives the bytes as they are and narrows no dtype.
  target = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in description.items()}
  with _checkpointer(ocp.StandardCheckpointHandler) as checkpointer:
    return checkpointer.restore(path, args=ocp.args.StandardRestore(target, strict=True))


@contextmanager
def _checkpointer(handler: Callable[..., Any], **how: Any) -> Iterator[Any]:
  """Gives an Orbax checkpointer for this process alone, without the log in which it repeats its errors."""
  import orbax.checkpoint as ocp

  # Its barriers would wait for processes that take no part.
  alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix='ada')
  options = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
  logger = logging.getLogger('absl')
  before, logger.disabled = logger.disabled, True
  try:
    with ocp.Checkpointer(
      handler(multiprocessing_options=options, **how), multiprocessing_options=options
    ) as checkpointer:
      yield checkpointer
  finally:
    logger.disabled = before
