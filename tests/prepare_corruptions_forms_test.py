"""Tests of `prepare cifar10_c` with --from and --format: sets that are imported, and TFDS's layout."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from adversarial_augment import corruptions, datasets, metrics, prepare
from adversarial_augment.datasets import cifar10_c
from adversarial_augment.errors import UserError
from tests.corrupted_pets import NAMES, N, command, copy, hashes, load, manifest_of, run, write_pets


def test_tfds_layout(pets, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  run(data_dir, '--format=array_record')
  images, labels = load(data_dir).read(np.arange(N))
  for name in NAMES:
    for severity in (1, 5):
      dataset = datasets.load(f'pets_corrupted/{name}_{severity}', 'test', str(data_dir))
      assert dataset[1:4] == (N, 3, (32, 32, 3))
      assert dataset.class_names == ('a', 'b', 'c')
      found = dataset.read(np.arange(N))
      np.testing.assert_array_equal(found.images, corruptions.corrupt(images, name, severity, 0))
      np.testing.assert_array_equal(found.labels, labels)
      assert dataset.provenance['origin'] == 'generated'
  provenance = data_dir / 'pets_corrupted' / 'brightness_2' / '1.0.0' / 'provenance.json'
  assert json.loads(provenance.read_text())['made']['seed'] == 0


def test_tfds_layout_is_not_made_twice(pets, tmp_path, capsys):
  data_dir = copy(pets, tmp_path / 'data')
  flags = ('--format=array_record', '--names=brightness')
  run(data_dir, *flags)
  shutil.rmtree(data_dir / 'pets_corrupted' / 'brightness_4')
  capsys.readouterr()
  run(data_dir, *flags)
  assert '; 40 images written' in capsys.readouterr().out
  with pytest.raises(UserError, match=r"brightness_1/1.0.0' exists already, with seed = 0, .* 1; .*--overwrite"):
    run(data_dir, *flags, '--seed=1')
  provenance = data_dir / 'pets_corrupted' / 'brightness_1' / '1.0.0' / 'provenance.json'
  provenance.write_text('{}')
  with pytest.raises(UserError, match=r"provenance.json' is damaged .*--overwrite"):
    run(data_dir, *flags)
  provenance.unlink()
  with pytest.raises(
    UserError, match=r"brightness_1/1.0.0' has no provenance.json, as where TFDS made it; .*--overwrite"
  ):
    run(data_dir, *flags)
  run(data_dir, *flags, '--seed=1', '--overwrite')
  assert json.loads(provenance.read_text())['made']['seed'] == 1


def test_record_files_that_are_gone_or_cut_are_noticed_and_made_again(pets, tmp_path, capsys):
  data_dir = copy(pets, tmp_path / 'data')
  flags = ('--format=array_record', '--names=brightness')
  run(data_dir, *flags)
  (cut,) = (data_dir / 'pets_corrupted' / 'brightness_2' / '1.0.0').glob('*array_record*')
  (gone,) = (data_dir / 'pets_corrupted' / 'brightness_5' / '1.0.0').glob('*array_record*')
  before = cut.read_bytes(), gone.read_bytes()
  cut.write_bytes(before[0][:-9])
  gone.unlink()
  for severity in (2, 5):
    with pytest.raises(UserError, match='damaged'):
      datasets.load(f'pets_corrupted/brightness_{severity}', 'test', str(data_dir))
  capsys.readouterr()
  run(data_dir, *flags)
  assert '; 80 images written' in capsys.readouterr().out
  assert (cut.read_bytes(), gone.read_bytes()) == before


def test_tfds_reads_all_19_by_its_own_names(tmp_path):
  write_pets(tmp_path, 'cifar10')
  prepare.main(['cifar10_c', '--format=array_record', f'--data_dir={tmp_path}', '--names=glass_blur,elastic_transform'])
  made = {path.name for path in (tmp_path / 'cifar10_corrupted').iterdir()}
  assert made == {f'{name}_{s}' for name in ('frosted_glass_blur', 'elastic') for s in (1, 2, 3, 4, 5)}
  assert made < tfds.builder_cls('cifar10_corrupted').builder_configs.keys()
  same = set(metrics.ALL_NAMES) - {'glass_blur', 'elastic_transform'}
  assert {f'{name}_1' for name in same} < tfds.builder_cls('cifar10_corrupted').builder_configs.keys()
  source = tfds.data_source('cifar10_corrupted/elastic_2', split='test', data_dir=str(tmp_path))
  assert len(source) == N
  images, labels = datasets.load('cifar10', 'test', str(tmp_path)).read(np.arange(N))
  expected = corruptions.corrupt(images, 'elastic_transform', 2, 0)
  np.testing.assert_array_equal(source[17]['image'], expected[17])
  assert source[17]['label'] == labels[17]


@pytest.fixture
def handed_out(whole, tmp_path) -> pathlib.Path:
  """A folder with the files of a set and no manifest, as the official archive has them."""
  folder = tmp_path / 'CIFAR-10-C'
  folder.mkdir()
  for path in (whole / 'pets_c').glob('*.npy'):
    shutil.copy(path, folder)
  return folder


@pytest.mark.parametrize('form', ['folder', 'archive'])
@pytest.mark.parametrize('origin', ['official', 'unverified'])
def test_import(pets, handed_out, tmp_path, monkeypatch, form, origin):
  if origin == 'official':
    known = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in handed_out.iterdir()}
    monkeypatch.setattr(cifar10_c, 'OFFICIAL_MD5', known)
  source = handed_out
  if form == 'archive':
    source = tmp_path / 'CIFAR-10-C.tar'
    with tarfile.open(source, 'w') as archive:
      archive.add(handed_out, 'CIFAR-10-C')
  data_dir = copy(pets, tmp_path / 'data')
  run(data_dir, f'--from={source}')
  manifest = manifest_of(data_dir)
  assert (manifest['origin'], manifest['seed'], manifest['made_with']) == (origin, None, None)
  assert manifest['source'] == str(source)
  found = cifar10_c.open_set(data_dir / 'pets_c', NAMES, load(data_dir), verify=True)
  assert found.origin == origin
  for name in NAMES:
    assert (data_dir / 'pets_c' / f'{name}.npy').read_bytes() == (handed_out / f'{name}.npy').read_bytes()


def test_import_into_tfds_layout(pets, handed_out, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  run(data_dir, f'--from={handed_out}', '--format=array_record')
  dataset = datasets.load('pets_corrupted/gaussian_noise_5', 'test', str(data_dir))
  assert dataset.provenance['origin'] == 'unverified'
  expected = np.load(handed_out / 'gaussian_noise.npy')[4 * N :]
  np.testing.assert_array_equal(dataset.read(np.arange(N)).images, expected)


def test_import_of_a_generated_set_keeps_what_is_known_of_it(pets, whole, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  run(data_dir, f'--from={whole / "pets_c"}')
  found, expected = manifest_of(data_dir), manifest_of(whole)
  assert found['source'] == str(whole / 'pets_c')
  assert found | {'source': None} == expected


@pytest.mark.parametrize('form', ['npy', 'array_record'])
def test_the_same_files_in_another_folder_are_the_same_set(pets, handed_out, tmp_path, capsys, form):
  data_dir, flag = copy(pets, tmp_path / 'data'), f'--format={form}'
  run(data_dir, f'--from={handed_out}', flag)
  moved = handed_out.rename(tmp_path / 'moved')
  capsys.readouterr()
  run(data_dir, f'--from={moved}', flag)
  assert '; 0 images written' in capsys.readouterr().out
  np.save(moved / 'brightness.npy', np.load(moved / 'brightness.npy')[::-1])
  with pytest.raises(UserError, match=r'exists already, with sha256 = .*--overwrite'):
    run(data_dir, f'--from={moved}', flag)


def test_a_bad_import_writes_nothing(pets, handed_out, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  np.save(handed_out / 'brightness.npy', np.load(handed_out / 'brightness.npy')[: 4 * N])
  with pytest.raises(UserError, match=r'brightness.npy. has 160 rows, but must have 200'):
    run(data_dir, f'--from={handed_out}')
  with pytest.raises(UserError, match=r'has no fog.npy'):
    run(data_dir, f'--from={handed_out}', '--names=fog')
  assert [path.name for path in data_dir.iterdir()] == ['pets']


def test_a_set_is_not_imported_from_where_it_belongs(whole):
  before = hashes(whole / 'pets_c')
  with pytest.raises(UserError, match='nothing to import'):
    run(whole, f'--from={whole / "pets_c"}', '--overwrite')
  assert hashes(whole / 'pets_c') == before


def test_an_import_needs_no_jax(pets, handed_out, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  code = 'import sys; from adversarial_augment import prepare; prepare.main(sys.argv[1:]); print("jax" in sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', code, *command(data_dir, f'--from={handed_out}')], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == 'False'


def test_records_of_an_older_version_say_so(pets, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  run(data_dir, '--format=array_record', '--names=brightness,snow')
  for name, origin in (('brightness', 'generated'), ('snow', 'generated, version 1')):
    provenance = data_dir / 'pets_corrupted' / f'{name}_1' / '1.0.0' / 'provenance.json'
    content = json.loads(provenance.read_text())
    assert content['made']['made_with'].pop('corruptions') == metrics.CORRUPTIONS_VERSION
    provenance.write_text(json.dumps(content))
    assert datasets.load(f'pets_corrupted/{name}_1', 'test', str(data_dir)).provenance['origin'] == origin
  with pytest.raises(UserError, match='made_with.corruptions = null, and now it would be "2"'):
    run(data_dir, '--format=array_record', '--names=snow')
