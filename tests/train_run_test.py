"""Runs of the trainer in this process: damage, other configs, results, holdout, fine-tuning, finished runs."""

from collections.abc import Iterator
import json
from pathlib import Path
import re
import shutil

import jax
import numpy as np
import pytest

from adversarial_augment import cli, train
from adversarial_augment import config as configs
from adversarial_augment.errors import CheckpointError, NumericalError, UserError
from adversarial_augment.evaluation.milestones import Milestones
from adversarial_augment.run import train_job
from adversarial_augment.storage import checkpoints
from adversarial_augment.types import Dataset
from tests import tiny
from tests.checkpoint_cases import files_of, flip
from tests.trainer import lines, result, steps

pytestmark = pytest.mark.usefixtures('quick_compile')

NUM_STEPS = 6
OVERRIDES = tiny.OVERRIDES | {
  'num_steps': str(NUM_STEPS), 'attack.name': 'none', 'evals': 'clean', 'log_every': '1', 'checkpoint_every': '2',
}  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def compile_once(tmp_path_factory) -> Iterator[None]:
  """Equal programs are compiled once; this is what the cache of compiled programs does for a user."""
  compiled: dict[str, object] = {}
  original = train_job.compile_step

  def compile_or_take(recipe, state, read, phi):
    name = str(jax.make_jaxpr(lambda s: s)(state)) + str(recipe.num_steps) + str(recipe.attack is None)
    if name not in compiled:
      compiled[name] = original(recipe, state, read, phi)
    return compiled[name]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_job, 'compile_step', compile_or_take)
    yield


def part(start: int, stop: int, name: str) -> Dataset:
  whole = tiny.dataset()
  read = lambda index: whole.read(np.asarray(index) + start)
  provenance = {'origin': 'embedded', 'sha256': f'{start}-{stop}'}
  return whole._replace(
    name=name, num_examples=stop - start, read=read, provenance=provenance, class_names=tuple('abcdefghij')
  )


def make_config(**overrides: str):
  changed = OVERRIDES | {name.replace('__', '.'): value for name, value in overrides.items()}
  config = configs.override(configs.base_config(), changed)
  configs.validate(config)
  return config


def start(workdir: Path, *, validation: bool = False, **overrides: str):
  splits = {'train': part(0, 40, 'tiny'), 'test': part(40, 64, 'tiny')}
  if validation:
    splits['validation'] = part(30, 40, 'tiny')
  return train.train(make_config(**overrides), workdir, splits)


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
  workdir = tmp_path_factory.mktemp('run') / 'w'
  start(workdir)
  return workdir


@pytest.fixture
def copy(finished, tmp_path) -> Path:
  return Path(shutil.copytree(finished, tmp_path / 'w'))


# Results.


def test_results_say_what_was_measured_and_where_it_comes_from(finished):
  found = result(finished)
  assert found['step'] == found['num_steps'] == NUM_STEPS
  assert found['split'] == 'test'
  assert found['seed'] == 0
  clean = found['evals']['clean']
  assert clean['num_images'] == 24
  assert clean['accuracy'] == clean['num_correct'] / 24
  assert found['data']['test'] == {'name': 'tiny', 'origin': 'embedded', 'sha256': '40-64'}
  assert found['config'] == json.loads((finished / 'config.json').read_text())
  assert found['versions']['jax'] == jax.__version__
  assert found['devices']['count'] == jax.device_count()
  assert found['command'].startswith('python -m adversarial_augment.train')
  assert found['seconds'] > 0
  assert found['weights'] is None  # nothing here has to do with an adversary
  manifest = json.loads((finished / 'checkpoints' / str(NUM_STEPS) / 'MANIFEST.json').read_text())
  assert found['state_sha256'] == manifest['state_sha256']


def test_log_lines_have_the_promised_fields(finished):
  for line in lines(finished):
    assert line.keys() == {'step', 'epoch', 'loss', 'accuracy', 'learning_rate', 'images_per_second'}
    assert line['epoch'] == pytest.approx(line['step'] * 8 / 40)
    assert 0 < line['images_per_second'] < 1e5


# A finished run.


def test_a_finished_run_prints_its_table_again_and_computes_nothing(copy, capsys, monkeypatch):
  monkeypatch.setattr(train_job, 'compile_step', lambda *_: pytest.fail('it compiled'))
  monkeypatch.setattr(Milestones, '_measure', lambda *_: pytest.fail('it evaluated'))
  named = ('.lock', 'report.html', 'segments.json')  # name the process, the folder, and this start
  before = {path: path.read_bytes() for path in files_of(copy) if path.name not in named}
  start(copy)
  accuracy = result(copy)['evals']['clean']['accuracy']
  assert f'clean accuracy       {accuracy:.4f}  (' in capsys.readouterr().out
  assert {path: path.read_bytes() for path in files_of(copy) if path.name not in named} == before


@pytest.mark.parametrize(
  'change',
  [
    {'state_sha256': 'f' * 64, 'evals': {'clean': {'accuracy': 0.5}}},  # of another state
    {'evals': {}},  # as if `evals` had been another one
  ],
)
def test_results_of_another_state_or_other_evaluations_are_found_again_without_training(copy, monkeypatch, change):
  monkeypatch.setattr(train_job, 'compile_step', lambda *_: pytest.fail('it compiled'))
  expected = result(copy)
  (copy / 'results' / 'train.json').write_text(json.dumps(expected | change))
  start(copy)
  assert result(copy)['state_sha256'] == expected['state_sha256']
  assert result(copy)['evals'] == expected['evals']


def test_results_that_were_spoilt_are_named_and_found_again_without_them(copy):
  expected, path = result(copy)['evals'], copy / 'results' / 'train.json'
  path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 3'))
  with pytest.raises(UserError, match="train.json': evals.clean.accuracy=3.* must be .*; remove it, and"):
    start(copy)
  path.unlink()
  start(copy)
  assert result(copy)['evals'] == expected


# Another config.


@pytest.mark.parametrize(
  'field, value, shown',
  [
    ('seed', '1', 'seed: 0 -> 1'),
    ('num_steps', '8', 'num_steps: 6 -> 8'),
    ('optimizer__learning_rate', '0.2', 'optimizer.learning_rate: 0.1 -> 0.2'),
    ('classifier__width', '8', 'classifier.width: 4 -> 8'),
    ('attack__name', 'ada', "attack.name: 'none' -> 'ada'"),
  ],
)
def test_another_config_is_refused_with_the_difference(copy, field, value, shown):
  with pytest.raises(UserError) as caught:
    start(copy, **{field: value})
  assert shown in str(caught.value)
  assert '--workdir' in cli.describe(caught.value)
  assert json.loads((copy / 'config.json').read_text()) == result(copy)['config']


def test_the_size_of_an_image_and_the_names_of_the_classes_are_recorded(copy):
  path = copy / 'data.json'
  recorded = json.loads(path.read_text())
  assert recorded.keys() == {'train', 'test', 'image_shape', 'class_names'}
  assert recorded['image_shape'] == [32, 32, 3]
  assert recorded['class_names'] == list('abcdefghij')
  path.write_text(json.dumps({split: recorded[split] for split in ('train', 'test')}))  # as older runs have it
  start(copy)
  assert json.loads(path.read_text()) == recorded


def test_other_data_under_the_same_name_are_refused(copy):
  (copy / 'data.json').write_text(json.dumps({'train': 'f' * 64}))
  with pytest.raises(UserError, match='holds a run on other data .train in data.json'):
    start(copy)


def test_fields_that_do_not_change_the_result_may_change(copy):
  start(copy, log_every='3', checkpoint_every='0', eval_every='4', data_dir='/elsewhere')
  assert json.loads((copy / 'config.json').read_text())['log_every'] == 3


@pytest.mark.parametrize('content', [None, '{"seed": ', '[]'])
def test_a_config_that_cannot_be_read_beside_checkpoints_is_refused(copy, content):
  """Else a run with another config would go on from them."""
  (copy / 'config.json').unlink()
  if content is not None:
    (copy / 'config.json').write_text(content)
  with pytest.raises(UserError, match=r'Cannot read .*config.json'):
    start(copy)


def test_a_start_that_saved_nothing_may_be_repeated_with_another_config(tmp_path):
  with pytest.raises(UserError, match='multiple of the 8 devices; try 8 or 16'):
    start(tmp_path / 'w', batch_size='12')
  start(tmp_path / 'w')
  assert result(tmp_path / 'w')['config']['batch_size'] == 8


# Damage.


def truncate(path: Path) -> None:
  path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {'flip': lambda path: flip(path, path), 'truncate': truncate, 'delete': Path.unlink}


def damage_and_resume(copy: Path, path: Path, harm: str, capsys) -> None:
  """The run that goes on writes the newest checkpoint anew; Orbax gives its files other names then."""
  newest = copy / 'checkpoints' / str(NUM_STEPS)
  name, expected = path.relative_to(newest).as_posix(), result(copy)
  DAMAGE[harm](path)
  start(copy)
  lines = [line for line in capsys.readouterr().err.splitlines() if 'rejected' in line]
  assert len(lines) == 1
  assert lines[0].startswith(f'checkpoint {NUM_STEPS} rejected: ')
  assert lines[0].endswith(f' in {name}; using 4')
  assert result(copy)['state_sha256'] == expected['state_sha256']
  assert result(copy)['evals'] == expected['evals']
  assert steps(copy) == list(range(1, NUM_STEPS + 1))
  manifest = json.loads((newest / 'MANIFEST.json').read_text())
  assert manifest['state_sha256'] == expected['state_sha256']


def files_of_newest(copy: Path) -> list[Path]:
  return files_of(copy / 'checkpoints' / str(NUM_STEPS))


@pytest.mark.parametrize('harm', DAMAGE)
def test_a_damaged_checkpoint_costs_its_steps_only(copy, capsys, harm):
  data = max(files_of_newest(copy), key=lambda path: path.stat().st_size)
  damage_and_resume(copy, data, harm, capsys)
  damage_and_resume(copy, copy / 'checkpoints' / str(NUM_STEPS) / 'MANIFEST.json', harm, capsys)


@pytest.mark.slow
@pytest.mark.parametrize('harm', DAMAGE)
def test_damage_of_any_file_costs_its_steps_only(copy, capsys, harm):
  count = len(files_of_newest(copy))
  assert count >= 6
  for index in range(count):
    path = files_of_newest(copy)[index]
    if path.stat().st_size or harm == 'delete':
      damage_and_resume(copy, path, harm, capsys)


def test_all_damaged_is_exit_4_and_never_from_scratch(copy):
  for manifest in (copy / 'checkpoints').glob('*/MANIFEST.json'):
    flip(manifest, manifest)
  log = (copy / 'metrics.jsonl').read_bytes()
  with pytest.raises(CheckpointError, match='No usable checkpoint is left of 3') as caught:
    start(copy)
  assert caught.value.exit_code == 4
  assert (copy / 'metrics.jsonl').read_bytes() == log


# Evaluations while the run goes on.


def test_validation_while_training_and_test_at_the_end_each_once(tmp_path, monkeypatch, capsys):
  start(tmp_path / 'w', validation=True, eval_every='2')
  for step in (2, 4):
    found = result(tmp_path / 'w', f'eval_{step}')
    assert (found['step'], found['split']) == (step, 'validation')
    assert found['evals']['clean']['num_images'] == 10
    manifest = json.loads((tmp_path / 'w' / 'checkpoints' / str(step) / 'MANIFEST.json').read_text())
    assert found['state_sha256'] == manifest['state_sha256']
  assert result(tmp_path / 'w')['split'] == 'test'
  assert not (tmp_path / 'w' / 'results' / 'eval_6.json').exists()

  shutil.rmtree(tmp_path / 'w' / 'checkpoints' / '6')  # as if killed before the last save
  monkeypatch.setattr(Milestones, '_measure', lambda *_: pytest.fail('it evaluated'))
  capsys.readouterr()
  start(tmp_path / 'w', validation=True, eval_every='2')
  out = capsys.readouterr().out
  assert out.count('of 10 validation images') == 1
  assert out.count('of 24 test images') == 1


# Starting from another run.


def test_a_run_without_its_checkpoints_does_not_begin_anew(copy):
  shutil.rmtree(copy / 'checkpoints')
  log = (copy / 'metrics.jsonl').read_bytes()
  with pytest.raises(CheckpointError, match='none of its checkpoints; bring them back'):
    start(copy)
  (copy / 'results' / 'train.json').unlink()  # killed before its end, and after two saves
  with pytest.raises(CheckpointError, match='none of its checkpoints; bring them back'):
    start(copy)
  assert (copy / 'metrics.jsonl').read_bytes() == log


def test_init_from_takes_parameters_and_statistics_only(finished, tmp_path, capsys):
  state = start(tmp_path / 'w', init_from=str(finished), num_steps='7')
  assert int(state.step) == 7
  assert f"starting from the parameters of '{finished}' after step 6" in capsys.readouterr().err
  other = start(tmp_path / 'from_scratch', num_steps='7')
  assert checkpoints.state_sha256(state) != checkpoints.state_sha256(other)
  assert steps(tmp_path / 'w') == list(range(1, 8))
  origin = result(tmp_path / 'w')['init_from']
  assert origin['checkpoint_sha256'] == result(finished)['state_sha256']
  assert (origin['workdir'], origin['step'], origin['head']) == ('w', 6, 'taken over')
  assert 'init_from' not in result(tmp_path / 'from_scratch')


def test_a_resume_does_not_need_init_from_any_more(finished, tmp_path):
  source = Path(shutil.copytree(finished, tmp_path / 'source'))
  start(tmp_path / 'w', init_from=str(source), num_steps='7')
  shutil.rmtree(source)
  shutil.rmtree(tmp_path / 'w' / 'checkpoints' / '7')
  first = result(tmp_path / 'w')
  assert checkpoints.state_sha256(start(tmp_path / 'w', init_from=str(source), num_steps='7')) == first['state_sha256']
  assert result(tmp_path / 'w')['init_from'] == first['init_from']


def test_init_from_another_network_names_both(finished, tmp_path):
  expected = (
    'is another network: it has config.classifier.shortcut=preact, config.classifier.width=4, and this run '
    'config.classifier.shortcut=input, config.classifier.width=8; set --config.classifier.shortcut=preact --config.cl'
  )
  with pytest.raises(UserError, match=re.escape(expected)):
    start(tmp_path / 'w', init_from=str(finished), classifier__width='8', classifier__shortcut='input')
  with pytest.raises(UserError, match="No checkpoints in '.*nowhere'; name the workdir of a run"):
    start(tmp_path / 'w', init_from=str(tmp_path / 'nowhere'))


# The adversary, once.


@pytest.mark.slow
def test_warm_up_lines_have_null_for_the_adversary_and_its_results_have_their_origin(tmp_path, capsys):
  # Where num_steps is set, epochs count by their share of num_epochs: 200 of 300 are two of three updates.
  flags = {'attack__name': 'ada', 'attack__num_steps': '1', 'attack__warmup_epochs': '200', 'evals': 'ada'}
  flags['num_steps'] = '3'
  start(tmp_path / 'w', **flags)
  attacked = {'attack_loss_start', 'attack_loss_end', 'ssim_mean', 'ssim_corrected', 'ssim_below_min'}
  found = lines(tmp_path / 'w')
  assert all(attacked <= line.keys() for line in found)
  assert [{name for name in attacked if line[name] is not None} for line in found] == [set(), set(), attacked]
  found = result(tmp_path / 'w')
  assert found['weights']['file'] == 'edsr_4x16_x1.safetensors'
  assert len(found['weights']['sha256']) == 64
  assert 0 < found['evals']['ada']['ssim'] <= 1
  out = capsys.readouterr().out
  assert 'accuracy under AdA' in out
  assert 'mean SSIM' in out
  if 'examples' in out:
    figure = tmp_path / 'w' / 'figures' / 'ada_examples.png'
    drawn = figure.stat().st_mtime_ns
    start(tmp_path / 'w', **flags)
    assert figure.stat().st_mtime_ns == drawn


def test_numbers_that_explode_end_the_run_with_exit_3(tmp_path):
  with pytest.raises(NumericalError) as caught:
    start(tmp_path / 'w', optimizer__learning_rate='1000', optimizer__weight_decay='1000', num_steps='40')
  assert caught.value.exit_code == 3
  step = int(str(caught.value).split('after step ')[1].split(':')[0])
  assert steps(tmp_path / 'w') == list(range(1, step))
  with np.load(tmp_path / 'w' / 'failures' / f'step_{step}.npz') as file:
    dump = dict(file)
  assert dump['images'].shape == (8, 32, 32, 3)
  assert dump['step'] == step - 1
  state = {name: array for name, array in dump.items() if name.startswith(('params/', 'model_state/', 'opt_state/'))}
  assert len(state) > 20
  assert all(np.isfinite(array).all() for array in state.values())
  assert all(saved < step for saved in checkpoints.steps(tmp_path / 'w' / 'checkpoints'))
