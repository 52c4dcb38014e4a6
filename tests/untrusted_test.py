"""Files of others: what is no regular file, too large, or nested too deep is refused at once, wherever it is read."""

import json
import os
from pathlib import Path
import signal

import pytest

from adversarial_augment import config as configs
from adversarial_augment import inference
from adversarial_augment.datasets import mixture
from adversarial_augment.errors import CheckpointError, StorageError, UserError
from adversarial_augment.run import opening
from adversarial_augment.storage import (
  artifact,
  checkpoints,
  results,
  run_directory,
  untrusted,
)
from tests import checkpoint_cases

DEEP = '{"format": ' + '[' * 100_000 + ']' * 100_000 + '}'


@pytest.fixture(autouse=True)
def soon():
  """Nothing here may wait for a writer that never comes."""
  signal.signal(signal.SIGALRM, lambda *_: pytest.fail('it hangs'))
  signal.alarm(20)
  yield
  signal.alarm(0)


def pipe(path: Path) -> Path:
  path.unlink(missing_ok=True)
  os.mkfifo(path)
  return path


def test_only_regular_files_are_opened_and_links_to_them(tmp_path):
  (tmp_path / 'file').write_bytes(b'abc')
  (tmp_path / 'link').symlink_to('file')
  (tmp_path / 'device').symlink_to('/dev/zero')
  assert untrusted.read_bytes(tmp_path / 'file', 3) == untrusted.read_bytes(tmp_path / 'link', 3) == b'abc'
  with pytest.raises(untrusted.Unusable, match='named pipe'):
    untrusted.open_file(pipe(tmp_path / 'pipe'))
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


@pytest.fixture
def run(tmp_path) -> Path:
  """The workdir of a run, as far as files are read before its arrays."""
  config = configs.base_config()
  (tmp_path / 'config.json').write_text(configs.to_json(config))
  (tmp_path / 'data.json').write_text('{}')
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}\n')
  (tmp_path / 'results').mkdir()
  checkpoint_cases.three_checkpoints(tmp_path / 'checkpoints')
  return tmp_path


READERS = {
  'config.json': [
    lambda run: inference.read_config(run),
    lambda run: opening.check_run(run, configs.base_config(), {'train': 'x'}),
  ],
  'data.json': [results.load_data, lambda run: opening.check_run(run, configs.base_config(), {'train': 'x'})],
  'metrics.jsonl': [
    lambda run: run_directory.truncate_log(run / 'metrics.jsonl', 5),
    lambda run: results.read_log(run / 'metrics.jsonl', ('loss',)),
  ],
  'results/train.json': [lambda run: results.load(run, 'train')],
  'MANIFEST.json': [lambda run: mixture.read_manifest(run / 'MANIFEST.json', 'pets')],
  'PLAN.json': [lambda run: mixture.read_plan(run / 'PLAN.json', 'pets')],
}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('kind', ['deep', 'pipe', 'huge'])
def test_every_file_of_json_is_refused_in_one_line(run, name, kind):
  path = run / name
  if kind == 'deep':
    path.write_text(f'{DEEP}\n{{"step": 2}}\n' if name == 'metrics.jsonl' else DEEP)
  elif kind == 'pipe':
    pipe(path)
  else:
    path.touch()
    os.truncate(path, 1 << 40)
  for read in READERS[name]:
    with pytest.raises(UserError) as error:
      read(run)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


def _reseal(folder: Path, **changes) -> None:
  path = folder / artifact.MANIFEST
  content = json.loads(path.read_bytes())
  del content['manifest_sha256']
  path.write_bytes(checkpoints.sealed(content | changes))


def _file_of(folder: Path) -> Path:
  return next(path for path in sorted(folder.rglob('*')) if path.is_file() and path.name != artifact.MANIFEST)


DAMAGE = {
  'deep': lambda folder: (folder / artifact.MANIFEST).write_text(DEEP),
  'pipe for the manifest': lambda folder: pipe(folder / artifact.MANIFEST),
  'pipe for a file': lambda folder: pipe(_file_of(folder)),
  'a pipe that the manifest lists': lambda folder: (
    pipe(folder / 'extra') and _reseal(folder, files={'extra': {'bytes': 0, 'sha256': ''}})
  ),
  'huge': lambda folder: os.truncate(folder / artifact.MANIFEST, 1 << 40),
  'files is no object': lambda folder: _reseal(folder, files=3),
  'a size that is a text': lambda folder: _reseal(folder, files={'x': {'bytes': '1', 'sha256': ''}}),
  'no leaves': lambda folder: _reseal(folder, leaves=None),
  'leaves of objects': lambda folder: _reseal(folder, leaves={'params/x': [[2], 'object']}),
  'leaves without end': lambda folder: _reseal(folder, leaves={'params/x': [[1 << 60], 'float32']}),
}


@pytest.mark.parametrize('name', DAMAGE)
def test_a_checkpoint_that_attacks_is_passed_over_for_the_one_before(directory, name):
  DAMAGE[name](directory / '30')
  lines = []
  step, _ = checkpoints.restore_newest(directory, checkpoint_cases.make_state(0), report=lines.append)
  assert step == 20
  assert len(lines) == 1
  assert 'checkpoint 30 rejected' in lines[0]
  assert '\n' not in lines[0]
  for older in ('20', '10'):
    DAMAGE[name](directory / older)
  with pytest.raises(CheckpointError):
    checkpoints.restore_newest(directory, checkpoint_cases.make_state(0), report=lines.append)


def test_what_is_written_follows_no_link_and_waits_for_no_pipe(tmp_path):
  victim = tmp_path / 'victim'
  victim.write_text('mine')
  (tmp_path / '.a.json.tmp').symlink_to(victim)
  pipe(tmp_path / '.b.json.tmp')
  for name in ('a.json', 'b.json'):
    artifact.replace(tmp_path / name, b'{}')
    assert (tmp_path / name).read_bytes() == b'{}'
  assert victim.read_text() == 'mine'
  with pytest.raises(StorageError):
    run_directory.append_line(pipe(tmp_path / 'metrics.jsonl'), {'step': 1})
