"""Tests of DeepAugment sets that were begun, damaged, or are to be replaced: nothing is lost, and there is a way on."""

import errno
import os
import pathlib
import shutil

import pytest

from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.preparation import deepaugment_files
from tests import deepaugment_sets
from tests.corrupted_pets import hashes
from tests.deepaugment_sets import N, load
from tests.deepaugment_sets import write_some as write


@pytest.fixture
def data_dir(tmp_path) -> pathlib.Path:
  """A data_dir with pets."""
  return deepaugment_sets.write_pets(tmp_path / 'data')


def folder_of(data_dir: pathlib.Path) -> pathlib.Path:
  return data_dir / 'pets_deepaugment' / 'some'


def open_it(data_dir: pathlib.Path) -> None:
  assert len(deepaugment_sets.open_sets(load(data_dir), data_dir)) == 2


def test_a_set_stays_whole_when_there_is_no_room_for_another(data_dir, monkeypatch):
  write(data_dir)
  known = hashes(folder_of(data_dir))
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 9, 1))
  with pytest.raises(StorageError, match='0 MB free'):
    write(data_dir, overwrite=True)
  assert hashes(folder_of(data_dir)) == known


def test_a_set_stays_whole_when_another_cannot_be_begun(data_dir, monkeypatch):
  write(data_dir)
  known = hashes(folder_of(data_dir))

  def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(StorageError, match='No space left'):
    write(data_dir, overwrite=True)
  assert hashes(folder_of(data_dir)) == known


def begin(data_dir: pathlib.Path) -> pathlib.Path:
  """Begins the set 'some' as a process does that makes every second piece; returns its folder."""
  assert write(data_dir, share=deepaugment_files.Share(0, 2)) == (N, N)
  return folder_of(data_dir)


def test_a_set_that_was_begun_otherwise_goes_on_by_the_command_of_its_plan(data_dir):
  folder = begin(data_dir)
  with pytest.raises(UserError, match=r'copies = 2, and now it would be 3; resume it with (.*), choose') as caught:
    write(data_dir, changes={'copies': 3})
  command = f'prepare deepaugment --dataset=pets --copies=2 --name=some --data_dir={data_dir}'
  assert f'{command}, choose' in str(caught.value)
  with pytest.raises(UserError, match=f'is not finished; run .*{command}, which resumes it'):
    open_it(data_dir)
  (folder / 'PLAN.json').write_text('[')
  with pytest.raises(UserError, match=r"PLAN.json' is damaged .*flags of its first time and --overwrite"):
    open_it(data_dir)


@pytest.mark.parametrize('damage', ['missing', 'cut', 'folder', 'header', 'pieces'])
def test_a_set_that_was_begun_and_damaged_starts_anew_with_overwrite(data_dir, damage):
  folder = begin(data_dir)
  images = folder / 'images.npy'
  content = images.read_bytes()
  if damage == 'pieces':
    shutil.rmtree(folder / 'pieces')
  else:
    images.unlink()
  if damage == 'folder':
    images.mkdir()
  if damage in ('cut', 'header'):
    images.write_bytes(content[:-1] if damage == 'cut' else b'x' + content[1:])
  with pytest.raises(UserError, match='missing or damaged; start over with the same command and --overwrite') as caught:
    write(data_dir)
  assert '\n' not in str(caught.value)
  assert write(data_dir, overwrite=True) == (2 * N, 0)
  open_it(data_dir)


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_set_that_was_begun_goes_on_past_a_damaged_marker(data_dir, monkeypatch, overwrite):
  monkeypatch.setattr(deepaugment_files, '_PIECE', 20)
  for content in ('', '[]', '{}'):
    folder = begin(data_dir)
    (folder / 'pieces' / '000000.json').write_text(content)
    assert write(data_dir, overwrite=overwrite) == (N + 20, 0)
    open_it(data_dir)
    shutil.rmtree(folder)


@pytest.mark.parametrize('name', ['MANIFEST.json', 'labels.npy'])
def test_a_folder_in_the_place_of_a_file_is_replaced(data_dir, name):
  write(data_dir)
  path = folder_of(data_dir) / name
  path.unlink()
  path.mkdir()
  for call in (write, open_it):
    with pytest.raises(UserError, match=f'{name}.*make the set again with .*--overwrite'):
      call(data_dir)
  assert write(data_dir, overwrite=True) == (2 * N, 0)
