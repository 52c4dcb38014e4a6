"""The arrays of a checkpoint in files: Orbax writes and reads them, as one array of bytes.

One, because of what Orbax and TensorStore do for each array of its own: 400 bytes of memory that are never given back,
and on a disk that fails a traceback of every array that was still on its way. What goes wrong is raised; nothing of it
is printed besides. Not compressed, because weights lose 7 % by it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
import logging
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adversarial_augment.storage import state_arrays

_NAME = 'state'
_MARKER = 'commit_success.txt'  # Orbax names the folder of this machine in it, and reads it nowhere


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes `arrays` into the new folder `path`; raises what Orbax raises."""
  import orbax.checkpoint as ocp

  parts = [np.frombuffer(state_arrays.array_bytes(array), np.uint8) for _, array in sorted(arrays.items())]
  with _quiet(), _checkpointer(ocp.PyTreeCheckpointHandler, use_compression=False) as checkpointer:
    checkpointer.save(path, args=ocp.args.PyTreeSave({_NAME: np.concatenate(parts)}))
  (path / _MARKER).unlink(missing_ok=True)


def read(path: Path, leaves: Mapping[str, Any], *, packed: bool) -> dict[str, np.ndarray]:
  """Returns the arrays in the folder `path`; raises what Orbax raises.

  Args:
    path: what `write` or an older version made.
    leaves: {path: [shape, dtype]} of each array.
    packed: whether they are one array of bytes there; in checkpoints of format 1, each is its own.
  """
  if not packed:
    return _restore(path, leaves)
  sizes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (shape, dtype) in sorted(leaves.items())}
  content = _restore(path, {_NAME: [[sum(sizes.values())], 'uint8']})[_NAME]
  arrays, start = {}, 0
  for name, size in sizes.items():
    shape, dtype = leaves[name]
    # A copy: it lies where its type wants it, and does not keep the others.
    arrays[name] = content[start : start + size].copy().view(dtype).reshape(shape)
    start += size
  return arrays


def _restore(path: Path, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
  import orbax.checkpoint as ocp

  # A stand-in per array: NumPy, so that Orbax gives the bytes as they are and no dtype is narrowed.
  target = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in leaves.items()}
  with _quiet(), _checkpointer(ocp.StandardCheckpointHandler) as checkpointer:
    return checkpointer.restore(path, args=ocp.args.StandardRestore(target, strict=True))


def _checkpointer(handler: Callable[..., Any], **how: Any) -> Any:
  """Orbax for this process alone: its barriers would wait for processes that take no part."""
  import orbax.checkpoint as ocp

  alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix='ada')
  options = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
  return ocp.Checkpointer(handler(multiprocessing_options=options, **how), multiprocessing_options=options)


@contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Orbax's log, which tells with tracebacks what is raised as well, off standard error."""
  logger = logging.getLogger('absl')
  before, logger.disabled = logger.disabled, True
  try:
    yield
  finally:
    logger.disabled = before
