"""The study of cheaper AdA: what it starts, what it keeps, and what it draws."""

import csv
import json
from pathlib import Path
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import classifiers, inference
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from adversarial_augment.types import PerturbationSet
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

  entry = {
    'num_images': 50,
    'provenance': {
      'data': dict.fromkeys(frontier.SPLITS, {'sha256': 'd' * 64}),
      'corruptions': {'seed': 0, 'frost': 'procedural', 'sha256': 'c' * 64},
    },
  }
  monkeypatch.setattr(frontier, '_images', lambda config, split: frontier_drawing.images(entry, split))
  cost = lambda study, name: dict.fromkeys(frontier_drawing.COSTS, COSTS[name])
  monkeypatch.setattr(runs, 'start', start)
  monkeypatch.setattr(frontier._Study, '_measured_cost', cost)
  return commands


def run(tmp_path, *flags):
  (tmp_path / 'out').mkdir(parents=True, exist_ok=True)
  frontier.main(
    ['--seeds=0', *flags, '--scale=laptop', f'--workdir={tmp_path / "runs"}', f'--output={tmp_path / "out"}']
  )
  return json.loads((tmp_path / 'out' / 'frontier_laptop.json').read_text())


@pytest.mark.parametrize('name', list(frontier.SETTINGS))
def test_a_setting_is_a_valid_config(name, tmp_path):
  study = frontier._Study(table1_corruptions.SCALES['laptop'], tmp_path, {'holdout': '5000'})
  configs.validate(study._spec(name))
  longer = study._spec(name, length=19.0)
  configs.validate(longer)
  assert (longer.num_epochs, longer.seed, longer.holdout) == (19, 0, 5000)


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
  assert table['ada_10_steps_equal_minutes'] == table['ada_10_steps']
  started.clear()
  assert run(tmp_path, '--split=test', f'--settings={names}') == table
  assert started == []  # nothing is trained or measured twice


def test_runs_start_from_the_classifiers_that_ship(tmp_path, started):
  flags = f'--config.data_dir={tmp_path}', '--config.attack.nu=0.03'  # which a nominal start does not use
  run(tmp_path, '--split=test', '--settings=nominal', '--seeds=1', *flags)
  assert [command[0].rpartition('.')[2] for command in started] == ['train', 'evaluate']  # no start is trained
  assert f'--config.init_from={frontier.STARTS / "seed1.safetensors"}' in started[0]
  started.clear()
  others = tmp_path / 'others'
  run(others, '--split=test', '--settings=nominal', '--seeds=1,2', '--config.batch_size=32')  # what ships has 64
  assert [command[0].rpartition('.')[2] for command in started] == ['train', 'train', 'evaluate'] * 2
  assert '--config.batch_size=32' in started[0]
  assert f'--config.init_from={others / "runs" / "laptop" / "start" / "seed1"}' in started[1]


def test_a_run_that_takes_its_normalisation_from_its_start_is_known_again(tmp_path, started):
  flags = '--split=test', '--settings=nominal', '--seeds=1'
  run(tmp_path, *flags)
  path = tmp_path / 'runs' / 'laptop' / 'frontier' / 'nominal' / 'seed1' / 'config.json'
  config = json.loads(path.read_text())
  config['classifier'] |= {'mean': [0.4914, 0.4822, 0.4465], 'std': [0.2471, 0.2435, 0.2616]}  # as train does
  path.write_text(json.dumps(config))
  (tmp_path / 'out' / 'frontier_laptop.json').unlink()
  started.clear()
  table = run(tmp_path, *flags)
  assert [command[0].rpartition('.')[2] for command in started] == ['evaluate']
  table['nominal']['1']['provenance']['config'] = config
  (tmp_path / 'out' / 'frontier_laptop.json').write_text(json.dumps(table))
  assert run(tmp_path, *flags) == table


def test_results_are_from_the_starts_that_ship():
  table = json.loads((frontier.STARTS.parent / 'results' / 'frontier_laptop.json').read_text())
  files = list(frontier.STARTS.glob('seed*.safetensors'))
  for seed, path in ((path.stem.removeprefix('seed'), path) for path in files):
    own = inference.read_file(path).restored.sha256
    of_splits = [frontier_drawing.parts(table, split).values() for split in frontier.SPLITS]
    entries = [seeds[seed] for of_split in of_splits for seeds in of_split if seed in seeds]
    assert {frontier_drawing.start(entry) for entry in entries} == {own}
  assert len(files) == 3


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


@pytest.mark.parametrize('seed', [0, 1])
def test_entries_of_another_config_are_refused_before_anything_is_trained(tmp_path, started, monkeypatch, seed):
  run(tmp_path, '--split=test', '--settings=fast_ada')
  started.clear()
  monkeypatch.setitem(frontier.SETTINGS, 'fast_ada', frontier.Setting('fast_ada', {'attack.nu': '0.04'}))
  with pytest.raises(UserError, match="'fast_ada', seed 0, has another config .attack.nu: .*0.0427 -> .*0.04"):
    run(tmp_path, '--split=test', '--settings=fast_ada', f'--seeds={seed}')
  assert started == []


def test_a_field_that_entries_do_not_have_is_refused(tmp_path, started):
  run(tmp_path, '--split=test', '--settings=fast_ada')
  with pytest.raises(UserError, match="'fast_ada', seed 0, has another config .attack.nu: .*; remove it, or name"):
    run(tmp_path, '--split=test', '--settings=nominal', '--config.attack.nu=0.04')


def test_entries_of_other_images_are_refused_before_anything_is_trained(tmp_path, started, monkeypatch):
  run(tmp_path, '--split=test', '--settings=nominal')
  started.clear()
  kept = frontier._images
  monkeypatch.setattr(frontier, '_images', lambda *of: kept(*of) | {'SHA-256 of the images': 'e' * 64})
  assert run(tmp_path, '--split=test', '--settings=nominal').keys() == {'nominal'}  # which needs no image
  with pytest.raises(UserError, match=f"on split 'test' are of other images .*{'d' * 64} -> {'e' * 64}.; use theirs"):
    run(tmp_path, '--split=test', '--settings=augmix')
  assert started == []


@pytest.mark.parametrize('split', frontier.SPLITS)
def test_images_of_a_split_are_those_of_the_committed_table(cifar10_dir, split):
  table = json.loads((frontier.STARTS.parent / 'results' / 'frontier_laptop.json').read_text())
  entry = next(iter(frontier_drawing.parts(table, split)['nominal'].values()))
  spec = configs.override(configs.load('configs/nominal.py:laptop'), {'data_dir': cifar10_dir, 'holdout': '5000'})
  here, there = frontier._images(spec, split), frontier_drawing.images(entry, split)
  if here['SHA-256 of the images'] != there['SHA-256 of the images']:
    pytest.skip('the prepared CIFAR-10 is not that of the committed table')
  of_set = ('SHA-256 of the corrupted images', 'frost') if split == 'test' else ()  # which need not be prepared
  assert {name: here[name] for name in here if name not in of_set} == {
    name: there[name] for name in there if name not in of_set
  }


@pytest.mark.parametrize(
  'change',
  [
    lambda table: table['nominal']['0']['provenance'].pop('config'),
    lambda table: table['nominal']['0']['provenance'].update(config=3),
    lambda table: table['nominal']['0'].update(cost_measured=0),
    lambda table: table['nominal'].update(one=table['nominal']['0']),
  ],
)
def test_a_table_with_other_fields_is_refused(tmp_path, started, change):
  table = run(tmp_path, '--split=test', '--settings=nominal')
  change(table)
  (tmp_path / 'out' / 'frontier_laptop.json').write_text(json.dumps(table))
  with pytest.raises(UserError, match='is not a table of this experiment; remove it, or name another'):
    run(tmp_path, '--split=test', '--settings=augmix')


@pytest.mark.parametrize('content', ['', '3', '{"config": 3}', '{"config": {}, "cost_flop": 1, "cost_measured": 0}'])
def test_a_damaged_cost_is_refused(tmp_path, started, content):
  study = frontier._Study(table1_corruptions.SCALES['laptop'], tmp_path, {'holdout': '5000'})
  study._cost('fast_ada', {})
  (path := tmp_path / 'frontier' / 'fast_ada' / 'cost.json').write_text(content)
  with pytest.raises(UserError, match=f"'{path}' is not the cost of a step; remove it"):
    study._cost('fast_ada', {})


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
  table['ada_1_step'] = {'2': table['ada_1_step']['1']}
  said = 'Not compared with ada_10_steps, because they have no seed in common: ada_1_step.'
  assert said in frontier_drawing.texts(table, tmp_path)['.md']
  text = (tmp_path / 'out' / 'frontier_laptop.md').read_text()
  assert '| ada_1_step | 0, 1 | 2.50 | 2.50 | 140 | 0.5 | 10.00 ± 0.00 | 32.05 ± 1.05 | 22.05 ± 1.05 |' in text
  assert 'cifar10 (unverified), 50 test images' in text
  rows = list(csv.DictReader((tmp_path / 'out' / 'frontier_laptop.csv').read_text().splitlines()))
  assert len(rows) == 8
  assert {row['split'] for row in rows} == {'test'}
  assert {row['start'] for row in rows} == {''}


def test_names_are_written_away_from_the_next_point():
  points = {'low': (1.0, 0.2), 'near': (1.1, 0.3), 'far': (20.0, 0.0), 'farther': (21.0, 0.9)}
  assert frontier_drawing._above(points) == {'low': False, 'near': True, 'far': False, 'farther': True}
  assert frontier_drawing._above({'alone': (1.0, 0.2)}) == {'alone': True}


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
  drawn, reference = frontier_drawing.heights(table)
  assert reference == 'ada_10_steps'
  found = {name: str(mce) for name, (_, mce, _) in drawn.items()}
  assert found == {'ada_10_steps': '30.00', 'nominal': '33.00 ± 2.00', 'ada_1_step': '31.00', 'ada_2_steps': '31.00'}
  table['nominal'] = {'0': entry(0.20), '1': entry(0.30)}
  assert frontier_drawing.heights(table)[0].keys() == {'ada_10_steps', 'nominal'}  # the reference stays


def test_a_result_on_test_images_keeps_that_on_held_out_ones(tmp_path, started, monkeypatch):
  spec = configs.override(configs.load('configs/nominal.py:laptop'), {'holdout': '5000', 'init_from': 'start/seed0'})
  held_out_config = json.loads(configs.to_json(spec))
  held_out = {
    'clean_error': 0.2, 'mce': 0.3, 'corruption_error': {}, 'num_images': 50, 'origin': 'generated, in memory',
    'provenance': {
      'config': held_out_config,
      'data': {'holdout': {'name': 'cifar10', 'origin': 'unverified', 'sha256': 'd' * 64}},
      'corruptions': {'seed': 0, 'frost': 'procedural', 'sha256': 'c' * 64},
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
  assert '50 training images that no run has seen' in text


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
    (['--settings='], "setting ''"),
  ],
)
def test_wrong_flags_are_refused(tmp_path, flags, said):
  with pytest.raises(UserError, match=said):
    frontier.main(['--scale=laptop', *flags, f'--output={tmp_path}'])


@pytest.fixture
def measured(tmp_path, monkeypatch):
  """Returns the numbers of adversaries of a small classifier."""
  config, recipe, _, state = tiny.make(attack__name='none')
  (tmp_path / 'config.json').write_text(configs.to_json(config))
  logits_fn = classifiers.logits_fn(recipe.attacked_classifier, state.params, state.model_state)
  monkeypatch.setattr(inference, 'load_classifier', lambda _: SimpleNamespace(logits_fn=logits_fn))
  monkeypatch.setattr(inference, 'read_run', lambda _: SimpleNamespace(sha256='a' * 64))
  monkeypatch.setattr(frontier_strength, '_BATCH', 8)
  monkeypatch.setattr(frontier_strength, 'FROZEN', ('gradient_frozen_1',))
  images, path = tiny.dataset()._replace(num_examples=16), tmp_path / 'frontier_strength.json'
  return lambda *names: frontier_strength.measure(
    tmp_path, config, images, names, path, variant='laptop', overwrite=False
  )


@pytest.mark.slow
def test_strengths_of_one_step_agree(measured, tmp_path):
  known = 'c(x)', 'fast_ada_random', 'ada_10_steps'
  found = measured(*known, 'ada_1_step', 'edsr_2x8_1_step', *frontier_strength.FROZEN)
  gain = {name: one['gain'] for name, one in found['settings'].items()}
  assert found['settings']['c(x)']['ssim_percentiles'] == [1] * 51
  assert gain['c(x)'] == 0
  assert (found['settings']['fast_ada_random']['share'], found['settings']['ada_10_steps']['share']) == (0, 1)
  # A step whose gradient of the classifier is frozen is one that is not.
  assert gain['gradient_frozen_1'] == pytest.approx(gain['ada_1_step'], abs=2e-6)
  assert gain['ada_1_step'] > gain['fast_ada_random'] + 1e-3
  assert gain['edsr_2x8_1_step'] > 1e-3
  frontier_drawing.draw_densities(found, tmp_path / 'densities.png')
  assert (tmp_path / 'densities.png').read_bytes().startswith(b'\x89PNG')
  assert measured(*known)['settings'].keys() == found['settings'].keys()  # what is known stays


@pytest.mark.parametrize(
  ('kind', 'steps', 'after'),
  [
    ('frozen', '2', [0, 0.2, -0.1, 0]),  # two steps the same way, where the third image would go back
    ('mirrored', '1', [-0.1, 0.1, 0.2, 0.3]),  # from -0.2, 0.2, 0.3, 0.4
    ('batch', '1', [0.1, 0.1, 0.15, 0.15]),  # from the means of 0, 0 and of 0.3, 0.2
  ],
)
def test_steps_from_earlier_perturbations(kind, steps, after):
  """A perturbation moves all pixels by one number, in steps of 0.1; the loss rises as the left column nears 0.65."""
  ball = PerturbationSet(
    init=lambda key, frozen, image: frozen + image[:, 0].mean() - 0.5,  # -0.2, 0, 0.1, 0.2
    project=lambda radii, image, beta: beta.clip(-radii, radii),
    radii=lambda frozen: frozen + 0.4,
    apply_batch=lambda frozen, images, betas, keys: images + betas[:, None, None, None],
  )
  left, right = np.array([[0.3, 0.5, 0.6, 0.7], [0.9, 0.5, 0.2, 0.1]], np.float32)
  images = np.stack([left, right], 1)[:, None, :, None] * np.ones((4, 2, 2, 1), np.float32)
  logits_fn = lambda images: jnp.stack([jnp.zeros(4), -((images[:, :, 0].mean((1, 2)) - 0.65) ** 2)], 1)
  keys, labels = jax.random.split(jax.random.key(0), 4), np.zeros(4, np.int32)
  moved = frontier_strength.climbed(ball, np.float32(0), kind, steps, logits_fn, keys, images, labels)
  np.testing.assert_allclose(moved - images, np.reshape(after, (4, 1, 1, 1)) * np.ones((4, 2, 2, 1)), atol=1e-6)


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


def test_shares_count_from_a_random_perturbation():
  gains = {'c(x)': 0.0, 'fast_ada_random': 0.5, 'ada_10_steps': 2.0, 'ada_1_step': 1.25}
  settings = {name: {'gain': gain} for name, gain in gains.items()}
  frontier_strength.add_shares(settings)
  found = {name: one['share'] for name, one in settings.items()}
  assert found == {'c(x)': -1 / 3, 'fast_ada_random': 0, 'ada_10_steps': 1, 'ada_1_step': 0.5}


def test_the_full_setting_has_adversaries_with_a_radius_there():
  known = frontier_strength.settings('full')
  assert {'fast_ada', 'fast_ada_random', 'last_third_1_step_from_zero', 'ada_1_step', 'start_batch_1'} < set(known)
  assert not {'last_third_1_step', 'edsr_2x8_1_step', 'biases_2_steps'} & set(known)
  for name in known:
    spec = frontier_strength._spec(name, '')
    assert (spec.corruption_net.blocks == 4) == name.startswith('fast_ada')


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--settings='], "setting of --variant=laptop ''"),
    (['--settings=tail_1_step', '--variant=full'], "setting of --variant=full 'tail_1_step'.*fast_ada"),
    (['--variant=gpu'], "--variant 'gpu'"),
    (['--num_images=100'], '--num_images=100 must be a multiple of 64 between 64 and'),
  ],
)
def test_wrong_flags_of_strengths_are_refused(tmp_path, monkeypatch, flags, said):
  monkeypatch.setattr(inference, 'read_config', lambda _: None)
  monkeypatch.setattr(frontier_strength.figure1_ssim, 'images_of', lambda *_: tiny.dataset())
  with pytest.raises(UserError, match=said):
    frontier_strength.main([f'--workdir={tmp_path}', *flags])
