"""States and damage for the tests of checkpoints."""

from pathlib import Path

import jax
import jax.numpy as jnp

from adversarial_augment.storage import checkpoints
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
  return reported


def files_of(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob('*') if path.is_file())


def flip(path: Path, other: Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1 << (len(content) % 8)
  path.write_bytes(content)


def three_checkpoints(directory: Path) -> Path:
  """Checkpoints 10, 20 and 30 in `directory`."""
  for step in (10, 20, 30):
    save(directory, step)
  return directory
