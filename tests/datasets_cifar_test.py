"""Tests of reading CIFAR-10 in the forms it is handed around in."""

import io
import os
import pathlib
import pickle
import subprocess
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from adversarial_augment.datasets import cifar
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact
from tests.described import refused

CIFAR10 = cifar.PUBLISHED['cifar10']
COUNTS = {'train': 100, 'test': 20}
NAMES = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']


@pytest.fixture(scope='module')
def arrays() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
    'x_train': rng.integers(0, 256, (100, 32, 32, 3), np.uint8),
    'y_train': rng.permutation(np.arange(100) % 10),
    'x_test': rng.integers(0, 256, (20, 32, 32, 3), np.uint8),
    'y_test': rng.permutation(np.arange(20) % 10),
  }


def _batches(arrays):
  """Yields name, planes [20, 3072] and labels [20] of each of the six files."""
  images = np.concatenate([arrays['x_train'], arrays['x_test']])
  labels = np.concatenate([arrays['y_train'], arrays['y_test']])
  for i, name in enumerate(NAMES):
    part = slice(20 * i, 20 * i + 20)
    yield name, np.moveaxis(images[part], -1, 1).reshape(20, 3072), labels[part]


def _binary(arrays) -> dict[str, bytes]:
  return {
    f'{name}.bin': b''.join(bytes([label]) + plane.tobytes() for plane, label in zip(planes, labels, strict=True))
    for name, planes, labels in _batches(arrays)
  }


def _python(arrays, protocol: int = 2) -> dict[str, bytes]:
  return {
    name: pickle.dumps({b'data': planes, b'labels': labels.tolist(), b'batch_label': b'x'}, protocol)
    for name, planes, labels in _batches(arrays)
  }


def _tar(
  path: pathlib.Path, files: dict[str, bytes], prefix: str = 'cifar-10-batches-bin/', mode: str = 'w:gz'
) -> pathlib.Path:
  with tarfile.open(path, mode) as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(prefix + name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return path


def _folder(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
  path.mkdir(parents=True)
  for name, content in files.items():
    (path / name).write_bytes(content)
  return path


def _npz(path: pathlib.Path, **arrays) -> pathlib.Path:
  np.savez(path, **arrays)
  return path


FORMS = {
  'binary archive': lambda path, arrays: _tar(path / 'a.tar.gz', _binary(arrays)),
  'python archive': lambda path, arrays: _tar(path / 'a.tgz', _python(arrays), 'cifar-10-batches-py/'),
  'binary folder': lambda path, arrays: _folder(path / 'a', _binary(arrays)),
  'parent of the python folder': lambda path, arrays: (
    _folder(path / 'a' / 'cifar-10-batches-py', _python(arrays)).parent
  ),
  'pickles of Python 3': lambda path, arrays: _folder(path / 'a', _python(arrays, 5)),
  'npz as in Keras': lambda path, arrays: _npz(path / 'a.npz', **arrays),
  'npz as in MedMNIST': lambda path, arrays: _npz(
    path / 'a.npz',
    train_images=arrays['x_train'],
    train_labels=arrays['y_train'][:, None],
    test_images=arrays['x_test'],
    test_labels=arrays['y_test'][:, None],
  ),
}


@pytest.mark.parametrize('form', FORMS)
def test_all_forms_hold_the_same(tmp_path, arrays, form):
  content = cifar.read(FORMS[form](tmp_path, arrays), CIFAR10, COUNTS)
  for split in ('train', 'test'):
    np.testing.assert_array_equal(content.splits[split].images, arrays[f'x_{split}'])
    np.testing.assert_array_equal(content.splits[split].labels, arrays[f'y_{split}'])
  assert content.origin == 'unverified'
  assert (content.archive_sha256 is None) == ('folder' in form or 'pickles' in form)


@pytest.mark.parametrize('field', ['archive_sha256', 'python_archive_sha256'])
def test_the_published_archives_are_official(tmp_path, arrays, field):
  path = FORMS['binary archive'](tmp_path, arrays)
  content = cifar.read(path, CIFAR10._replace(**{field: artifact.sha256_of(path)}), COUNTS)
  assert content.origin == 'official'
  assert content.archive_sha256 == artifact.sha256_of(path)


@pytest.mark.parametrize('name', cifar.PUBLISHED)
def test_published_hash_and_size_are_those_of_tfds(name):
  listed = (pathlib.Path(tfds.__file__).parent / 'url_checksums' / f'{name}.txt').read_text().split()
  published = cifar.PUBLISHED[name]
  assert listed[:3] == [published.url, str(published.archive_bytes), published.archive_sha256]


class _Call:
  """Pickles as a call of a function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('function, arguments', [
  (os.system, ('touch {trace}',)), (eval, ("open('{trace}', 'w')",)), (getattr, (list, 'append')),
  (np.fromfile, ('{trace}',)), (subprocess.Popen, ('touch {trace}',)),
])  # fmt: skip
def test_pickles_execute_nothing(tmp_path, arrays, function, arguments):
  trace = tmp_path / 'trace'
  call = _Call(function, *(a.format(trace=trace) if isinstance(a, str) else a for a in arguments))
  files = _python(arrays) | {'data_batch_3': pickle.dumps({b'data': call}, 2)}
  with refused('data_batch_3.*is not allowed'):
    cifar.read(_folder(tmp_path / 'a', files), CIFAR10, COUNTS)
  assert not trace.exists()


BAD_NPZ = {
  'nine images too few': (
    lambda a: {'x_train': a['x_train'][:91], 'y_train': a['y_train'][:91]}, r'train images has shape \[91, 32, 32, 3\]'
  ),
  'channels first': (lambda a: {'x_test': np.moveaxis(a['x_test'], -1, 1)}, r'shape \[20, 3, 32, 32\]'),
  'floats': (lambda a: {'x_test': a['x_test'] / 255.0}, 'type float64'),
  'grey': (lambda a: {'x_test': a['x_test'][..., 0]}, r'shape \[20, 32, 32\]'),
  'labels from 1': (lambda a: {'y_test': a['y_test'] + 1}, 'test labels has labels from 1 to 10'),
  'negative labels': (lambda a: {'y_test': a['y_test'] - 1}, 'labels from -1 to 8'),
  'one-hot labels': (lambda a: {'y_test': np.eye(10)[a['y_test']]}, r'labels has shape \[20, 10\]'),
  'float labels': (lambda a: {'y_test': a['y_test'] / 1.0}, 'type float64'),
  'fewer labels': (lambda a: {'y_test': a['y_test'][:-1]}, r'must be integers \[20\]'),
  'one class too often': (
    lambda a: {'y_test': np.where(a['y_test'] == 3, 4, a['y_test'])}, 'images of the classes, but must have 2 of each'
  ),
  'objects': (lambda a: {'y_test': a['y_test'].astype(object)}, 'not a usable .npz'),
  'pickles': (lambda a: {'x_train': np.array([{}], object)}, 'none of them pickled; give cifar-10-'),
  'a scalar': (lambda a: {'x_test': np.uint8(3)}, r'shape \[\]'),
}  # fmt: skip


@pytest.mark.parametrize('change, said', BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_npz(tmp_path, arrays, change, said):
  with refused(said):
    cifar.read(_npz(tmp_path / 'a.npz', **arrays | change(arrays)), CIFAR10, COUNTS)


def _damaged(path: pathlib.Path, arrays, mode: str, change) -> pathlib.Path:
  _tar(path, _binary(arrays), mode=mode)
  content = path.read_bytes()
  path.write_bytes(change(content, len(content) // 2))
  return path


def _flipped(content: bytes, middle: int) -> bytes:
  return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


BAD_FILES = {
  'nothing there': (lambda p, a: p / 'missing', 'does not exist'),
  'empty folder': (lambda p, a: _folder(p / 'a', {}), 'has no file data_batch_1'),
  'a file is missing': (
    lambda p, a: _folder(p / 'a', {k: v for k, v in _binary(a).items() if k != 'data_batch_4.bin'}),
    'has no file data_batch_4.bin',
  ),
  'short file': (lambda p, a: _folder(p / 'a', _binary(a) | {'test_batch.bin': b'123'}), 'not a multiple of 3073'),
  'empty file': (lambda p, a: _folder(p / 'a', _binary(a) | {'test_batch.bin': b''}), 'damaged'),
  'not a pickle': (lambda p, a: _folder(p / 'a', _python(a) | {'test_batch': b'text'}), 'test_batch.* is not a file'),
  'pickled list': (lambda p, a: _folder(p / 'a', _python(a) | {'test_batch': pickle.dumps([1])}), 'a file.*; give '),
  'text for tar': (lambda p, a: _folder(p / 'a', {'a.tar.gz': b'text'}) / 'a.tar.gz', 'not a tar archive'),
  'npz for tar': (lambda p, a: _npz(p / 'a.npz', **a).rename(p / 'a.tar.gz'), 'not a tar archive'),
  'zip': (lambda p, a: _npz(p / 'a.npz', **a).rename(p / 'a.zip'), "a.zip' is not a tar archive.*; give"),
  'tar for npz': (lambda p, a: _tar(p / 'a.npz', _binary(a)), 'not a usable .npz'),
  'empty npz': (lambda p, a: _folder(p / 'a', {'a.npz': b''}) / 'a.npz', 'not a usable .npz'),
  'npz of other names': (lambda p, a: _npz(p / 'a.npz', images=a['x_test']), 'lacks x_train and y_train or train_imag'),
  'half a tar': (lambda p, a: _damaged(p / 'a.tar.gz', a, 'w:gz', lambda old, half: old[:half]), 'damaged one'),
  'damaged xz': (lambda p, a: _damaged(p / 'a.tar.xz', a, 'w:xz', _flipped), 'damaged one'),
  'huge member': (
    lambda p, a: _tar(p / 'a.tar.gz', {'test_batch.bin': bytes(cifar._MAX_FILE + 1)}), 'too many or too large members'
  ),
  'many members': (lambda p, a: _tar(p / 'a.tar.gz', {str(i): b'' for i in range(200)}), 'too many or too large memb'),
}  # fmt: skip


@pytest.mark.parametrize('make, said', BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(tmp_path, arrays, make, said):
  with pytest.raises(UserError, match=said) as caught:
    cifar.read(make(tmp_path, arrays), CIFAR10, COUNTS)
  foreign = 'ReadError', 'file could not be opened', 'method', 'BadZipFile', 'zip file', 'allow_pickle', 'stream', '\n'
  assert not [words for words in foreign if words in str(caught.value)]


def test_archives_are_not_unpacked_on_disk(tmp_path, arrays):
  path = _tar(tmp_path / 'a.tar.gz', _binary(arrays) | {'escaped': b'x'}, '../')
  cifar.read(path, CIFAR10, COUNTS)
  assert [file.name for file in tmp_path.iterdir()] == ['a.tar.gz']
  assert not (tmp_path.parent / 'escaped').exists()


def test_links_in_archives_are_not_followed(tmp_path, arrays):
  (tmp_path / 'secret').write_bytes(b'secret')
  with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as archive:
    member = tarfile.TarInfo('data_batch_1.bin')
    member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / 'secret')
    archive.addfile(member)
  with refused('has no file data_batch_1'):
    cifar.read(tmp_path / 'a.tar.gz', CIFAR10, COUNTS)
