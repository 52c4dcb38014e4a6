"""Tests of `prepare cifar10_c`: what it writes, that it goes on where it was stopped, and what it refuses."""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from adversarial_augment import corruptions, datasets, metrics, prepare
from adversarial_augment.cli import progress
from adversarial_augment.datasets import cifar10_c, made_with
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.storage import artifact, kills
from tests.corrupted_pets import NAMES, N, command, copy, hashes, load, manifest_of, run, write_pets


def test_files_hold_what_corrupt_gives(whole):
  folder, test = whole / 'pets_c', load(whole)
  images, labels = test.read(np.arange(N))
  assert np.load(folder / 'labels.npy').tolist() == 5 * labels.tolist()
  for name in NAMES:
    found = np.load(folder / f'{name}.npy')
    assert found.dtype == np.uint8
    expected = [corruptions.corrupt(images, name, severity, 0) for severity in (1, 2, 3, 4, 5)]
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_manifest(whole):
  manifest, test = manifest_of(whole), load(whole)
  for name, entry in manifest['files'].items():
    content = (whole / 'pets_c' / name).read_bytes()
    constants = {'brightness.npy': [0.05, 0.1, 0.15, 0.2, 0.3], 'gaussian_noise.npy': [0.04, 0.06, 0.08, 0.09, 0.1]}
    noted = {'constants': constants[name]} if name in constants else {}
    assert entry == {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()} | noted
  assert manifest['files'].keys() == {'labels.npy', 'brightness.npy', 'gaussian_noise.npy'}
  assert manifest['test_set'] == test.provenance
  assert (manifest['origin'], manifest['seed'], manifest['num_images'], manifest['source']) == ('generated', 0, N, None)
  assert manifest['made_with'].keys() == {
    'adversarial_augment', 'corruptions', 'jax', 'numpy', 'scipy', 'pillow'
  }  # fmt: skip
  opened = cifar10_c.open_set(whole / 'pets_c', NAMES, test, verify=True)
  assert opened.origin == 'generated'
  assert opened.provenance['seed'] == 0
  assert opened.provenance['made_with'] == manifest['made_with']


def test_it_says_what_it_did_and_a_second_start_makes_nothing(whole, tmp_path, capsys):
  data_dir = copy(whole, tmp_path / 'data')
  before = {path: path.stat().st_mtime_ns for path in (data_dir / 'pets_c').glob('*.npy')}
  run(data_dir)
  said = capsys.readouterr().out
  assert 'has 2 corruptions at 5 severities of 40 images, origin generated; 0 images written' in said
  assert '--config.evals' not in said  # an evaluation needs all 15
  assert {path: path.stat().st_mtime_ns for path in before} == before


def test_names_one_after_the_other_give_the_same_set(pets, whole, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  for name in NAMES:
    run(data_dir, f'--names={name}')
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


@pytest.mark.parametrize('point', ['before_rename@brightness', 'after_rename@labels', 'after_rename@brightness'])
def test_killed_and_started_again(pets, whole, tmp_path, point):
  data_dir = copy(pets, tmp_path / 'data')
  killed = subprocess.run(
    [sys.executable, '-m', 'adversarial_augment.prepare', *command(data_dir)],
    env=os.environ | {kills.CRASH_VARIABLE: f'{point}.npy'},
    capture_output=True,
  )
  assert killed.returncode == -signal.SIGKILL
  folder = data_dir / 'pets_c'
  assert hashes(folder) != hashes(whole / 'pets_c')
  with pytest.raises(UserError, match=r'has no|is not listed'):
    cifar10_c.open_set(folder, NAMES, load(data_dir))
  run(data_dir)
  assert hashes(folder) == hashes(whole / 'pets_c')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_started_again(pets, whole, tmp_path, number):
  data_dir = copy(pets, tmp_path / 'data')
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
  kept = f"the corruptions that are whole are kept in '{data_dir}'"
  assert said == [f'stopped by {number.name}: {kept}; run the same command again to resume.']
  run(data_dir)
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


def test_a_log_gets_lines_of_progress(pets, tmp_path, monkeypatch, capsys):
  data_dir = copy(pets, tmp_path / 'data')
  monkeypatch.setattr(progress, '_SECONDS', 0)
  run(data_dir)
  said = capsys.readouterr().err.splitlines()
  assert [line.partition(' images ')[0] for line in said] == [
    f'  {name} {severity}: {N * (5 * i + severity)} of {10 * N}'
    for i, name in enumerate(NAMES)
    for severity in (1, 2, 3, 4, 5)
  ]


def test_an_error_midway_leaves_no_part_of_a_file(pets, whole, tmp_path, monkeypatch):
  data_dir, calls = copy(pets, tmp_path / 'data'), []
  corrupt = corruptions.corrupt

  def fail(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 8:
      raise KeyboardInterrupt
    return corrupt(*arguments, **options)

  monkeypatch.setattr(corruptions, 'corrupt', fail)
  with pytest.raises(KeyboardInterrupt):
    run(data_dir)
  done = hashes(data_dir / 'pets_c')
  assert done.keys() == {'MANIFEST.json', 'labels.npy', 'brightness.npy'}
  monkeypatch.undo()
  monkeypatch.setattr(corruptions, 'corrupt', lambda *a, **o: (calls.append(a), corrupt(*a, **o))[1])
  calls.clear()
  run(data_dir)
  assert {name for _, name, *_ in calls} == {'gaussian_noise'}
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


def test_remains_of_a_kill_are_removed(whole, tmp_path):
  data_dir = copy(whole, tmp_path / 'data')
  (data_dir / 'pets_c' / '.fog.npy.tmp').write_bytes(b'x')
  run(data_dir)
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


def test_a_damaged_file_is_made_again(whole, tmp_path):
  data_dir = copy(whole, tmp_path / 'data')
  (data_dir / 'pets_c' / 'brightness.npy').write_bytes(b'x')
  (data_dir / 'pets_c' / 'labels.npy').unlink()
  run(data_dir)
  assert hashes(data_dir / 'pets_c') == hashes(whole / 'pets_c')


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
def test_another_set_is_there(whole, tmp_path, change, said):
  data_dir = copy(whole, tmp_path / 'data')
  change(data_dir)
  before = hashes(data_dir / 'pets_c')
  with pytest.raises(UserError) as caught:
    run(data_dir, '--names=contrast')
  assert said in str(caught.value)
  assert '--overwrite' in str(caught.value)
  assert '\n' not in str(caught.value)
  assert hashes(data_dir / 'pets_c') == before
  run(data_dir, '--names=contrast', '--overwrite')
  assert manifest_of(data_dir)['files'].keys() == {'labels.npy', 'contrast.npy'}
  assert hashes(data_dir / 'pets_c').keys() == {'MANIFEST.json', 'labels.npy', 'contrast.npy'}
  assert cifar10_c.open_set(data_dir / 'pets_c', ['contrast'], load(data_dir), verify=True).origin == 'generated'


def test_a_set_is_made_by_the_version_of_the_algorithm(whole, tmp_path, capsys):
  """The release before named the hash of its code; the version of this package decides nothing."""
  data_dir = copy(whole, tmp_path / 'data')
  now = manifest_of(data_dir)['made_with']
  before = {'adversarial_augment': '0.0.1', 'code_sha256': made_with._CODE['corruptions'][metrics.CORRUPTIONS_VERSION]}
  change_manifest(data_dir, made_with=now | before)
  run(data_dir)
  assert '; 0 images written' in capsys.readouterr().out
  change_manifest(data_dir, made_with=now | {'code_sha256': 'f' * 64})
  with pytest.raises(UserError, match='made_with.code_sha256 = "ffff'):
    run(data_dir)


def frost_photographs(folder: pathlib.Path) -> pathlib.Path:
  folder.mkdir()
  for i, name in enumerate(('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')):
    Image.new('RGB', (300, 250), (40 * i, 90, 200)).save(folder / name)
  return folder


def test_frost_says_what_it_is_made_of(whole, tmp_path):
  data_dir, photographs = copy(whole, tmp_path / 'data'), frost_photographs(tmp_path / 'photographs')
  run(data_dir, '--names=frost')
  before = manifest_of(data_dir)['files']
  assert before['frost.npy']['frost'] == corruptions.describe_frost()
  with pytest.raises(UserError, match=r'exists already, with frost = .*--overwrite'):
    run(data_dir, '--names=frost', f'--frost={photographs}')
  run(data_dir, '--names=frost', f'--frost={photographs}', '--overwrite')
  after = manifest_of(data_dir)['files']
  assert after['frost.npy']['frost'] == corruptions.describe_frost(str(photographs))
  assert after['frost.npy']['sha256'] != before['frost.npy']['sha256']
  assert {name: after[name] for name in before if name != 'frost.npy'} == {
    name: before[name] for name in before if name != 'frost.npy'
  }
  opened = cifar10_c.open_set(data_dir / 'pets_c', ['frost'], load(data_dir), verify=True)
  assert opened.provenance['frost'] == after['frost.npy']['frost']


def test_a_second_start_at_the_same_time_is_refused(whole, tmp_path):
  data_dir = copy(whole, tmp_path / 'data')
  with (
    artifact.lock(data_dir / 'pets_c'),
    pytest.raises(UserError, match=rf"pets_c' is in use by process {os.getpid()} .*use another folder"),
  ):
    run(data_dir)


@pytest.mark.parametrize('form', ['npy', 'array_record'])
def test_no_room_on_the_disk(pets, tmp_path, monkeypatch, form):
  data_dir = copy(pets, tmp_path / 'data')
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
  with pytest.raises(UserError, match=said) as caught:
    run(pets, *flags)
  assert '\n' not in str(caught.value)
  assert [path.name for path in pets.iterdir()] == ['pets']


def test_images_that_are_too_small(tmp_path):
  write_pets(tmp_path, size=31)
  with pytest.raises(UserError, match=r"'pets' has images of 31x31 pixels, but the corruptions need 32"):
    run(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['pets']


def test_larger_images(tmp_path):
  write_pets(tmp_path, size=48)
  run(tmp_path, '--names=contrast')
  assert np.load(tmp_path / 'pets_c' / 'contrast.npy').shape == (5 * N, 48, 48, 3)


def test_command_line(pets):
  wrong = subprocess.run(
    [sys.executable, '-m', 'adversarial_augment.prepare', *command(pets, '--names=fogg')],
    capture_output=True,
    text=True,
  )
  assert wrong.returncode == 2
  assert wrong.stdout == ''
  assert len(wrong.stderr.splitlines()) == 1
  assert wrong.stderr.startswith("prepare: Unknown corruption in --names 'fogg'")
