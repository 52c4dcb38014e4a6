"""What commands say while they work, and what `--print_config` says of a run before it starts."""

from contextlib import contextmanager
import subprocess
import sys
import time

import pytest

from adversarial_augment import config as configs
from adversarial_augment import evaluate, export, report, train
from adversarial_augment.cli import progress
from adversarial_augment.config import command_line
from adversarial_augment.errors import UserError
from adversarial_augment.training import recipe
from tests import classifier_cases
from tests.trainer import ROOT


def test_a_stage_speaks_only_where_it_takes_long(monkeypatch):
  said: list[str] = []
  monkeypatch.setattr(progress, '_QUIET', 0.05)
  with progress.stage('quick', said.append):
    pass
  with pytest.raises(UserError), progress.stage('failing', said.append):
    raise UserError('wrong.')
  time.sleep(0.2)
  assert said == []
  with progress.stage('reading the images', said.append):
    time.sleep(0.5)
  assert said == ['reading the images...']


TALKATIVE = """
import contextlib, sys
from adversarial_augment.cli import progress, streams
from adversarial_augment import train

@contextlib.contextmanager
def stage(what, say=None):
  streams.say(f'{what}...')
  yield

progress.stage = stage
train.main(sys.argv[1:])
"""


@pytest.fixture(scope='module')
def shown_run(tmp_path_factory):
  """What a run of two kinds of steps says, where every stage counts as long."""
  workdir = tmp_path_factory.mktemp('run') / 'w'
  flags = {'num_steps': '4', 'attack.warmup_epochs': '150', 'log_every': '1', 'eval_images': '16'}
  argv = [f'--config.{name}={value}' for name, value in flags.items()]
  command = [sys.executable, '-c', TALKATIVE, '--config=configs/ada_edsr.py:smoke', f'--workdir={workdir}', *argv]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr


STAGES = (
  'loading JAX',   'reading the images of embedded', 'making the networks', 'compiling the train step',
  'timing a step with the adversary', 'compiling the evaluations', 'saving step 4', 'evaluating on the test set',
  'evaluating clean', 'evaluating ada', 'drawing the pictures', 'writing the report',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('stage', STAGES)
def test_every_stage_of_a_run_says_what_it_does(shown_run, stage):
  assert f'{stage}...' in shown_run


@pytest.mark.slow
def test_a_run_of_few_steps_is_warned_of_by_the_field(shown_run):
  assert 'warning: config.num_steps=4 makes 4 updates, too few to learn from scratch' in shown_run


def test_the_warning_names_the_field_that_makes_the_steps():
  config = configs.override(configs.base_config(), {'num_epochs': '1', 'batch_size': '64'})
  assert recipe.too_few_steps(config, 5, 321) == (
    'warning: config.num_epochs=1.0 makes 5 updates, too few to learn from scratch; set 20 or more'
  )
  assert recipe.too_few_steps(config, 100, 321) == ''
  assert recipe.too_few_steps(configs.override(config, {'init_from': 'runs/a'}), 5, 321) == ''


def printed(capsys, *flags: str) -> list[str]:
  train.main(['--print_config', *flags])
  return capsys.readouterr().out.splitlines()


def test_print_config_shows_what_follows(capsys, tmp_path):
  quickstart = printed(capsys, '--config=configs/ada_edsr.py:quickstart', '--config.batch_size=512')
  assert quickstart[-4:] == [
    'effective_learning_rate = 0.2  # for batches of 512',
    'steps = 58  # updates, the first 4 with a rising learning rate',
    'images_seen = 29,696  # 2.47 passes over 12,000 images',
    'attacked_steps = 40  # nu 0.04, 2 steps',
  ]
  paper = printed(capsys, '--config=configs/ada_edsr.py', f'--config.data_dir={tmp_path}', '--config.holdout=5000')
  assert 'steps = 52,734  # updates, the first 878 with a rising learning rate' in paper
  assert 'images_seen = 13,499,904  # 300 passes over 45,000 images' in paper
  assert paper[-1].startswith("# with the training images that there will be: No data set 'cifar10'")
  flags = [f'--config.data_dir={tmp_path}', '--config.dataset=pets']
  pets = printed(capsys, '--config=configs/nominal.py', *flags)
  assert pets[-2] == 'effective_learning_rate = 0.1  # for batches of 256'
  assert 'images_seen = 1,280  # in all' in printed(
    capsys, '--config=configs/nominal.py', *flags, '--config.num_steps=5'
  )
  assert command_line.resolve_config(command_line.parse_train(['--config=configs/nominal.py'])) is not None


def test_other_commands_say_what_they_do(tmp_path, monkeypatch):
  said: list[str] = []

  @contextmanager
  def stage(what, say=None):
    said.append(what)
    yield

  monkeypatch.setattr(progress, 'stage', stage)
  classifier_cases.save_run(tmp_path / 'w')
  monkeypatch.chdir(tmp_path)
  flags = ['--workdir=w', '--config.eval_images=4', '--config.batch_size=4']
  evaluate.main([*flags, '--evals=clean'])
  evaluate.main([*flags[:1], '--attack=pgd', '--norm=linf', '--epsilon=1/255', '--num_examples=64', '--allow_suspect'])
  report.main(['w'])
  export.main(['--workdir=w', '--formats=safetensors'])
  for stage in (
    'loading JAX', 'reading the images of embedded', 'reading the newest checkpoint', 'evaluating clean',
    'compiling pgd for ', 'reading the runs and drawing the page', 'exporting the classifier',
  ):  # fmt: skip
    assert any(what.startswith(stage) for what in said), said
