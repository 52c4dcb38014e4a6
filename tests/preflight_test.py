"""What can be known before devices exist is refused before them: parts that do not divide, another run."""

import json
from pathlib import Path

import pytest

from adversarial_augment import cli, evaluate, pretrain, train
from adversarial_augment import config as configs
from adversarial_augment.parallel import devices, launch
from tests import trainer

SMOKE = '--config=configs/ada_edsr.py:smoke'  # batches of 8; there are 8 devices
PRETRAIN = '--config=configs/pretrain_edsr.py:smoke'


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
  """Everything after the last check fails the test."""
  monkeypatch.chdir(trainer.ROOT)
  monkeypatch.setattr(devices, '_cpu_only', lambda: True)
  for module, name in ((devices, 'compilation_cache'), (train, 'train'), (pretrain, '_train'), (evaluate, '_evaluate')):
    monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail('devices came first'))


def refused(main, argv: list[str], capsys, code: int = 2) -> str:
  """Returns the only line that is printed."""
  with pytest.raises(SystemExit) as caught:
    cli.run(main, argv)
  out, err = capsys.readouterr()
  assert (caught.value.code, out) == (code, ''), err
  (line,) = trainer.complaints(err)
  return line


def write_run(workdir: Path, config: configs.ConfigDict, data: dict) -> None:
  """As much of a run as a start looks at."""
  (workdir / 'checkpoints' / '2').mkdir(parents=True)
  (workdir / 'config.json').write_text(configs.to_json(config))
  (workdir / 'data.json').write_text(json.dumps(data))


GROUP = ['--config.batch_size=16', '--config.attack.beta_mode=group']


@pytest.mark.parametrize(
  'flags, words',
  [
    ([*GROUP, '--config.attack.group=3'], 'config.attack.group=3 must divide the 2 images of each of the 8 devices'),
    (['--config.attack.fraction=0.5'], 'config.attack.fraction=0.5 of the 1 images of each of the 8 devices is less'),
    (['--config.batch_size=12'], 'config.batch_size=12 must be a multiple of the 8 devices; try 8 or 16.'),
    (['--config.evals=clean,cifar10_c', '--config.frost_dir=/dev/null/x'], 'config.frost_dir=/dev/null/x: frost'),
  ],
)  # fmt: skip
def test_parts_that_do_not_divide(flags, words, tmp_path, capsys):
  assert words in refused(train.main, [SMOKE, *flags, f'--workdir={tmp_path}/w'], capsys)
  assert not (tmp_path / 'w').exists()


def test_an_unknown_number_of_devices_is_left_to_the_run(tmp_path, monkeypatch):
  monkeypatch.setattr(devices, '_cpu_only', lambda: False)
  monkeypatch.setattr(devices, 'virtual_devices', lambda *_: None)
  with pytest.raises(pytest.fail.Exception, match='devices came first'):
    train.main([SMOKE, '--config.batch_size=12', f'--workdir={tmp_path}/w'])


def test_another_config_is_refused_before_data_are_read(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(train, '_load', lambda *_: pytest.fail('data came first'))
  write_run(tmp_path / 'w', configs.load('configs/ada_edsr.py:smoke'), {})
  line = refused(train.main, [SMOKE, '--config.seed=7', f'--workdir={tmp_path}/w'], capsys)
  assert 'holds a run with another config (seed: 0 -> 7); use that config, or name another --workdir.' in line
  monkeypatch.setattr(pretrain, 'open_all', lambda *_: pytest.fail('data came first'))
  write_run(tmp_path / 'p', configs.load(PRETRAIN.removeprefix('--config='), 'pretrain'), {})
  line = refused(pretrain.main, [PRETRAIN, '--config.seed=7', f'--workdir={tmp_path}/p'], capsys)
  assert 'holds a run with another config (seed: 0 -> 7)' in line


def test_other_data_and_lost_checkpoints_are_refused_before_devices(tmp_path, capsys):
  write_run(tmp_path / 'w', configs.load('configs/ada_edsr.py:smoke'), {'train': 'f' * 64})
  line = refused(train.main, [SMOKE, f'--workdir={tmp_path}/w'], capsys)
  assert 'holds a run on other data (train in data.json)' in line
  (tmp_path / 'w' / 'checkpoints' / '2').rmdir()
  (tmp_path / 'w' / 'results').mkdir()
  (tmp_path / 'w' / 'results' / 'train.json').touch()
  assert 'none of its checkpoints' in refused(train.main, [SMOKE, f'--workdir={tmp_path}/w'], capsys, code=4)


def test_several_processes_settle_it_together(tmp_path, monkeypatch):
  """One that left before the others know would leave them waiting for it."""
  monkeypatch.setattr(launch, '_join', lambda *_: pytest.fail('they met'))
  write_run(tmp_path / 'w', configs.load('configs/ada_edsr.py:smoke'), {})
  several = ['--coordinator_address=localhost:1', '--num_processes=2', '--process_id=0']
  with pytest.raises(pytest.fail.Exception, match='they met'):
    train.main([SMOKE, '--config.seed=7', f'--workdir={tmp_path}/w', *several])


def test_pretrain_divides_too(tmp_path, capsys):
  line = refused(pretrain.main, [PRETRAIN, '--config.batch_size=12', f'--workdir={tmp_path}/p'], capsys)
  assert 'config.batch_size=12 must be a multiple of the 8 devices' in line
