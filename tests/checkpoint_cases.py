"""States, damage and processes for the tests of checkpoints."""

from contextlib import contextmanager
import json
import os
from pathlib import Path
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp

from adversarial_augment.storage import artifact, checkpoints, kills
from adversarial_augment.types import TrainState

ROOT = Path(__file__).parents[1]


def make_state(step: int, width: int = 4, dtype=jnp.float32) -> TrainState:
  params = {
    'net/~/conv': {'w': jax.random.normal(jax.random.key(step), (3, width), dtype), 'b': jnp.full(width, -0.0)},
    'net/~/head': {'w': jnp.full((2, 2), step, jnp.bfloat16)},
  }
  return TrainState(jnp.asarray(step, jnp.int32), params, {}, (jnp.arange(step, step + 3, dtype=jnp.uint32), ()))


def save(directory: Path, step: int, state=None) -> Path:
  return checkpoints.save(directory, step, make_state(step) if state is None else state, config_sha256='c' * 64)


def restore(directory: Path, target=None):
  """(step, state, reported lines) of the newest good checkpoint."""
  lines: list[str] = []
  restored = checkpoints.restore_newest(directory, make_state(0) if target is None else target, report=lines.append)
  return (*(restored or (None, None)), lines)


def assert_restores(directory: Path, step: int, lines: int = 0) -> list[str]:
  found, state, reported = restore(directory)
  assert found == step
  assert checkpoints.state_sha256(state) == checkpoints.state_sha256(make_state(step))
  assert len(reported) == lines
  assert not any('\n' in line for line in reported)
  return reported


def three_checkpoints(directory: Path) -> Path:
  """Checkpoints 10, 20 and 30 in `directory`."""
  for step in (10, 20, 30):
    save(directory, step)
  return directory


def files_of(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob('*') if path.is_file())


def flip(path: Path, other: Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1 << (len(content) % 8)
  path.write_bytes(content)


def reseal(folder: Path, without: str = '', **changes) -> None:
  """Changes fields of a checkpoint's manifest, whose hash is right again."""
  path = folder / artifact.MANIFEST
  content = json.loads(path.read_bytes()) | changes
  path.write_bytes(
    checkpoints.sealed({name: content[name] for name in content if name not in ('manifest_sha256', without)})
  )


@contextmanager
def largest_file(size: int):
  """Lets no file grow beyond some bytes, as where the disk is full."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


PRELUDE = """
import itertools, resource, sys, time
from pathlib import Path
import numpy as np
from adversarial_augment.storage import artifact, checkpoints, run_directory
directory = Path(sys.argv[1])
"""
SAVES_WITHOUT_END = """
for step in itertools.count(max(checkpoints.steps(directory), default=0) + 1):
  checkpoints.save(directory, step, {'w': np.full(100_000, step, np.float32)}, config_sha256='c')
  checkpoints.prune(directory, 2)
  print(step, flush=True)
"""


def python(code: str, *arguments: object, crash_at: str = '', **options) -> subprocess.Popen:
  """A process that runs `code` after PRELUDE; its first argument is `directory`."""
  return subprocess.Popen(
    [sys.executable, '-c', PRELUDE + code, *map(str, arguments)],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', kills.CRASH_VARIABLE: crash_at},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def output(code: str, *arguments: object) -> str:
  """What such a process prints; it must end well, and print nothing on standard error."""
  process = python(code, *arguments)
  said, err = process.communicate(timeout=240)
  assert (process.returncode, err) == (0, '')
  return said
