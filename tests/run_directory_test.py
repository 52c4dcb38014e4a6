"""The run's directory under kills, full disks and second writers."""

import json
import os
from pathlib import Path
import signal

import pytest

from adversarial_augment.errors import NumericalError, StorageError, UserError
from adversarial_augment.storage import artifact, run_directory
from tests.checkpoint_cases import python


@pytest.fixture
def path(tmp_path) -> Path:
  return tmp_path / 'metrics.jsonl'


def log(path: Path, *steps: int) -> list[str]:
  for step in steps:
    run_directory.append_line(path, {'step': step, 'loss': step / 3})
  return path.read_text().splitlines()


def test_log_lines_are_there_at_once_in_the_callers_order_and_refuse_nan(path):
  lines = log(path, 1, 2)
  assert lines == ['{"step": 1, "loss": 0.3333333333333333}', '{"step": 2, "loss": 0.6666666666666666}']
  with pytest.raises(NumericalError, match=r'metrics\.jsonl'):
    run_directory.append_line(path, {'step': 2, 'loss': float('nan')})
  assert path.read_text().splitlines() == lines


@pytest.mark.parametrize('place, words', [('/dev/full', 'No space left on device'), ('/dev/gone/x', 'No such file')])
def test_a_line_that_cannot_be_written_is_a_storage_error(place, words):
  with pytest.raises(StorageError, match=words):
    run_directory.append_line(Path(place), {'step': 1})


def test_half_a_line_is_taken_back_when_the_disk_fills(path, monkeypatch):
  before = log(path, 1)
  write, calls = os.write, []

  def fills_up(descriptor: int, data: bytes) -> int:
    calls.append(data)
    if len(calls) == 2:
      raise OSError(28, 'No space left on device')
    return write(descriptor, data[:5])

  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', fills_up)
    with pytest.raises(StorageError, match='No space left'):
      run_directory.append_line(path, {'step': 2})
  assert path.read_text().splitlines() == before
  assert [json.loads(line)['step'] for line in log(path, 2)] == [1, 2]


@pytest.mark.parametrize('step, kept', [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_truncate_keeps_the_lines_up_to_the_step(path, step, kept):
  lines = log(path, 1, 2, 3)
  run_directory.truncate_log(path, step)
  assert path.read_text().splitlines() == lines[:kept]


@pytest.mark.parametrize('tail', [b'{"step": 4, "lo', b'{"step": 4}', b'\0\0\0\0', b'{"step": 4, "loss": \n', b'7\n'])
def test_truncate_drops_a_half_written_last_line(path, tail):
  lines = log(path, 1, 2, 3)
  with path.open('ab') as file:
    file.write(tail)
  run_directory.truncate_log(path, 10)
  assert path.read_text().splitlines() == lines


def test_truncate_refuses_a_spoilt_line_in_the_middle_and_makes_no_log(path):
  run_directory.truncate_log(path, 5)
  assert not path.exists()
  content = '{"step": 1}\nnonsense\n{"step": 3}\n'
  path.write_text(content)
  with pytest.raises(UserError, match='line 2'):
    run_directory.truncate_log(path, 3)
  assert path.read_text() == content


def killed(code: str, path: Path, point: str) -> None:
  process = python(code, path, crash_at=point)
  process.communicate(timeout=30)
  assert process.returncode == -signal.SIGKILL


def test_kill_in_the_middle_of_a_line_costs_that_line_only(path):
  killed('for s in (1, 2, 3): run_directory.append_line(directory, {"step": s})', path, 'mid_log_append@2')
  assert path.read_text().startswith('{"step": 1}\n{')
  assert not path.read_text().endswith('\n')
  run_directory.truncate_log(path, 2)
  assert path.read_text() == '{"step": 1}\n'


def test_kill_in_the_middle_of_a_truncation_leaves_the_log_whole(path):
  lines = log(path, 1, 2, 3)
  killed('run_directory.truncate_log(directory, 1)', path, 'before_rename@metrics.jsonl')
  assert path.read_text().splitlines() == lines
  run_directory.truncate_log(path, 1)
  assert path.read_text().splitlines() == lines[:1]
  assert os.listdir(path.parent) == ['metrics.jsonl']


# The steps of a log.


@pytest.mark.parametrize(
  'steps', [[], [7], [1, 10, 20, 30], [1, 2, 3, 7, 9, 11, 20], list(range(5, 500, 5)), [1, 3, 4]]
)
def test_runs_of_steps_say_the_steps(steps):
  runs = run_directory.to_runs(steps)
  assert list(run_directory.steps_of(runs)) == steps
  assert len(runs) <= max(1, len(steps))


@pytest.mark.parametrize(
  'steps, words',
  [
    ([3], 'step 3'),
    ([3, 9], 'steps 3, 9'),
    (list(range(10, 100, 10)), 'steps 10 to 90 (9 lines)'),
    ([1, 2, 3, 9, 20, 21, 40], 'steps 1 to 3 (3 lines), 9 to 20 (2 lines), 21 to 40 (2 lines)'),
    ([2**power for power in range(12)], 'steps 1 to 2 (2 lines), 4 to 8 (2 lines), 16 to 32 (2 lines), '
     '64 to 128 (2 lines), 256 to 512 (2 lines) and 2 more'),
  ],
)  # fmt: skip
def test_steps_in_words(steps, words):
  assert run_directory.in_words(steps) == words


def test_a_log_of_many_lines_has_a_short_manifest():
  assert run_directory.to_runs([1, *range(50, 60_001, 50)]) == [[1, 50, 49], [100, 60_000, 50]]


# The folder.


def test_create_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
  run_directory.create(tmp_path / 'a' / 'b')
  assert os.listdir(tmp_path / 'a' / 'b') == []
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='is a file'):
    run_directory.create(tmp_path / 'file')
  with pytest.raises(UserError, match="below' cannot be a folder, because '.*/file' is a file"):
    run_directory.create(tmp_path / 'file' / 'below')
  with pytest.raises(StorageError, match='workdir'):
    run_directory.create(Path('/proc/self/fdinfo'))


HOLD = """
with artifact.lock(directory):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_one_writer_and_takeover_after_a_kill(tmp_path):
  with python(HOLD, tmp_path) as holder:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(UserError, match=f'in use by process {holder.pid} on ') as caught, artifact.lock(tmp_path):
      pass
    assert '\n' not in str(caught.value)
    holder.kill()
  with artifact.lock(tmp_path):
    assert (tmp_path / '.lock').read_text().split()[0] == str(os.getpid())


START = """
refused = directory / 'refused'
try:
  with artifact.lock(directory):
    for _ in range(200):  # until the other one has tried
      if refused.exists():
        break
      time.sleep(0.1)
    print('ran')
except Exception as error:
  refused.touch()
  print(type(error).__name__)
"""


def test_of_two_writers_that_start_together_one_runs(tmp_path):
  processes = [python(START, tmp_path) for _ in range(2)]
  assert sorted(process.communicate(timeout=30)[0].strip() for process in processes) == ['ArtifactError', 'ran']


def test_lock_is_free_after_the_block_even_after_an_error(tmp_path):
  with pytest.raises(RuntimeError), artifact.lock(tmp_path):
    raise RuntimeError('inside')
  with artifact.lock(tmp_path):
    pass
