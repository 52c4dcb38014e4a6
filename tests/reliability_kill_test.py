"""kill -9 of the trainer at any instant: the same command goes on to the very same end."""

from pathlib import Path
import random

import pytest

from tests import trainer

# In the order in which a run meets them; the next start resumes and gets as far as the next one.
POINTS = (
  'first_compile',
  'mid_log_append@2',
  'before_rename@MANIFEST.json',
  'after_rename@MANIFEST.json',
  'before_rename@3',
  'after_rename@3',
  'mid_eval',
  'mid_log_append@6',
  'before_rename@metrics.jsonl',
  'before_rename@3.pruned.tmp',
)


@pytest.fixture(scope='module')
def rig(tmp_path_factory) -> trainer.Rig:
  return trainer.Rig(tmp_path_factory.getbasetemp())


def crash_at(rig: trainer.Rig, workdir: Path, point: str) -> None:
  run = rig.start(workdir, ADA_CRASH_AT=point)
  assert run.wait() == -9, f'{point} was not met: {run.err}'


def test_kills_change_nothing(rig, tmp_path):
  """Two that are aimed at the log, and three at random."""
  straight, rng = rig.straight(), random.Random(0)
  crash_at(rig, tmp_path / 'w', 'mid_log_append@4')
  crash_at(rig, tmp_path / 'w', 'before_rename@metrics.jsonl')
  for _ in range(3):
    trainer.kill_at_random(rig, tmp_path / 'w', rng)
  rig.finish(tmp_path / 'w')
  trainer.assert_same_end(tmp_path / 'w', straight)


@pytest.mark.slow
def test_kills_at_every_named_instant_change_nothing(rig, tmp_path):
  straight = rig.straight()
  for point in POINTS:
    crash_at(rig, tmp_path / 'w', point)
  rig.finish(tmp_path / 'w')
  trainer.assert_same_end(tmp_path / 'w', straight)


@pytest.mark.slow
def test_twenty_kills_of_a_run_with_an_adversary_change_nothing(rig, tmp_path):
  """In eight runs, so that each has a few kills and reaches its end."""
  straight, rng = rig.straight(trainer.ADA), random.Random(1)
  for trial, kills in enumerate((1, 2, 3, 4, 1, 2, 3, 4)):
    workdir = tmp_path / f'w{trial}'
    for _ in range(kills):
      trainer.kill_at_random(rig, workdir, rng, trainer.ADA)
    rig.finish(workdir, base=trainer.ADA)
    trainer.assert_same_end(workdir, straight)
