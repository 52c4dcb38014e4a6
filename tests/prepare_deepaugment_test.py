"""Tests of `prepare deepaugment`: what it writes, that it goes on where it was stopped, and what it refuses."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import corruption_nets, datasets, deepaugment, prepare, train
from adversarial_augment.corruption_nets import weights
from adversarial_augment.datasets import manifests, mixture, sampling
from adversarial_augment.errors import StorageError
from adversarial_augment.parallel import sharding
from adversarial_augment.preparation import deepaugment_files
from adversarial_augment.run import train_job
from adversarial_augment.storage import artifact, kills
from adversarial_augment.training import recipe
from tests import deepaugment_sets
from tests.corrupted_pets import copy, hashes
from tests.deepaugment_sets import N, load, write_pets
from tests.deepaugment_sets import write_some as write
from tests.described import refused

COPIES = 3


@pytest.fixture(scope='module')
def pets(tmp_path_factory) -> pathlib.Path:
  """A data_dir with pets and the weights of a tiny EDSR; not to be changed."""
  data_dir = write_pets(tmp_path_factory.mktemp('pets') / 'data')
  sizes = {'blocks': 1, 'features': 2, 'scale': 1}
  rng = np.random.default_rng(0)
  shapes = corruption_nets.shapes('edsr', sizes)
  params = {
    module: {name: rng.normal(scale=0.1, size=shape) for name, shape in layer.items()}
    for module, layer in shapes.items()
  }
  weights.save(data_dir / 'tiny.safetensors', params, {'network': {'name': 'edsr'} | sizes})
  return data_dir


@pytest.fixture(scope='module')
def whole(pets, tmp_path_factory) -> pathlib.Path:
  """A data_dir with the set 'edsr' of three copies, made in one go; not to be changed."""
  return run(copy(pets, tmp_path_factory.mktemp('whole') / 'data'))


@pytest.fixture
def data_dir(pets, tmp_path) -> pathlib.Path:
  """A data_dir with pets."""
  return copy(pets, tmp_path / 'data')


def command(data_dir: pathlib.Path, *flags: str) -> list[str]:
  tiny = data_dir / 'tiny.safetensors'
  return ['deepaugment', '--dataset=pets', f'--weights={tiny}', f'--copies={COPIES}', f'--data_dir={data_dir}', *flags]


def run(data_dir: pathlib.Path, *flags: str) -> pathlib.Path:
  prepare.main(command(data_dir, *flags))
  return data_dir


def folder_of(data_dir: pathlib.Path, name: str = 'edsr') -> pathlib.Path:
  return data_dir / 'pets_deepaugment' / name


def manifest_of(data_dir: pathlib.Path) -> dict:
  return json.loads((folder_of(data_dir) / 'MANIFEST.json').read_text())


def test_files(whole):
  folder, pristine = folder_of(whole), load(whole)
  images, labels = pristine.read(np.arange(N))
  found = np.load(folder / 'images.npy')
  assert (found.shape, found.dtype) == ((COPIES * N, 32, 32, 3), np.uint8)
  np.testing.assert_array_equal(np.load(folder / 'labels.npy'), np.tile(labels, COPIES))
  np.testing.assert_array_equal(np.load(folder / 'index.npy'), np.tile(np.arange(N), COPIES))
  params, _ = corruption_nets.read('edsr', whole / 'tiny.safetensors')
  for number in range(COPIES):
    made = deepaugment.generate(images, np.arange(N), number, params, deepaugment.Settings('edsr', 0))
    np.testing.assert_array_equal(found[number * N : (number + 1) * N], made)
  assert len({found[number * N :][:N].tobytes() for number in range(COPIES)}) == COPIES
  assert {path.name for path in folder.iterdir()} == {*mixture.FILES, 'MANIFEST.json', '.lock'}


def test_manifest(whole):
  manifest = manifest_of(whole)
  assert manifest['train_set'] == load(whole).provenance
  settings = {'net': 'edsr', 'seed': 0, 'copies': COPIES, 'bug_compatible': True, 'scale': 'native32', 'num_images': N}
  assert manifest.items() >= settings.items()
  assert manifest['weights']['network'] == {'name': 'edsr', 'blocks': 1, 'features': 2, 'scale': 1}
  assert manifest['made_with'] == deepaugment.made_with()
  assert manifest['files'] == {name: artifact.entry(folder_of(whole) / name) for name in mixture.FILES}


def test_a_set_is_made_by_the_version_of_the_algorithm(data_dir):
  """The release before named the hash of its code."""
  now = {'adversarial_augment': '0.2.0', 'deepaugment': deepaugment.VERSION, 'jax': '1'}
  code = manifests._CODE['deepaugment'][deepaugment.VERSION]
  before = {'adversarial_augment': '0.1.0', 'code_sha256': code, 'jax': '1'}
  write(data_dir, changes={'made_with': before})
  assert write(data_dir, changes={'made_with': now}) == (0, 0)
  with refused('made_with.code_sha256 = "401a'):
    write(data_dir, changes={'made_with': before | {'code_sha256': 'f' * 64}})


def test_what_it_prints_and_a_second_start(data_dir, whole, tmp_path, capsys):
  run(data_dir, '--name=first')
  said = capsys.readouterr().out
  assert f'{COPIES * N} images written in' in said
  assert 'a second' in said
  assert f'--config.deepaugment.sets=first --config.dataset=pets --config.data_dir={data_dir}' in said
  data_dir = copy(whole, tmp_path / 'whole')
  before = {path: path.stat().st_mtime_ns for path in folder_of(data_dir).glob('*.npy')}
  run(data_dir)
  assert ' 0 images written' in capsys.readouterr().out
  assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
  'point', ['before_rename@000000', 'before_rename@000001', 'after_rename@000002', 'before_rename@MANIFEST']
)
def test_killed_and_started_again(data_dir, whole, point):
  killed = subprocess.run(
    [sys.executable, '-m', 'adversarial_augment.prepare', *command(data_dir)],
    env=os.environ | {kills.CRASH_VARIABLE: f'{point}.json'},
    capture_output=True,
  )
  assert killed.returncode == -signal.SIGKILL
  with refused('is not finished'):
    mixture.load(load(data_dir), str(data_dir), ['edsr'])
  run(data_dir)
  assert hashes(folder_of(data_dir)) == hashes(folder_of(whole))


def test_two_processes_in_any_order(data_dir, whole, capsys):
  run(data_dir, '--num_processes=2', '--process_id=1')
  assert f'{2 * N} images are left to the other processes' in capsys.readouterr().out
  assert not (folder_of(data_dir) / 'MANIFEST.json').exists()
  run(data_dir, '--num_processes=2', '--process_id=0')
  assert hashes(folder_of(data_dir)) == hashes(folder_of(whole))


def test_pieces_of_another_size_give_the_same_files(pets, tmp_path, monkeypatch):
  known = []
  for size in (500, 60, 16, 7):
    monkeypatch.setattr(deepaugment_files, '_PIECE', size)
    data_dir = copy(pets, tmp_path / str(size))
    assert write(data_dir) == (2 * N, 0)
    known.append(hashes(folder_of(data_dir, 'some')))
  assert known == known[:1] * 4


def test_an_error_midway_keeps_what_is_done(data_dir, monkeypatch):
  monkeypatch.setattr(deepaugment_files, '_PIECE', 20)
  calls = []

  def fail(images, index, number):
    calls.append((number, int(index[0])))
    if len(calls) == 4:
      raise KeyboardInterrupt
    return deepaugment_sets.make(images, index, number)

  with pytest.raises(KeyboardInterrupt):
    write(data_dir, make=fail)
  assert write(data_dir, make=fail) == (3 * 20, 0)
  assert calls == [(0, 0), (0, 20), (0, 40), (1, 0), (1, 0), (1, 20), (1, 40)]


def test_a_piece_that_is_damaged_before_the_end_is_made_again(data_dir, monkeypatch):
  monkeypatch.setattr(deepaugment_files, '_PIECE', 20)
  write(data_dir, share=(0, 2))
  images = folder_of(data_dir, 'some') / 'images.npy'
  content = bytearray(images.read_bytes())
  content[200] ^= 1
  images.write_bytes(content)
  with refused('Piece 0 of .* was damaged on the disk; the same command'):
    write(data_dir, share=(1, 2))
  assert write(data_dir) == (20, 0)
  assert len(mixture.load(load(data_dir), str(data_dir), ['some'])) == 2


def test_a_set_that_another_process_finishes_meanwhile(data_dir, tmp_path):
  expected = copy(data_dir, tmp_path / 'expected')
  write(expected)
  nested = []

  def make(images, index, number):
    if not nested:
      nested.append(write(data_dir))
    return deepaugment_sets.make(images, index, number)

  assert write(data_dir, make=make) == (N, 0)
  assert nested == [(2 * N, 0)]
  assert hashes(folder_of(data_dir, 'some')) == hashes(folder_of(expected, 'some'))


def test_a_set_that_another_process_begins_anew_meanwhile(data_dir):
  def make(images, index, number):
    write(data_dir, changes={'made_with': {'jax': '2'}}, overwrite=True)
    return deepaugment_sets.make(images, index, number)

  with refused('exists already, with made_with.jax = "2"'):
    write(data_dir, make=make)


def test_another_set_is_there(data_dir):
  other = {'made_with': {'jax': '2'}}
  for share in ((0, 2), (0, 1)):  # begun, and whole
    write(data_dir, share=share)
    with refused('exists already, with made_with.jax = "1".*--name.*--overwrite'):
      write(data_dir, changes=other)
  assert write(data_dir, changes=other, overwrite=True) == (2 * N, 0)
  assert write(data_dir, changes=other, overwrite=True, share=(0, 2)) == (N, N)
  (folder_of(data_dir, 'some') / 'PLAN.json').write_text('[')
  with refused(r"PLAN.json' is damaged .*--overwrite"):
    write(data_dir)
  assert write(data_dir, overwrite=True) == (2 * N, 0)


def test_images_in_use_stay_readable_when_a_set_is_replaced(data_dir):
  write(data_dir)
  opened = mixture.load(load(data_dir), str(data_dir), ['some'])[0]
  before = opened.read(np.arange(N)).images
  write(data_dir, overwrite=True, make=lambda images, index, number: np.zeros_like(images))
  np.testing.assert_array_equal(opened.read(np.arange(N)).images, before)


def open_it(data_dir: pathlib.Path) -> None:
  assert len(deepaugment_sets.open_sets(load(data_dir), data_dir)) == 2


def test_without_room_nothing_is_written_and_a_set_stays(data_dir, monkeypatch):
  usage = shutil.disk_usage
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 9, 1))
  with pytest.raises(StorageError, match='0 MB free'):
    write(data_dir)
  assert {path.name for path in folder_of(data_dir, 'some').iterdir()} == {'.lock'}
  monkeypatch.setattr(shutil, 'disk_usage', usage)
  write(data_dir)
  known = hashes(folder_of(data_dir, 'some'))
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 9, 1))
  with pytest.raises(StorageError, match='0 MB free'):
    write(data_dir, overwrite=True)
  assert hashes(folder_of(data_dir, 'some')) == known


def test_a_set_stays_whole_when_another_cannot_be_begun(data_dir, monkeypatch):
  write(data_dir)
  known = hashes(folder_of(data_dir, 'some'))

  def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(StorageError, match='No space left'):
    write(data_dir, overwrite=True)
  assert hashes(folder_of(data_dir, 'some')) == known


def begin(data_dir: pathlib.Path) -> pathlib.Path:
  """Begins the set 'some' as a process that makes every second piece; returns its folder."""
  assert write(data_dir, share=(0, 2)) == (N, N)
  return folder_of(data_dir, 'some')


def test_a_set_that_was_begun_otherwise_goes_on_by_the_command_of_its_plan(data_dir):
  folder = begin(data_dir)
  command = f'prepare deepaugment --dataset=pets --copies=2 --name=some --data_dir={data_dir}'
  with refused(f'copies = 2, and now it would be 3; resume it with .*{command}, choose'):
    write(data_dir, changes={'copies': 3})
  with refused(f'is not finished; run .*{command}, which resumes it'):
    open_it(data_dir)
  (folder / 'PLAN.json').write_text('[')
  with refused(r"PLAN.json' is damaged .*flags of its first time and --overwrite"):
    open_it(data_dir)


@pytest.mark.parametrize('damage', ['missing', 'cut', 'folder', 'header', 'pieces'])
def test_a_set_that_was_begun_and_damaged_starts_anew_with_overwrite(data_dir, damage):
  folder = begin(data_dir)
  images = folder / 'images.npy'
  content = images.read_bytes()
  if damage == 'pieces':
    shutil.rmtree(folder / 'pieces')
  else:
    images.unlink()
  if damage == 'folder':
    images.mkdir()
  if damage in ('cut', 'header'):
    images.write_bytes(content[:-1] if damage == 'cut' else b'x' + content[1:])
  with refused('missing or damaged; start over with the same command and --overwrite'):
    write(data_dir)
  assert write(data_dir, overwrite=True) == (2 * N, 0)
  open_it(data_dir)


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_set_that_was_begun_goes_on_past_a_damaged_marker(data_dir, monkeypatch, overwrite):
  monkeypatch.setattr(deepaugment_files, '_PIECE', 20)
  for content in ('', '[]', '{}'):
    folder = begin(data_dir)
    (folder / 'pieces' / '000000.json').write_text(content)
    assert write(data_dir, overwrite=overwrite) == (N + 20, 0)
    open_it(data_dir)
    shutil.rmtree(folder)


@pytest.mark.parametrize('name, replaced', [('labels.npy', False), ('labels.npy', True), ('MANIFEST.json', True)])
def test_a_set_that_lost_a_file_or_has_a_folder_in_its_place(data_dir, name, replaced):
  write(data_dir)
  path = folder_of(data_dir, 'some') / name
  path.unlink()
  if replaced:
    path.mkdir()
  for call in (write, open_it):
    with refused(f'{name}.*make the set again with .*--overwrite'):
      call(data_dir)
  assert write(data_dir, overwrite=True) == (2 * N, 0)


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--net=unet'], '--net'),
    (['--copies=0'], '--copies=0 must lie between 1 and 1000'),
    (['--seed=-1'], '--seed=-1 must lie'),
    (['--name=a/b'], "--name='a/b' must be letters"),
    (['--name='], "--name=''"),
    (['--scale=x'], '--scale'),
    (['--weights=edsr_4x16_x3'], "--weights=edsr_4x16_x3: .*Did you mean 'edsr_4x16_x1'"),
    (['--weights=missing.safetensors'], 'missing.safetensors'),
    (['--net=cae'], "holds the weights of 'edsr'"),
    (['--num_processes=0'], '--num_processes=0 must be at least 1'),
    (['--num_processes=2', '--process_id=2'], '--process_id=2 must be from 0 to 1'),
    (['--dataset=dogs'], "No data set 'dogs'"),
    (['--data_dir='], "--data_dir=''"),
  ],
)
def test_bad_flags(pets, flags, said):
  with refused(said):
    run(pets, *flags)
  assert not (pets / 'pets_deepaugment').exists()


def config_for(data_dir: pathlib.Path, **fields: str):
  pairs = {'dataset': 'pets', 'data_dir': str(data_dir), 'attack.name': 'none', 'batch_size': '10', 'num_epochs': '6'}
  return configs.override(configs.base_config(), pairs | {name.replace('__', '.'): v for name, v in fields.items()})


def test_train_mixes_them_and_holds_copies_out(whole):
  config = config_for(whole, deepaugment__sets='edsr', deepaugment__copies='2', holdout='12')
  configs.validate(config)
  splits = train._load_splits(config)
  assert splits['train'].num_examples == 3 * (N - 12)
  assert recipe.num_steps_of(config, splits['train'].epoch_size) == 6 * (N - 12) // 10
  held_out = {image.tobytes() for image in splits['validation'].read(np.arange(12)).images}
  pristine = datasets.load('pets', 'train', str(whole)).read(np.arange(N)).images
  kept = [i for i in range(N) if pristine[i].tobytes() not in held_out]
  stored = np.load(folder_of(whole) / 'images.npy')
  images, labels = splits['train'].read(np.arange(3 * len(kept)))
  np.testing.assert_array_equal(images, np.concatenate([pristine[kept], stored[kept], stored[N:][kept]]))
  np.testing.assert_array_equal(labels, np.tile(load(whole).read(np.array(kept)).labels, 3))
  step = sampling.indices(0, 0, splits['train'].num_examples, 10)
  assert splits['train'].read(step).images.shape == (10, 32, 32, 3)


def test_steps_and_epochs_are_those_of_the_clean_images(whole):
  flags = {'batch_size': '8', 'classifier.depth': '10', 'classifier.width': '4', 'corruption_net.blocks': '4'}
  clean = configs.override(config_for(whole), flags)
  for mix in ('concat', 'half', 'only'):
    mixed = configs.override(clean, {'deepaugment.sets': 'edsr', 'deepaugment.mix': mix})
    data, recipes = zip(*(_built(config) for config in (clean, mixed)), strict=True)
    assert recipes[0].num_steps == recipes[1].num_steps == 6 * N // 8
    lines = [train_job.log_line(*both, 30, {'loss': 1.0}) for both in zip(recipes, data, strict=True)]
    assert lines == [{'step': 30, 'epoch': 30 * 8 / N, 'loss': 1.0}] * 2


def _built(config):
  dataset = train._load_splits(config)['train']
  return dataset, recipe.build(config, dataset, sharding.data_mesh())[0]


def test_train_refuses_a_missing_set_in_one_line(whole, tmp_path):
  flags = [f'--config.{name}={value}' for name, value in (('dataset', 'pets'), ('data_dir', whole))]
  wrong = subprocess.run(
    [
      *(sys.executable, '-m', 'adversarial_augment.train', '--config=configs/nominal.py:smoke'),
      *(*flags, '--config.deepaugment.sets=edsr,cae', f'--workdir={tmp_path / "run"}'),
    ],
    capture_output=True,
    text=True,
  )
  assert wrong.returncode == 2, wrong.stderr
  assert wrong.stderr.splitlines() == [wrong.stderr.strip()]
  assert 'cae' in wrong.stderr
  assert 'does not exist; run python -m adversarial_augment.prepare deepaugment' in wrong.stderr


def test_names_of_sets_are_checked():
  with refused(r'config.deepaugment.sets=.* must be a comma-separated list'):
    configs.validate(configs.override(configs.base_config(), {'deepaugment.sets': 'edsr,edsr'}))
  with refused(r'config.deepaugment.sets'):
    configs.validate(configs.override(configs.base_config(), {'deepaugment.sets': '../x'}))
