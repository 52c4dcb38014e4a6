"""Tests of reading and writing prepared data sets."""

import hashlib
import io
import json
import os
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from adversarial_augment import datasets
from adversarial_augment.datasets import records, source, writer
from adversarial_augment.errors import Interrupted, StorageError, UserError
from adversarial_augment.storage import artifact
from tests.described import described, refused

CLASSES = ('cat', 'dog', 'yak')


def random_examples(n: int, seed: int = 0, shape: tuple[int, ...] = (6, 5, 3)) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, *shape), np.uint8), rng.integers(0, 3, n).astype(np.int32)


def _describe(**changes) -> writer.Description:
  return writer.Description('pets', '1.0.0', 'Pets.', CLASSES, (6, 5, 3), 'own', 'ab' * 32)._replace(**changes)


def write(data_dir: pathlib.Path, overwrite: bool = False, n: int = 1203, **changes) -> pathlib.Path:
  splits = {
    name: writer.Split(size, zip(*random_examples(size, seed), strict=True))
    for name, size, seed in (('train', n, 1), ('test', 40, 2))
  }
  return writer.write(_describe(**changes), splits, data_dir, overwrite)


def png(image: np.ndarray, file_format: str = 'PNG') -> io.BytesIO:
  file = io.BytesIO()
  Image.fromarray(image).save(file, file_format)
  file.seek(0)
  return file


def tfds_write(
  data_dir: pathlib.Path, rows: list, features: dict, splits=('train',), file_format='array_record'
) -> None:
  """Writes a data set with TFDS alone."""
  folder = data_dir / 'pets' / '1.0.0'
  folder.mkdir(parents=True)
  identity = tfds.core.DatasetIdentity(
    name='pets', version=tfds.core.Version('1.0.0'), data_dir=str(folder), module_name='pets'
  )
  info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
  records = tfds.core.SequentialWriter(info, max_examples_per_shard=7, file_format=file_format)
  records.initialize_splits(list(splits))
  records.add_examples({splits[0]: rows})
  records.close_all()


def image_features(shape=(6, 5, 3), classes: int = 3) -> dict:
  return {'image': tfds.features.Image(shape=shape), 'label': tfds.features.ClassLabel(num_classes=classes)}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory) -> pathlib.Path:
  data_dir = tmp_path_factory.mktemp('prepared')
  write(data_dir)
  return data_dir


def test_round_trip(prepared):
  for split, n, seed in (('train', 1203, 1), ('test', 40, 2)):
    images, labels = random_examples(n, seed)
    dataset = datasets.load('pets', split, str(prepared))
    batch = dataset.read(np.arange(n))
    np.testing.assert_array_equal(batch.images, images)
    np.testing.assert_array_equal(batch.labels, labels)
    assert (batch.images.dtype, batch.labels.dtype) == (np.uint8, np.int32)
    assert dataset[:4] == ('pets', n, 3, (6, 5, 3))
    assert dataset.class_names == CLASSES
    np.testing.assert_array_equal(dataset.read(np.array([7, 2])).labels, labels[[7, 2]])
    assert dataset.provenance == {
      'name': 'pets:1.0.0',
      'split': split,
      'origin': 'own',
      'archive_sha256': 'ab' * 32,
      'sha256': hashlib.sha256(images.tobytes() + labels.astype('<i4').tobytes()).hexdigest(),
    }


def test_tfds_reads_what_we_write(prepared):
  builder = tfds.builder_from_directory(str(prepared / 'pets' / '1.0.0'))
  assert builder.info.features['label'].names == list(CLASSES)
  assert builder.info.supervised_keys == ('image', 'label')
  assert builder.info.splits['train'].num_examples == 1203
  example = builder.as_data_source(split='test')[3]
  images, labels = random_examples(40, 2)
  np.testing.assert_array_equal(example['image'], images[3])
  assert example['label'] == labels[3]


def test_remains_of_a_kill_are_removed_and_a_second_writer_is_refused(tmp_path):
  remains = tmp_path / '.incomplete-pets-1.0.0' / 'new'
  remains.mkdir(parents=True)
  (remains / 'pets-train.array_record-00000').write_bytes(b'x')
  with artifact.lock(remains.parent), pytest.raises(UserError, match='in use by process '):
    write(tmp_path)
  assert remains.exists()
  write(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['pets']


@pytest.mark.parametrize('encoding', ['PNG', 'JPEG'])
def test_reads_what_tfds_writes_in_several_files(tmp_path, encoding):
  images, labels = random_examples(20)
  rows = [{'image': png(images[i], encoding), 'label': int(labels[i]), 'note': 'x'} for i in range(20)]
  tfds_write(tmp_path, rows, image_features() | {'note': tfds.features.Text()})
  assert len(list((tmp_path / 'pets' / '1.0.0').glob('*array_record*'))) == 3
  dataset = datasets.load('pets:1.0.0', 'train', str(tmp_path))
  batch = dataset.read(np.arange(20))
  np.testing.assert_array_equal(batch.labels, labels)
  decoded = [np.asarray(Image.open(row['image'])) for row in rows]
  np.testing.assert_array_equal(batch.images, decoded)
  assert dataset.provenance['origin'] == 'unverified'
  assert dataset.provenance['archive_sha256'] is None  # there, and null in results
  assert dataset.class_names == ()  # they have numbers only


def test_newest_version_and_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  for version in ('1.0.0', '10.0.0', '9.0.0'):
    write(tmp_path / 'data', n=3, version=version)
  assert datasets.load('pets', 'train', '~/data').provenance['name'] == 'pets:10.0.0'
  assert datasets.load('pets:9.0.0', 'train', '~/data').provenance['name'] == 'pets:9.0.0'
  with pytest.raises(UserError, match='no version 2.0.0; it has: 1.0.0, 9.0.0, 10.0.0'):
    datasets.load('pets:2.0.0', 'train', '~/data')


MISSING = [
  ('cifar10', '/nowhere', 'train', r"'cifar10' under data_dir='/nowhere'.*not exist.*cifar10 --data_dir=/nowhere, or"),
  ('pts', None, 'train', "Did you mean 'pets'.*prepare images --name=pts"),
  ('pets', None, 'validation', "no split 'validation'; it has: test, train"),
  ('../pets', None, 'train', 'must look like'),
  ('', None, 'train', 'must look like'),
  ('cifar10', '~/tensorflow_datasets', 'train', 'prepare cifar10, or use'),
  ('dogs_corrupted/fog_1', '/a b', 'test', "cifar10_c --dataset=dogs --format=array_record '--data_dir=/a b'"),
  ('cifar10_1/v6', '/nowhere', 'test', 'prepare cifar10_1 --from=FOLDER --data_dir=/nowhere'),
  ('dogs/small', '/nowhere', 'train', "with tfds's download_and_prepare"),
]


@pytest.mark.parametrize('name, data_dir, split, said', MISSING)
def test_missing(prepared, name, data_dir, split, said):
  with pytest.raises(UserError, match=said) as caught, described():
    datasets.load(name, split, data_dir or str(prepared))
  assert not [
    words for words in ('\n', 'config.') if words in str(caught.value)
  ]  # flags of prepare have no such prefix


IMAGE, LABEL = image_features().values()
DEEP = tfds.features.Image(shape=(6, 5, 1), dtype=np.uint16)
UNUSABLE = [
  ('all must be uint8 RGB of one size', image_features((None, None, 3)), [(6, 5, 3), (6, 6, 3)]),
  ('all must be uint8 RGB of one size', image_features((None, None, 3)), [(6, 5), (6, 5)]),
  (r'shape \(6, 5, 1\) and type uint8', image_features((6, 5, 1)), [(6, 5)]),
  ('type uint16', {'image': DEEP, 'label': LABEL}, [(6, 5)]),
  ("no feature 'image'; it has: label, picture", {'picture': IMAGE, 'label': LABEL}, []),
  ('must be a ClassLabel', {'image': IMAGE, 'label': tfds.features.Scalar(np.int64)}, [(6, 5, 3)]),
  ("split 'train' is empty", image_features(), []),
]


@pytest.mark.parametrize('said, features, images', UNUSABLE)
def test_unusable_images(tmp_path, said, features, images):
  rows = [{'image': png(np.zeros(shape, np.uint8)), 'label': 0} for shape in images]
  tfds_write(tmp_path, rows, features)
  with refused(said):
    datasets.load('pets', 'train', str(tmp_path))


def test_labels_out_of_range(tmp_path):
  tfds_write(tmp_path, [{'image': png(np.zeros((6, 5, 3), np.uint8)), 'label': 9}], image_features(classes=10))
  path = tmp_path / 'pets' / '1.0.0' / 'features.json'
  path.write_text(path.read_text().replace('"10"', '"9"'))
  with pytest.raises(UserError, match=r'from 9 to 9, but they must lie in \[0, 8\]'):
    datasets.load('pets', 'train', str(tmp_path))


def test_tfrecord_is_refused(tmp_path):
  folder = write(tmp_path, n=3)
  path = folder / 'dataset_info.json'
  path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(UserError, match="stored as tfrecord.*file_format='array_record'"):
    datasets.load('pets', 'train', str(tmp_path))


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json', 'provenance.json'])
@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'\xff\xfe', b'{"a": 1}'])
def test_damaged_metadata(tmp_path, name, content):
  (write(tmp_path, n=3) / name).write_bytes(content)
  with refused('pets'):
    datasets.load('pets', 'train', str(tmp_path))


@pytest.mark.parametrize('with_provenance', [True, False])
def test_damaged_records_are_never_read_as_data(tmp_path, with_provenance):
  folder = write(tmp_path, n=50)
  if not with_provenance:
    (folder / source.PROVENANCE).unlink()
  path = next(folder.glob('*train*'))
  whole = path.read_bytes()
  used = np.flatnonzero(np.frombuffer(whole, np.uint8))  # the rest is padding
  expected = datasets.load('pets', 'train', str(tmp_path)).provenance['sha256']
  damaged = [whole[:0], whole[: used[len(used) // 2]], whole[: len(whole) // 2], whole[:-1], None]
  for position in np.random.default_rng(0).choice(used, 60):
    damaged.append(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
  messages = []
  for content in damaged:
    path.unlink(missing_ok=True)
    if content is not None:
      path.write_bytes(content)
    try:
      found = datasets.load('pets', 'train', str(tmp_path)).provenance['sha256']
    except UserError as error:
      messages.append(str(error))
    else:
      assert found == expected  # a bit that carries nothing
  assert len(messages) >= 0.9 * len(damaged)
  assert all("split 'train' are damaged" in message and '\n' not in message for message in messages)


def test_exchanged_records_are_noticed(tmp_path):
  """A whole file of another data set passes every check but that of the hash written beside it."""
  one, other = write(tmp_path / 'a', n=40), write(tmp_path / 'b', n=40)
  shutil.copy(next(one.glob('*test*')), next(other.glob('*train*')))
  with pytest.raises(UserError, match="split 'train' has SHA-256 .* but was prepared with"):
    datasets.load('pets', 'train', str(tmp_path / 'b'))


def test_existing_data_is_kept_unless_overwritten(tmp_path):
  folder = write(tmp_path, n=3)
  with pytest.raises(UserError, match='exists already'):
    write(tmp_path, n=4)
  assert datasets.load('pets', 'train', str(tmp_path)).num_examples == 3
  assert write(tmp_path, overwrite=True, n=4) == folder
  assert datasets.load('pets', 'train', str(tmp_path)).num_examples == 4
  assert [path.name for path in tmp_path.iterdir()] == ['pets']


def test_a_signal_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
  write(tmp_path, n=3)

  def read(shards):
    raise Interrupted('stopped by SIGTERM')

  monkeypatch.setattr(records, 'read', read)
  with pytest.raises(Interrupted):
    datasets.load('pets', 'train', str(tmp_path))


@pytest.mark.parametrize('existing', [False, True])
@pytest.mark.parametrize('error', [KeyboardInterrupt(), UserError('image 700')])
def test_interruption_leaves_nothing_half_made(tmp_path, existing, error):
  before = write(tmp_path, n=3) if existing else None

  def examples():
    yield from zip(*random_examples(700), strict=True)
    raise error

  split = {'train': writer.Split(1000, examples())}
  with pytest.raises(type(error)):
    writer.write(_describe(), split, tmp_path, overwrite=True)
  assert [path.name for path in tmp_path.iterdir()] == (['pets'] if before else [])
  assert not before or datasets.load('pets', 'train', str(tmp_path)).num_examples == 3


def test_full_disk_is_told_before_work(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  with pytest.raises(StorageError, match='0 MB free'):
    write(tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(StorageError, match='Cannot write under'):
    write(tmp_path / 'file')


def test_ids_are_those_of_tfds(tmp_path):
  write(tmp_path, n=3, has_ids=True)
  records = tfds.builder_from_directory(str(tmp_path / 'pets' / '1.0.0')).as_data_source(split='train')
  assert [record['id'] for record in records] == [b'train_00000', b'train_00001', b'train_00002']


def test_provenance_file(prepared):
  content = json.loads((prepared / 'pets' / '1.0.0' / 'provenance.json').read_text())
  assert content.keys() == {'origin', 'archive_sha256', 'sha256'}
  assert content['sha256'].keys() == {'train', 'test'}
  assert os.stat(prepared / 'pets' / '1.0.0').st_mode & 0o055  # others may read it
