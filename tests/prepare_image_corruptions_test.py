"""Sets like Tiny-ImageNet-C, published as images in folders: from small ones of that layout."""

from collections.abc import Callable
import io
from pathlib import Path
import tarfile

import numpy as np
from PIL import Image
import pytest

from adversarial_augment import config as configs
from adversarial_augment import datasets, metrics, prepare
from adversarial_augment.datasets import writer
from adversarial_augment.evaluation import corrupted
from tests.described import refused

CLASSES = ('n01', 'n02')
LABELS = np.array([0, 1, 1, 0, 1, 0])
NAMES = ('fog', 'snow')
FLAGS = ('--dataset=tiny', '--names=fog,snow')
Files = dict[str, bytes]


@pytest.fixture
def data_dir(tmp_path) -> Path:
  """A folder with a data set of six test images of 32x32 pixels."""
  description = writer.Description('tiny', '1.0.0', 'A test.', CLASSES, (32, 32, 3), 'own', None)
  images = np.zeros((6, 32, 32, 3), np.uint8)
  splits = {name: writer.Split(6, zip(images, LABELS, strict=True)) for name in ('train', 'test')}
  writer.write(description, splits, tmp_path / 'data')
  return tmp_path / 'data'


def level(name: str, severity: int, label: int, number: int) -> int:
  return 100 * NAMES.index(name) + 16 * severity + 8 * label + 2 * number


def encoded(grey: int, side: int = 32) -> bytes:
  file = io.BytesIO()
  Image.new('L', (side, side), grey).save(file, 'JPEG', quality=100)
  return file.getvalue()


def published() -> Files:
  """Three images of each class, whose numbers are not in the order of their names as text."""
  return {
    f'Tiny-ImageNet-C/{name}/{severity}/{of_class}/val_{(2, 10, 9)[i]}.JPEG': encoded(level(name, severity, label, i))
    for name in NAMES
    for severity in metrics.SEVERITIES
    for label, of_class in enumerate(CLASSES)
    for i in range(3)
  }


def write(folder: Path, files: Files, form: str) -> Path:
  if form == 'folder':
    for name, content in files.items():
      (folder / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / 'in' / name).write_bytes(content)
    return folder / 'in'
  with tarfile.open(folder / 'a.tar', 'w') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return folder / 'a.tar'


def run(data_dir: Path, source: Path) -> None:
  prepare.main(['cifar10_c', f'--from={source}', f'--data_dir={data_dir}', *FLAGS])


@pytest.mark.parametrize('form', ['folder', 'archive'])
def test_images_of_a_class_are_taken_in_the_order_of_their_numbers(tmp_path, data_dir, form, capsys):
  run(data_dir, write(tmp_path, published(), form))
  test = datasets.load('tiny', 'test', str(data_dir))
  config = configs.override(configs.base_config(), {'dataset': 'tiny', 'data_dir': str(data_dir)})
  found = corrupted.open_set(config, test, 'cifar10_c', NAMES, True)
  assert found.origin == 'unverified'
  order = {0: 0, 1: 2, 2: 1}  # of val_2, val_9, val_10
  for name in NAMES:
    for severity in metrics.SEVERITIES:
      levels = found.read(name, severity, np.arange(6))[:, 5, 5, 0]
      seen = [order[(LABELS[:i] == LABELS[i]).sum()] for i in range(6)]
      expected = [level(name, severity, LABELS[i], number) for i, number in enumerate(seen)]
      assert abs(levels.astype(int) - expected).max() <= 1
  capsys.readouterr()
  run(data_dir, tmp_path / ('in' if form == 'folder' else 'a.tar'))  # what is there stays
  assert ' 0 images written' in capsys.readouterr().out


def without(part: str) -> Callable[[Files], Files]:
  return lambda files: {name: content for name, content in files.items() if part not in name}


FIRST = f'Tiny-ImageNet-C/fog/1/{CLASSES[0]}/val_2.JPEG'
BAD: dict[str, tuple[Callable[[Files], Files], str]] = {
  'a corruption': (without('/snow/'), 'has no images of snow; choose those that it has with --names=fog'),
  'a severity': (without('/snow/4/'), 'has no images in snow/4'),
  'a class': (without(f'/fog/2/{CLASSES[1]}/'), "fog/2 has no class 'n02'"),
  'an image': (without(FIRST), 'has 2 images in fog/1/n01, but .tiny. has 3 of that class'),
  'another class': (lambda files: files | {'Tiny-ImageNet-C/fog/1/n09/a.JPEG': encoded(1)}, "no class 'n09'"),
  'no image': (lambda files: files | {FIRST: b'text'}, 'cannot be used as an image'),
  'another size': (lambda files: files | {FIRST: encoded(1, 33)}, '33 x 33 pixels, but must have 32 x 32'),
}


@pytest.mark.parametrize('form', ['folder', 'archive'])
@pytest.mark.parametrize('change, said', BAD.values(), ids=BAD)
def test_what_is_missing_or_damaged_is_one_line(tmp_path, data_dir, change, said, form):
  source = write(tmp_path, change(published()), form)
  with refused(said):
    run(data_dir, source)


def test_an_archive_that_is_cut_off(tmp_path, data_dir):
  source = write(tmp_path, published(), 'archive')
  source.write_bytes(source.read_bytes()[:20_000])
  with refused('is no whole tar archive'):
    run(data_dir, source)
