"""The study of cheaper AdA: what it starts, what it keeps, and what it draws."""

import csv
import json
from pathlib import Path
import re
from types import SimpleNamespace

import pytest

from adversarial_augment import classifiers, inference
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from experiments import frontier, frontier_drawing, frontier_strength, runs, table1_corruptions
from tests import tiny
from tests.experiments_tables_test import write_run

COSTS = {'nominal': 1.0, 'augmix': 1.0, 'ada_1_step': 2.5, 'fast_ada': 2.5, 'ada_10_steps': 20.0}


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
      result['provenance']['config'] = json.loads((Path(workdir) / 'config.json').read_text())
      path.write_text(json.dumps(result))

  cost = lambda study, name: dict.fromkeys(frontier_drawing.COSTS, COSTS[name])
  monkeypatch.setattr(runs, 'start', start)
  monkeypatch.setattr(frontier._Study, '_measured_cost', cost)
  return commands


def run(tmp_path, *flags):
  (tmp_path / 'out').mkdir(exist_ok=True)
  frontier.main([*flags, '--scale=laptop', f'--workdir={tmp_path / "runs"}', f'--output={tmp_path / "out"}'])
  return json.loads((tmp_path / 'out' / 'frontier_laptop.json').read_text())


@pytest.mark.parametrize('name', list(frontier.SETTINGS))
def test_a_setting_is_a_valid_config(name, tmp_path):
  study = frontier._Study(table1_corruptions.SCALES['laptop'], tmp_path, {'holdout': '5000'})
  configs.validate(configs.override(configs.load(study._config(name)), study._fields(name, 0, 19.0)))


def test_equal_minutes_are_those_of_an_epoch_of_ten_steps(tmp_path, started):
  names = 'nominal_equal_minutes,fast_ada_equal_minutes,ada_10_steps_equal_minutes,ada_10_steps'
  table = run(tmp_path, '--split=test', f'--settings={names}')
  epochs = [[flag for flag in command if 'epochs' in flag] for command in started if 'train' in command[0]]
  twenty, fewer = (
    [f'--config.num_epochs={number}', f'--config.optimizer.warmup_epochs={number / 10:g}'] for number in (20, 8)
  )
  assert epochs == [[], twenty, fewer, []]  # the first is the start; ten steps are trained once
  assert table['fast_ada_equal_minutes']['0']['cost_measured'] == 2.5
  assert table['ada_10_steps']['0']['split'] == 'test'
  assert started[-1][0] == 'adversarial_augment.evaluate'
  started.clear()
  assert run(tmp_path, '--split=test', f'--settings={names}') == table
  assert started == []  # nothing is trained or measured twice


def test_runs_start_from_given_classifiers(tmp_path, started):
  (tmp_path / 'starts').mkdir()
  (tmp_path / 'starts' / 'seed1.safetensors').touch()
  starts = f'--starts={tmp_path / "starts"}'
  run(tmp_path, '--split=test', '--settings=nominal', '--seeds=1', starts)
  assert [command[0].rpartition('.')[2] for command in started] == ['train', 'evaluate']  # no start is trained
  assert f'--config.init_from={tmp_path / "starts" / "seed1.safetensors"}' in started[0]
  started.clear()
  with pytest.raises(UserError, match=r'has no seed0\.safetensors'):
    run(tmp_path, '--split=test', '--settings=nominal', '--seeds=1,0', starts)
  assert started == []


def test_results_are_from_the_starts_that_ship():
  folder = Path(frontier.__file__).parent
  table = json.loads((folder / 'results' / 'frontier_laptop.json').read_text())
  files = list((folder / 'starts').glob('seed*.safetensors'))
  for seed, path in ((path.stem.removeprefix('seed'), path) for path in files):
    start = inference.read_file(path).restored.sha256
    of_seed = {seeds[seed]['provenance']['init_from']['checkpoint_sha256'] for seeds in table.values() if seed in seeds}
    assert of_seed == {start}
  assert files


def test_a_cost_is_measured_once(tmp_path, started, monkeypatch):
  name = 'fast_ada_equal_minutes'
  kept = runs.start
  monkeypatch.setattr(runs, 'start', lambda *_: (_ for _ in ()).throw(UserError('stopped')))
  with pytest.raises(UserError, match='stopped'):
    run(tmp_path, '--split=test', f'--settings={name}')
  monkeypatch.setattr(runs, 'start', kept)
  monkeypatch.setitem(COSTS, 'fast_ada', 3.0)  # as another timing would find
  table = run(tmp_path, '--split=test', f'--settings={name}', '--seeds=0,1')
  assert {one['cost_measured'] for one in table[name].values()} == {2.5}
  assert {one['provenance']['config']['num_epochs'] for one in table[name].values()} == {8}


def test_a_cost_of_another_config_is_measured_again(tmp_path, started, monkeypatch):
  study = frontier._Study(table1_corruptions.SCALES['laptop'], tmp_path, {'holdout': '5000'})
  assert study._cost('fast_ada', {})['cost_measured'] == 2.5
  monkeypatch.setitem(COSTS, 'fast_ada', 3.0)
  assert study._cost('fast_ada', {})['cost_measured'] == 2.5
  study = frontier._Study(table1_corruptions.SCALES['laptop'], tmp_path, {'holdout': '5000', 'batch_size': '32'})
  assert study._cost('fast_ada', {})['cost_measured'] == 3.0


@pytest.mark.slow
def test_a_cost_is_that_of_the_step(tmp_path, monkeypatch):
  fields = {'dataset': 'embedded', 'batch_size': '8', 'classifier.width': '4'}
  study = frontier._Study(table1_corruptions.SCALES['gpu'], tmp_path, fields)
  monkeypatch.setattr(frontier, 'ROUNDS', 3)
  found = {name: study._measured_cost(name) for name in ('augmix', 'fast_ada', 'ada_2_steps')}
  assert found['augmix']['cost_flop'] == 1
  assert 1 < found['fast_ada']['cost_flop'] < found['ada_2_steps']['cost_flop']
  assert 1 < found['fast_ada']['cost_measured'] < found['ada_2_steps']['cost_measured']


def test_an_entry_of_another_config_is_refused(tmp_path, started, monkeypatch):
  run(tmp_path, '--split=test', '--settings=fast_ada')
  monkeypatch.setitem(frontier.SETTINGS, 'fast_ada', frontier.Setting('fast_ada', {'attack.nu': '0.04'}))
  with pytest.raises(UserError, match="'fast_ada', seed 0, has another config .attack.nu: .*0.0427 -> .*0.04"):
    run(tmp_path, '--split=test', '--settings=fast_ada')


def test_entries_of_other_numbers_of_images_are_refused(tmp_path, started):
  run(tmp_path, '--split=test', '--settings=nominal')
  path = tmp_path / 'out' / 'frontier_laptop.json'
  table = json.loads(path.read_text())
  table['ada_1_step'] = json.loads(json.dumps(table['nominal']))
  table['ada_1_step']['0']['num_images'] -= 1
  with pytest.raises(UserError, match='of different images .nominal, seed 0; ada_1_step, seed 0'):
    frontier_drawing.texts(table, path)
  table['ada_1_step']['0']['num_images'] += 1
  table['ada_1_step']['0']['images_seen'] *= 2
  with pytest.raises(UserError, match='saw different numbers of images .nominal, seed 0: 140; ada_1_step, seed 0: 280'):
    frontier_drawing.texts(table, path)


@pytest.mark.parametrize(
  ('fields', 'cost'),
  [
    ({}, 5.0),
    ({'attack.every': '4'}, (5 + 3 * 1.5) / 4),
    ({'attack.warmup_epochs': '0.25'}, 0.75 * 5 + 0.25 * 1.5),
    ({'attack.warmup_epochs': '0.5', 'attack.every': '2'}, 0.25 * 5 + 0.75 * 1.5),
    ({'attack.replay': '2'}, 2.5),
  ],
)
def test_the_mean_cost_of_a_step(fields, cost):
  config = configs.override(configs.load('configs/ada_edsr.py:laptop'), fields)
  seconds = {'it': 10.0, 'spared': 3.0, 'nominal': 2.0}
  assert frontier.mean_cost(config, seconds) == pytest.approx(cost)


def test_differences_are_paired_by_seed_and_minutes(tmp_path, started):
  names = 'nominal,ada_1_step,ada_10_steps,fast_ada_equal_minutes'
  table = run(tmp_path, '--split=test', f'--settings={names}', '--seeds=0,1')
  found = frontier_drawing.differences(table, 'ada_10_steps')
  assert set(found) == {'nominal', 'ada_1_step'}
  both, (_, mce, _) = found['ada_1_step']
  assert both == ['0', '1']
  assert str(mce) == '1.05 ± 0.05'
  table['ada_1_step']['1']['provenance']['init_from'] = {'checkpoint_sha256': 'e' * 64}  # of a start trained again
  both, (_, mce, _) = frontier_drawing.differences(table, 'ada_10_steps')['ada_1_step']
  assert (both, str(mce)) == (['0'], '1.00')
  table['ada_1_step']['0']['provenance']['init_from'] = {'checkpoint_sha256': 'f' * 64}
  said = 'Not compared with ada_10_steps, because their starts are others: ada_1_step.'
  assert said in frontier_drawing.texts(table, tmp_path)['.md']
  text = (tmp_path / 'out' / 'frontier_laptop.md').read_text()
  assert '| ada_1_step | 0, 1 | 2.50 | 2.50 | 140 | 0.5 | 10.00 ± 0.00 | 32.05 ± 1.05 | 22.05 ± 1.05 |' in text
  assert 'cifar10 (unverified), 50 test images' in text
  rows = list(csv.DictReader((tmp_path / 'out' / 'frontier_laptop.csv').read_text().splitlines()))
  assert len(rows) == 8
  assert {row['split'] for row in rows} == {'test'}


def test_a_picture_has_what_can_be_compared():
  entry = lambda mce, start='a': {
    'mce': mce,
    'clean_error': 0.1,
    'provenance': {'init_from': {'checkpoint_sha256': start * 64}},
  }
  table = {
    'ada_10_steps': {'0': entry(0.25), '1': entry(0.35)},
    'nominal': {'0': entry(0.30), '1': entry(0.36)},
    'ada_1_step': {'1': entry(0.36)},
    'ada_2_steps': {'0': entry(0.26), '1': entry(0.35, 'b')},
    'free_2': {'0': entry(0.31)},
    'free_4': {'1': entry(0.30, 'b')},
  }
  found = {name: str(mce) for name, (_, mce, _) in frontier_drawing.heights(table).items()}
  assert found == {'ada_10_steps': '30.00', 'nominal': '33.00 ± 2.00', 'ada_1_step': '31.00', 'ada_2_steps': '31.00'}


def test_a_result_on_test_images_keeps_that_on_held_out_ones(tmp_path, started, monkeypatch):
  spec = configs.override(configs.load('configs/nominal.py:laptop'), {'holdout': '5000', 'init_from': 'start/seed0'})
  held_out_config = json.loads(configs.to_json(spec))
  held_out = {
    'clean_error': 0.2, 'mce': 0.3, 'corruption_error': {}, 'num_images': 9, 'origin': 'generated, in memory',
    'provenance': {
      'config': held_out_config,
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
  run(tmp_path, '--settings=augmix', '--split=test')  # and the other way about
  both = run(tmp_path, '--settings=augmix')['augmix']['0']
  assert (both['split'], both['holdout']['split']) == ('test', 'holdout')
  text = (tmp_path / 'out' / 'frontier_laptop.md').read_text()
  assert '9 training images that no run has seen' in text


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--settings=nominel'], "setting 'nominel'.*nominal"),
    (['--split=train'], "--split 'train'"),
    (['--config.num_epochs=2'], 'config.num_epochs is set by the experiment; omit it'),
    (['--config.attack.num_steps=1', '--settings=ada_1_step'], 'config.attack.num_steps is set by the experiment'),
    (['--scale=full'], "--scale 'full'.*laptop"),
    (['--scale=smoke'], "--scale 'smoke'.*gpu"),
    (['--scale=gpu'], '--split=holdout: runs of --scale=gpu hold out no images; set --config.holdout.'),
    (['--scale=gpu', '--config.holdout=many'], "config.holdout='many' must be"),
    (['--scale=gpu', '--split=test', '--starts=starts'], '--starts.*from scratch; omit it'),
    (['--starts=starts'], r"--starts='starts' has no seed0\.safetensors; name other --seeds"),
  ],
)
def test_wrong_flags_are_refused(tmp_path, flags, said):
  with pytest.raises(UserError, match=said):
    frontier.main(['--scale=laptop', *flags, f'--output={tmp_path}'])


@pytest.mark.slow
def test_strengths_of_one_step_agree(tmp_path, monkeypatch):
  config, recipe, _, state = tiny.make(attack__name='none')
  (tmp_path / 'config.json').write_text(configs.to_json(config))
  logits_fn = classifiers.logits_fn(recipe.attacked_classifier, state.params, state.model_state)
  monkeypatch.setattr(inference, 'load_classifier', lambda _: SimpleNamespace(logits_fn=logits_fn))
  monkeypatch.setattr(inference, 'read_run', lambda _: SimpleNamespace(sha256='a' * 64))
  monkeypatch.setattr(frontier_strength, '_BATCH', 8)
  monkeypatch.setattr(frontier_strength, 'FROZEN', ('gradient_frozen_1',))
  names = ['c(x)', 'ada_random', 'ada_10_steps', 'ada_1_step', 'edsr_2x8_1_step', *frontier_strength.FROZEN]
  images, path = tiny.dataset()._replace(num_examples=16), tmp_path / 'frontier_strength.json'
  found = frontier_strength.measure(tmp_path, config, images, names, path, variant='laptop', overwrite=False)
  loss = {name: one['loss'] for name, one in found['settings'].items()}
  assert found['settings']['c(x)']['ssim'] == [1] * 16
  assert (found['settings']['c(x)']['share'], found['settings']['ada_10_steps']['share']) == (0, 1)
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
    ('last_third_1_step_half', False),
    ('ada_2_steps_growing', False),
    ('ada_2_steps_late', False),
    ('free_2', False),
    ('nominal', False),
    ('ada_10_steps_equal_minutes', False),
  ],
)
def test_strength_is_measured_of_settings_with_an_adversary_of_their_own(name, own):
  assert frontier_strength.is_of_its_own(name) == own


def test_shares_count_from_the_corruption_network_and_from_a_random_perturbation():
  losses = {'c(x)': 1.0, 'ada_random': 1.5, 'ada_10_steps': 3.0, 'ada_1_step': 2.25}
  settings = {name: {'loss': loss, 'loss_at_rest': 1.0} for name, loss in losses.items()}
  settings['edsr_2x8_1_step'] = {'loss': 3.25, 'loss_at_rest': 2.0}  # another network, whose c(x) is another
  frontier_strength.add_shares(settings)
  found = {name: (one['share'], one['share_over_random']) for name, one in settings.items()}
  assert found == {
    'c(x)': (0, -1 / 3), 'ada_random': (0.25, 0), 'ada_10_steps': (1, 1), 'ada_1_step': (0.625, 0.5),
    'edsr_2x8_1_step': (0.625, 0.5),
  }  # fmt: skip
