"""A run and its mirror in a bucket of S3, through kills of the run, of the machine and of the server."""

import random
import shutil
import time

import pytest

from tests import trainer

pytest.importorskip('s3fs', reason="pip install s3fs 'moto[server]'")
pytest.importorskip('moto', reason="pip install s3fs 'moto[server]'")
from tests.s3_server import Server

pytestmark = pytest.mark.slow
MIRROR = '--mirror=s3://bucket/run'


@pytest.fixture
def rig(tmp_path_factory):
  return trainer.Rig(tmp_path_factory.getbasetemp())


@pytest.fixture
def server(tmp_path, monkeypatch):
  server = Server(tmp_path)
  for name, value in server.env.items():
    monkeypatch.setenv(name, value)
  import s3fs

  s3fs.S3FileSystem(skip_instance_cache=True).mkdir('bucket')
  yield server
  server.kill()


def test_kills_of_the_run_at_random_instants_and_the_loss_of_its_folder(rig, server, tmp_path):
  rng, workdir = random.Random(0), tmp_path / 'w'
  for _ in range(20):
    trainer.kill_at_random(rig, workdir, rng, (*trainer.NOMINAL, MIRROR))
    shutil.rmtree(workdir)
  run = rig.finish(workdir, MIRROR)
  assert 'resuming from step ' in run.err
  trainer.assert_same_end(workdir, rig.straight())
  shutil.rmtree(workdir)
  again = rig.finish(workdir, MIRROR)
  assert f'resuming from step {trainer.NUM_STEPS}' in again.err
  trainer.assert_same_end(workdir, rig.straight())
  said = run.err + again.err + ''.join(path.read_text() for path in workdir.rglob('*.json'))
  assert 'very-secret' not in said


def test_kills_of_the_server_lose_nothing_and_hold_nothing_up(rig, server, tmp_path):
  rng, workdir = random.Random(1), tmp_path / 'w'
  flags = ('--config.num_steps=3000', '--config.checkpoint_every=25', '--config.eval_every=0', '--config.log_every=10')
  straight = rig.finish(tmp_path / 'straight', *flags)
  run = rig.start(workdir, *flags, MIRROR)
  run.wait_for_step(20)
  kills = 0
  while run.process.poll() is None and kills < 10:
    time.sleep(rng.uniform(0.2, 1.5))
    server.kill()
    kills += run.process.poll() is None
    time.sleep(rng.uniform(0, 1))
    server.start()
  assert run.wait() == 0, run.err
  assert kills == 10
  assert run.err.count('warning: cannot write to') >= 1
  shutil.rmtree(workdir)
  again = rig.finish(workdir, *flags, MIRROR)
  assert 'resuming from step 3000' in again.err
  assert trainer.result(workdir)['state_sha256'] == trainer.result(straight.workdir)['state_sha256']
  assert trainer.curves(workdir) == trainer.curves(straight.workdir)


def test_a_server_that_never_comes_back_ends_the_run_with_5_and_the_run_is_whole(rig, server, tmp_path):
  workdir = tmp_path / 'w'
  run = rig.start(workdir, MIRROR)
  run.wait_for_line('compiling the train step')
  server.kill()
  assert run.wait() == 5, run.err
  assert 'Cannot write to s3://bucket/run' in run.err.splitlines()[-1]
  trainer.assert_same_end(workdir, rig.straight())
  server.start()
  rig.finish(workdir, MIRROR)
  shutil.rmtree(workdir)
  rig.finish(workdir, MIRROR)
  trainer.assert_same_end(workdir, rig.straight())


def test_a_server_that_is_not_there_at_the_start_is_a_warning(rig, server, tmp_path):
  server.kill()
  run = rig.start(tmp_path / 'w', MIRROR)
  run.wait_for_step(1)
  assert 'warning: s3://bucket/run cannot be read' in run.err
  server.start()
  assert run.wait() == 0, run.err
  shutil.rmtree(tmp_path / 'w')
  rig.finish(tmp_path / 'w', MIRROR)
  trainer.assert_same_end(tmp_path / 'w', rig.straight())
