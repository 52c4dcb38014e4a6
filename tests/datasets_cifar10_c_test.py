"""Tests of reading corrupted test sets: the layout, what is known of them, and every way in which they can be wrong."""

import hashlib
import io
import json
import pathlib
import shlex
import tarfile

import numpy as np
import pytest

from adversarial_augment import cli, metrics
from adversarial_augment.datasets import arrays, cifar10_c
from adversarial_augment.errors import UserError
from tests.described import described, refused

N = 40
NAMES = ('fog', 'frost')


RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (N, 32, 32, 3), np.uint8), RNG.integers(0, 10, N).astype(np.int32)
TEST = arrays.in_memory(IMAGES, LABELS, 'pets', 10, (), {'origin': 'own'})


def cells() -> np.ndarray:
  """Images that tell their severity and index: [5 N, 32, 32, 3]."""
  rows = np.zeros((5 * N, 32, 32, 3), np.uint8)
  rows[..., 0] = np.repeat(np.arange(1, 6), N)[:, None, None]
  rows[..., 1] = np.tile(np.arange(N), 5)[:, None, None]
  return rows


def write(folder: pathlib.Path) -> pathlib.Path:
  """Writes a set without a manifest."""
  folder.mkdir(parents=True, exist_ok=True)
  for i, name in enumerate(NAMES):
    images = cells()
    images[..., 2] = i
    np.save(folder / f'{name}.npy', images)
  np.save(folder / 'labels.npy', np.tile(LABELS, 5).astype(np.uint8))
  return folder


def open_set(path: pathlib.Path, names=NAMES, test=TEST, **how) -> cifar10_c.CorruptionSet:
  return cifar10_c.open_set(path, names, test, **how)


def write_manifest(folder: pathlib.Path, **changes) -> pathlib.Path:
  entries = {
    path.name: {'bytes': path.stat().st_size, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
    for path in folder.glob('*.npy')
  }
  entries['frost.npy']['frost'] = 'procedural'
  manifest = {
    'format': 1,
    'origin': 'generated',
    'test_set': dict(TEST.provenance),
    'num_images': N,
    'image_shape': list(TEST.image_shape),
    'seed': 3,
    'made_with': {'jax': '1'},
    'files': entries,
  }
  (folder / 'MANIFEST.json').write_text(json.dumps(manifest | changes))
  return folder


def test_every_cell_is_found(tmp_path):
  found = open_set(write(tmp_path))
  assert found[:2] == (NAMES, 'unverified')
  assert found.provenance == {'seed': None, 'frost': None, 'made_with': None, 'sha256': None}
  index = np.array([7, 0, 39])
  for i, name in enumerate(NAMES):
    for severity in range(1, 6):
      images = found.read(name, severity, index)
      assert type(images) is np.ndarray
      assert images.dtype == np.uint8
      assert images.shape == (3, 32, 32, 3)
      np.testing.assert_array_equal(images[:, 5, 5], [[severity, k, i] for k in index])


@pytest.mark.parametrize('name, made_with, origin', [
  ('motion_blur', {'jax': '1'}, 'generated, version 1'),
  ('snow', {'jax': '1', 'corruptions': '1'}, 'generated, version 1'),
  ('snow', {'jax': '1', 'corruptions': metrics.CORRUPTIONS_VERSION}, 'generated'),
  ('fog', {'jax': '1'}, 'generated'),
])  # fmt: skip
def test_a_set_of_an_older_version_says_so_where_its_bytes_are_others(tmp_path, name, made_with, origin):
  folder = write(tmp_path / 'pets_c')
  (folder / 'fog.npy').replace(folder / f'{name}.npy')
  write_manifest(folder, made_with=made_with)
  found = open_set(folder, [name])
  assert found.origin == origin
  assert found.provenance['made_with'] == made_with
  assert (found.warning is not None) == (origin != 'generated')
  if found.warning:
    assert 'prepare cifar10_c --dataset=pets --overwrite' in cli.describe(found.warning)


def test_all_missing_files_are_named_in_one_run(tmp_path):
  write(tmp_path)
  for name in ('fog', 'labels'):
    (tmp_path / f'{name}.npy').unlink()
  with refused('has no labels.npy, fog.npy; it must'):
    open_set(tmp_path)


def test_a_subset_needs_no_other_file(tmp_path):
  (write(tmp_path) / 'frost.npy').unlink()
  assert open_set(tmp_path, ['fog']).names == ('fog',)


def test_a_manifest_says_where_the_set_comes_from(tmp_path):
  write_manifest(write(tmp_path))
  found = open_set(tmp_path)
  assert found.origin == 'generated'
  about = {'seed': 3, 'frost': 'procedural', 'made_with': {'jax': '1'}}
  assert {key: found.provenance[key] for key in about} == about
  assert open_set(tmp_path, verify=True).provenance == found.provenance
  fog = open_set(tmp_path, ['fog']).provenance
  assert fog['frost'] is None
  assert fog['sha256'] != found.provenance['sha256']
  (tmp_path / 'MANIFEST.json').unlink()
  hashed = open_set(tmp_path, verify=True)
  assert hashed.origin == 'unverified'
  assert hashed.provenance['sha256'] == found.provenance['sha256']


def test_the_official_files_are_known_by_their_hashes(tmp_path, monkeypatch):
  write(tmp_path)
  known = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in tmp_path.glob('*.npy')}
  monkeypatch.setattr(cifar10_c, 'OFFICIAL_MD5', known)
  assert open_set(tmp_path, verify=True).origin == 'official'
  assert open_set(tmp_path).origin == 'unverified'
  with (tmp_path / 'fog.npy').open('r+b') as file:
    file.seek(-1, 2)
    file.write(b'x')
  assert open_set(tmp_path, verify=True).origin == 'unverified'


def test_official_hashes_are_of_the_19_corruptions():
  files = {f'{name}.npy' for name in metrics.ALL_NAMES}
  assert cifar10_c.OFFICIAL_MD5.keys() == files | {'labels.npy'}
  assert len(set(cifar10_c.OFFICIAL_MD5.values())) == 20
  assert {len(md5) for md5 in cifar10_c.OFFICIAL_MD5.values()} == {32}


def test_an_archive_is_read_without_unpacking(tmp_path):
  folder = write(tmp_path / 'CIFAR-10-C')
  with tarfile.open(tmp_path / 'set.tar', 'w') as archive:
    archive.add(folder, 'CIFAR-10-C')
  found = open_set(tmp_path / 'set.tar', verify=True)
  beside = open_set(folder, verify=True)
  assert found.provenance == beside.provenance
  np.testing.assert_array_equal(found.read('frost', 4, np.arange(N)), beside.read('frost', 4, np.arange(N)))


@pytest.mark.parametrize(
  'name, expected', [('cifar10', 'cifar10_c'), ('cifar10:3.0.2', 'cifar10_c'), ('pets/small:1.0.0', 'pets_small_c')]
)
def test_folder_name(name, expected):
  assert cifar10_c.folder_name(name) == expected


def save(file: str, array: np.ndarray):
  return lambda folder: np.save(folder / file, array, allow_pickle=True)


def change_file(file: str, change):
  return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


WRONG = np.tile(LABELS, 5)
WRONG[N + 3] = (WRONG[N + 3] + 1) % 10
FAULTS = {
  'no file': (lambda folder: (folder / 'fog.npy').unlink(), 'has no fog.npy.* the same command without --from'),
  'no labels': (lambda folder: (folder / 'labels.npy').unlink(), 'has no labels.npy.*CIFAR-10-C.tar'),
  'a severity is missing': (save('fog.npy', cells()[: 4 * N]), r'fog.npy.* \[160,.* must be uint8 \[200, 32, 32, 3\]'),
  'one row less': (save('fog.npy', cells()[:-1]), r'fog.npy.* \[199, '),
  'channels first': (save('fog.npy', cells().transpose(0, 3, 1, 2)), r'fog.npy.*\[200, 32, 32, 3\]'),
  'channels first, copied': (save('fog.npy', np.zeros((5 * N, 3, 32, 32), np.uint8)), r'\[200, 3, 32, 32\].*uint8'),
  'floats': (save('fog.npy', cells() / np.float32(255)), 'fog.npy.*float32'),
  'another size': (save('fog.npy', np.zeros((5 * N, 64, 64, 3), np.uint8)), r"\[200, 64, 64, 3\].*split of 'pets'"),
  'a number': (save('fog.npy', np.uint8(1)), r'fog.npy.*\[200, 32, 32, 3\]'),
  'labels of one severity': (save('labels.npy', LABELS), r'labels.npy.* \[40\] .* must be integers \[200\]'),
  'float labels': (save('labels.npy', WRONG.astype(np.float64)), 'labels.npy.*float64'),
  'one-hot labels': (save('labels.npy', np.eye(10, dtype=np.uint8)[WRONG]), r'labels.npy.*\[200, 10\]'),
  'a wrong label': (save('labels.npy', WRONG), 'in row 43, but image 3 of the test split'),
  'negative labels': (save('labels.npy', np.full(5 * N, -1)), 'label -1 in row 0.*another test set'),
  'permuted labels': (save('labels.npy', np.tile(LABELS[::-1], 5)), 'in another order.*make it again'),
  'each label five times': (save('labels.npy', np.repeat(LABELS, 5)), 'labels.npy.*another test set'),
  'half written': (change_file('fog.npy', lambda old: old[:300_000]), 'fog.npy.*300,000 bytes'),
  'cut in the header': (change_file('fog.npy', lambda old: old[:60]), 'fog.npy.*not a .npy file'),
  'empty': (change_file('fog.npy', lambda old: b''), 'fog.npy.*not a .npy file'),
  'too long': (change_file('fog.npy', lambda old: old + b'x'), 'fog.npy.*written or copied in part'),
  'pickled': (save('fog.npy', np.array([print] * 5 * N)), 'fog.npy.*pickled Python objects'),
  'no .npy': (change_file('fog.npy', lambda old: b'PK\3\4' + bytes(500)), 'fog.npy.*not a .npy file'),
  'a new format': (change_file('fog.npy', lambda old: b'\x93NUMPY\x09\0' + bytes(500)), r'fog.npy.*\(9, 0\)'),
  'a header of code': (
    change_file('fog.npy', lambda old: b'\x93NUMPY\1\0\x0e\0__import__(1)\n'), 'fog.npy.*not a .npy file'
  ),
}  # fmt: skip


@pytest.mark.parametrize('change, said', FAULTS.values(), ids=FAULTS)
def test_refused(tmp_path, change, said):
  change(write(tmp_path))
  with refused(said):
    open_set(tmp_path)


def manifest(**changes):
  return lambda folder: write_manifest(folder, **changes)


def change_entry(file: str, **changes):
  """Changes what the manifest says of a file; without changes, it says nothing."""

  def change(folder: pathlib.Path) -> None:
    content = json.loads((folder / 'MANIFEST.json').read_text())
    entry = content['files'].pop(file)
    content['files'] |= {file: entry | changes} if changes else {}
    (folder / 'MANIFEST.json').write_text(json.dumps(content))

  return change


def manifest_bytes(content: bytes):
  return lambda folder: (folder / 'MANIFEST.json').write_bytes(content)


BAD_MANIFESTS = {
  'of another test set': (manifest(test_set={'sha256': 'a' * 64}), 'aaaa.*make it again'),
  'not listed': (change_entry('fog.npy'), 'fog.npy.* is not listed'),
  'another size': (change_entry('fog.npy', bytes=7), 'fog.npy.* but 7 in MANIFEST.json'),
  'another format': (manifest(format=2), r'MANIFEST.json.*value 2 - at `\$.format`'),
  'no JSON': (manifest_bytes(b'{"format": 1,'), 'MANIFEST.json.*damaged'),
  'no object': (manifest_bytes(b'[1]'), 'MANIFEST.json.*damaged'),
  'no text': (manifest_bytes(b'\xff\xfe\x00'), 'MANIFEST.json.*damaged'),
  'deep': (manifest_bytes(b'[' * 100_000), 'MANIFEST.json.*nested too deep'),
  'no field': (manifest(test_set={}), r'MANIFEST.json.*`sha256` - at `\$.test_set`'),
  'a wrong type': (manifest(origin=None), r'MANIFEST.json.*got `null` - at `\$.origin`'),
  'a made-up origin': (manifest(origin='mine'), r"MANIFEST.json.*'mine' - at `\$.origin`"),
  'a seed of text': (manifest(seed='x'), r'MANIFEST.json.*got `str` - at `\$.seed`'),
  'a frost that steers the terminal': (
    change_entry('frost.npy', frost='\x1b[2J'), r"MANIFEST.json.*frost='\\x1b\[2J'"
  ),
  'another number': (manifest(num_images=5), r'MANIFEST.json.* of size \[5, 32,'),
  'another shape': (manifest(image_shape=[1]), r'MANIFEST.json.* of size \[40, 1\], but'),
}  # fmt: skip


@pytest.mark.parametrize('change, said', BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_bad_manifests(tmp_path, change, said):
  change(write_manifest(write(tmp_path)))
  with refused(said):
    open_set(tmp_path)


@pytest.mark.parametrize(
  'changes, flags',
  [
    ([lambda folder: (folder / 'fog.npy').unlink()], []),
    ([change_entry('fog.npy')], ['--seed=3']),
    ([change_entry('fog.npy', bytes=7)], ['--seed=3']),
    ([change_entry('fog.npy', sha256='a')], ['--seed=3']),
    ([manifest(source='/a b', test_set={'sha256': 'a' * 64})], ['--overwrite']),
    ([manifest(source='/a b'), change_entry('fog.npy', bytes=7)], ['--from=/a b']),
    ([manifest(format=2)], ['--overwrite']),
  ],
)
def test_the_way_out_is_a_whole_command_line(tmp_path, changes, flags):
  data_dir = tmp_path / 'my data'
  folder = write_manifest(write(data_dir / 'pets_c'))
  for change in changes:
    change(folder)
  with pytest.raises(UserError) as caught, described():
    open_set(folder, verify=True)
  words = shlex.split(str(caught.value).replace("'", '', 2).partition('python -m adversarial_augment.prepare ')[2])
  expected = ['cifar10_c', '--dataset=pets', *flags, f'--data_dir={data_dir}']
  assert [word.rstrip(',.') for word in words[: len(expected)]] == expected


def test_a_flipped_bit_is_found_by_verifying(tmp_path):
  change_file('fog.npy', lambda old: old[:-1] + bytes([old[-1] ^ 1]))(write_manifest(write(tmp_path)))
  with refused('fog.npy.*was changed or damaged; remove it'):
    open_set(tmp_path, verify=True)


def test_a_set_of_another_test_set_of_the_same_labels(tmp_path):
  other = TEST._replace(provenance={'sha256': 'b' * 64})
  with refused("MANIFEST.json' is of a test set .* 'pets' has bbbb"):
    open_set(write_manifest(write(tmp_path)), test=other)


def test_places_that_are_not_sets(tmp_path):
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode='w') as archive:
    archive.add(write(tmp_path / 'set'), '')
  (tmp_path / 'cut.tar').write_bytes(stream.getvalue()[:1_000_000])
  (tmp_path / 'text').write_text('no archive')
  (tmp_path / 'packed.tar.gz').write_bytes(b'\x1f\x8b' + bytes(600))
  for name, said in (
    ('none', 'does not exist'),
    ('text', 'neither a folder'),
    ('packed.tar.gz', 'uncompressed tar archive'),
    ('cut.tar', 'cut.tar.* nor a whole and uncompressed tar archive; give CIFAR-10-C.tar'),
    ('/dev/null', 'is not a file or folder'),
  ):
    with refused(said):
      open_set(tmp_path / name)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
  write(tmp_path)
  refuse = lambda path, *_: (_ for _ in ()).throw(PermissionError(13, 'Permission denied', str(path)))
  monkeypatch.setattr(cifar10_c.untrusted, 'open_file', refuse)
  with refused(r"labels.npy' cannot be read \(Permission denied\)"):
    open_set(tmp_path)


def test_an_array_that_is_stored_column_by_column_is_read(tmp_path):
  np.save(write(tmp_path) / 'fog.npy', np.asfortranarray(cells()))
  np.testing.assert_array_equal(open_set(tmp_path, ['fog']).read('fog', 2, np.arange(N)), cells()[N : 2 * N])
