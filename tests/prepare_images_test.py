"""What `prepare images` leaves out, what it does to the rest, and that it says so."""

import os
from pathlib import Path
import subprocess
import sys
import unicodedata

import numpy as np
from PIL import Image
import pytest

from adversarial_augment import datasets, prepare
from adversarial_augment.datasets import folder
from adversarial_augment.errors import UserError
from tests.described import refused

CAFE = 'caf\u00e9'


def save(path: Path, seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = 'RGB', **options) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).convert(mode).save(path, **options)
  return path


def fill(root: Path, *classes: str, count: int = 3) -> Path:
  for name in classes:
    for i in range(count):
      save(root / name / f'{i}.png', seed=abs(hash((str(root), name, i))) % 2**32)
  return root


def run(tmp_path: Path, capsys, *flags: str) -> str:
  prepare.main(['images', '--name=pets', f'--from={tmp_path / "in"}', f'--data_dir={tmp_path / "out"}', *flags])
  return capsys.readouterr().out


def load(tmp_path: Path, split: str = 'train'):
  return datasets.load('pets', split, str(tmp_path / 'out'))


def test_images_that_are_not_used_are_counted_and_named(tmp_path, capsys):
  root = fill(tmp_path / 'in', 'a', 'b')
  fill(root / 'a', 'more/deep', count=2)
  save(root / 'beside.jpg')
  (root / 'b' / 'list.tiff').write_text('x')
  (root / 'README').write_text('x')
  fill(root, '__MACOSX')
  said = run(tmp_path, capsys)
  assert 'Not used: 6 images that do not lie in a class folder itself' in said
  (line,) = [line for line in said.splitlines() if line.startswith('Not used')]
  named = [f"'{root}/{name}'" for name in ('__MACOSX/0.png', 'a/more/deep/0.png', 'beside.jpg', 'a/more/deep/1.png')]
  assert all(name in line for name in named)
  assert f"Ignored 2 files that are not {', '.join(folder.SUFFIXES)}, such as '{root}/README'" in said
  assert '4 train, 2 test images, 2 classes' in said


def test_images_beside_the_classes_of_a_split_are_named_too(tmp_path, capsys):
  root = tmp_path / 'in'
  for split in ('train', 'test'):
    fill(root / split, 'a', 'b')
  paths = [save(root / 'train' / 'x.png'), save(root / 'y.png')]
  said = run(tmp_path, capsys)
  assert 'Not used: 2 images' in said
  assert all(f"'{path}'" in said for path in paths)


def test_nothing_is_said_where_nothing_is_left_out_or_changed(tmp_path, capsys):
  fill(tmp_path / 'in', 'a', 'b')
  assert len(run(tmp_path, capsys).splitlines()) == 2


def test_what_was_done_to_the_images_is_said(tmp_path, capsys):
  root = fill(tmp_path / 'in', 'a', 'b')
  save(root / 'a' / 'wide.png', 1, (48, 64))
  save(root / 'a' / 'wider.png', 2, (48, 64))
  save(root / 'b' / 'tall.png', 3, (90, 20))
  save(root / 'a' / 'grey.png', 4, mode='L')
  save(root / 'b' / 'palette.png', 5, mode='P')
  save(root / 'b' / 'alpha.png', 6, mode='RGBA')
  save(root / 'b' / 'cmyk.jpg', 7, mode='CMYK')
  deep = np.random.default_rng(8).integers(0, 2**16, (32, 32), np.uint16)
  Image.fromarray(deep).save(root / 'b' / 'deep.png')
  exif = Image.Exif()
  exif[0x0112] = 6  # on its side
  save(root / 'b' / 'turned.jpg', 9, (32, 40), exif=exif)
  frames = [Image.new('RGB', (32, 32), colour) for colour in ('red', 'blue')]
  frames[0].save(root / 'b' / 'moving.gif', save_all=True, append_images=frames[1:])
  said = run(tmp_path, capsys)
  said_of_size, of_kind = (
    next(line for line in said.splitlines() if line.startswith(word)) for word in ('Resized', 'Converted: ')
  )
  assert said_of_size.startswith(f'Resized 4 of 16 images to 32x32 (--fit=crop: {folder.FITS["crop"]}): 2 of 48x64, ')
  assert {'1 of 40x32', '1 of 90x20'} == set(said_of_size.rstrip('.').split(', ')[-2:])
  for part in (
    '2 from grey', '2 from a palette', '1 from CMYK', '1 from 16 bits', '1 turned as EXIF says',
    '1 the first frame of an animation', '1 with transparency, put on white',
  ):  # fmt: skip
    assert part in of_kind


@pytest.mark.parametrize('fit', folder.FITS)
def test_fits_and_sizes_that_are_no_square(tmp_path, capsys, fit):
  """A white image of twice the width, with a red left quarter."""
  image = np.full((60, 120, 3), 255, np.uint8)
  image[:, :30] = (255, 0, 0)
  for name in ('a', 'b'):
    for i in range(2):
      (tmp_path / 'in' / name).mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(tmp_path / 'in' / name / f'{i}.png')
  run(tmp_path, capsys, f'--fit={fit}', '--size=48x64')
  dataset = load(tmp_path)
  assert dataset.image_shape == (48, 64, 3)
  found = dataset.read(np.arange(1)).images[0].astype(int)
  red = (found[:, :, 0] > 200) & (found[:, :, 1] < 50)
  black = found.sum(-1) < 50
  # crop: 80 of 120 columns stay, 10 of the red 30, or 8 of 64; squash: a quarter, 16 of 64; pad: the same, in 32 rows.
  assert abs(red.sum() - {'crop': 8 * 48, 'squash': 16 * 48, 'pad': 16 * 32}[fit]) <= 2 * 48
  assert black.sum() == {'crop': 0, 'squash': 0, 'pad': 16 * 64}[fit]


@pytest.mark.parametrize('size', ['48x', 'x48', '48x64x3', '48X64', '48x8', '0', '-32', '1e2', ''])
def test_sizes_that_are_none(tmp_path, capsys, size):
  with refused('--size='):
    run(tmp_path, capsys, f'--size={size}')


def test_equal_images_get_a_line(tmp_path, capsys):
  root = tmp_path / 'in'
  for split in ('train', 'test'):
    fill(root / split, 'a', 'b')
  save(root / 'train' / 'a' / 'same.png', 1)
  save(root / 'test' / 'a' / 'same.png', 1)
  save(root / 'train' / 'a' / 'twin.png', 2)
  save(root / 'train' / 'b' / 'twin.png', 2)
  save(root / 'train' / 'b' / 'again.png', 3)
  save(root / 'train' / 'b' / 'again too.png', 3)  # no harm
  said = run(tmp_path, capsys)
  (splits,) = [line for line in said.splitlines() if 'several splits' in line]
  (labels,) = [line for line in said.splitlines() if 'several labels' in line]
  assert splits.startswith('warning: 2 equal images are in several splits, such as ')
  assert {f"'{root}/{split}/a/same.png'" in splits for split in ('train', 'test')} == {True}
  assert labels.startswith('warning: 2 equal images are under several labels')
  assert {f"'{root}/train/{name}/twin.png'" in labels for name in 'ab'} == {True}


def test_all_broken_images_are_named_in_one_run(tmp_path, capsys):
  root = fill(tmp_path / 'in', 'a', 'b', count=6)
  broken = [root / 'a' / '1.png', root / 'a' / '4.png', root / 'b' / '2.png', root / 'b' / '5.png']
  for path in broken:
    path.write_bytes(path.read_bytes()[:200])
  broken[1].write_text('<svg/>')
  with pytest.raises(UserError) as caught:
    run(tmp_path, capsys)
  message = str(caught.value)
  assert all(f"'{path}' cannot be read as an image" in message for path in broken)
  assert 'object at' not in message
  assert message.startswith('4 images cannot be used')
  assert '\n' not in message
  assert 'remove' not in message
  assert not list((tmp_path / 'out').iterdir())
  for path in root.rglob('*.png'):
    path.write_bytes(b'')
  with refused('12 images cannot be used'):
    run(tmp_path, capsys)


# Layouts.


@pytest.mark.parametrize('names', [
  ('train', 'test'), ('Train', 'Test'), ('TRAIN', 'val'), ('training', 'Validation'), ('train', 'valid', 'test'),
])  # fmt: skip
def test_known_splits(tmp_path, capsys, names):
  for name in names:
    fill(tmp_path / 'in' / name, 'a', 'b')
  fill(tmp_path / 'in' / '__MACOSX', 'a')
  said = run(tmp_path, capsys)
  assert len(load(tmp_path)) == len(load(tmp_path, 'test')) == 6
  assert ('is taken as the test split' in said) == (len(names) == 2 and names[1][0] in 'vV')
  if len(names) == 3:
    assert len(load(tmp_path, 'validation')) == 6
    assert f"'{tmp_path}/in/valid' is stored as the split validation" in said


@pytest.mark.parametrize('names, said', [
  (('train',), 'there is no other split'),
  (('train', 'test', 'extra'), "beside it 'extra', which is no split"),
  (('Train', 'train', 'test'), 'name one split'),
  (('pictures', 'labels'), 'holds folders with images'),
])  # fmt: skip
def test_other_layouts_are_refused_and_nobody_is_told_to_delete(tmp_path, names, said):
  for name in names:
    fill(tmp_path / 'in' / name, 'a', 'b')
  with pytest.raises(UserError, match=said) as caught:
    folder.list_images(tmp_path / 'in')
  assert 'remove' not in str(caught.value)
  assert 'delete' not in str(caught.value)
  assert 'known splits are' in str(caught.value) or 'one folder for each' in str(caught.value)


def test_a_class_may_be_called_train(tmp_path):
  assert folder.list_images(fill(tmp_path, 'car', 'plane', 'train')).class_names == ('car', 'plane', 'train')


def test_names_that_differ_by_normalisation_are_one_class(tmp_path, capsys):
  other = unicodedata.normalize('NFD', CAFE)
  fill(tmp_path / 'in' / 'train', CAFE, 'dog')
  fill(tmp_path / 'in' / 'test', other)
  assert run(tmp_path, capsys)
  assert load(tmp_path).class_names == (CAFE, 'dog')
  fill(tmp_path / 'in' / 'train', other)
  said = run(tmp_path, capsys, '--overwrite')
  assert load(tmp_path).class_names == (CAFE, 'dog')
  assert len(load(tmp_path)) == 9
  assert 'in two normalisations' in said
  assert 'U+0065 U+0301' in said
  assert 'U+00E9' in said


@pytest.mark.parametrize('variables', [
  {'LC_ALL': 'C', 'PYTHONUTF8': '0'}, {'LC_ALL': 'POSIX', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'},
])  # fmt: skip
def test_the_locale_is_named_and_not_the_class(tmp_path, variables):
  fill(tmp_path / 'in', CAFE, 'dog')
  command = ['images', '--name=pets', f'--from={tmp_path}/in', f'--data_dir={tmp_path}/out']
  ended = subprocess.run(
    [sys.executable, '-m', 'adversarial_augment.prepare', *command],
    env=os.environ | variables, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert ended.returncode == 2
  assert ended.stderr.count('\n') == 1
  assert 'The locale (LC_ALL' in ended.stderr
  assert 'rename' not in ended.stderr
