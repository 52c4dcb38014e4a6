"""Tests of `prepare cifar10_c`: what it writes and imports, that it resumes, and what it refuses."""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from adversarial_augment import corruptions, datasets, metrics, prepare
from adversarial_augment.cli import progress
from adversarial_augment.datasets import cifar10_c, manifests
from adversarial_augment.errors import StorageError
from adversarial_augment.storage import artifact, kills
from tests.corrupted_pets import NAMES, N, command, copy, hashes, load, manifest_of, run, write_pets
from tests.described import refused

SEVERITIES = (1, 2, 3, 4, 5)
RECORDS = ('--format=array_record', '--names=brightness')


@pytest.fixture
def data_dir(pets, tmp_path) -> pathlib.Path:
  """A data_dir with pets."""
  return copy(pets, tmp_path / 'data')


@pytest.fixture
def made(whole, tmp_path) -> pathlib.Path:
  """A data_dir with pets and pets_c."""
  return copy(whole, tmp_path / 'made')


@pytest.fixture
def handed_out(whole, tmp_path) -> pathlib.Path:
  """A folder with the files of a set and no manifest, as the official archive has them."""
  return pathlib.Path(shutil.copytree(whole / 'pets_c', tmp_path / 'CIFAR-10-C', ignore=lambda *_: ['MANIFEST.json']))


def test_files_hold_what_corrupt_gives(whole):
  folder, test = whole / 'pets_c', load(whole)
  images, labels = test.read(np.arange(N))
  assert np.load(folder / 'labels.npy').tolist() == 5 * labels.tolist()
  for name in NAMES:
    found = np.load(folder / f'{name}.npy')
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(
      found, np.concatenate([corruptions.corrupt(images, name, severity, 0) for severity in SEVERITIES])
    )


def test_manifest(whole):
  manifest, test = manifest_of(whole), load(whole)
  constants = {'brightness.npy': [0.05, 0.1, 0.15, 0.2, 0.3], 'gaussian_noise.npy': [0.04, 0.06, 0.08, 0.09, 0.1]}
  for name, entry in manifest['files'].items():
    noted = {'constants': constants[name]} if name in constants else {}
    assert entry == artifact.entry(whole / 'pets_c' / name) | noted
  assert manifest['files'].keys() == {'labels.npy', *constants}
  assert manifest['test_set'] == test.provenance
  assert (manifest['origin'], manifest['seed'], manifest['num_images'], manifest['source']) == ('generated', 0, N, None)
  assert manifest['made_with'].keys() == {
    'adversarial_augment', 'corruptions', 'jax', 'numpy', 'scipy', 'pillow'
  }  # fmt: skip
  opened = cifar10_c.open_set(whole / 'pets_c', NAMES, test, verify=True)
  assert opened.origin == 'generated'
  assert (opened.provenance['seed'], opened.provenance['made_with']) == (0, manifest['made_with'])


def test_what_it_prints_and_a_second_start_makes_nothing(made, capsys):
  before = {path: path.stat().st_mtime_ns for path in (made / 'pets_c').glob('*.npy')}
  run(made)
  said = capsys.readouterr().out
  assert 'has 2 corruptions at 5 severities of 40 images, origin generated; 0 images written' in said
  assert '--config.evals' not in said  # an evaluation needs all 15
  assert {path: path.stat().st_mtime_ns for path in before} == before


def test_names_one_after_the_other_give_the_same_set(data_dir, whole):
  for name in NAMES:
    run(data_dir, f'--names={name}')
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


@pytest.mark.parametrize('point', ['before_rename@brightness', 'after_rename@labels', 'after_rename@brightness'])
def test_killed_and_started_again(data_dir, whole, point):
  killed = subprocess.run(
    [sys.executable, '-m', 'adversarial_augment.prepare', *command(data_dir)],
    env=os.environ | {kills.CRASH_VARIABLE: f'{point}.npy'},
    capture_output=True,
  )
  assert killed.returncode == -signal.SIGKILL
  assert hashes(data_dir / 'pets_c') != hashes(whole / 'pets_c')
  with refused(r'has no|is not listed'):
    cifar10_c.open_set(data_dir / 'pets_c', NAMES, load(data_dir))
  run(data_dir)
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_started_again(data_dir, whole, number):
  started = subprocess.Popen(
    [sys.executable, '-m', 'adversarial_augment.prepare', *command(data_dir)], stderr=subprocess.PIPE, text=True
  )
  while not (data_dir / 'pets_c' / 'MANIFEST.json').exists():
    assert started.poll() is None
    time.sleep(0.01)
  began = time.monotonic()
  started.send_signal(number)
  said = started.communicate(timeout=60)[1].splitlines()
  assert time.monotonic() - began < 10
  assert started.returncode == 75
  kept = f"finished corruptions are kept in '{data_dir}'"
  assert said == [f'stopped by {number.name}: {kept}; run the same command again to resume.']
  run(data_dir)
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


def test_a_log_gets_lines_of_progress(data_dir, monkeypatch, capsys):
  monkeypatch.setattr(progress, '_SECONDS', 0)
  run(data_dir)
  done = {(name, severity): N * (5 * i + severity) for i, name in enumerate(NAMES) for severity in SEVERITIES}
  expected = [f'  {name} {severity}: {count} of {10 * N}' for (name, severity), count in done.items()]
  assert [line.partition(' images ')[0] for line in capsys.readouterr().err.splitlines()] == expected


def test_an_error_midway_leaves_no_part_of_a_file(data_dir, whole, monkeypatch):
  corrupt, calls, fails_at = corruptions.corrupt, [], [8]

  def fail(*arguments, **options):
    calls.append(arguments)
    if len(calls) in fails_at:
      raise KeyboardInterrupt
    return corrupt(*arguments, **options)

  monkeypatch.setattr(corruptions, 'corrupt', fail)
  with pytest.raises(KeyboardInterrupt):
    run(data_dir)
  assert hashes(data_dir / 'pets_c').keys() == {'MANIFEST.json', 'labels.npy', 'brightness.npy'}
  fails_at.clear()
  calls.clear()
  run(data_dir)
  assert {name for _, name, *_ in calls} == {'gaussian_noise'}
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


def test_damaged_files_are_made_again_and_remains_of_a_kill_removed(made, whole):
  (made / 'pets_c' / '.fog.npy.tmp').write_bytes(b'x')
  (made / 'pets_c' / 'brightness.npy').write_bytes(b'x')
  (made / 'pets_c' / 'labels.npy').unlink()
  run(made)
  assert hashes(made / 'pets_c') == hashes(whole / 'pets_c')


def change_manifest(data_dir: pathlib.Path, **changes) -> None:
  (data_dir / 'pets_c' / 'MANIFEST.json').write_text(json.dumps(manifest_of(data_dir) | changes))


def other_test_set(data_dir: pathlib.Path) -> None:
  shutil.rmtree(data_dir / 'pets')
  write_pets(data_dir, seed=1)


OTHERS = {
  'another seed': (lambda data_dir: change_manifest(data_dir, seed=7), 'seed = 7, and now it would be 0'),
  'another version': (
    lambda data_dir: change_manifest(data_dir, made_with={'adversarial_augment': '0.1.0', 'code_sha256': 'a'}),
    'made_with.corruptions = null, and now it would be "2"',
  ),
  'another test set': (other_test_set, 'test_set.sha256 = '),
  'another JAX': (
    lambda data_dir: change_manifest(data_dir, made_with=manifest_of(data_dir)['made_with'] | {'jax': '0.0.1'}),
    'made_with.jax = "0.0.1"',
  ),
  'no manifest': (lambda data_dir: (data_dir / 'pets_c' / 'MANIFEST.json').unlink(), 'no MANIFEST.json'),
  'a damaged manifest': (
    lambda data_dir: (data_dir / 'pets_c' / 'MANIFEST.json').write_text('{'),
    "MANIFEST.json' is damaged",
  ),
}


@pytest.mark.parametrize('change, said', OTHERS.values(), ids=OTHERS)
def test_another_set_is_there(made, change, said):
  change(made)
  before = hashes(made / 'pets_c')
  with refused(f'{said}.*--overwrite'):
    run(made, '--names=contrast')
  assert hashes(made / 'pets_c') == before
  run(made, '--names=contrast', '--overwrite')
  assert manifest_of(made)['files'].keys() == {'labels.npy', 'contrast.npy'}
  assert hashes(made / 'pets_c').keys() == {'MANIFEST.json', 'labels.npy', 'contrast.npy'}
  assert cifar10_c.open_set(made / 'pets_c', ['contrast'], load(made), verify=True).origin == 'generated'


def test_a_set_is_made_by_the_version_of_the_algorithm(made, capsys):
  """The release before named the hash of its code; the version of this package decides nothing."""
  now = manifest_of(made)['made_with']
  before = {'adversarial_augment': '0.0.1', 'code_sha256': manifests._CODE['corruptions'][metrics.CORRUPTIONS_VERSION]}
  change_manifest(made, made_with=now | before)
  run(made)
  assert '; 0 images written' in capsys.readouterr().out
  change_manifest(made, made_with=now | {'code_sha256': 'f' * 64})
  with refused('made_with.code_sha256 = "ffff'):
    run(made)


def test_frost_says_what_it_is_made_of(made, tmp_path):
  photographs = tmp_path / 'photographs'
  photographs.mkdir()
  for i, name in enumerate(('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')):
    Image.new('RGB', (300, 250), (40 * i, 90, 200)).save(photographs / name)
  run(made, '--names=frost')
  before = manifest_of(made)['files']
  assert before['frost.npy']['frost'] == corruptions.describe_frost()
  with refused(r'exists already, with frost = .*--overwrite'):
    run(made, '--names=frost', f'--frost={photographs}')
  run(made, '--names=frost', f'--frost={photographs}', '--overwrite')
  after = manifest_of(made)['files']
  assert after['frost.npy']['frost'] == corruptions.describe_frost(str(photographs))
  assert after.pop('frost.npy')['sha256'] != before.pop('frost.npy')['sha256']
  assert after == before
  opened = cifar10_c.open_set(made / 'pets_c', ['frost'], load(made), verify=True)
  assert opened.provenance['frost'] == corruptions.describe_frost(str(photographs))


def test_a_second_start_at_the_same_time_is_refused(made):
  said = rf"pets_c' is in use by process {os.getpid()} .*use another folder"
  with artifact.lock(made / 'pets_c'), refused(said):
    run(made)


@pytest.mark.parametrize('form', ['npy', 'array_record'])
def test_no_room_on_the_disk(data_dir, monkeypatch, form):
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 9, 1))
  with pytest.raises(StorageError, match='0 MB free, and .* MB may be needed'):
    run(data_dir, f'--format={form}')
  assert [path.name for path in data_dir.iterdir()] == ['pets']


def test_embedded(tmp_path):
  prepare.main(['cifar10_c', '--dataset=embedded', '--names=contrast', '--seed=5', f'--data_dir={tmp_path}'])
  test = datasets.load('embedded', 'test', str(tmp_path))
  found = cifar10_c.open_set(tmp_path / 'embedded_c', ['contrast'], test)
  assert len(np.load(tmp_path / 'embedded_c' / 'labels.npy')) == 5 * 2000
  assert found.provenance['seed'] == 5
  index = np.array([3, 1999])
  expected = corruptions.corrupt(test.read(index).images, 'contrast', 4, 5, index)
  np.testing.assert_array_equal(found.read('contrast', 4, index), expected)


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--names=fogg'], "'fogg'.*Did you mean 'fog'"),
    (['--names='], "Unknown corruption in --names ''"),
    (['--names=fog,,snow'], "Unknown corruption in --names ''"),
    (['--seed=-1'], '--seed=-1 must lie between 0 and'),
    (['--seed=2147483648'], '--seed=2147483648'),
    (['--seed=x'], '--seed'),
    (['--format=zip'], '--format'),
    (['--from='], '--from is empty'),
    (['--from=/missing'], "'/missing' does not exist"),
    (['--from=/tmp', '--seed=0'], 'have no meaning with --from'),
    (['--from=/tmp', '--frost=/tmp'], 'have no meaning with --from'),
    (['--dataset=dogs'], "No data set 'dogs'"),
    (['--data_dir='], "--data_dir=''"),
    (['--names=frost', '--frost=/missing'], '/missing'),
    (['--frost=/tmp'], '--frost is what frost is made of, which --names leaves out'),
  ],
)
def test_bad_flags(pets, flags, said):
  with refused(said):
    run(pets, *flags)
  assert [path.name for path in pets.iterdir()] == ['pets']


def test_images_of_other_sizes(tmp_path):
  write_pets(tmp_path, size=31)
  with refused(r"'pets' has images of 31x31 pixels, but the corruptions need 32"):
    run(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['pets']
  run(write_pets(tmp_path / 'larger', size=48), '--names=contrast')
  assert np.load(tmp_path / 'larger' / 'pets_c' / 'contrast.npy').shape == (5 * N, 48, 48, 3)


# TFDS's layout.


def record_of(data_dir: pathlib.Path, severity: int, name: str = 'brightness') -> pathlib.Path:
  return data_dir / 'pets_corrupted' / f'{name}_{severity}' / '1.0.0'


def test_tfds_layout(data_dir):
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
  assert json.loads((record_of(data_dir, 2) / 'provenance.json').read_text())['made']['seed'] == 0


def test_records_are_not_made_twice(data_dir, capsys):
  run(data_dir, *RECORDS)
  shutil.rmtree(record_of(data_dir, 4).parent)
  capsys.readouterr()
  run(data_dir, *RECORDS)
  assert '; 40 images written' in capsys.readouterr().out
  with refused(r"brightness_1/1.0.0' exists already, with seed = 0, .* 1; .*--overwrite"):
    run(data_dir, *RECORDS, '--seed=1')
  provenance = record_of(data_dir, 1) / 'provenance.json'
  provenance.write_text('{}')
  with refused(r"provenance.json' is damaged .*--overwrite"):
    run(data_dir, *RECORDS)
  provenance.unlink()
  with refused(r"brightness_1/1.0.0' has no provenance.json, as where TFDS .*--overwrite"):
    run(data_dir, *RECORDS)
  run(data_dir, *RECORDS, '--seed=1', '--overwrite')
  assert json.loads(provenance.read_text())['made']['seed'] == 1


def test_record_files_that_are_gone_or_cut_are_noticed_and_made_again(data_dir, capsys):
  run(data_dir, *RECORDS)
  cut, gone = (next(record_of(data_dir, severity).glob('*array_record*')) for severity in (2, 5))
  before = cut.read_bytes(), gone.read_bytes()
  cut.write_bytes(before[0][:-9])
  gone.unlink()
  for severity in (2, 5):
    with refused('damaged'):
      datasets.load(f'pets_corrupted/brightness_{severity}', 'test', str(data_dir))
  capsys.readouterr()
  run(data_dir, *RECORDS)
  assert '; 80 images written' in capsys.readouterr().out
  assert (cut.read_bytes(), gone.read_bytes()) == before


def test_tfds_reads_all_19_by_its_own_names(tmp_path):
  write_pets(tmp_path, 'cifar10')
  prepare.main(['cifar10_c', '--format=array_record', f'--data_dir={tmp_path}', '--names=glass_blur,elastic_transform'])
  made = {path.name for path in (tmp_path / 'cifar10_corrupted').iterdir()}
  assert made == {f'{name}_{s}' for name in ('frosted_glass_blur', 'elastic') for s in SEVERITIES}
  same = set(metrics.ALL_NAMES) - {'glass_blur', 'elastic_transform'}
  known = tfds.builder_cls('cifar10_corrupted').builder_configs.keys()
  assert made | {f'{name}_1' for name in same} < known
  source = tfds.data_source('cifar10_corrupted/elastic_2', split='test', data_dir=str(tmp_path))
  assert len(source) == N
  images, labels = datasets.load('cifar10', 'test', str(tmp_path)).read(np.arange(N))
  expected = corruptions.corrupt(images, 'elastic_transform', 2, 0)
  np.testing.assert_array_equal(source[17]['image'], expected[17])
  assert source[17]['label'] == labels[17]


def test_records_of_an_older_version_say_so(data_dir):
  run(data_dir, '--format=array_record', '--names=brightness,snow')
  for name, origin in (('brightness', 'generated'), ('snow', 'generated, version 1')):
    provenance = record_of(data_dir, 1, name) / 'provenance.json'
    content = json.loads(provenance.read_text())
    assert content['made']['made_with'].pop('corruptions') == metrics.CORRUPTIONS_VERSION
    provenance.write_text(json.dumps(content))
    assert datasets.load(f'pets_corrupted/{name}_1', 'test', str(data_dir)).provenance['origin'] == origin
  with refused('made_with.corruptions = null, and now it would be "2"'):
    run(data_dir, '--format=array_record', '--names=snow')


# Imports.


@pytest.mark.parametrize('form', ['folder', 'archive'])
@pytest.mark.parametrize('origin', ['official', 'unverified'])
def test_import(data_dir, handed_out, tmp_path, monkeypatch, form, origin):
  if origin == 'official':
    known = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in handed_out.glob('*.npy')}
    monkeypatch.setattr(cifar10_c, 'OFFICIAL_MD5', known)
  source = handed_out
  if form == 'archive':
    source = tmp_path / 'CIFAR-10-C.tar'
    with tarfile.open(source, 'w') as archive:
      archive.add(handed_out, 'CIFAR-10-C')
  run(data_dir, f'--from={source}')
  manifest = manifest_of(data_dir)
  assert (manifest['origin'], manifest['seed'], manifest['made_with']) == (origin, None, None)
  assert manifest['source'] == str(source)
  assert cifar10_c.open_set(data_dir / 'pets_c', NAMES, load(data_dir), verify=True).origin == origin
  for name in NAMES:
    assert (data_dir / 'pets_c' / f'{name}.npy').read_bytes() == (handed_out / f'{name}.npy').read_bytes()


def test_import_into_tfds_layout(data_dir, handed_out):
  run(data_dir, f'--from={handed_out}', '--format=array_record')
  dataset = datasets.load('pets_corrupted/gaussian_noise_5', 'test', str(data_dir))
  assert dataset.provenance['origin'] == 'unverified'
  expected = np.load(handed_out / 'gaussian_noise.npy')[4 * N :]
  np.testing.assert_array_equal(dataset.read(np.arange(N)).images, expected)


def test_import_of_a_generated_set_keeps_what_is_known_of_it(data_dir, whole):
  run(data_dir, f'--from={whole / "pets_c"}')
  assert manifest_of(data_dir) == manifest_of(whole) | {'source': str(whole / 'pets_c')}


@pytest.mark.parametrize('form', ['npy', 'array_record'])
def test_the_same_files_in_another_folder_are_the_same_set(data_dir, handed_out, tmp_path, capsys, form):
  flag = f'--format={form}'
  run(data_dir, f'--from={handed_out}', flag)
  moved = handed_out.rename(tmp_path / 'moved')
  capsys.readouterr()
  run(data_dir, f'--from={moved}', flag)
  assert '; 0 images written' in capsys.readouterr().out
  np.save(moved / 'brightness.npy', np.load(moved / 'brightness.npy')[::-1])
  with refused(r'exists already, with sha256 = .*--overwrite'):
    run(data_dir, f'--from={moved}', flag)


def test_a_bad_import_writes_nothing(data_dir, handed_out):
  np.save(handed_out / 'brightness.npy', np.load(handed_out / 'brightness.npy')[: 4 * N])
  for flags, said in (([], 'brightness.npy. has shape .160,'), (['--names=fog'], 'has no fog.npy')):
    with refused(said):
      run(data_dir, f'--from={handed_out}', *flags)
  assert [path.name for path in data_dir.iterdir()] == ['pets']


def test_a_set_is_not_imported_from_where_it_belongs(whole):
  before = hashes(whole / 'pets_c')
  with refused('nothing to import'):
    run(whole, f'--from={whole / "pets_c"}', '--overwrite')
  assert hashes(whole / 'pets_c') == before


def test_an_import_needs_no_jax(data_dir, handed_out):
  code = 'import sys; from adversarial_augment import prepare; prepare.main(sys.argv[1:]); print("jax" in sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', code, *command(data_dir, f'--from={handed_out}')], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == 'False'
