"""Frost against OpenCV with the same draws; the law of the draws; and where its photographs are from."""

import hashlib
import importlib.util
from pathlib import Path
import sys

import cv2
import numpy as np
from PIL import Image
import pytest
from scipy import stats

from adversarial_augment.corruptions import frost
from adversarial_augment.errors import UserError
from tests import corruption_oracles as oracles
from tests.corruption_images import corrupted, differences, of_another_size, real_images

SEVERITIES = (1, 2, 3, 4, 5)
NAMES = ['frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg']


@pytest.fixture
def photographs() -> Path:
  """The folder of the official photographs."""
  spec = importlib.util.find_spec('imagecorruptions')
  if spec is None or not spec.submodule_search_locations:
    pytest.skip('the distribution imagecorruptions, which has the photographs of frost, is not installed')
  return Path(spec.submodule_search_locations[0], 'frost')


@pytest.fixture
def no_distribution(monkeypatch):
  """imagecorruptions is not installed."""
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'imagecorruptions' else find_spec(name))
  frost.textures.cache_clear()
  yield
  frost.textures.cache_clear()


@pytest.fixture
def folder(tmp_path) -> Path:
  """Five photographs of noise, each of another size."""
  random = np.random.default_rng(0)
  for i, name in enumerate(NAMES):
    noise = random.integers(0, 256, (200 + 40 * i, 360 - 30 * i, 4 if i == 0 else 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
  return tmp_path


@pytest.mark.parametrize('severity', SEVERITIES)
def test_frost_equals_opencv_exactly(photographs, severity):
  for images in (real_images(100), of_another_size(real_images(20))):
    found = differences(frost.with_photographs(photographs), oracles.frost(photographs), images, severity)
    assert not found.any()


def test_frost_equals_opencv_exactly_for_other_photographs(folder):
  for severity in SEVERITIES:
    assert not differences(frost.with_photographs(folder), oracles.frost(folder), real_images(30), severity).any()


def test_law_of_the_draws_of_frost(folder):
  number, place = corrupted(frost.with_photographs(folder), np.zeros((5000, 32, 32, 3), np.uint8), 1)[0]
  assert stats.chisquare(np.bincount(number, minlength=5)).pvalue > 0.01
  shapes = np.array([oracles.frost_photograph(folder, i).shape[:2] for i in range(5)])
  places = shapes[number] - 32
  assert ((place >= 0) & (place < places)).all()
  within = (place + np.random.default_rng(0).random(place.shape)) / places
  assert stats.kstest(within[:, 0], 'uniform').pvalue > 0.01
  assert stats.kstest(within[:, 1], 'uniform').pvalue > 0.01
  assert abs(np.corrcoef(within, rowvar=False)[0, 1]) < 0.05


def test_photographs_of_the_distribution_are_found_without_importing_it(photographs):
  assert frost.describe(None) == 'photographs of CIFAR-10-C'
  assert frost.describe(photographs) == 'photographs of CIFAR-10-C'
  for found, given in zip(frost.textures(None, (32, 32)), frost.textures(photographs, (32, 32)), strict=True):
    np.testing.assert_array_equal(found, given)
  assert 'imagecorruptions' not in sys.modules


def test_without_photographs_frost_is_noise_and_says_so(no_distribution):
  assert frost.describe(None) == 'procedural'
  textures = frost.textures(None, (32, 32))
  assert [texture.shape for texture in textures] == [(120, 180, 3)] * 5
  assert len({texture.tobytes() for texture in textures}) == 5
  for texture in textures:
    assert 100 < texture.mean() < 200
    assert 15 < texture.mean(axis=2).std() < 50
  images = real_images(50)
  first, second = (corrupted(frost.with_photographs.__wrapped__(None), images, 3)[1] for _ in range(2))
  np.testing.assert_array_equal(first, second)
  assert 20 < abs(first - images.astype(int)).mean() < 80


@pytest.mark.parametrize('size', [(32, 32), (33, 60), (224, 200)])
def test_textures_leave_room_for_a_crop_at_every_size(folder, size):
  for texture, name in zip(frost.textures(folder, size), NAMES, strict=True):
    assert texture.shape[0] > size[0]
    assert texture.shape[1] > size[1]
    with Image.open(folder / name) as photograph:
      w, h = photograph.size
    factor = max(0.2, (size[0] + 1) / h, (size[1] + 1) / w)
    assert texture.shape == (round(factor * h), round(factor * w), 3)
  images = np.zeros((20, *size, 3), np.uint8)
  assert corrupted(frost.with_photographs(folder), images, 1)[1].any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize('factor', [0.2, 0.37, 0.5001, 1.7])
def test_resizing_is_that_of_opencv(factor):
  image = np.random.default_rng(0).integers(0, 256, (53, 97, 3), np.uint8)
  expected = cv2.resize(image, (0, 0), fx=factor, fy=factor)
  result = frost.resize(image, factor)
  assert result.shape == expected.shape
  assert abs(result.astype(int) - expected).max() <= (0 if factor == 0.2 else 1)


def test_a_folder_is_described_by_its_content(folder):
  content = b''.join((folder / name).read_bytes() for name in NAMES)
  assert frost.describe(folder) == f'other photographs, SHA-256 {hashlib.sha256(content).hexdigest()}'


def test_a_folder_that_lacks_a_photograph_is_refused(folder):
  (folder / 'frost4.jpg').unlink()
  for use in (frost.describe, lambda folder: frost.with_photographs(folder).constants(1, (32, 32))):
    with pytest.raises(
      UserError, match=r"^frost: cannot read '.*frost4\.jpg' \(No such file.*must hold frost1\.png, .*"
    ):
      use(folder)


def test_a_photograph_that_is_none_is_refused(folder):
  (folder / 'frost2.png').write_text('snow')
  with pytest.raises(UserError, match=r"^frost: '.*frost2\.png' cannot be read as an image [^\n]*$"):
    frost.with_photographs(folder).constants(1, (32, 32))
