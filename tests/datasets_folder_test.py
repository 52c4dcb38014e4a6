"""Tests of reading a user's folder of images."""

import os
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from adversarial_augment.datasets import folder
from adversarial_augment.errors import UserError
from tests.described import refused


def _save(path: pathlib.Path, image: Image.Image | None = None, **options) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  (image or Image.new('RGB', (9, 9), 'red')).save(path, **options)
  return path


def _fill(root: pathlib.Path, counts: dict[str, int]) -> pathlib.Path:
  for name, count in counts.items():
    for i in range(count):
      _save(root / name / f'{i:03d}.png')
  return root


def test_split_is_stratified_disjoint_and_complete(tmp_path):
  listing = folder.list_images(_fill(tmp_path, {'dog': 10, 'cat': 20, 'Ant': 2}), 0.2)
  assert listing.class_names == ('Ant', 'cat', 'dog')
  train, test = listing.splits['train'], listing.splits['test']
  assert np.bincount([label for _, label in test]).tolist() == [1, 4, 2]
  assert np.bincount([label for _, label in train]).tolist() == [1, 16, 8]
  paths = {path for path, _ in train} | {path for path, _ in test}
  assert len(paths) == len(train) + len(test) == 32
  assert all(path.parent.name == listing.class_names[label] for path, label in train + test)
  labels = [label for _, label in train]
  assert labels != sorted(labels)  # shuffled, so that the first images of a split are not one class


def test_split_depends_only_on_the_seed(tmp_path):
  _fill(tmp_path, {'a': 30, 'b': 30})
  first, same, other = (folder.list_images(tmp_path, 0.5, seed) for seed in (3, 3, 4))
  assert first == same != other


def test_given_test_folder_is_used(tmp_path):
  _fill(tmp_path / 'train', {'a': 3, 'b': 1, 'c': 2})
  _fill(tmp_path / 'test', {'c': 2, 'a': 1})
  listing = folder.list_images(tmp_path)
  assert listing.class_names == ('a', 'b', 'c')
  assert sorted(label for _, label in listing.splits['test']) == [0, 2, 2]
  assert {path.parts[-3] for path, _ in listing.splits['test']} == {'test'}
  assert len(listing.splits['train']) == 6


def test_other_files_are_counted_and_hidden_ones_skipped(tmp_path):
  _fill(tmp_path, {'a': 2, 'b': 2})
  (tmp_path / 'a' / 'notes.txt').write_text('x')
  (tmp_path / 'a' / '.DS_Store').write_text('x')
  (tmp_path / '.git').mkdir()
  _save(tmp_path / 'b' / 'UPPER.JPG')
  listing = folder.list_images(tmp_path)
  assert len(listing.ignored) == 1
  assert listing.broken_links == ()
  assert len(listing.splits['train']) + len(listing.splits['test']) == 5


@pytest.mark.parametrize('parts', [('',), ('train', 'test')])
def test_links_to_nothing_are_named_and_others_are_followed(tmp_path, parts):
  _save(tmp_path / 'elsewhere' / '0.png')
  root, expected = tmp_path / 'root', []
  for part in parts:
    _fill(root / part, {'a': 2, 'b': 2})
    (root / part / 'a' / 'whole.png').symlink_to(tmp_path / 'elsewhere' / '0.png')
    expected += [root / part / 'a' / 'gone.png', root / part / 'c', root / part / 'b' / 'notes.txt']
    (root / part / 'a' / '.hidden').symlink_to(tmp_path / 'nothing')
  for path in expected:
    path.symlink_to(tmp_path / 'nothing')
  listing = folder.list_images(root)
  assert sorted(listing.broken_links) == sorted(expected)
  assert not listing.ignored
  assert sum(map(len, listing.splits.values())) == 5 * len(parts)


@pytest.mark.parametrize(
  'counts, extra, said',
  [
    ({}, None, 'has no folders'),
    ({'a': 5}, None, 'has 1 class folder'),
    ({'a': 5, 'b': 1}, None, "Class 'b' .* has 1 image"),
    ({'a': 5, 'b': 2}, 'empty', "'.*empty' has no images"),
    ({'train/a': 2, 'train/b': 2, 'test/c': 1}, None, "class 'c', which"),
    ({'train/a': 2, 'train/b': 2}, 'test', 'has no folders'),
  ],
)
def test_bad_folders(tmp_path, counts, extra, said):
  _fill(tmp_path, counts)
  if extra:
    (tmp_path / extra).mkdir()
  with pytest.raises(UserError, match=said):
    folder.list_images(tmp_path)


@pytest.mark.parametrize('name', [b'caf\xe9', b'a\nb', b'a\x07', b'a\xc2\x85b', b' a', b'a ', b'a\xc2\xa0'])
def test_names_of_classes_that_no_list_gives_back(tmp_path, name):
  _fill(tmp_path, {'dog': 2})
  (tmp_path / os.fsdecode(name)).mkdir()
  with pytest.raises(UserError, match='rename it') as caught:
    folder.list_images(tmp_path)
  assert str(caught.value).isprintable()
  assert repr(os.fsdecode(name))[1:-1] in str(caught.value)


def test_names_of_classes_in_other_scripts(tmp_path):
  names = ('big dog', 'naïve', '猫', 'گربه\u200cها')
  assert folder.list_images(_fill(tmp_path, dict.fromkeys(names, 2))).class_names == tuple(sorted(names))


def test_missing_folder_and_bad_fraction(tmp_path):
  with pytest.raises(UserError, match='is not a folder'):
    folder.list_images(tmp_path / 'missing')
  for fraction in (0.0, 1.0, -1.0, float('nan')):
    with pytest.raises(UserError, match='test_fraction'):
      folder.list_images(tmp_path, fraction)


def _gradient(height: int, width: int) -> np.ndarray:
  rows, columns = np.mgrid[:height, :width]
  return np.stack([rows * 2, columns * 2, np.full_like(rows, 77)], -1).astype(np.uint8)


def _read(path: pathlib.Path, size: int, image: np.ndarray, **options) -> np.ndarray:
  return folder.read_image(_save(path, Image.fromarray(image), **options), size)


def test_image_of_the_right_size_is_not_changed(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  np.testing.assert_array_equal(_read(tmp_path / 'a.png', 32, image), image)


def test_middle_square_is_taken_and_reduced_without_aliasing(tmp_path):
  wide = _gradient(64, 100)
  found = _read(tmp_path / 'a.png', 32, wide).astype(float)
  middle = wide[:, 18:82].astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))  # the area mean; exact on a gradient
  np.testing.assert_allclose(found[2:-2, 2:-2], middle[2:-2, 2:-2], atol=1.0)
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[::2] = 255
  grey = _read(tmp_path / 'b.png', 32, stripes)
  assert np.ptp(grey[2:-2].astype(int)) <= 1
  assert abs(int(grey[16, 16, 0]) - 127.5) <= 1


def _palette() -> Image.Image:
  image = Image.new('P', (9, 9), 1)
  image.putpalette([0, 0, 0, 10, 200, 30])
  return image


@pytest.mark.parametrize(
  'image, suffix, options, expected',
  [
    (Image.new('L', (9, 9), 90), 'png', {}, (90, 90, 90)),
    (Image.new('1', (9, 9), 1), 'png', {}, (255, 255, 255)),
    (_palette(), 'png', {}, (10, 200, 30)),
    (_palette(), 'gif', {}, (10, 200, 30)),
    (_palette(), 'png', {'transparency': 1}, (255, 255, 255)),
    (Image.new('RGBA', (9, 9), (100, 0, 0, 51)), 'png', {}, (224, 204, 204)),  # 0.2 red over 0.8 white
    (Image.new('LA', (9, 9), (100, 255)), 'png', {}, (100, 100, 100)),
    (Image.fromarray(np.full((9, 9), 0x8040, np.uint16)), 'png', {}, (0x80,) * 3),
    (Image.new('CMYK', (9, 9), (255, 0, 0, 0)), 'jpg', {'quality': 100}, (0, 255, 255)),
    (Image.new('RGB', (9, 9), (9, 8, 7)), 'bmp', {}, (9, 8, 7)),
    (Image.new('RGB', (9, 9), (9, 8, 7)), 'webp', {'lossless': True}, (9, 8, 7)),
  ],
)
def test_kinds_of_images(tmp_path, image, suffix, options, expected):
  found = folder.read_image(_save(tmp_path / f'a.{suffix}', image, **options), 8)
  assert found.shape == (8, 8, 3)
  assert found.dtype == np.uint8
  assert np.abs(found.astype(int) - expected).max() <= 2


def test_first_frame_of_an_animation(tmp_path):
  frames = [Image.new('RGB', (9, 9), colour) for colour in ('red', 'blue')]
  path = _save(tmp_path / 'a.gif', frames[0], save_all=True, append_images=frames[1:])
  assert folder.read_image(path, 8)[4, 4].tolist() == [255, 0, 0]


def test_exif_orientation(tmp_path):
  image = np.zeros((20, 20, 3), np.uint8)
  image[:10] = 255
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  found = _read(tmp_path / 'a.png', 20, image, exif=exif)
  np.testing.assert_array_equal(found, image[::-1])


def _bomb() -> bytes:
  """Returns the first bytes of a PNG that claims 2^16 x 2^15 pixels."""
  header = struct.pack('>IIBBBBB', 1 << 16, 1 << 15, 8, 2, 0, 0, 0)
  chunk = b'IHDR' + header
  return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + struct.pack('>I', zlib.crc32(chunk)) + b'\0' * 50


def test_unreadable_files_are_named(tmp_path):
  whole = _save(tmp_path / 'whole.png', Image.fromarray(_gradient(60, 60))).read_bytes()
  cases = {'empty.png': b'', 'text.jpg': b'hello', 'half.png': whole[: len(whole) // 2], 'bomb.png': _bomb()}
  for name, content in cases.items():
    (tmp_path / name).write_bytes(content)
    with refused(name):
      folder.read_image(tmp_path / name, 32)
  _save(tmp_path / 'large.png', Image.new('1', (8193, 8192)))
  with pytest.raises(UserError, match=r'large.png. has 8193 x 8192 pixels; at most 67,108,864'):
    folder.read_image(tmp_path / 'large.png', 32)
