"""Folders of data sets that are not what they say: nothing is imported, and nothing larger than it can be is read."""

import json
import pathlib
import sys

from array_record.python import array_record_module
import numpy as np
from PIL import EpsImagePlugin, Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from adversarial_augment import datasets
from adversarial_augment.datasets import cifar
from adversarial_augment.datasets import folder as image_folder
from adversarial_augment.datasets import records as records_module
from adversarial_augment.errors import UserError
from tests.datasets_source_test import image_features, png, random_examples, tfds_write, write
from tests.described import refused


def _rename_class(folder: pathlib.Path, place: str) -> None:
  path, name = folder / 'features.json', 'pets_payload.payload.Image'
  content = json.loads(path.read_text())
  features = content['featuresDict']['features']
  if place == 'the whole':
    content['pythonClassName'] = name
  elif place == 'an older spelling':
    del features['image']['pythonClassName']
    features['image']['python_class_name'] = name
  elif place == 'an older form':
    path.write_text(json.dumps({'type': name, 'content': {}}))
    return
  elif place == 'within a sequence':
    features['more'] = {
      'pythonClassName': 'tensorflow_datasets.core.features.sequence_feature.Sequence',
      'sequence': {'feature': {'pythonClassName': name, 'text': {}}},
    }
  else:
    features.setdefault(place, {'text': {}})['pythonClassName'] = name
  path.write_text(json.dumps(content))


@pytest.mark.parametrize(
  'place', ['image', 'label', 'more', 'the whole', 'within a sequence', 'an older spelling', 'an older form']
)
def test_no_class_that_a_data_set_names_is_imported(tmp_path, monkeypatch, place):
  folder = write(tmp_path, n=3)
  for code in (folder / 'pets_payload', tmp_path / 'pets_payload'):
    code.mkdir()
    (code / '__init__.py').write_text('')
    (code / 'payload.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
  monkeypatch.syspath_prepend(str(tmp_path))
  _rename_class(folder, place)
  with refused('pets_payload.payload.Image.* is not imported'):
    datasets.load('pets', 'train', str(tmp_path))
  assert not (tmp_path / 'ran').exists()
  assert 'pets_payload' not in sys.modules


def test_other_features_of_tfds_are_left_unread(tmp_path):
  images, labels = random_examples(3)
  features = image_features() | {
    'box': tfds.features.BBoxFeature(),
    'parts': {'names': tfds.features.Sequence(tfds.features.Text()), 'size': tfds.features.Scalar(np.int64)},
  }
  more = {'box': tfds.features.BBox(0.0, 0.0, 1.0, 1.0), 'parts': {'names': ['a'], 'size': 3}}
  tfds_write(tmp_path, [{'image': png(images[i]), 'label': labels[i]} | more for i in range(3)], features)
  np.testing.assert_array_equal(datasets.load('pets', 'train', str(tmp_path)).read(np.arange(3)).images, images)


def test_cifar100_as_tfds_itself_writes_it(tmp_path):
  features = tfds.builder('cifar100', data_dir=str(tmp_path / 'none')).info.features
  features['label'].names = names = cifar.PUBLISHED['cifar100'].class_names  # TFDS reads them from the archive
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  rows = [
    {'image': png(images[i]), 'label': label, 'coarse_label': i, 'id': f'train_{i:05d}'}
    for i, label in enumerate((99, 0, 42))
  ]
  tfds_write(tmp_path, rows, dict(features.items()))
  dataset = datasets.load('pets', 'train', str(tmp_path))
  batch = dataset.read(np.arange(3))
  np.testing.assert_array_equal(batch.images, images)
  assert batch.labels.tolist() == [99, 0, 42]
  assert dataset.class_names == names


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda split: split.update(filepathTemplate='../../{DATASET}'), 'the name of a file'),
    (lambda split: split.update(filepathTemplate='/etc/passwd'), 'the name of a file'),
    (lambda split: split.update(filepathTemplate='{DATASET.__class__}'), 'the name of a file'),
    (lambda split: split.update(filepathTemplate='{SPLIT:>9999999999}'), 'the name of a file'),
    (lambda split: split.update(shardLengths=['9' * 12]), 'damaged'),
    (lambda split: split.update(shardLengths=['-3', '6']), 'a file of -3'),
    (lambda split: split.update(shardLengths=['2']), '3 records, not 2'),
    (lambda split: split.update(shardLengths='3'), 'is not a list'),
    (lambda split: split.update(name='a\nb'), 'the name of a split'),
  ],
)
def test_splits_that_are_not_what_they_say(tmp_path, change, said):
  path = write(tmp_path, n=3) / 'dataset_info.json'
  content = json.loads(path.read_text())
  for split in content['splits']:
    change(split)
  path.write_text(json.dumps(content))
  with refused(said):
    datasets.load('pets', 'train', str(tmp_path))


@pytest.mark.parametrize('names', ['cat\ndog\n', 'cat\ndog\ncat\n', 'cat\ndog\n\x1b[2J\n', 'a\n' * 10**6])
def test_names_of_classes_that_are_not_those_of_the_labels(tmp_path, names):
  (write(tmp_path, n=3) / 'label.labels.txt').write_text(names)
  with pytest.raises(UserError, match='label.labels.txt does not have 3 names'):
    datasets.load('pets', 'train', str(tmp_path))


def _one_record(folder: pathlib.Path, record: bytes) -> None:
  path = next(folder.glob('*train*'))
  records = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  records.write(record)
  records.close()


@pytest.mark.parametrize('size', [17 << 20, 200 << 20])
def test_a_record_that_unpacks_to_much_is_not_unpacked(tmp_path, size):
  folder = write(tmp_path, n=1)
  _one_record(folder, bytes(size))
  assert next(folder.glob('*train*')).stat().st_size <= 1 << 18
  with pytest.raises(UserError, match=r'unpacks to [0-9,]+ bytes or more'):
    datasets.load('pets', 'train', str(tmp_path))


@pytest.mark.parametrize('sizes', [[7] * 3, [1] * 70_000, [70_000, 1, 131_072, 65_535, 65_496, 65_472]])
def test_parts_of_record_files_are_found_wherever_blocks_begin(tmp_path, sizes):
  path = tmp_path / 'records'
  rng = np.random.default_rng(0)
  for options in ('group_size:1', 'group_size:1,uncompressed', 'group_size:1,pad_to_block_boundary:true'):
    if 'pad' in options and len(sizes) > 100:
      continue
    records = array_record_module.ArrayRecordWriter(str(path), options)
    for size in sizes:
      records.write(rng.bytes(size))
    records.close()
    records_module._check_sizes(path, len(sizes))


def test_an_image_of_another_format_is_not_opened(tmp_path, monkeypatch):
  """Pillow opens PostScript with another program."""
  folder = write(tmp_path, n=1)
  picture = png(np.zeros((6, 5, 3), np.uint8), 'EPS').getvalue()
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_: pytest.fail('it was run'))
  example = tf_example_pb2.Example()
  example.features.feature['image'].bytes_list.value.append(picture)
  example.features.feature['label'].int64_list.value.append(0)
  _one_record(folder, example.SerializeToString())
  with pytest.raises(UserError, match='damaged'):
    datasets.load('pets', 'train', str(tmp_path))


def test_a_picture_of_another_format_is_not_opened(tmp_path, monkeypatch):
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_: pytest.fail('it was run'))
  Image.new('RGB', (9, 9)).save(tmp_path / 'a.png', 'EPS')
  with pytest.raises(UserError, match='cannot be read as an image'):
    image_folder.read_image(tmp_path / 'a.png', 8)


@pytest.mark.parametrize('file_format', ['PNG', 'JPEG', 'MPO', 'BMP', 'WEBP', 'GIF'])
def test_pictures_are_read_whatever_their_suffix(tmp_path, file_format):
  Image.new('RGB', (9, 9), (250, 250, 250)).save(tmp_path / 'a.png', file_format)
  np.testing.assert_allclose(image_folder.read_image(tmp_path / 'a.png', 8), 250, atol=3)
