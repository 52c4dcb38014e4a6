"""The run's directory under kills, full disks and second writers."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from adversarial_augment.errors import NumericalError, StorageError, UserError
from adversarial_augment.storage import artifact, kills, run_directory

ROOT = Path(__file__).parents[1]
PRELUDE = 'import sys\nfrom pathlib import Path\nfrom adversarial_augment.storage import artifact, run_directory\n'


def python(code: str, *arguments: object, crash_at: str = '') -> subprocess.Popen:
  """A process that runs `code` with `run_directory`, `Path` and `sys` at hand."""
  return subprocess.Popen(
    [sys.executable, '-c', PRELUDE + code, *map(str, arguments)],
    cwd=ROOT,
    env={**os.environ, kills.CRASH_VARIABLE: crash_at},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def log(path: Path, *steps: int) -> list[str]:
  for step in steps:
    run_directory.append_line(path, {'step': step, 'loss': step / 3})
  return path.read_text().splitlines()


def test_log_lines_are_there_at_once_and_keep_the_callers_order(tmp_path):
  lines = log(tmp_path / 'metrics.jsonl', 1, 2)
  assert lines == ['{"step": 1, "loss": 0.3333333333333333}', '{"step": 2, "loss": 0.6666666666666666}']


def test_log_refuses_nan_and_stays_as_it_was(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  before = log(path, 1)
  with pytest.raises(NumericalError, match=r'metrics\.jsonl'):
    run_directory.append_line(path, {'step': 2, 'loss': float('nan')})
  assert path.read_text().splitlines() == before


def test_full_disk_is_a_storage_error():
  with pytest.raises(StorageError, match='No space left on device'):
    run_directory.append_line(Path('/dev/full'), {'step': 1})


def test_half_a_line_is_taken_back_when_the_disk_fills(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
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


def test_log_of_a_deleted_workdir_is_a_storage_error(tmp_path):
  with pytest.raises(StorageError, match='No such file'):
    run_directory.append_line(tmp_path / 'gone' / 'metrics.jsonl', {'step': 1})


@pytest.mark.parametrize('step, kept', [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_truncate_keeps_the_lines_up_to_the_step(tmp_path, step, kept):
  path = tmp_path / 'metrics.jsonl'
  lines = log(path, 1, 2, 3)
  run_directory.truncate_log(path, step)
  assert path.read_text().splitlines() == lines[:kept]


@pytest.mark.parametrize('tail', [b'{"step": 4, "lo', b'{"step": 4}', b'\0\0\0\0', b'{"step": 4, "loss": \n', b'7\n'])
def test_truncate_drops_a_half_written_last_line(tmp_path, tail):
  path = tmp_path / 'metrics.jsonl'
  lines = log(path, 1, 2, 3)
  with path.open('ab') as file:
    file.write(tail)
  run_directory.truncate_log(path, 10)
  assert path.read_text().splitlines() == lines


def test_truncate_refuses_a_spoilt_line_in_the_middle(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  content = '{"step": 1}\nnonsense\n{"step": 3}\n'
  path.write_text(content)
  with pytest.raises(UserError, match='line 2'):
    run_directory.truncate_log(path, 3)
  assert path.read_text() == content


def test_truncate_of_no_log_makes_none(tmp_path):
  run_directory.truncate_log(tmp_path / 'metrics.jsonl', 5)
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_kill_in_the_middle_of_a_line_costs_that_line_only(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  code = 'for s in (1, 2, 3): run_directory.append_line(Path(sys.argv[1]), {"step": s})'
  process = python(code, path, crash_at='mid_log_append@2')
  process.communicate(timeout=30)
  assert process.returncode == -signal.SIGKILL
  assert path.read_text().startswith('{"step": 1}\n{')
  assert not path.read_text().endswith('\n')
  run_directory.truncate_log(path, 2)
  assert path.read_text() == '{"step": 1}\n'


def test_kill_in_the_middle_of_a_truncation_leaves_the_log_whole(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = log(path, 1, 2, 3)
  process = python('run_directory.truncate_log(Path(sys.argv[1]), 1)', path, crash_at='before_rename@metrics.jsonl')
  process.communicate(timeout=30)
  assert process.returncode == -signal.SIGKILL
  assert path.read_text().splitlines() == lines
  run_directory.truncate_log(path, 1)
  assert path.read_text().splitlines() == lines[:1]
  assert os.listdir(tmp_path) == ['metrics.jsonl']


def test_json_is_sorted_and_refuses_nan_leaving_the_old_file(tmp_path):
  path = tmp_path / 'train.json'
  artifact.write_json(path, {'b': 1, 'a': [0.1, None]})
  content = path.read_text()
  assert content.index('"a"') < content.index('"b"')
  assert json.loads(content) == {'a': [0.1, None], 'b': 1}
  with pytest.raises(NumericalError, match=r'train\.json'):
    artifact.write_json(path, {'b': float('inf')})
  assert path.read_text() == content


def test_replacement_is_synced_before_and_after_the_rename(tmp_path, monkeypatch):
  events = []
  fsync, replace = os.fsync, os.replace
  monkeypatch.setattr(
    os, 'fsync', lambda fd: (events.append(('fsync', os.path.basename(os.readlink(f'/proc/self/fd/{fd}')))), fsync(fd))
  )
  monkeypatch.setattr(os, 'replace', lambda a, b: (events.append(('rename', b.name)), replace(a, b)))
  artifact.write_json(tmp_path / 'x.json', 1)
  assert events == [('fsync', '.x.json.tmp'), ('rename', 'x.json'), ('fsync', tmp_path.name)]


def test_failed_replacement_keeps_the_old_file_and_no_temporary(tmp_path, monkeypatch):
  path = tmp_path / 'x.json'
  artifact.write_json(path, 1)

  def fails(descriptor: int) -> None:
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(os, 'fsync', fails)
  with pytest.raises(StorageError, match='Input/output error'):
    artifact.write_json(path, 2)
  assert path.read_text() == '1\n'
  assert os.listdir(tmp_path) == ['x.json']


def test_create_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
  run_directory.create(tmp_path / 'a' / 'b')
  assert os.listdir(tmp_path / 'a' / 'b') == []


def test_create_refuses_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='is a file'):
    run_directory.create(tmp_path / 'file')
  with pytest.raises(UserError, match="below' cannot be a folder, because '.*/file' is a file"):
    run_directory.create(tmp_path / 'file' / 'below')


def test_create_refuses_a_folder_that_cannot_be_written():
  with pytest.raises(StorageError, match='workdir'):
    run_directory.create(Path('/proc/self/fdinfo'))


HOLD = """
with artifact.lock(Path(sys.argv[1])):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_one_writer_and_takeover_after_a_kill(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, '-c', PRELUDE + HOLD, str(tmp_path)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with holder:
    assert holder.stdout.readline() == 'held\n'
    with (
      pytest.raises(UserError, match=f'in use by process {holder.pid} on ') as caught,
      artifact.lock(tmp_path),
    ):
      pass
    assert '\n' not in str(caught.value)
    holder.kill()
  with artifact.lock(tmp_path):
    assert (tmp_path / '.lock').read_text().split()[0] == str(os.getpid())


def test_of_two_writers_that_start_together_one_runs(tmp_path):
  code = """
import time
refused = Path(sys.argv[1], 'refused')
try:
  with artifact.lock(Path(sys.argv[1])):
    for _ in range(200):  # until the other one has tried
      if refused.exists():
        break
      time.sleep(0.1)
    print('ran')
except Exception as error:
  refused.touch()
  print(type(error).__name__)
"""
  processes = [python(code, tmp_path) for _ in range(2)]
  assert sorted(process.communicate(timeout=30)[0].strip() for process in processes) == ['ArtifactError', 'ran']


def test_lock_is_free_after_the_block_even_after_an_error(tmp_path):
  with pytest.raises(RuntimeError), artifact.lock(tmp_path):
    raise RuntimeError('inside')
  with artifact.lock(tmp_path):
    pass
