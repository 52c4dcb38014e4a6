"""Actions of one process for all, whose outcome, errors included, all of them get."""

from collections.abc import Callable
import json
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from adversarial_augment import cli, errors
from adversarial_augment.cli import progress

_CHUNK = 1 << 24  # bytes


def on_process_0(action: Callable[[], Any]) -> Any:
  """Runs `action` on process 0 and gives its JSON result, or its error, to all processes."""
  progress.made()
  if jax.process_count() == 1:
    return action()
  failure: Exception | None = None
  outcome: dict[str, Any] = {}
  if jax.process_index() == 0:
    try:
      outcome = {'value': action()}
    except Exception as error:  # the others would wait forever
      failure, outcome = error, {'error': [type(error).__name__, cli.describe(error)]}
  outcome = json.loads(broadcast(json.dumps(outcome).encode()))
  if failure is not None:
    raise failure
  if 'error' in outcome:
    raise errors.rebuilt(*outcome['error'])
  return outcome['value']


def all_have(digest: str) -> bool:
  """Returns whether every process calls this with the same hexadecimal digest; all get the same answer."""
  if jax.process_count() == 1:
    return True
  gathered = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(digest), np.uint8))
  return bool((np.asarray(gathered) == np.asarray(gathered)[0]).all())


def broadcast(data: bytes) -> bytes:
  """Process 0's `data` on every process; sent as bytes, because a sum of floats would lose the sign of -0."""
  length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(data), np.int32)))
  received = []
  for start in range(0, length, _CHUNK):
    size = min(_CHUNK, length - start)
    own = np.frombuffer(data[start : start + size], np.uint8) if jax.process_index() == 0 else np.zeros(size, np.uint8)
    received.append(np.asarray(multihost_utils.broadcast_one_to_all(own)).astype(np.uint8).tobytes())
  return b''.join(received)
