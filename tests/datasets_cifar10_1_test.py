"""Tests of importing CIFAR-10.1, on files of the right shape with other images."""

import hashlib
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from adversarial_augment import datasets, prepare
from adversarial_augment.datasets import cifar10_1
from adversarial_augment.errors import UserError
from tests.described import refused

COUNTS = {'v4': 2021, 'v6': 2000}


def arrays(version: str) -> tuple[np.ndarray, np.ndarray]:
  n = COUNTS[version]
  images = np.zeros((n, 32, 32, 3), np.uint8)
  images[:, :8, :8] = np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3))
  return images, np.sort(np.arange(n) % 10).astype(np.int32)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """The four files, as `datasets/` of the authors' repository has them."""
  root = tmp_path / 'files'
  root.mkdir()
  for version in COUNTS:
    images, labels = arrays(version)
    np.save(root / f'cifar10.1_{version}_data.npy', images)
    np.save(root / f'cifar10.1_{version}_labels.npy', labels)
  return root


def sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def test_both_versions_are_imported_and_read(tmp_path, folder, capsys):
  data_dir = tmp_path / 'data'
  prepare.main(['cifar10_1', f'--from={folder}', f'--data_dir={data_dir}'])
  said = capsys.readouterr().out
  assert '2,021 test images, 10 classes, origin unverified' in said
  assert '2,000 test images, 10 classes, origin unverified' in said
  for version, n in COUNTS.items():
    dataset = datasets.load(f'cifar10_1/{version}', 'test', str(data_dir))
    assert dataset[1:4] == (n, 10, (32, 32, 3))
    images, labels = arrays(version)
    found = dataset.read(np.arange(n))
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
    assert dataset.provenance['origin'] == 'unverified'
    assert dataset.provenance['archive_sha256'] == sha256(folder / f'cifar10.1_{version}_data.npy')


def test_tfds_reads_it_as_its_own_cifar10_1(tmp_path, folder):
  prepare.main(['cifar10_1', f'--from={folder}', f'--data_dir={tmp_path / "data"}'])
  for version, n in COUNTS.items():
    source = tfds.data_source(f'cifar10_1/{version}', split='test', data_dir=str(tmp_path / 'data'))
    assert len(source) == n
    images, labels = arrays(version)
    np.testing.assert_array_equal(source[1234]['image'], images[1234])
    assert source[1234]['label'] == labels[1234]
    published = tfds.builder(f'cifar10_1/{version}', data_dir=str(tmp_path / 'none')).info
    info = json.loads((tmp_path / 'data' / 'cifar10_1' / version / '1.1.0' / 'dataset_info.json').read_text())
    assert info['version'] == str(published.version)
    assert info['configName'] == version


def test_hashes_decide_what_is_official(tmp_path, folder, monkeypatch):
  known = {path.name: sha256(path) for path in folder.iterdir()}
  known['cifar10.1_v4_labels.npy'] = '0' * 64
  monkeypatch.setattr(cifar10_1, 'SHA256', known)
  prepare.main(['cifar10_1', f'--from={folder}', f'--data_dir={tmp_path / "data"}'])
  for version, origin in (('v4', 'unverified'), ('v6', 'official')):
    dataset = datasets.load(f'cifar10_1/{version}', 'test', str(tmp_path / 'data'))
    assert dataset.provenance['origin'] == origin


def test_hashes_are_those_that_tfds_lists():
  listed = (pathlib.Path(tfds.__file__).parent / 'url_checksums' / 'cifar10_1.txt').read_text().splitlines()
  rows = [line.split('\t') for line in listed]
  assert {row[3]: row[2] for row in rows} == cifar10_1.SHA256


def test_an_imported_set_is_not_replaced_unasked(tmp_path, folder):
  command = ['cifar10_1', f'--from={folder}', f'--data_dir={tmp_path / "data"}']
  prepare.main(command)
  with pytest.raises(UserError, match=r"v6/1.1.0' exists already"):
    prepare.main(command)
  prepare.main([*command, '--overwrite'])
  assert datasets.load('cifar10_1/v6', 'test', str(tmp_path / 'data')).num_examples == 2000


def saved(name: str, array: np.ndarray):
  return lambda folder: np.save(folder / f'cifar10.1_{name}.npy', array, allow_pickle=True)


def cut(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[:999])


V6_IMAGES, V6_LABELS = arrays('v6')
UNBALANCED = np.concatenate([[1], V6_LABELS[1:]])
FAULTS = {
  'no file': (lambda folder: (folder / 'cifar10.1_v4_labels.npy').unlink(), 'v4_labels.npy.*github.com/modestyachts'),
  'v4 for v6': (saved('v6_data', arrays('v4')[0]), r'v6_data.npy.*\[2000, 32, 32, 3\]'),
  'v6 for v4': (saved('v4_data', V6_IMAGES), r'v4_data.npy.*\[2021, 32, 32, 3\]'),
  'channels first': (saved('v6_data', V6_IMAGES.transpose(0, 3, 1, 2).copy()), r'\[2000, 3, 32, 32\].*get the file'),
  'floats': (saved('v6_data', V6_IMAGES / np.float32(255)), 'float32.*must be uint8'),
  'one label less': (saved('v6_labels', V6_LABELS[1:]), r'\[1999\].*must be integers \[2000\]'),
  'labels from 1': (saved('v6_labels', V6_LABELS + 1), r'from 1 to 10.*\[0, 9\]'),
  'float labels': (saved('v6_labels', V6_LABELS.astype(float)), 'float64.*must be integers'),
  'unbalanced': (saved('v6_labels', UNBALANCED), '199, 201.*200 of each'),
  'pickled': (saved('v6_labels', V6_LABELS.astype(object)), 'v6_labels.npy.*pickled Python objects'),
  'half written': (lambda folder: cut(folder / 'cifar10.1_v6_data.npy'), 'has 999 bytes.*get or make it again'),
  'no folder': (lambda folder: folder.rename(folder.with_name('elsewhere')), 'does not exist.*give the folder'),
}


@pytest.mark.parametrize('change, said', FAULTS.values(), ids=FAULTS)
def test_refused(tmp_path, folder, change, said):
  change(folder)
  with refused(said):
    prepare.main(['cifar10_1', f'--from={folder}', f'--data_dir={tmp_path / "data"}'])
  assert not (tmp_path / 'data').exists()


def test_the_folder_must_be_named(tmp_path):
  with pytest.raises(UserError, match='--from'):
    prepare.main(['cifar10_1', f'--data_dir={tmp_path}'])
