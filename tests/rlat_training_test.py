"""Runs of RLAT, from the command line to the report."""

import random

import pytest

from adversarial_augment import train
from adversarial_augment.parallel import devices
from tests import trainer

pytestmark = pytest.mark.usefixtures('quick_compile')

SMOKE = '--config=configs/rlat.py:smoke'


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(trainer.ROOT)
  monkeypatch.setattr(devices, 'compilation_cache', lambda: None)


def test_two_steps_to_the_report(tmp_path, capsys):
  train.main(['--config=configs/rlat_augmix.py:smoke', f'--workdir={tmp_path}/w', '--config.evals=clean'])
  assert 'adversary: epsilon 0.05, all layers, one step\n' in capsys.readouterr().err
  lines = trainer.lines(tmp_path / 'w')
  own = {'step', 'epoch', 'loss', 'accuracy', 'learning_rate', 'images_per_second'}
  assert [line.keys() for line in lines] == [own | {'attack_loss_start', 'attack_loss_end'}] * 2
  assert all(line['attack_loss_end'] > line['attack_loss_start'] for line in lines)
  assert trainer.result(tmp_path / 'w')['evals'].keys() == {'clean'}
  assert 'rlat, epsilon 0.05, all layers, one step' in (tmp_path / 'w' / 'report.html').read_text()


def test_a_wrong_layer_is_one_line_before_anything_starts(tmp_path):
  run = trainer.Rig(tmp_path).start(tmp_path / 'w', '--config.attack.layers=stage9', base=(SMOKE,))
  assert run.wait() == 2
  (line,) = run.err.splitlines()
  assert line.startswith('train: config.attack.layers=stage9 must be of input, stem, stage1, stage2, stage3, stage4 ')
  assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_kills_change_nothing(tmp_path):
  base = (SMOKE, '--config.evals=clean', f'--config.num_steps={trainer.NUM_STEPS}')
  base = (*base, '--config.checkpoint_every=3')
  rig, rng = trainer.Rig(tmp_path), random.Random(0)
  rig.finish(tmp_path / 'straight', base=base)
  for _ in range(4):
    trainer.kill_at_random(rig, tmp_path / 'w', rng, base=base)
  rig.finish(tmp_path / 'w', base=base)
  trainer.assert_same_end(tmp_path / 'w', tmp_path / 'straight')
