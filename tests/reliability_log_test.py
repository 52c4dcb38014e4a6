"""The log and the checkpoints that cover it: what is on the disk first, and lines that are lost, doubled or deleted."""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

from adversarial_augment.errors import StorageError
from adversarial_augment.storage import checkpoints, run_directory
from tests import checkpoint_cases
from tests.checkpoint_cases import ROOT
from tests.train_loop_test import kill, start
from tests.trainer import steps


@pytest.fixture
def stopped(tmp_path) -> Path:
  """A run of 12 steps with a checkpoint after 8, and lines of 1 to 8."""
  workdir = tmp_path / 'w'
  with pytest.raises(RuntimeError, match='after step 8'):
    start(workdir, at={7: kill(15)}, checkpoint_every=0)
  assert steps(workdir) == list(range(1, 9))
  return workdir


def change(workdir: Path, kept: list[int]) -> None:
  """Leaves the lines of some steps, in that order."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join(lines[step - 1] for step in kept))


@pytest.mark.parametrize(
  'kept, said',
  [
    ([1, 2, 3, 4, 5, 6, 7, 8], None),
    ([], 'is missing steps 1 to 8 (8 lines);'),
    (None, 'is missing steps 1 to 8 (8 lines);'),  # no file at all
    ([1, 2, 3, 4, 5], 'is missing steps 6, 7, 8;'),
    ([1, 2, 4, 5, 8], 'is missing steps 3, 6, 7;'),
    ([2, 3, 4, 5, 6, 7, 8], 'is missing step 1;'),
    ([1, 2, 3, 3, 4, 5, 6, 7, 8], 'had duplicates of step 3;'),
    ([1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8], 'had duplicates of steps 4, 5, 6;'),
  ],
)
def test_a_resume_says_which_lines_are_missing_or_double_and_goes_on(stopped, capfd, kept, said):
  if kept is None:
    (stopped / 'metrics.jsonl').unlink()
  else:
    change(stopped, kept)
  capfd.readouterr()
  start(stopped)
  warnings = [line for line in capfd.readouterr().err.splitlines() if 'warning' in line]
  assert [said in line for line in warnings] == ([True] if said else [])
  assert steps(stopped) == sorted(set(kept or [])) + [9, 10, 11, 12]


def test_another_log_every_between_two_starts_loses_nothing(stopped, capfd):
  """1 to 8, then every third, then all: no line is said to be missing that never was."""
  with pytest.raises(RuntimeError, match='after step 11'):
    start(stopped, at={10: kill(15)}, log_every=3)
  start(stopped, log_every=5)
  assert 'warning' not in capfd.readouterr().err
  assert steps(stopped) == [*range(1, 10), 12]


@pytest.mark.parametrize(
  'harm, what',
  [
    (lambda path: path.unlink(), 'lost'),
    (lambda path: os.truncate(path, 10), 'lost'),
    (lambda path: path.write_bytes(path.read_bytes() * 2), 'gained'),
  ],
)
def test_a_log_that_changes_under_a_run_is_noticed_once_and_by_the_next_start(tmp_path, capfd, harm, what):
  workdir = tmp_path / 'w'
  path = workdir / 'metrics.jsonl'
  with pytest.raises(RuntimeError, match='after step 11'):
    start(workdir, at={6: lambda: harm(path), 10: kill(15)})
  err = capfd.readouterr().err
  assert len(re.findall(f"warning: '{path}' has {what} [0-9,]+ bytes", err)) == 1, err


def test_lines_that_are_deleted_under_a_run_are_named_by_the_next_start(tmp_path, capfd):
  workdir = tmp_path / 'w'
  path = workdir / 'metrics.jsonl'
  cut = lambda: path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[:2]))
  with pytest.raises(RuntimeError, match='after step 11'):
    start(workdir, at={6: cut, 10: kill(15)})
  capfd.readouterr()
  start(workdir)
  assert re.search('is missing steps 3, 4, 5', capfd.readouterr().err)


def test_lines_deleted_after_the_last_step_are_noticed_when_the_run_is_started_again(tmp_path, capfd):
  workdir = tmp_path / 'w'
  start(workdir)
  change(workdir, [1, 2, 12])
  capfd.readouterr()
  start(workdir)
  assert 'is missing steps 3 to 11 (9 lines);' in capfd.readouterr().err


def test_the_log_is_on_the_disk_before_the_checkpoint_that_covers_it(tmp_path, monkeypatch):
  """What fsync has seen of the log when a checkpoint is renamed has the lines up to its step."""
  workdir = tmp_path / 'w'
  path, synced, seen = workdir / 'metrics.jsonl', [b'', False], {}
  fsync, rename = os.fsync, os.rename

  def record_fsync(descriptor: int) -> None:
    fsync(descriptor)
    name = os.readlink(f'/proc/self/fd/{descriptor}')
    if name == str(path):
      synced[0] = path.read_bytes()
    synced[1] = synced[1] or (name == str(workdir) and path.exists())

  def record_rename(source: Path, destination: Path) -> None:
    if Path(destination).parent.name == 'checkpoints' and Path(destination).name.isdigit():
      seen[int(Path(destination).name)] = len(synced[0].splitlines()), synced[1]
    rename(source, destination)

  monkeypatch.setattr(os, 'fsync', record_fsync)
  monkeypatch.setattr(os, 'rename', record_rename)
  start(workdir)
  assert seen == {4: (4, True), 8: (8, True), 12: (12, True)}


def test_the_manifest_says_of_which_steps_the_log_has_lines(tmp_path):
  start(tmp_path / 'w', 50, log_every=10, checkpoint_every=25)
  for step, expected in ((25, [1, 10, 20]), (50, [1, 10, 20, 30, 40, 50])):
    manifest = checkpoints.verify(tmp_path / 'w' / 'checkpoints' / str(step), step)
    assert list(run_directory.steps_of(manifest['log'])) == expected


def test_a_checkpoint_without_a_log_is_taken_as_it_is(stopped, capfd):
  """As older versions have written them."""
  checkpoint_cases.reseal(stopped / 'checkpoints' / '8', without='log')
  change(stopped, [1, 2])
  start(stopped)
  assert 'warning' not in capfd.readouterr().err


# A checkpoint of another run.


@pytest.mark.parametrize('field, value', [('seed', 1), ('optimizer.learning_rate', 0.3), ('batch_size', 512)])
def test_a_checkpoint_of_another_run_is_not_resumed_from(stopped, tmp_path, field, value):
  other = tmp_path / 'other'
  start(other, 16, **{field: value})
  shutil.copytree(other / 'checkpoints' / '16', stopped / 'checkpoints' / '16')
  before = sorted(files_below(stopped))
  with pytest.raises(ValueError, match=r'Checkpoint 16 in .* is of another run: its config has the hash [0-9a-f]{12}'):
    start(stopped)
  assert sorted(files_below(stopped)) == before
  shutil.rmtree(stopped / 'checkpoints' / '16')
  assert int(start(stopped).step) == 12


def test_a_checkpoint_of_the_same_config_with_other_log_every_is_resumed_from(stopped, tmp_path):
  other = tmp_path / 'other'
  start(other, 12, log_every=3, checkpoint_every=5)
  shutil.copytree(other / 'checkpoints' / '10', stopped / 'checkpoints' / '10')
  assert int(start(stopped).step) == 12


def files_below(folder: Path) -> list[str]:
  return [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()]


# A folder that cannot hold a checkpoint.


def test_a_folder_that_no_checkpoint_fits_in_is_refused_before_the_first_step(tmp_path, monkeypatch):
  """Its own files have names that are short enough; those that Orbax makes do not."""
  deep = tmp_path
  while len(str(deep)) < 4096 - 200:
    deep = deep / ('d' * 80)
  deep = deep / ('e' * (4096 - 60 - len(str(deep)) - 1))
  with pytest.raises(StorageError, match='save checkpoints under|Cannot write the arrays'):
    start(deep, at={0: lambda: pytest.fail('a step was made')})
  assert not (deep / 'checkpoints').exists()


@pytest.mark.parametrize('relative', [False, True])
def test_a_folder_whose_name_is_no_utf_8_is_refused_before_anything_is_made(tmp_path, monkeypatch, relative):
  name = os.fsdecode(b'caf\xe9')
  workdir = tmp_path / name / 'w'
  if relative:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    workdir = Path('w')
  with pytest.raises(ValueError, match='is no UTF-8; name another folder'):
    start(workdir)
  assert not workdir.exists()


def test_a_start_leaves_no_probe(tmp_path):
  class Enough(Exception):
    pass

  def enough() -> None:
    assert not (tmp_path / 'w' / 'checkpoints').exists()
    raise Enough

  with pytest.raises(Enough):
    start(tmp_path / 'w', at={0: enough})
  assert checkpoints.steps(tmp_path / 'w' / 'checkpoints') == []


# Memory.

LONG = """
import sys
from pathlib import Path
from tests.train_loop_test import start

def memory():
  return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1])

seen = {}
start(Path(sys.argv[1]), 10_000, {step: lambda step=step: seen.setdefault(step, memory()) for step in (2_000, 9_999)},
      batch=lambda step: 1.0, log_every=2, checkpoint_every=50)
print(seen[9_999] - seen[2_000])
"""


@pytest.mark.slow
def test_ten_thousand_steps_do_not_fill_the_memory(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', LONG, str(tmp_path / 'w')], cwd=ROOT, capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert int(done.stdout.split()[-1]) < 1500  # kB; the smallest real steps take more than a minute for as many
