"""A run and its copy under a URL: what is there counts only when it is whole, and a start takes the newest of it."""

import json
from pathlib import Path
import re
import shutil
import threading

import fsspec
import pytest

from adversarial_augment import config as configs
from adversarial_augment import evaluate, inference, report, train
from adversarial_augment.config import command_line
from adversarial_augment.errors import CheckpointError, Stopped, StorageError, UserError
from adversarial_augment.run import mirroring
from adversarial_augment.storage import checkpoints, mirror
from adversarial_augment.storage.remote import Remote, Unreachable
from tests import checkpoint_cases, trainer
from tests.described import refused
from tests.s3_server import Server


@pytest.fixture
def rig(tmp_path_factory):
  return trainer.Rig(tmp_path_factory.getbasetemp())


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
  """The URL of an empty bucket on a server of S3."""
  s3fs = pytest.importorskip('s3fs', reason="pip install s3fs 'moto[server]'")
  pytest.importorskip('moto', reason="pip install s3fs 'moto[server]'")
  server = Server(tmp_path_factory.mktemp('server'))
  with pytest.MonkeyPatch.context() as patch:
    for name, value in server.env.items():
      patch.setenv(name, value)
    s3fs.S3FileSystem().mkdir('bucket')
    yield 's3://bucket'
  server.kill()


@pytest.fixture(params=['file', 'memory', pytest.param('s3', marks=pytest.mark.slow)])
def remote(request, tmp_path):
  """An empty folder of a file system."""
  if request.param == 's3':
    yield Remote(f'{request.getfixturevalue("bucket")}/{tmp_path.name}/mirror', '--mirror')
    return
  if request.param == 'file':
    yield Remote(f'file://{tmp_path}/mirror', '--mirror')
    return
  yield Remote(f'memory://{tmp_path.name}/mirror', '--mirror')
  fsspec.filesystem('memory').store.clear()


def make_config(**overrides: str):
  return configs.override(configs.base_config(), {'attack.name': 'none', **overrides})


def make_run(workdir: Path, *steps: int, config=None) -> Path:
  """A run's folder with checkpoints of these steps."""
  config = config or make_config()
  workdir.mkdir(exist_ok=True)
  for step in steps:
    state = checkpoint_cases.make_state(step)
    checkpoints.save(workdir / 'checkpoints', step, state, config_sha256=configs.sha256(config))
  (workdir / 'config.json').write_text(configs.to_json(config))
  (workdir / 'metrics.jsonl').write_text(''.join(f'{{"step": {step}}}\n' for step in steps))
  return workdir


def copy(remote: Remote, workdir: Path) -> None:
  """Copies the checkpoints of a run, as a run does."""
  for step in checkpoints.steps(workdir / 'checkpoints'):
    mirror.put_checkpoint(remote, workdir, step)
    for name in mirror.run_files(workdir):
      remote.put(workdir / name, name)
    mirror.put_manifest(remote, workdir, step)


def arguments(remote: Remote, workdir: Path, every: int | None = None) -> command_line.Arguments:
  return command_line.Arguments('x.py', {}, workdir, mirror=remote, mirror_every=every)


def contents(remote: Remote, tmp_path: Path) -> dict[str, bytes]:
  found = {}
  for name in remote.sizes():
    remote.get(name, tmp_path / 'one')
    found[name] = (tmp_path / 'one').read_bytes()
  return found


def replace(remote: Remote, name: str, content: bytes, tmp_path: Path) -> None:
  (tmp_path / 'one').write_bytes(content)
  remote.put(tmp_path / 'one', name)


# The files under a URL.


def test_files_are_put_listed_read_and_deleted(remote, tmp_path):
  assert remote.sizes() == {}
  replace(remote, 'a/b/c.txt', b'hello', tmp_path)
  replace(remote, 'd.txt', b'', tmp_path)
  replace(remote, 'a/b/c.txt', b'bye', tmp_path)
  assert remote.sizes() == {'a/b/c.txt': 3, 'd.txt': 0}
  assert remote.sizes('a/b') == {'a/b/c.txt': 3}
  assert contents(remote, tmp_path) == {'a/b/c.txt': b'bye', 'd.txt': b''}
  remote.delete(['a/b/c.txt'])
  assert remote.sizes() == {'d.txt': 0}
  with pytest.raises(Unreachable, match='FileNotFoundError'):
    remote.get('a/b/c.txt', tmp_path / 'one')


def test_a_folder_that_is_shared_keeps_no_empty_folders(tmp_path):
  remote = Remote(str(tmp_path / 'mirror'), '--mirror')
  replace(remote, 'a/b/c.txt', b'x', tmp_path)
  replace(remote, 'a/d.txt', b'x', tmp_path)
  remote.delete(['a/b/c.txt'])
  assert [path.name for path in (tmp_path / 'mirror' / 'a').iterdir()] == ['d.txt']


@pytest.mark.parametrize(
  'url, said',
  [
    ('', 'must be a folder'),
    ('file:///', 'must be a folder'),
    ('nowhere://bucket/run', 'Protocol not known: nowhere'),
    ('gs://bucket/run', 'needs a package for gs://; pip install gcsfs'),
    ('memory://user:secret@bucket/run', 'has a password in its URL'),
  ],
)
def test_urls_that_cannot_be_used(url, said, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'gcsfs', None)
  with pytest.raises(UserError, match=said) as error:
    Remote(url, '--mirror')
  assert 'secret' not in str(error.value)


def test_a_url_where_a_path_is_wanted(tmp_path):
  flags = ['--config=configs/nominal.py:smoke', '--config.dataset=cifar10']
  with pytest.raises(UserError, match="--workdir='gs://bucket/x' is a URL; name a folder .*, and the URL as --mirror"):
    train.main([*flags, '--workdir=gs://bucket/x'])
  with pytest.raises(UserError, match="data_dir='gs://bucket/x' is a URL, but must be a path of this machine"):
    train.main([*flags, '--config.data_dir=gs://bucket/x', f'--workdir={tmp_path}'])
  assert not Path('gs:').exists()


def test_mirror_every_needs_a_mirror():
  with pytest.raises(UserError, match='--mirror_every=3 must be at least 0, and goes with --mirror'):
    command_line.parse_train(['--config=configs/nominal.py', '--mirror_every=3'])
  with pytest.raises(UserError, match='--mirror_every=-1'):
    command_line.parse_train(['--config=configs/nominal.py', '--mirror=memory://x', '--mirror_every=-1'])


def test_a_mirror_is_another_folder(tmp_path):
  with pytest.raises(UserError, match='is the workdir itself'):
    command_line.parse_train(['--config=configs/nominal.py', f'--workdir={tmp_path}', f'--mirror=file://{tmp_path}'])


# What a start takes from a mirror.


def test_an_empty_folder_gets_the_newest_checkpoint_and_the_files_of_the_run(remote, tmp_path):
  run = make_run(tmp_path / 'run', 10, 20, 30)
  (run / 'results').mkdir()
  (run / 'results' / 'clean.json').write_text('{}')
  (run / 'private.txt').write_text('x')
  copy(remote, run)
  fresh = tmp_path / 'fresh'
  assert mirroring.fetch(arguments(remote, fresh), make_config()) == (True, 30)
  checkpoint_cases.assert_restores(fresh / 'checkpoints', 30)
  names = {path.relative_to(fresh).as_posix() for path in fresh.rglob('*') if path.is_file()}
  assert {name for name in names if '/' not in name} == {'config.json', 'metrics.jsonl', '.lock'}
  assert (fresh / 'results' / 'clean.json').exists()
  assert checkpoints.steps(fresh / 'checkpoints') == [30]


def test_a_folder_with_the_same_or_a_newer_checkpoint_stays_as_it_is(remote, tmp_path):
  run = make_run(tmp_path / 'run', 10, 20)
  copy(remote, run)
  for steps, shared in (([10, 20], 20), ([10, 20, 30], 0)):
    make_run(run, *steps)
    (run / 'metrics.jsonl').write_text('mine')
    assert mirroring.fetch(arguments(remote, run), make_config()) == (True, shared)
    assert (run / 'metrics.jsonl').read_text() == 'mine'
    assert checkpoints.steps(run / 'checkpoints') == steps
  older = make_run(tmp_path / 'older', 10)
  assert mirroring.fetch(arguments(remote, older), make_config()) == (True, 20)
  checkpoint_cases.assert_restores(older / 'checkpoints', 20)


def test_an_empty_mirror_gives_nothing(remote, tmp_path):
  assert mirroring.fetch(arguments(remote, tmp_path / 'fresh'), make_config()) == (True, 0)
  assert checkpoints.steps(tmp_path / 'fresh' / 'checkpoints') == []


def test_a_checkpoint_whose_manifest_is_not_there_yet_is_not_there(remote, tmp_path):
  run = make_run(tmp_path / 'run', 10, 20)
  copy(remote, run)
  make_run(run, 30)
  mirror.put_checkpoint(remote, run, 30)
  assert mirroring.fetch(arguments(remote, tmp_path / 'fresh'), make_config()) == (True, 20)


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'gone', 'longer'])
def test_every_damaged_file_of_a_checkpoint_is_noticed(tmp_path, damage, capsys):
  remote = Remote(str(tmp_path / 'mirror'), '--mirror')
  copy(remote, make_run(tmp_path / 'run', 10, 20))
  whole = contents(remote, tmp_path)
  names = [name for name in whole if name.startswith('checkpoints/20/')]
  assert len(names) > 3
  for number, name in enumerate(names):
    content = whole[name]
    middle = len(content) // 2
    changed = {
      'flip': content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
      'cut': content[:middle],
      'empty': b'',
      'longer': content + b'x',
    }
    if damage == 'gone':
      remote.delete([name])
    else:
      replace(remote, name, changed[damage], tmp_path)
    fresh = tmp_path / f'fresh{number}'
    assert mirroring.fetch(arguments(remote, fresh), make_config()) == (True, 10), name
    said = capsys.readouterr().err
    assert (f'checkpoint 20 of {remote.url} rejected: ' in said) or (
      damage == 'gone' and name.endswith('MANIFEST.json')
    )
    checkpoint_cases.assert_restores(fresh / 'checkpoints', 10)
    assert not list(fresh.glob('*.tmp'))
    replace(remote, name, content, tmp_path)


def test_a_mirror_of_damaged_checkpoints_alone_does_not_begin_anew(remote, tmp_path):
  copy(remote, make_run(tmp_path / 'run', 10, 20))
  for name in remote.sizes():
    if name.endswith('MANIFEST.json'):
      replace(remote, name, b'{}', tmp_path)
  with pytest.raises(CheckpointError, match='No usable checkpoint is left of 2 under'):
    mirroring.fetch(arguments(remote, tmp_path / 'fresh'), make_config())
  own = make_run(tmp_path / 'own', 10)
  assert mirroring.fetch(arguments(remote, own), make_config()) == (True, 0)


def test_the_mirror_of_another_run_is_refused_and_leaves_the_folder_as_it_was(remote, tmp_path):
  copy(remote, make_run(tmp_path / 'run', 10, config=make_config(seed='7')))
  for workdir in (tmp_path / 'fresh', make_run(tmp_path / 'own', 20)):
    with refused(
      r"mirror' holds a run with another config \(seed: 7 -> 0\); use that config, or name another --mirror"
    ):
      mirroring.fetch(arguments(remote, workdir), make_config())
    assert not (tmp_path / 'fresh' / 'config.json').exists()
  assert checkpoints.steps(tmp_path / 'own' / 'checkpoints') == [20]


def test_a_checkpoint_of_another_run_in_the_mirror_is_refused(remote, tmp_path):
  copy(remote, make_run(tmp_path / 'other', 40, config=make_config(seed='7')))
  copy(remote, make_run(tmp_path / 'run', 10, 20))
  with refused(f"Checkpoint 40 in '{remote.url}' is of another run.*, or name another --mirror"):
    mirroring.fetch(arguments(remote, tmp_path / 'fresh'), make_config())


@pytest.mark.parametrize('name', ['../../../evil', '/tmp/evil', 'a/../../b'])
def test_no_file_outside_of_the_folder_is_written(remote, tmp_path, name):
  run = make_run(tmp_path / 'run', 10, 20)
  copy(remote, run)
  path = run / 'checkpoints' / '20' / 'MANIFEST.json'
  content = json.loads(path.read_text())
  content['files'][name] = {'bytes': 1, 'sha256': 'ab'}
  content.pop('manifest_sha256')
  replace(remote, 'checkpoints/20/MANIFEST.json', checkpoints.sealed(content), tmp_path)
  before = set(tmp_path.rglob('*'))
  assert mirroring.fetch(arguments(remote, tmp_path / 'fresh'), make_config()) == (True, 10)
  assert all((tmp_path / 'fresh') in (path, *path.parents) for path in set(tmp_path.rglob('*')) - before)


def test_old_checkpoints_and_halves_are_pruned_and_newer_ones_stay(remote, tmp_path):
  run = make_run(tmp_path / 'run', 10, 20, 30, 40, 50)
  copy(remote, run)
  remote.delete(['checkpoints/10/MANIFEST.json'])
  replace(remote, 'checkpoints/note.txt', b'x', tmp_path)
  mirror.prune(remote, 40, 1)
  left = {name.split('/')[1] for name in remote.sizes('checkpoints')}
  assert left == {'30', '40', '50', 'note.txt'}


def test_compiled_programs_come_back(remote, tmp_path):
  run, fresh = make_run(tmp_path / 'run', 10), tmp_path / 'fresh'
  (run / 'compiled').mkdir()
  (run / 'compiled' / 'jit_step-ab-cache').write_bytes(b'program')
  copy(remote, run)
  mirror.fetch_compiled(remote, fresh)
  assert [path.read_bytes() for path in (fresh / 'compiled').iterdir()] == [b'program']


# The thread that copies.


class Flaky(Remote):
  """A file system that fails while it is down."""

  down = False
  tried = 0

  def put(self, path: Path, name: str) -> None:
    self.tried += 1
    if self.down:
      raise Unreachable('ConnectionError: refused')
    super().put(path, name)

  def sizes(self, folder: str = '') -> dict[str, int]:
    if self.down:
      raise Unreachable('ConnectionError: refused')
    return super().sizes(folder)


@pytest.fixture
def flaky(tmp_path, monkeypatch):
  monkeypatch.setattr(mirroring, '_PATIENCE', 1.0)
  monkeypatch.setattr(mirroring, '_GRACE', 1.0)
  monkeypatch.setattr(mirroring, '_PAUSE', 0.1)
  monkeypatch.setattr(mirroring.time, 'sleep', lambda seconds: None)
  return Flaky(str(tmp_path / 'mirror'), '--mirror')


def test_what_is_saved_is_copied_with_the_manifest_last(flaky, tmp_path, monkeypatch):
  order = []
  put = flaky.put
  monkeypatch.setattr(flaky, 'put', lambda path, name: (order.append(name), put(path, name)))
  run = make_run(tmp_path / 'run')
  with mirroring.copying(arguments(flaky, run), make_config(), mirroring.Start(True, 0), keep=2) as saved:
    for step in (10, 20, 30, 40):
      make_run(run, step)
      saved(step)
      while f'checkpoints/{step}/MANIFEST.json' not in order:
        threading.Event().wait(0.01)
  last = order.index('checkpoints/40/MANIFEST.json')
  assert {'config.json', 'metrics.jsonl'} < set(order[order.index('checkpoints/30/MANIFEST.json') : last])
  assert not [name for name in order[last + 1 :] if name.startswith('checkpoints/')]
  assert mirroring.fetch(arguments(flaky, tmp_path / 'fresh'), make_config()) == (True, 40)
  assert (tmp_path / 'fresh' / 'metrics.jsonl').read_bytes() == (run / 'metrics.jsonl').read_bytes()


def test_a_mirror_that_is_down_for_a_while_loses_nothing(flaky, tmp_path, capsys):
  run = make_run(tmp_path / 'run')
  with mirroring.copying(arguments(flaky, run), make_config(), mirroring.Start(True, 0), keep=2) as saved:
    flaky.down = True
    make_run(run, 10)
    saved(10)
    while flaky.tried < 1:
      threading.Event().wait(0.01)
    make_run(run, 20)
    saved(20)
    flaky.down = False
  said = capsys.readouterr().err
  assert said.count('warning: cannot write to') == 1
  assert 'ConnectionError: refused' in said
  assert 'can be written again' in said
  assert mirroring.fetch(arguments(flaky, tmp_path / 'fresh'), make_config()) == (True, 20)


@pytest.mark.parametrize('every, copied, fails', [(5, 0, True), (5, 10, True), (10, 10, False), (None, 10, True)])
def test_the_run_fails_at_its_end_only_where_the_copy_is_too_old(flaky, tmp_path, every, copied, fails, capsys):
  run = make_run(tmp_path / 'run')
  config = make_config(checkpoint_every='9')

  def train() -> None:
    with mirroring.copying(arguments(flaky, run, every), config, mirroring.Start(True, 0), keep=2) as saved:
      if copied:
        make_run(run, copied)
        saved(copied)
        while f'checkpoints/{copied}/MANIFEST.json' not in flaky.sizes():
          threading.Event().wait(0.01)
      flaky.down = True
      make_run(run, 20)
      saved(20)

  if fails:
    with pytest.raises(StorageError, match=f'what is there ends with step {copied} of 20; the run is whole in'):
      train()
  else:
    train()
    assert 'lacks the end of the run' in capsys.readouterr().err


def test_a_stop_gives_the_last_copy_some_time(flaky, tmp_path):
  run = make_run(tmp_path / 'run')

  def train() -> None:
    with mirroring.copying(arguments(flaky, run), make_config(), mirroring.Start(True, 0), keep=2) as saved:
      make_run(run, 10)
      saved(10)
      raise Stopped('by SIGTERM')

  with pytest.raises(Stopped, match='by SIGTERM'):
    train()
  assert mirror.newest_step(flaky) == 10


def test_a_run_that_could_not_see_its_mirror_stops_when_that_is_ahead(flaky, tmp_path):
  copy(flaky, make_run(tmp_path / 'before', 30))
  run = make_run(tmp_path / 'run')
  flaky.down = True
  start = mirroring.fetch(arguments(flaky, run), make_config())
  assert start == (False, 0)

  def train() -> None:
    with mirroring.copying(arguments(flaky, run), make_config(), start, keep=2) as saved:
      flaky.down = False
      for step in range(10, 20):
        make_run(run, step)
        saved(step)
        threading.Event().wait(0.05)

  with pytest.raises(Stopped, match='holds step 30 of it; run the same command again'):
    train()
  assert mirror.newest_step(flaky) == 30
  assert mirroring.fetch(arguments(flaky, run), make_config()) == (True, 30)


def test_a_copy_keeps_its_checkpoint_from_being_pruned(flaky, tmp_path, monkeypatch):
  run = make_run(tmp_path / 'run', 10)
  waiting, go_on = threading.Event(), threading.Event()
  put = flaky.put
  monkeypatch.setattr(flaky, 'put', lambda path, name: (waiting.set(), go_on.wait(10), put(path, name)))
  with mirroring.copying(arguments(flaky, run), make_config(), mirroring.Start(True, 0), keep=2) as saved:
    saved(10)
    waiting.wait(10)
    make_run(run, 20, 30, 40)
    checkpoints.prune(run / 'checkpoints', 2)
    assert 10 in checkpoints.steps(run / 'checkpoints')
    go_on.set()
  assert 'checkpoints/10/MANIFEST.json' in flaky.sizes()


# As a user runs it.


def start(tmp_path: Path, **env: str) -> trainer.Run:
  """Starts a run with a mirror on a machine without compiled programs."""
  own = {'XDG_CACHE_HOME': str(tmp_path / 'cache'), 'JAX_DEBUG_LOG_MODULES': 'jax._src.compiler'}
  return trainer.Run(tmp_path / 'w', [*trainer.NOMINAL, f'--mirror={tmp_path}/mirror'], own | env)


@pytest.mark.slow
def test_a_run_whose_folder_is_gone_goes_on_from_its_mirror(rig, tmp_path):
  copied, workdir = tmp_path / 'mirror', tmp_path / 'w'
  first = start(tmp_path)
  first.wait_for(lambda: (copied / 'checkpoints' / '6' / 'MANIFEST.json').exists())
  first.kill()
  shutil.rmtree(workdir)
  second = start(tmp_path)
  assert second.wait() == 0, second.err
  assert 'resuming from step ' in second.err
  assert "Persistent compilation cache hit for 'jit_traced'" in second.err
  trainer.assert_same_end(workdir, rig.straight())
  for name in ('results/train.json', 'metrics.jsonl', 'config.json', 'data.json'):
    assert (copied / name).read_bytes() == (workdir / name).read_bytes()


@pytest.mark.slow
def test_the_second_start_on_a_fresh_machine_compiles_nothing(tmp_path):
  assert start(tmp_path).wait() == 0
  shutil.rmtree(tmp_path / 'w')
  for step in ('6', '9', '12'):  # so that steps are made and evaluations too
    shutil.rmtree(tmp_path / 'mirror' / 'checkpoints' / step, ignore_errors=True)
  shutil.rmtree(tmp_path / 'mirror' / 'results')
  second = start(tmp_path)
  assert second.wait() == 0, second.err
  assert 'cache hit' in second.err
  assert 'CACHE MISS' not in second.err


@pytest.mark.slow
def test_two_processes_go_on_from_their_mirror_in_empty_folders(rig, tmp_path):
  flag, workdirs = f'--mirror={tmp_path}/mirror', [tmp_path / 'w0', tmp_path / 'w1']
  runs = rig.start_pair(workdirs, flag)
  runs[0].wait_for(lambda: (tmp_path / 'mirror' / 'checkpoints' / '6' / 'MANIFEST.json').exists())
  for run in runs:
    run.kill()
  for workdir in workdirs:
    shutil.rmtree(workdir, ignore_errors=True)
  runs = rig.start_pair(workdirs, flag)
  assert [run.wait() for run in runs] == [0, 0], [run.err for run in runs]
  assert 'resuming from step ' in runs[0].err
  straight = [tmp_path / 's0', tmp_path / 's1']
  assert [run.wait() for run in rig.start_pair(straight)] == [0, 0]
  trainer.assert_same_end(workdirs[0], straight[0])
  assert [path.name for path in workdirs[1].iterdir()] == ['compiled']


def test_evaluate_report_and_init_from_take_a_url(rig, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  copied, url = tmp_path / 'nominal', f'file://{tmp_path}/nominal'
  shutil.copytree(rig.straight(), copied)
  (copied / 'results' / 'clean.json').unlink()
  evaluate.main([f'--workdir={url}', '--evals=clean'])
  assert json.loads((copied / 'results' / 'clean.json').read_text())['eval'] == 'clean'
  monkeypatch.chdir(tmp_path)
  report.main([url])
  assert re.search('<title>.*nominal.*</title>', (tmp_path / 'report.html').read_text())
  assert inference.load_classifier(url).step == trainer.NUM_STEPS
  more = trainer.Run(tmp_path / 'more', [*trainer.NOMINAL, '--config.num_steps=2', f'--config.init_from={url}'], {})
  assert more.wait() == 0, more.err
  assert f"starting from the parameters of '{url}' after step 12" in more.err
  with refused("--workdir='file:///nowhere/run' has no checkpoint of a run"):
    evaluate.main(['--workdir=file:///nowhere/run'])
