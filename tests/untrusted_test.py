"""Files of others: what is no regular file, too large, or nested too deep is refused at once, wherever it is read."""

import json
import os
import signal

import pytest

from adversarial_augment import results
from adversarial_augment.datasets import mixture
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.storage import artifact, run_directory, untrusted
from tests.hostile_base import DEEP, endless, pipe


@pytest.fixture(autouse=True)
def soon():
  """Nothing here may wait for a writer that never comes."""
  signal.signal(signal.SIGALRM, lambda *_: pytest.fail('it hangs'))
  signal.alarm(20)
  yield
  signal.alarm(0)


def test_only_regular_files_are_opened_and_links_to_them(tmp_path):
  (tmp_path / 'file').write_bytes(b'abc')
  (tmp_path / 'link').symlink_to('file')
  (tmp_path / 'device').symlink_to('/dev/zero')
  assert untrusted.read_bytes(tmp_path / 'file', 3) == untrusted.read_bytes(tmp_path / 'link', 3) == b'abc'
  pipe(tmp_path / 'pipe')
  with pytest.raises(untrusted.Unusable, match='named pipe'):
    untrusted.open_file(tmp_path / 'pipe')
  with pytest.raises(untrusted.Unusable, match='device'):
    untrusted.open_file(tmp_path / 'device')
  with pytest.raises(untrusted.Unusable, match='3 bytes.*more than 2'):
    untrusted.read_bytes(tmp_path / 'file', 2)
  with pytest.raises(IsADirectoryError):
    untrusted.open_file(tmp_path)
  with pytest.raises(FileNotFoundError):
    untrusted.open_file(tmp_path / 'nothing')
  before = len(os.listdir('/proc/self/fd'))
  for name in ('pipe', 'device', '.'):
    with pytest.raises((ValueError, OSError)):
      untrusted.open_file(tmp_path / name)
  assert len(os.listdir('/proc/self/fd')) == before


@pytest.mark.parametrize(
  'content',
  ['[' * 100_000, '[' * 100_000 + ']' * 100_000, '{"a":' * 100 + '1' + '}' * 100, 'NaN', '1e999', '9' * 5000, '', 'x'],
)
def test_json_is_bounded_in_depth_and_numbers(content):
  with pytest.raises(untrusted.Unusable) as error:
    untrusted.parse_json(content.encode())
  assert '\n' not in str(error.value)


def test_json_is_read_as_python_reads_it():
  for value in ({'a': [1, 2.5, None, {'b': 'ä'}]}, [], 3, 'x', [[[]]] * 3):
    assert untrusted.parse_json(json.dumps(value)) == value
    assert untrusted.parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
  with pytest.raises(untrusted.Unusable, match='utf-8'):
    untrusted.parse_json('{}'.encode('utf-16'))


def test_a_line_without_end_is_not_read_whole(tmp_path):
  with open(tmp_path / 'log', 'wb') as file:
    file.write(b'{"step": 1}\n')
    file.truncate(1 << 40)  # of zeros, which take no place on the disk
  with pytest.raises(untrusted.Unusable, match='line 2'):
    list(untrusted.lines(tmp_path / 'log'))
  with pytest.raises(UserError, match='line 2'):
    run_directory.truncate_log(tmp_path / 'log', 5)
  with pytest.raises(UserError, match='line 2'):
    results.read_log(tmp_path / 'log', ())


@pytest.mark.parametrize('read', [mixture.read_manifest, mixture.read_plan])
@pytest.mark.parametrize('spoil', [lambda path: path.write_text(f'{{"format": {DEEP}}}'), pipe, endless])
def test_files_of_deepaugment_sets_are_refused_in_one_line(tmp_path, read, spoil):
  """Those of runs are in hostile_runs.py."""
  path = tmp_path / 'x.json'
  spoil(path)
  with pytest.raises(UserError) as error:
    read(path, 'pets')
  assert str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_what_is_written_follows_no_link_and_waits_for_no_pipe(tmp_path):
  victim = tmp_path / 'victim'
  victim.write_text('mine')
  (tmp_path / '.a.json.tmp').symlink_to(victim)
  pipe(tmp_path / '.b.json.tmp')
  for name in ('a.json', 'b.json'):
    artifact.replace(tmp_path / name, b'{}')
    assert (tmp_path / name).read_bytes() == b'{}'
  assert victim.read_text() == 'mine'
  pipe(tmp_path / 'metrics.jsonl')
  with pytest.raises(StorageError):
    run_directory.append_line(tmp_path / 'metrics.jsonl', {'step': 1})
