"""Tests of the command line that puts data in place."""

import http.server
import json
import pathlib
import subprocess
import sys
import tarfile
import threading

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from adversarial_augment import datasets, prepare
from adversarial_augment.datasets import cifar
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact

COUNTS = {'train': 100, 'test': 20}


@pytest.fixture
def small(monkeypatch) -> None:
  """A CIFAR-10 of 120 images."""
  monkeypatch.setattr(cifar, 'COUNTS', COUNTS)


def _read(archive: pathlib.Path) -> cifar.Source:
  return cifar.read(archive, cifar.PUBLISHED['cifar10'], COUNTS)


@pytest.fixture
def archive(tmp_path) -> pathlib.Path:
  """The binary archive of such a CIFAR-10."""
  rng = np.random.default_rng(0)
  folder = tmp_path / 'cifar-10-batches-bin'
  folder.mkdir()
  for name in ('data_batch_1', 'data_batch_2', 'data_batch_3', 'data_batch_4', 'data_batch_5', 'test_batch'):
    records = rng.integers(0, 256, (20, 3073), np.uint8)
    records[:, 0] = np.arange(20) % 10
    (folder / f'{name}.bin').write_bytes(records.tobytes())
  with tarfile.open(tmp_path / 'archive.tar.gz', 'w:gz') as file:
    file.add(folder, folder.name)
  return tmp_path / 'archive.tar.gz'


def test_cifar10_from_an_archive(tmp_path, small, archive, capsys):
  prepare.main(['cifar10', f'--from={archive}', f'--data_dir={tmp_path / "data"}'])
  said = capsys.readouterr().out
  assert '100 train, 20 test images, 10 classes, origin unverified' in said
  assert f'--config.dataset=cifar10 --config.data_dir={tmp_path / "data"}' in said
  expected = _read(archive)
  for split, batch in expected.splits.items():
    dataset = datasets.load('cifar10', split, str(tmp_path / 'data'))
    found = dataset.read(np.arange(dataset.num_examples))
    np.testing.assert_array_equal(found.images, batch.images)
    np.testing.assert_array_equal(found.labels, batch.labels)
    assert dataset.provenance['origin'] == 'unverified'
    assert dataset.provenance['archive_sha256'] == artifact.sha256_of(archive)


def test_tfds_reads_it_as_its_own_cifar10(tmp_path, small, archive):
  prepare.main(['cifar10', f'--from={archive}', f'--data_dir={tmp_path / "data"}'])
  found = tfds.data_source('cifar10', data_dir=str(tmp_path / 'data'))
  assert {split: len(source) for split, source in found.items()} == COUNTS
  example = found['test'][7]
  assert example.keys() == {'id', 'image', 'label'}
  assert example['id'] == b'test_00007'
  np.testing.assert_array_equal(example['image'], _read(archive).splits['test'].images[7])
  folder = tmp_path / 'data' / 'cifar10' / '3.0.2'
  published = tfds.builder('cifar10', data_dir=str(tmp_path / 'none')).info
  names = tfds.builder_from_directory(str(folder)).info.features['label'].names
  assert published.features['label'].num_classes == len(names)
  assert names[:3] == ['airplane', 'automobile', 'bird']
  assert json.loads((folder / 'dataset_info.json').read_text())['version'] == str(published.version)


def test_cifar10_is_downloaded_once(tmp_path, small, archive, monkeypatch):
  asked = []

  class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments):
      super().__init__(*arguments, directory=str(tmp_path))

    def log_message(self, *_):
      asked.append(self.path)

  known = {'archive_sha256': artifact.sha256_of(archive), 'archive_bytes': archive.stat().st_size}
  monkeypatch.setitem(cifar.PUBLISHED, 'cifar10', cifar.PUBLISHED['cifar10']._replace(**known))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    command = [
      'cifar10',
      f'--data_dir={tmp_path / "data"}',
      f'--url=http://127.0.0.1:{server.server_port}/archive.tar.gz',
      '--overwrite',
    ]
    prepare.main(command)
    prepare.main(command)
    server.shutdown()
    thread.join()
  assert asked == ['/archive.tar.gz']
  dataset = datasets.load('cifar10', 'train', str(tmp_path / 'data'))
  assert dataset.provenance['origin'] == 'official'


def test_a_bad_address_or_a_folder_in_place_of_the_archive(tmp_path):
  with pytest.raises(UserError, match='cannot be downloaded'):
    prepare.main(['cifar10', f'--data_dir={tmp_path}', '--url=file:///etc/hostname'])
  (tmp_path / 'downloads' / 'cifar-10-binary.tar.gz').mkdir()
  with pytest.raises(UserError, match='is a folder'):
    prepare.main(['cifar10', f'--data_dir={tmp_path}'])


def _pets(root: pathlib.Path, count: int = 10) -> pathlib.Path:
  for label, colour in enumerate(('red', 'blue')):
    for i in range(count):
      path = root / colour / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (20 + i, 30), (i, 100 * label, 255)).save(path)
  return root


def test_images_by_class(tmp_path, capsys):
  root = _pets(tmp_path / 'photos')
  (root / 'red' / 'list.txt').write_text('x')
  (root / 'red' / 'gone.png').symlink_to(tmp_path / 'nothing')
  prepare.main(
    ['images', '--name=pets', f'--from={root}', '--size=16', '--test_fraction=0.3', f'--data_dir={tmp_path / "data"}']
  )
  said = capsys.readouterr().out
  assert 'Ignored 1 files' in said
  assert f"Ignored 1 links to nothing, such as '{root}/red/gone.png'." in said
  assert '14 train, 6 test images, 2 classes, origin own' in said
  dataset = datasets.load('pets', 'train', str(tmp_path / 'data'))
  assert dataset[:4] == ('pets', 14, 2, (16, 16, 3))
  batch = dataset.read(np.arange(14))
  np.testing.assert_array_equal(batch.labels == 0, batch.images[:, 0, 0, 1] == 100)  # blue comes first
  names = tfds.builder_from_directory(str(tmp_path / 'data' / 'pets' / '1.0.0')).info.features['label'].names
  assert names == ['blue', 'red']


def test_damaged_image_leaves_no_data_set(tmp_path):
  root = _pets(tmp_path / 'photos')
  (root / 'red' / '3.png').write_bytes(b'x')
  with pytest.raises(UserError, match='3.png'):
    prepare.main(['images', '--name=pets', f'--from={root}', f'--data_dir={tmp_path / "data"}'])
  assert not list((tmp_path / 'data').iterdir())


@pytest.mark.parametrize(
  'flags, said',
  [
    ([], 'COMMAND'),
    (['cifar11'], 'cifar11'),
    (['cifar10', '--form=x'], 'unrecognized arguments: --form=x'),
    (['cifar10', '--from=/missing', '--data_dir={tmp}'], "'/missing' does not exist"),
    (['images', '--from={tmp}'], 'required: --name'),
    (['images', '--name=Pets', '--from={tmp}'], "--name='Pets'"),
    (['images', '--name=cifar10', '--from={tmp}'], "--name='cifar10'"),
    (['images', '--name=embedded', '--from={tmp}'], "--name='embedded'"),
    (['images', '--name=../up', '--from={tmp}'], "--name='../up'"),
    (['cifar10', '--from=/dev/null', '--data_dir={tmp}'], "'/dev/null' is neither a file nor a folder"),
    (['cifar10', '--from=', '--data_dir={tmp}'], '--from is empty'),
    (['cifar10', '--from=' + 300 * 'a', '--data_dir={tmp}'], 'File name too long'),
    (['cifar10', '--from=~nouser/x', '--data_dir={tmp}'], '--from='),
    (['cifar10', '--data_dir=~nouser'], '--data_dir='),
    (['cifar10', '--data_dir='], "--data_dir=''"),
    (['images', '--name=pets', '--from={tmp}', '--data_dir=~nouser'], '--data_dir='),
    (['images', '--name=pets', '--from={tmp}', '--data_dir=a\nb'], '--data_dir='),
    (['images', '--name=pets', '--from='], '--from is empty'),
    (['images', '--name=pets', '--from=~nouser'], '--from='),
    (['images', '--name=pets', '--from=' + 300 * 'a'], 'File name too long'),
    (['images', '--name=' + 101 * 'a', '--from={tmp}'], 'at most 100'),
    (['images', '--name=' + 300 * 'a', '--from={tmp}'], 'at most 100'),
    (['images', '--name=pets', '--from={tmp}', '--size=15'], '--size=15'),
    (['images', '--name=pets', '--from={tmp}', '--size=513'], '--size=513'),
    (['images', '--name=pets', '--from={tmp}', '--size=x'], '--size'),
    (['images', '--name=pets', '--from={tmp}', '--seed=-1'], '--seed=-1'),
    (['images', '--name=pets', '--from={tmp}', '--test_fraction=1'], 'test_fraction=1.0'),
    (['images', '--name=pets', '--from={tmp}/missing'], 'is not a folder'),
    (['images', '--name=pets', '--from={tmp}'], 'has no folders'),
  ],
)
def test_bad_flags(tmp_path, flags, said):
  with pytest.raises(UserError) as caught:
    prepare.main([flag.format(tmp=tmp_path) for flag in flags])
  assert said in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_test_fraction_and_test_folder_exclude_each_other(tmp_path):
  _pets(tmp_path / 'train')
  _pets(tmp_path / 'test')
  with pytest.raises(UserError, match='test_fraction=0.5'):
    prepare.main(['images', '--name=pets', f'--from={tmp_path}', '--test_fraction=0.5', f'--data_dir={tmp_path}'])


def _run(*flags: str) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, '-m', 'adversarial_augment.prepare', *flags], capture_output=True, text=True)


def test_command_line():
  wrong = _run('images', '--name=Pets', '--from=x')
  assert wrong.returncode == 2
  assert wrong.stdout == ''
  assert len(wrong.stderr.splitlines()) == 1
  assert wrong.stderr.startswith("prepare: --name='Pets'")
  assert 'Traceback' in _run('images', '--name=Pets', '--from=x', '--debug').stderr
  helped = _run('images', '--help')
  assert helped.returncode == 0
  assert '--test_fraction' in helped.stdout
