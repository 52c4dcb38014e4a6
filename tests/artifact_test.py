"""The one store: whole or as before under kills and errors, verified by what is listed alone, compared by fields."""

import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import signal
from typing import TypedDict

import pytest

from adversarial_augment import cli
from adversarial_augment.datasets import manifests
from adversarial_augment.errors import ArtifactError, NumericalError, StorageError
from adversarial_augment.storage import artifact
from tests.checkpoint_cases import python
from tests.described import described
from tests.hostile_base import pipe


def folder_of(path: Path, content: str) -> Path:
  """A folder with two files."""
  (path / 'sub').mkdir(parents=True)
  for name in ('a', 'sub/b'):
    (path / name).write_text(content)
  return path


def replace(place: Path) -> None:
  artifact.replace(place / 'file', b'new')


def commit(place: Path) -> None:
  artifact.commit_folder(folder_of(place / 'fresh.tmp', 'new'), place / 'folder', place / 'aside.tmp')


def put(place: Path) -> Path:
  """What is there before."""
  place.mkdir()
  (place / 'file').write_text('old')
  folder_of(place / 'folder', 'old')
  return place


def found(place: Path) -> set[str]:
  """The contents of all files, but for those of what is unfinished."""
  return {
    path.read_text() for path in place.rglob('*') if path.is_file() and '.tmp' not in str(path.relative_to(place))
  }


@pytest.mark.parametrize('action', [replace, commit])
@pytest.mark.parametrize('name', ['open', 'fsync', 'rename', 'replace'])
def test_a_failure_at_any_system_call_leaves_what_was_there(tmp_path, monkeypatch, action, name):
  """The n-th call fails, for every n until none does."""
  real, failed = getattr(os, name), 0
  for nth in range(1000):
    place, calls = put(tmp_path / str(nth)), []

    def fails(*arguments, calls=calls, nth=nth, **how):
      calls.append(arguments)
      if len(calls) == nth + 1:
        raise OSError(28, 'No space left on device')
      return real(*arguments, **how)

    with monkeypatch.context() as patch:
      patch.setattr(os, name, fails)
      try:
        action(place)
      except OSError:
        failed += 1
        assert not list(place.glob('.*.tmp'))
        assert found(place) in ({'old'}, {'old', 'new'})  # the last fsync comes after the commit
        continue
    break
  assert {'file' if action is replace else 'folder'} <= {path.name for path in place.iterdir()}
  assert failed or name in ('open', 'rename', 'replace')


@pytest.mark.parametrize('action, target', [('replace', 'file'), ('commit', 'folder')])
@pytest.mark.parametrize('moment, content', [('before', 'old'), ('after', 'new')])
def test_a_kill_beside_the_rename(tmp_path, action, target, moment, content):
  place = put(tmp_path / 'place')
  process = python(
    f'from tests import artifact_test\nartifact_test.{action}(directory)', place, crash_at=f'{moment}_rename@{target}'
  )
  said = process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL, said
  held = place / target if (place / target).exists() else place / 'aside.tmp'  # between the two renames of a folder
  assert (held if action == 'replace' else held / 'sub' / 'b').read_text() == content


def test_json_is_sorted_and_refuses_nan_leaving_the_old_file(tmp_path):
  path = tmp_path / 'train.json'
  artifact.write_json(path, {'b': 1, 'a': [0.1, None]})
  content = path.read_text()
  assert content.index('"a"') < content.index('"b"')
  assert json.loads(content) == {'a': [0.1, None], 'b': 1}
  with pytest.raises(NumericalError, match=r'train\.json'):
    artifact.write_json(path, {'b': float('inf')})
  assert path.read_text() == content


def test_replacement_is_synced_before_and_after_the_rename(tmp_path, monkeypatch):
  events = []
  fsync, rename = os.fsync, os.replace
  monkeypatch.setattr(
    os, 'fsync', lambda fd: (events.append(('fsync', os.path.basename(os.readlink(f'/proc/self/fd/{fd}')))), fsync(fd))
  )
  monkeypatch.setattr(os, 'replace', lambda a, b: (events.append(('rename', b.name)), rename(a, b)))
  artifact.write_json(tmp_path / 'x.json', 1)
  assert events == [('fsync', '.x.json.tmp'), ('rename', 'x.json'), ('fsync', tmp_path.name)]


def test_a_file_and_its_entry(tmp_path):
  blocks = [b'some', b'', b' bytes']
  for content in (blocks, b''.join(blocks)):
    entry = artifact.replace(tmp_path / 'file', content)
    assert entry == {'bytes': 10, 'sha256': hashlib.sha256(b'some bytes').hexdigest()}
    assert artifact.entry(tmp_path / 'file') == entry

  def stopped():
    yield b'half'
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    artifact.replace(tmp_path / 'file', stopped())
  assert (tmp_path / 'file').read_bytes() == b'some bytes'
  assert [path.name for path in tmp_path.iterdir()] == ['file']


JUNK = ('.DS_Store', '._a', '.nfs0000000000a1b2c300000001', 'Thumbs.db', 'a~', '.#a', 'sub/desktop.ini', 'sub/.b.swp')


def test_files_that_nobody_lists_cost_nothing(tmp_path):
  folder = folder_of(tmp_path / 'folder', 'content')
  listed = artifact.entries(folder)
  for name in JUNK:
    (folder / name).write_text('x')
  artifact.verify(folder, listed)


DAMAGES = {
  'gone': (lambda path: path.unlink(), 'missing file', 'is missing'),
  'a folder': (lambda path: (path.unlink(), path.mkdir()), 'missing file', 'is missing'),
  'a pipe': (pipe, 'missing file', 'is missing'),
  'cut': (lambda path: path.write_text('conten'), 'wrong size', 'has 6 bytes, but 7 in MANIFEST.json'),
  'another': (
    lambda path: path.write_text('Content'),
    'sha256 mismatch',
    'has SHA-256 .*, but .* in MANIFEST.json',
  ),
}


@pytest.mark.parametrize('change, reason, detail', DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_listed_is_as_it_was(tmp_path, change, reason, detail):
  folder = folder_of(tmp_path / 'folder', 'content')
  listed = artifact.entries(folder)
  change(folder / 'sub' / 'b')
  with pytest.raises(artifact.Damaged, match=f'^{reason} in sub/b$') as caught:
    artifact.verify(folder, listed)
  assert caught.value.name == 'sub/b'
  assert re.match(detail, caught.value.detail)
  if reason == 'sha256 mismatch':
    artifact.verify(folder, listed, hashed=False)


@pytest.mark.parametrize('content', [b'', b'[]', b'{', b'\xff', b'{"a": 1e999}', b'[' * 100_000, b'{"b": 1}'])
def test_a_manifest_that_is_none(tmp_path, content):
  (tmp_path / 'm').write_bytes(content)
  with pytest.raises(ArtifactError, match="m' is damaged or not of this program") as caught:
    artifact.read(tmp_path / 'm', TypedDict('Manifest', {'a': int}))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'was, now, said',
  [
    ({'seed': 1}, {'seed': 2}, 'seed = 1, and now it would be 2'),
    ({'made': {'jax': '1', 'x': 0}}, {'made': {'jax': '2', 'x': 0}}, 'made.jax = "1", and now it would be "2"'),
    ({}, {'seed': 2}, 'seed = null, and now it would be 2'),
    ({'seed': 2}, {}, 'seed = 2, and now it would be null'),
    ({'a': {'b': 1}}, {'a': None}, 'a.b = 1, and now it would be null'),
    ({'a': 'x' * 1000}, {'a': 'y'}, 'a = "x{59}... , and now it would be "y"'.replace('... ,', r'\.\.\.,')),
  ],
)
def test_made_otherwise(tmp_path, was, now, said):
  artifact.check_same(tmp_path, was, dict(was))
  with pytest.raises(ArtifactError, match=f"' exists already, with {said}") as caught, described():
    artifact.check_same(tmp_path, was, now)
  assert str(caught.value).endswith('; use it as it is, or replace it with --overwrite.')


CODE = {'2': 'b', '1': 'a'}


@pytest.mark.parametrize(
  'made_with, expected',
  [
    ({'code_sha256': 'a'}, {'code_sha256': 'a', 'x': '1'}),
    ({'x': '2', 'jax': '1'}, {'code_sha256': 'b', 'x': '2', 'jax': '1'}),
    ({'x': '2', 'code_sha256': 'b'}, {'code_sha256': 'b', 'x': '2'}),
    ({'x': '2', 'code_sha256': 'c'}, {'code_sha256': 'c', 'x': '2'}),
    ({'x': '3'}, {'x': '3'}),
    ({'code_sha256': ['a']}, {'code_sha256': ['a']}),
    ({'jax': '1'}, {'jax': '1'}),
    (None, None),
    ('x', 'x'),
  ],
)
def test_a_version_stands_for_the_code_that_it_had(monkeypatch, made_with, expected):
  monkeypatch.setitem(manifests._CODE, 'x', CODE)
  assert manifests.with_code(made_with, 'x') == expected


def test_space_is_that_of_the_nearest_folder(tmp_path, monkeypatch):
  asked = []
  usage = lambda path: asked.append(path) or shutil._ntuple_diskusage(10, 9, 1_000_000)
  monkeypatch.setattr(shutil, 'disk_usage', usage)
  artifact.check_space(tmp_path / 'not' / 'there', 1_000_000)
  with pytest.raises(StorageError, match='1 MB free, and 3 MB may be needed'):
    artifact.check_space(tmp_path / 'not' / 'there', 3_000_000)
  assert asked == [tmp_path, tmp_path]


def test_an_error_says_the_facts_and_the_command_adds_the_way_out():
  error = ArtifactError('It is wrong', remedy='elsewhere')
  assert str(error) == str(ArtifactError('It is wrong.')) == 'It is wrong.'
  assert cli.describe(error) == 'It is wrong; wait until it ends, or use another folder.'
