"""Runs of adversarial training within l_p balls, from the command line to the report."""

import json
from pathlib import Path

import pytest

from adversarial_augment import evaluate, train
from adversarial_augment.parallel import devices
from adversarial_augment.run import summary
from tests import trainer

pytestmark = pytest.mark.usefixtures('quick_compile')

BALLS = {
  'linf_adversarial': 'linf epsilon 8/255, 2 steps',
  'l2_adversarial': 'l2 epsilon 0.5, 2 steps',
  'trades': 'linf epsilon 8/255, 2 steps, TRADES 6',
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(trainer.ROOT)
  monkeypatch.setattr(devices, 'compilation_cache', lambda: None)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
  return tmp_path_factory.mktemp('lp')


@pytest.mark.parametrize('name', BALLS)
def test_two_steps_to_the_report(name, folder, monkeypatch, capsys):
  shown = []
  draw = summary.draw
  monkeypatch.setattr(summary, 'draw', lambda *arguments: shown.append(draw(*arguments)) or shown[-1])
  workdir = folder / name
  train.main([f'--config=configs/{name}.py:smoke', f'--workdir={workdir}'])
  said = capsys.readouterr()
  assert f'adversary: {BALLS[name]}\n' in said.err
  assert 'blocks' not in said.err
  lines = trainer.lines(workdir)
  own = {'step', 'epoch', 'loss', 'accuracy', 'learning_rate', 'images_per_second'}
  of_the_attack = {'attack_loss_start', 'attack_loss_end', 'gradient_norm', 'ssim_mean'}
  assert [line.keys() for line in lines] == [own | of_the_attack | ({'kl'} if name == 'trades' else set())] * 2
  for line in lines:
    assert line['attack_loss_end'] > line['attack_loss_start']
    assert 0.5 < line['ssim_mean'] < 1
  result = trainer.result(workdir)
  assert result['evals'].keys() == {'clean'}
  assert result['weights'] is None
  assert shown == [str(workdir / 'figures' / 'ada_examples.png')]
  page = (workdir / 'report.html').read_text()
  assert f'lp, {BALLS[name]}' in page
  assert 'nu 0.015' not in page


def test_an_evaluation_under_ada_is_that_of_any_run(folder, capsys):
  """Also after TRADES, whose start is none of AdA's."""
  workdir = folder / 'trades'
  if not workdir.exists():
    train.main(['--config=configs/trades.py:smoke', f'--workdir={workdir}'])
  evaluate.main([f'--workdir={workdir}', '--evals=ada', '--config.eval_images=16', '--config.batch_size=8'])
  assert 'nu 0.015, 2 steps, running statistics' in capsys.readouterr().out
  found = trainer.result(workdir, 'ada')
  assert found['num_images'] == 16
  assert found['provenance']['weights']['file'] == 'edsr_4x16_x1.safetensors'
  assert 'ssim_corrected' in found


def test_clean_epochs_come_first_and_cost_nothing(tmp_path):
  fields = 'num_steps=4', 'num_epochs=2', 'attack.warmup_epochs=1', 'optimizer.warmup_epochs=0', 'evals='
  flags = [f'--config.{field}' for field in fields]
  train.main(['--config=configs/trades.py:smoke', f'--workdir={tmp_path}/w', *flags])
  lines = trainer.lines(tmp_path / 'w')
  assert [line['kl'] is None for line in lines] == [True, True, False, False]
  assert [line['attack_loss_end'] is None for line in lines] == [True, True, False, False]


@pytest.mark.slow
def test_adversarial_training_makes_robust(tmp_path):
  """Short runs of the quickstarts, under PGD within the ball of the training."""
  found = {}
  for name in ('nominal', 'linf_adversarial', 'trades'):
    workdir = tmp_path / name
    short = ['--config.num_steps=250', '--config.evals=']
    train.main([f'--config=configs/{name}.py:quickstart', f'--workdir={workdir}', *short])
    ball = ['--norm=linf', '--epsilon=8/255', '--num_examples=200']
    evaluate.main([f'--workdir={workdir}', '--attack=pgd', *ball, '--allow_suspect'])
    (path,) = (workdir / 'results').glob('robustness_*.json')
    found[name] = json.loads(path.read_text())
  assert min(result['clean_accuracy'] for result in found.values()) > 0.5
  for name in ('linf_adversarial', 'trades'):
    assert found[name]['robust_accuracy'] > found['nominal']['robust_accuracy'] + 0.2
