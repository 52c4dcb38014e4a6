"""Tests of the embedded data set and of the photographs it is made from."""

import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.datasets import load_digits

from adversarial_augment import datasets
from adversarial_augment.datasets import embedded, photographs
from tests.described import refused


@pytest.mark.parametrize('split, least', [('train', 10_000), ('test', 1_000)])
def test_size_types_and_balance(split, least):
  dataset = datasets.load('embedded', split, 'unused')
  assert dataset.num_examples >= least
  assert (dataset.num_classes, dataset.image_shape) == (10, (32, 32, 3))
  batch = dataset.read(np.arange(dataset.num_examples))
  assert (batch.images.dtype, batch.labels.dtype) == (np.uint8, np.int32)
  assert batch.images.shape == (dataset.num_examples, 32, 32, 3)
  shares = np.bincount(batch.labels, minlength=10) / dataset.num_examples
  assert 0.09 < shares.min() <= shares.max() < 0.11
  assert len({image.tobytes() for image in batch.images}) == dataset.num_examples


def test_making_it_again_gives_the_same_bytes_quickly():
  start = time.process_time()
  images, labels = embedded._make('train')
  seconds = time.process_time() - start
  batch = datasets.load('embedded', 'train', '').read(np.arange(len(labels)))
  np.testing.assert_array_equal(images, batch.images)
  np.testing.assert_array_equal(labels, batch.labels)
  assert seconds < 10  # about 1 on an idle core


def changed(content: bytes) -> bytes:
  return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize(
  'damage', [changed, lambda content: content[:5000], lambda content: b'', lambda content: content + b'x']
)
def test_later_starts_take_intact_images_from_the_cache(damage, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  images, labels = embedded._kept('test')
  (path,) = (tmp_path / 'adversarial_augment' / 'embedded').iterdir()
  content = path.read_bytes()
  made = []
  make = embedded._make
  monkeypatch.setattr(embedded, '_make', lambda split: made.append(split) or make(split))
  for kept, times in ((content, 0), (damage(content), 1)):
    path.write_bytes(kept)
    for found, wanted in zip(embedded._kept('test'), (images, labels), strict=True):
      np.testing.assert_array_equal(found, wanted)
      assert found.dtype == wanted.dtype
    assert len(made) == times
    assert path.read_bytes() == content
  monkeypatch.setattr(embedded, '_version', lambda: 'newer')
  embedded._kept('test')
  assert [path.name for path in path.parent.iterdir()] == ['test-newer']


@pytest.mark.parametrize('home', ['/proc/none', '/dev/null'])
def test_without_a_cache_the_images_are_made(home, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', home)
  np.testing.assert_array_equal(embedded._kept('test')[1], embedded._make('test')[1])


def test_provenance_names_the_data():
  train, test = (datasets.load('embedded', split, '').provenance for split in ('train', 'test'))
  assert train['origin'] == 'embedded'
  assert train['split'] == 'train'
  assert train['archive_sha256'] is test['archive_sha256'] is None
  assert len(train['sha256']) == 64
  assert train['sha256'] != test['sha256']


def test_splits_share_no_digit():
  (train, train_labels), (test, test_labels) = embedded.digits('train'), embedded.digits('test')
  known = load_digits()
  assert sorted(scan.tobytes() for scan in 16 * np.concatenate([train, test])) == sorted(
    scan.tobytes() for scan in known.images.astype(np.float32)
  )
  np.testing.assert_array_equal(np.bincount(np.concatenate([train_labels, test_labels])), np.bincount(known.target))
  assert not {scan.tobytes() for scan in train} & {scan.tobytes() for scan in test}
  for labels, total in ((train_labels, 1437), (test_labels, 360)):
    assert abs(len(labels) - total) <= 10
    assert np.bincount(labels).min() > 0.09 * total


def test_regions_of_the_splits_are_a_gap_apart():
  photos = dict(photographs.load())
  assert len(photos) == 8
  for name, photo in photos.items():
    assert photo.dtype == np.uint8
    assert photo.shape[2] == 3
    columns = np.broadcast_to(np.arange(photo.shape[1])[None, :, None], photo.shape)
    train, test = (photographs.region(columns, split) for split in ('train', 'test'))
    assert train.max() + photographs.GAP < test.min(), name
    assert min(train.shape[1], test.shape[1], photo.shape[0]) >= 64, name


def test_other_splits_and_narrow_photographs_are_refused():
  with refused("'validation'"):
    photographs.region(np.zeros((300, 300, 3), np.uint8), 'validation')
  with refused('210 columns'):
    photographs.region(np.zeros((300, 210, 3), np.uint8), 'train')
  assert photographs.region(np.zeros((300, 211, 3), np.uint8), 'test').shape == (300, 64, 3)
  with refused("'validation'"):
    datasets.load('embedded', 'validation', '')


def test_brightness_alone_tells_nothing():
  """The digit is not the brightest or darkest thing of its image: chance is 10 %, and the colours' means stay near."""
  from sklearn.linear_model import LogisticRegression

  train, test = (datasets.load('embedded', split, '') for split in ('train', 'test'))

  def statistics(batch):
    images = batch.images.astype(np.float32) / 255
    return np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=1), batch.labels

  model = LogisticRegression(max_iter=200).fit(*statistics(train.read(np.arange(3000))))
  assert model.score(*statistics(test.read(np.arange(2000)))) < 0.2


def test_no_jax():
  load = "from adversarial_augment import datasets; datasets.load('embedded', 'test', '')"
  code = f"import sys; {load}; print('jax' in sys.modules)"
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == 'False'
