"""CIFAR-100 and Tiny ImageNet from small archives of the published layouts, and the configs that follow from them."""

from collections.abc import Callable
import io
import os
import pathlib
import pickle
import re
import tarfile
import zipfile

import numpy as np
from PIL import Image
import pytest

from adversarial_augment import config as configs
from adversarial_augment import datasets, prepare, train
from adversarial_augment.config import published
from adversarial_augment.datasets import cifar, tiny_imagenet
from tests.described import refused

Files = dict[str, bytes]
COUNTS = {'train': 200, 'test': 100}


def tar(path: pathlib.Path, files: Files) -> pathlib.Path:
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return path


def zipped(path: pathlib.Path, files: Files) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return path


def unpacked(path: pathlib.Path, files: Files) -> pathlib.Path:
  for name, content in files.items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
  return path


def run(name: str, source: pathlib.Path, tmp_path: pathlib.Path) -> None:
  prepare.main([name, f'--from={source}', f'--data_dir={tmp_path / "out"}'])


# CIFAR-100.


@pytest.fixture
def few(monkeypatch):
  monkeypatch.setattr(cifar, 'COUNTS', COUNTS)


def cifar100(*, binary: bool) -> tuple[Files, dict[str, tuple[np.ndarray, np.ndarray]]]:
  """Returns the files of an archive, and the planes and labels of each split."""
  rng, files, splits = np.random.default_rng(0), {}, {}
  for split, n in COUNTS.items():
    planes, labels = rng.integers(0, 256, (n, 3072), np.uint8), rng.permutation(n) % 100
    splits[split] = planes, labels
    coarse = labels // 5
    if binary:
      records = np.concatenate([coarse[:, None], labels[:, None], planes], axis=1).astype(np.uint8)
      files[f'cifar-100-binary/{split}.bin'] = records.tobytes()
    else:
      names = [f'x_{i}.png'.encode() for i in range(n)]
      content = {b'filenames': names, b'batch_label': b'x', b'data': planes}
      content |= {b'fine_labels': labels.tolist(), b'coarse_labels': coarse.tolist()}
      files[f'cifar-100-python/{split}'] = pickle.dumps(content, 2)
  return files, splits


@pytest.mark.parametrize('binary', [True, False], ids=['binary', 'python'])
def test_cifar100_has_the_fine_labels(tmp_path, few, binary):
  files, splits = cifar100(binary=binary)
  run('cifar100', tar(tmp_path / 'a.tar.gz', files), tmp_path)
  for split, (planes, labels) in splits.items():
    dataset = datasets.load('cifar100', split, str(tmp_path / 'out'))
    found = dataset.read(np.arange(len(labels)))
    np.testing.assert_array_equal(np.moveaxis(found.images, -1, 1).reshape(len(labels), -1), planes)
    np.testing.assert_array_equal(found.labels, labels)
    assert dataset.class_names[:2] + dataset.class_names[-1:] == ('apple', 'aquarium_fish', 'worm')
    assert (dataset.num_classes, dataset.provenance['origin']) == (100, 'unverified')


def test_the_names_of_cifar100_are_a_hundred_in_order():
  names = cifar.PUBLISHED['cifar100'].class_names
  assert len(set(names)) == 100
  assert list(names) == sorted(names)


BAD_CIFAR: dict[str, tuple[Callable[[Files], Files], str]] = {
  'CIFAR-10': (lambda files: {'cifar-10-batches-bin/test_batch.bin': bytes(3073)}, 'has no file train'),
  'no test images': (lambda files: {k: v for k, v in files.items() if 'test' not in k}, 'has no file test.bin'),
  'cut off': (lambda files: files | {'cifar-100-binary/test.bin': bytes(3073)}, 'not a multiple of 3074'),
  'labels that are too large': (
    lambda files: files | {'cifar-100-binary/test.bin': (b'\0\x64' + bytes(3072)) * 100}, 'labels from 100 to 100'
  ),
  'classes not in equal parts': (
    lambda files: files | {'cifar-100-binary/test.bin': bytes(3074 * 100)}, 'must have 1 of each: it is not CIFAR-100'
  ),
}  # fmt: skip


@pytest.mark.parametrize('change, said', BAD_CIFAR.values(), ids=BAD_CIFAR)
def test_other_archives_are_no_cifar100(tmp_path, few, change, said):
  source = tar(tmp_path / 'a.tar.gz', change(cifar100(binary=True)[0]))
  with refused(said):
    run('cifar100', source, tmp_path)
  assert not (tmp_path / 'out' / 'cifar100').exists()


# Tiny ImageNet.

IDS = ('n01443537', 'n01629819', 'n02002724')
ROOT = 'tiny-imagenet-200/'


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(tiny_imagenet, 'COUNTS', {'train': 6, 'test': 3})
  monkeypatch.setattr(tiny_imagenet, 'NUM_CLASSES', 3)


def jpeg(level: int, mode: str = 'RGB', side: int = 64) -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (side, side), (level,) * 3).convert(mode).save(file, 'JPEG')
  return file.getvalue()


def tiny() -> Files:
  """Returns the files of an archive; an image has one grey level, by which it is known again."""
  files = {ROOT + 'wnids.txt': '\n'.join(reversed(IDS)).encode(), ROOT + 'words.txt': b'n00001740\tentity\n'}
  for label, name in enumerate(IDS):
    for i in range(2):
      level = 50 * label + 20 * i
      files[f'{ROOT}train/{name}/images/{name}_{i}.JPEG'] = jpeg(level, 'L' if i else 'RGB')
    files[f'{ROOT}train/{name}/{name}_boxes.txt'] = b''
    files[f'{ROOT}val/images/val_{label}.JPEG'] = jpeg(200 + label)
  rows = [f'val_{i}.JPEG\t{IDS[label]}\t0\t0\t62\t62\n' for i, label in ((1, 1), (0, 0), (2, 2))]
  return files | {ROOT + 'val/val_annotations.txt': ''.join(rows).encode(), ROOT + 'test/images/test_0.JPEG': jpeg(9)}


@pytest.mark.parametrize(
  'form', ['archive', 'archive without a root', 'archive that leads out', 'folder', 'folder above it']
)
def test_tiny_imagenet_and_its_validation_images_as_test(tmp_path, small, form):
  roots = {'archive': ROOT, 'archive without a root': '', 'archive that leads out': '../other/'}
  if form in roots:
    files = {roots[form] + name.removeprefix(ROOT): content for name, content in tiny().items()}
    source = zipped(tmp_path / 'a.zip', files)
  else:
    source = unpacked(tmp_path / 'in', tiny()) / ('' if form == 'folder above it' else ROOT)
  run('tiny_imagenet', source, tmp_path)
  found, names = {}, {}
  for split, n in (('train', 6), ('test', 3)):
    dataset = datasets.load('tiny_imagenet', split, str(tmp_path / 'out'))
    assert dataset.image_shape == (64, 64, 3)
    images, labels = dataset.read(np.arange(n))
    found[split], names[split] = (
      [(int(image[0, 0, 0]), int(label)) for image, label in zip(images, labels, strict=True)],
      dataset.class_names,
    )
  assert found['test'] == [(201, 1), (200, 0), (202, 2)]
  assert sorted(found['train']) == [(50 * label + 20 * i, label) for label in range(3) for i in range(2)]
  assert names['train'] == names['test'] == IDS


def without(part: str) -> Callable[[Files], Files]:
  return lambda files: {name: content for name, content in files.items() if part not in name}


BAD_TINY: dict[str, tuple[Callable[[Files], Files], str]] = {
  'no list of classes': (without('wnids'), 'has no file wnids.txt'),
  'no annotations': (without('annotations'), 'has no file val/val_annotations.txt'),
  'a class is missing': (without(f'train/{IDS[1]}/images'), 'has 3 classes and 0 to 2 train images of each'),
  'an image is missing': (without('val_2'), 'has no file val/images/val_2.JPEG, which'),
  'an unknown class': (
    lambda files: files | {ROOT + 'val/val_annotations.txt': b'val_0.JPEG\tn09\n'},
    'class of val/images/val_0.JPEG',
  ),
  'a row without a class': (
    lambda files: files | {ROOT + 'val/val_annotations.txt': b'val_0.JPEG\n'},
    'is not in wnids',
  ),
  'another size': (
    lambda files: files | {ROOT + 'val/images/val_0.JPEG': jpeg(1, side=63)},
    '63 x 63 pixels, but must',
  ),
  'no image': (lambda files: files | {ROOT + 'val/images/val_0.JPEG': b'text'}, 'val_0.JPEG. cannot be used'),
  'a large member': (lambda files: files | {ROOT + 'val/images/val_0.JPEG': bytes(2 << 20)}, 'cannot be used'),
  'one image again and again': (
    lambda files: files | {ROOT + 'val/val_annotations.txt': f'val_0.JPEG\t{IDS[0]}\n'.encode() * 3},
    '0 to 1 test images of each',
  ),
}


@pytest.mark.parametrize('change, said', BAD_TINY.values(), ids=BAD_TINY)
def test_other_archives_are_no_tiny_imagenet(tmp_path, small, change, said):
  source = zipped(tmp_path / 'a.zip', change(tiny()))
  with refused(said):
    run('tiny_imagenet', source, tmp_path)
  assert not (tmp_path / 'out' / 'tiny_imagenet').exists()
  assert {path.name for path in tmp_path.iterdir()} <= {'a.zip', 'out'}


@pytest.mark.parametrize('damage', [lambda old: old[: len(old) // 2], lambda old: b'text', lambda old: b''])
def test_a_damaged_archive(tmp_path, small, damage):
  source = zipped(tmp_path / 'a.zip', tiny())
  source.write_bytes(damage(source.read_bytes()))
  with refused('is not tiny-imagenet-200.zip, or a damaged one'):
    run('tiny_imagenet', source, tmp_path)


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path, small):
  source = unpacked(tmp_path / 'in', without('wnids')(tiny())) / ROOT
  os.mkfifo(source / 'wnids.txt')
  with refused('wnids.txt. cannot be used .it is a named pipe'):
    run('tiny_imagenet', source, tmp_path)


# Configs.


def printed(capsys, *flags: str) -> str:
  train.main(['--config=configs/ada_edsr.py:smoke', '--print_config', *flags])
  return re.sub(' +', ' ', capsys.readouterr().out)


def test_fields_follow_from_the_data_set_and_are_shown(capsys):
  out = printed(capsys, '--config.dataset=tiny_imagenet')
  assert 'classifier.stem_stride = 2' in out
  assert 'classifier.mean = (0.4802, 0.4481, 0.3975)' in out
  out = printed(
    capsys, '--config.dataset=cifar100:1.0.0', '--config.classifier.mean=0.5,0.5,0.5', '--config.classifier.std=1,1,1'
  )
  assert 'classifier.mean = (0.5, 0.5, 0.5)' in out
  assert 'classifier.stem_stride = None' in out
  assert 'classifier.stem_stride = 1' in printed(
    capsys, '--config.dataset=tiny_imagenet', '--config.classifier.stem_stride=1'
  )


@pytest.mark.parametrize('name', ['cifar10', 'embedded', 'pets'])
def test_configs_of_other_data_sets_stay_as_they_are(name):
  config = configs.override(configs.base_config(), {'dataset': name})
  assert configs.to_json(configs.follow(config)) == configs.to_json(config)


def test_fields_follow_from_the_classifier_that_a_run_starts_from():
  half = {'classifier.mean': '0.5,0.5,0.5', 'classifier.std': '0.5,0.5,0.5'}
  source = configs.override(configs.base_config(), half)
  config = configs.override(configs.base_config(), {'dataset': 'tiny_imagenet'})
  followed = configs.follow(config, source).classifier
  assert (followed.mean, followed.std, followed.stem_stride) == ((0.5,) * 3, (0.5,) * 3, None)


def test_a_resumed_run_keeps_what_it_recorded(tmp_path, capsys):
  """As one does whose version knew no such fields."""
  config = configs.override(configs.load('configs/ada_edsr.py:smoke'), {'dataset': 'cifar100'})
  (tmp_path / 'config.json').write_text(configs.to_json(config))
  out = printed(capsys, '--config.dataset=cifar100', f'--workdir={tmp_path}')
  assert 'classifier.mean = None' in out
  assert 'classifier.mean = (0.5071' in printed(capsys, '--config.dataset=cifar100', f'--workdir={tmp_path}/new')


def test_what_is_known_agrees_with_the_readers():
  for name in ('cifar10', 'cifar100'):
    known = published.DATASETS[name]
    assert (known.num_train, known.num_classes) == (cifar.COUNTS['train'], len(cifar.PUBLISHED[name].class_names))
  known = published.DATASETS['tiny_imagenet']
  expected = (tiny_imagenet.COUNTS['train'], tiny_imagenet.NUM_CLASSES, tiny_imagenet.SIDE)
  assert (known.num_train, known.num_classes, known.side) == expected
