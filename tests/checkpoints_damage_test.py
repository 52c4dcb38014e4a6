"""A damaged checkpoint is never used: it is named on one line, and an older one steps in."""

import os
from pathlib import Path
import shutil

import pytest

from adversarial_augment.errors import CheckpointError
from adversarial_augment.storage import artifact, checkpoints
from tests.checkpoint_cases import assert_restores, files_of, flip, make_state, reseal, save
from tests.hostile_base import DEEP, ENDLESS, pipe


def flip_last(path: Path, other: Path) -> None:
  content = path.read_bytes()
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def swap(path: Path, other: Path) -> None:
  first, second = path.read_bytes(), other.read_bytes()
  path.write_bytes(second)
  other.write_bytes(first)


DAMAGES = {
  'flip': flip,
  'flip_last': flip_last,
  'truncate': lambda path, other: os.truncate(path, path.stat().st_size // 2),
  'empty': lambda path, other: os.truncate(path, 0),
  'delete': lambda path, other: path.unlink(),
  'extra_byte': lambda path, other: path.write_bytes(path.read_bytes() + b'\n'),
  'swap': swap,
  'becomes_folder': lambda path, other: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_of_any_file_is_found_and_the_older_one_used(three, tmp_path, damage):
  names = [path.relative_to(three / '30') for path in files_of(three / '30')]
  assert len(names) >= 8
  for i, name in enumerate(names):
    directory = Path(shutil.copytree(three, tmp_path / str(i) / 'checkpoints'))
    other = next(path for path in files_of(directory / '30') if path.read_bytes() != (three / '30' / name).read_bytes())
    DAMAGES[damage](directory / '30' / name, other)
    (line,) = assert_restores(directory, 20, lines=1)
    assert line.startswith('checkpoint 30 rejected: ')
    assert line.endswith('; using 20')
    blamed = {name.as_posix(), other.relative_to(directory / '30').as_posix() if damage == 'swap' else ''}
    assert any(f' in {candidate};' in line for candidate in blamed), (line, blamed)


def test_every_bit_of_the_manifest_counts(three, tmp_path):
  folder = Path(shutil.copytree(three / '30', tmp_path / '30'))
  content = (folder / artifact.MANIFEST).read_bytes()
  checkpoints.verify(folder, 30)
  for bit in range(0, 8 * len(content), 61):
    spoilt = bytearray(content)
    spoilt[bit // 8] ^= 1 << (bit % 8)
    (folder / artifact.MANIFEST).write_bytes(spoilt)
    with pytest.raises(artifact.Damaged, match=artifact.MANIFEST):
      checkpoints.verify(folder, 30)


def manifest(folder: Path) -> Path:
  return folder / artifact.MANIFEST


NONE = (b'[]', b'null', b'3', b'{}', b'{"step": 30}', b'\xff\xfe', b'"' * 100, f'{{"format": {DEEP}}}'.encode())
FIELD = 'a field that is missing or of another type in MANIFEST.json'
HARMS = {
  **{f'none: {text[:20]}': (lambda f, text=text: manifest(f).write_bytes(text), '.json') for text in NONE},
  'a pipe': (lambda folder: pipe(manifest(folder)), 'it is a named pipe, not a file in MANIFEST.json'),
  'endless': (lambda folder: os.truncate(manifest(folder), ENDLESS), 'no such file has more than'),
  'a pipe for a file': (lambda folder: pipe(files_of(folder / 'arrays')[0]), 'missing file in arrays/'),
  'a pipe that is listed': (
    lambda folder: (pipe(folder / 'x'), reseal(folder, files={'x': {'bytes': 0, 'sha256': ''}})),
    'missing file in x',
  ),
  'of another step': (lambda folder: reseal(folder, step=7), 'step 7 in MANIFEST.json'),
  'of another format': (lambda folder: reseal(folder, format=99), 'unknown format 99 in MANIFEST.json'),
  'of another state': (lambda folder: reseal(folder, state_sha256='0' * 64), 'state_sha256 mismatch in arrays'),
  'files that are no object': (lambda folder: reseal(folder, files=3), FIELD),
  'a size that is a text': (lambda folder: reseal(folder, files={'x': {'bytes': '1', 'sha256': ''}}), FIELD),
  'no leaves': (lambda folder: reseal(folder, leaves=None), FIELD),
  'leaves of objects': (lambda folder: reseal(folder, leaves={'params/x': [[2], 'object']}), FIELD),
  'leaves without end': (lambda folder: reseal(folder, leaves={'params/x': [[1 << 60], 'float32']}), FIELD),
  'large leaves': (lambda folder: reseal(folder, leaves={'params/x': [[1 << 40], 'float32']}), 'larger than those of'),
  **{
    f'impossible lines {log}': (lambda folder, log=log: reseal(folder, log=log), FIELD)
    for log in ([[1, 8]], [[0, 1, 1]], [[1, 99, 1]], [[2, 2, 0]], [[3, 4, 1], [2, 2, 1]], [[1, '2', 1]], 3)
  },
}


@pytest.mark.parametrize('name', HARMS)
def test_a_checkpoint_that_is_none_or_attacks_is_passed_over(directory, name):
  harm, words = HARMS[name]
  harm(directory / '30')
  (line,) = assert_restores(directory, 20, lines=1)
  assert line.startswith('checkpoint 30 rejected: ')
  assert words in line
  for older in ('20', '10'):
    harm(directory / older)
  with pytest.raises(CheckpointError):
    checkpoints.restore_newest(directory, make_state(0), report=lambda line: None)


def test_a_checkpoint_or_its_manifest_under_another_step_is_rejected(directory):
  shutil.copytree(directory / '30', directory / '40')
  assert assert_restores(directory, 30, lines=1) == ['checkpoint 40 rejected: step 30 in MANIFEST.json; using 30']
  shutil.rmtree(directory / '40')
  shutil.copy(manifest(directory / '20'), manifest(directory / '30'))
  assert assert_restores(directory, 20, lines=1) == ['checkpoint 30 rejected: step 20 in MANIFEST.json; using 20']


@pytest.mark.parametrize(
  'name',
  [
    '.DS_Store', 'arrays/.DS_Store', 'arrays/d/.DS_Store', 'arrays/ocdbt.process_0/._manifest.ocdbt',
    'arrays/.nfs0000000000a1b2c300000001', 'arrays/_METADATA~', '.MANIFEST.json.swp', '#MANIFEST.json#', 'Thumbs.db',
    'arrays/two\nlines', 'arrays/ocdbt.process_1/manifest.ocdbt', 'arrays/d/sub/desktop.ini',
  ],
)  # fmt: skip
def test_a_file_that_the_manifest_does_not_list_costs_nothing(directory, name):
  path = directory / '30' / name
  path.parent.mkdir(exist_ok=True)
  path.write_text('x')
  (directory / path.name).write_text('x')  # nor beside the checkpoints
  assert_restores(directory, 30)
  inode = (directory / '30').stat().st_ino
  save(directory, 30)
  assert (directory / '30').stat().st_ino == inode
  save(directory, 40)
  save(directory, 50)
  checkpoints.prune(directory, 2)
  assert checkpoints.steps(directory) == [40, 50]
  assert not list(directory.glob('*.tmp'))


def test_an_unreadable_file_is_rejected(directory, monkeypatch):
  path = next(path for path in files_of(directory / '30') if path.name == '_METADATA')
  if os.geteuid():
    path.chmod(0)
  else:  # root reads everything
    sha256 = artifact.sha256_of

    def refuses(file: Path) -> str:
      if file == path:
        raise PermissionError(13, 'Permission denied', str(file))
      return sha256(file)

    monkeypatch.setattr(artifact, 'sha256_of', refuses)
  assert assert_restores(directory, 20, lines=1) == [
    'checkpoint 30 rejected: Permission denied in arrays/_METADATA; using 20'
  ]


def test_an_empty_folder_and_a_file_are_rejected(directory):
  (directory / '40').mkdir()
  (directory / '50').write_text('not a checkpoint')
  assert assert_restores(directory, 30, lines=2) == [
    'checkpoint 50 rejected: Not a directory in MANIFEST.json; using 30',
    'checkpoint 40 rejected: No such file or directory in MANIFEST.json; using 30',
  ]


def test_all_damaged_is_an_error_and_never_from_scratch(directory):
  for step in (10, 20, 30):
    flip(directory / str(step) / 'arrays' / '_METADATA', directory)
  lines: list[str] = []
  with pytest.raises(CheckpointError, match='No usable checkpoint is left of 3') as caught:
    checkpoints.restore_newest(directory, make_state(0), report=lines.append)
  assert caught.value.exit_code == 4
  assert '\n' not in str(caught.value)
  assert [line.split()[1] for line in lines] == ['30', '20', '10']
  assert lines[-1] == 'checkpoint 10 rejected: sha256 mismatch in arrays/_METADATA; none left'
