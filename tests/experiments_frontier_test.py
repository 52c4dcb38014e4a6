"""The study of cheaper AdA: what it starts, what it keeps, and what it draws."""

import csv
import json
from pathlib import Path
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from adversarial_augment import classifiers, inference
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from experiments import frontier, frontier_drawing, frontier_free, frontier_strength, runs
from tests import tiny
from tests.experiments_tables_test import write_run

COSTS = {'nominal': 1.0, 'ada_1_step': 2.5, 'last_third_1_step': 2.5, 'ada_10_steps': 20.0}


@pytest.fixture
def started(monkeypatch):
  """Takes the place of training and timing; what was started, as lists of arguments."""
  commands = []

  def start(module, *flags):
    commands.append([module, *flags])
    if module.endswith('train'):
      config, workdir = (flag.partition('=')[2] for flag in flags[:2])
      seed = int(re.search(r'seed(\d)$', workdir)[1])
      error = {'nominal': 0.40, 'ada_10_steps': 0.30}.get(Path(workdir).parent.name, 0.31 + 0.001 * seed)
      write_run(Path(workdir), config, flags[2:], errors=error + 0.02 * seed)
      path = Path(workdir) / 'results' / 'cifar10_c.json'
      result = json.loads(path.read_text())
      result['provenance']['data']['test']['sha256'] = 'd' * 64
      path.write_text(json.dumps(result))

  cost = lambda study, name: dict.fromkeys(('cost_measured', 'cost_flop'), COSTS[name.removesuffix('_equal_minutes')])
  monkeypatch.setattr(runs, 'start', start)
  monkeypatch.setattr(frontier._Study, '_cost', cost)
  return commands


def run(tmp_path, *flags):
  (tmp_path / 'out').mkdir(exist_ok=True)
  frontier.main([*flags, '--scale=laptop', f'--workdir={tmp_path / "runs"}', f'--output={tmp_path / "out"}'])
  return json.loads((tmp_path / 'out' / 'frontier_laptop.json').read_text())


@pytest.mark.parametrize('name', list(frontier.SETTINGS))
def test_a_setting_is_a_valid_config(name):
  setting = frontier.SETTINGS[name]
  configs.validate(configs.override(configs.load(f'configs/{setting.config}.py:laptop'), setting.fields))


def test_equal_minutes_are_those_of_six_nominal_epochs(tmp_path, started):
  names = 'nominal_equal_minutes,last_third_1_step_equal_minutes,ada_10_steps'
  table = run(tmp_path, '--split=test', f'--settings={names}')
  epochs = [[flag for flag in command if 'num_epochs' in flag] for command in started if 'train' in command[0]]
  assert epochs == [[], ['--config.num_epochs=6.000'], ['--config.num_epochs=2.400'], []]  # the first is the start
  assert table['last_third_1_step_equal_minutes']['0']['cost_measured'] == 2.5
  assert table['ada_10_steps']['0']['split'] == 'test'
  assert started[-1][0] == 'adversarial_augment.evaluate'
  started.clear()
  assert run(tmp_path, '--split=test', f'--settings={names}') == table
  assert started == []  # nothing is trained or measured twice


def test_differences_are_paired_by_seed_and_minutes(tmp_path, started):
  names = 'nominal,ada_1_step,ada_10_steps,last_third_1_step_equal_minutes'
  table = run(tmp_path, '--split=test', f'--settings={names}', '--seeds=0,1')
  found = frontier_drawing.differences(table, 'ada_10_steps')
  assert set(found) == {'nominal', 'ada_1_step'}
  both, (_, mce, _) = found['ada_1_step']
  assert both == ['0', '1']
  assert str(mce) == '1.05 ± 0.05'
  text = (tmp_path / 'out' / 'frontier_laptop.md').read_text()
  assert '| ada_1_step | 0, 1 | 2.50 | 2.50 | 140 | 10.00 ± 0.00 | 32.05 ± 1.05 | 22.05 ± 1.05 |' in text
  assert 'cifar10 (unverified), 50 test images' in text
  rows = list(csv.DictReader((tmp_path / 'out' / 'frontier_laptop.csv').read_text().splitlines()))
  assert len(rows) == 8
  assert {row['split'] for row in rows} == {'test'}


def test_a_result_on_test_images_keeps_that_on_held_out_ones(tmp_path, started, monkeypatch):
  held_out = {
    'clean_error': 0.2, 'mce': 0.3, 'corruption_error': {}, 'num_images': 9, 'origin': 'generated, in memory',
    'provenance': {
      'data': {'holdout': {'name': 'cifar10', 'origin': 'unverified'}},
      'corruptions': {'seed': 0, 'frost': 'procedural'},
    },
  }  # fmt: skip
  held_out['corruption_error'] = dict.fromkeys(frontier.metrics.NAMES, 0.3)
  monkeypatch.setattr(frontier._Study, '_errors_on_holdout', lambda study, workdir: dict(held_out))
  screened = run(tmp_path, '--settings=nominal')
  assert screened['nominal']['0']['split'] == 'holdout'
  table = run(tmp_path, '--settings=nominal', '--split=test')
  assert table['nominal']['0']['split'] == 'test'
  assert table['nominal']['0']['holdout'] == screened['nominal']['0']
  assert run(tmp_path, '--settings=nominal') == table
  text = (tmp_path / 'out' / 'frontier_laptop.md').read_text()
  assert '9 training images that no run has seen' in text


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--settings=nominel'], "setting 'nominel'.*nominal"),
    (['--split=train'], "--split 'train'"),
    (['--config.num_epochs=2'], 'config.num_epochs is set by the experiment; omit it'),
    (['--scale=smoke'], '--split=holdout: runs of --scale=smoke hold out no images; set --config.holdout.'),
  ],
)
def test_wrong_flags_are_refused(tmp_path, flags, said):
  with pytest.raises(UserError, match=said):
    frontier.main(['--scale=laptop', *flags, f'--output={tmp_path}'])


@pytest.mark.slow
def test_a_free_step_with_one_update_is_one_on_random_corruptions():
  config, recipe, phi, state = tiny.make(attack__num_steps='0', attack__min_ssim='-1', attack__nu='0.1')
  wanted, _ = tiny.run(recipe, phi, state, 1)
  with frontier_free.replaying(config, 1):
    once, _ = tiny.run(recipe, phi, state, 1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), once.params, wanted.params)


@pytest.mark.slow
def test_replays_raise_the_loss_of_a_classifier_that_does_not_learn():
  config, recipe, phi, state = tiny.make(attack__nu='0.1', optimizer__learning_rate='0')
  with frontier_free.replaying(config, 3):
    after, (metrics,) = tiny.run(recipe, phi, state, 1)
  assert int(after.step) == 1
  assert metrics['attack_loss_end'] > metrics['attack_loss_start'] + 1e-3


@pytest.mark.slow
def test_strengths_of_one_step_agree(tmp_path, monkeypatch):
  config, recipe, _, state = tiny.make(attack__name='none')
  (tmp_path / 'config.json').write_text(configs.to_json(config))
  logits_fn = classifiers.logits_fn(recipe.attacked_classifier, state.params, state.model_state)
  monkeypatch.setattr(inference, 'load_classifier', lambda _: SimpleNamespace(logits_fn=logits_fn))
  monkeypatch.setattr(inference, 'read_run', lambda _: SimpleNamespace(sha256='a' * 64))
  monkeypatch.setattr(frontier_strength, '_BATCH', 8)
  monkeypatch.setattr(frontier_strength, 'FROZEN', ('gradient_frozen_1',))
  names = ['c(x)', 'ada_random', 'ada_1_step', 'edsr_2x8_1_step', *frontier_strength.FROZEN]
  images, path = tiny.dataset()._replace(num_examples=16), tmp_path / 'frontier_strength.json'
  found = frontier_strength.measure(tmp_path, config, images, names, path, overwrite=False)
  loss = {name: one['loss'] for name, one in found['settings'].items()}
  assert found['settings']['c(x)']['ssim'] == [1] * 16
  # A step whose gradient of the classifier is frozen is one that is not.
  assert loss['gradient_frozen_1'] == pytest.approx(loss['ada_1_step'], rel=1e-6)
  assert loss['ada_1_step'] > loss['ada_random'] + 1e-3
  assert loss['edsr_2x8_1_step'] > loss['c(x)'] + 1e-3
  assert found['settings']['ada_1_step']['ssim_mean'] < found['settings']['ada_random']['ssim_mean']
  frontier_drawing.draw_densities(found, path.with_suffix('.png'))
  assert path.with_suffix('.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('name', 'own'),
  [
    ('ada_1_step', True),
    ('edsr_2x8_1_step', True),
    ('ada_1_step_half', False),
    ('ada_2_steps_growing', False),
    ('free_2', False),
    ('nominal', False),
    ('ada_10_steps_equal_minutes', False),
  ],
)
def test_strength_is_measured_of_settings_with_an_adversary_of_their_own(name, own):
  assert frontier_strength.is_of_its_own(name) == own
