"""Mixing training images with their DeepAugment copies: rows, epochs, held-out images, and what is refused."""

import hashlib
import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest

from adversarial_augment import corruption_nets, prepare
from adversarial_augment.cli import ways_out
from adversarial_augment.datasets import arrays, mixture, sampling
from adversarial_augment.types import Batch, Dataset
from tests import deepaugment_sets
from tests.described import refused

N = deepaugment_sets.N


def dataset(value: int) -> Dataset:
  """N images, all of whose pixels are (value, index)."""
  images = np.zeros((N, 4, 4, 3), np.uint8)
  images[..., 0], images[..., 1] = value, np.arange(N)[:, None, None]
  made = arrays.in_memory(images, np.arange(N, dtype=np.int32) % 3, 'pets', 3, (), {})
  return made._replace(provenance={'name': f'set {value}', 'sha256': f'{value:x}'})


def drawn(mixed: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns value, index and label of every example."""
  images, labels = mixed.read(np.arange(mixed.num_examples))
  assert images.dtype == np.uint8
  assert labels.dtype == np.int32
  return images[:, 0, 0, 0], images[:, 0, 0, 1], labels


@pytest.mark.parametrize('how, clean', [('concat', 1), ('half', 3), ('only', 0)])
def test_what_is_drawn_how_often(how, clean):
  mixed = mixture.mix(dataset(0), [dataset(1), dataset(2), dataset(3)], how)
  assert mixed.num_examples == (clean + 3) * N
  assert mixed.epoch_size == N
  values, index, labels = drawn(mixed)
  np.testing.assert_array_equal(labels, index % 3)
  for i in range(N):
    found = np.bincount(values[index == i], minlength=4)
    np.testing.assert_array_equal(found, [clean, 1, 1, 1])


def test_rows_come_in_the_order_of_the_indices():
  mixed = mixture.mix(dataset(0), [dataset(1), dataset(2)], 'concat')
  wanted = np.array([2 * N + 5, 3, N, 3])
  images, labels = mixed.read(wanted)
  assert images[:, 0, 0, :2].tolist() == [[2, 5], [0, 3], [1, 0], [0, 3]]
  assert labels.tolist() == [2, 0, 0, 0]
  assert mixed.read(np.array([], np.int64)).images.shape == (0, 4, 4, 3)


def test_copies_of_held_out_images_are_held_out():
  copies = [sampling.holdout(dataset(value), 11)[0] for value in (1, 2)]
  train, validation = sampling.holdout(dataset(0), 11)
  mixed = mixture.mix(train, copies, 'concat')
  held_out = set(drawn(validation)[1].tolist())
  values, index, _ = drawn(mixed)
  assert len(held_out) == 11
  assert not held_out & set(index.tolist())
  for value in (0, 1, 2):
    assert set(index[values == value].tolist()) == set(range(N)) - held_out
  assert mixed.epoch_size == N - 11


def test_hash_and_provenance_say_what_is_mixed():
  mixed = mixture.mix(dataset(0), [dataset(1), dataset(1), dataset(2)], 'half')
  about = mixed.provenance['deepaugment']
  assert about['mix'] == 'half'
  assert about['copies'] == {'set 1': 2, 'set 2': 1}
  assert about['train_sha256'] == '0'
  assert [part['name'] for part in about['sets']] == ['set 1', 'set 2']
  others = [
    mixture.mix(dataset(0), [dataset(1), dataset(2)], 'half'),
    mixture.mix(dataset(0), [dataset(1), dataset(1), dataset(3)], 'half'),
    mixture.mix(dataset(0), [dataset(1), dataset(1), dataset(2)], 'concat'),
    mixture.mix(dataset(4), [dataset(1), dataset(1), dataset(2)], 'half'),
    dataset(0),
  ]
  assert len({mixed.provenance['sha256'], *(other.provenance['sha256'] for other in others)}) == 6
  json.dumps(mixed.provenance)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory) -> pathlib.Path:
  """A data_dir with a data set and a DeepAugment set of two copies; not to be changed."""
  return deepaugment_sets.write(tmp_path_factory.mktemp('prepared'))


@pytest.fixture
def data_dir(prepared, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(prepared, tmp_path / 'data'))


def test_copies_of_a_set(prepared):
  train = deepaugment_sets.load(prepared)
  copies = mixture.load(train, str(prepared), ['some'])
  labels = train.read(np.arange(N)).labels
  for number, opened in enumerate(copies):
    images, found = opened.read(np.arange(N))
    np.testing.assert_array_equal(images, deepaugment_sets.make(train.read(np.arange(N)).images, None, number))
    np.testing.assert_array_equal(found, labels)
    assert opened.num_examples == N
  assert len(copies) == 2
  assert len(mixture.load(train, str(prepared), ['some'], 1)) == 1
  assert mixture.load(train, str(prepared), []) == []
  provenance = mixture.mix(train, copies, 'concat').provenance['deepaugment']
  assert provenance['copies'] == {'some': 2}
  assert provenance['sets'][0]['files'].keys() == set(mixture.FILES)


def folder_of(data_dir: pathlib.Path) -> pathlib.Path:
  return data_dir / 'pets_deepaugment' / 'some'


def flip_byte(data_dir: pathlib.Path, name: str) -> None:
  path = folder_of(data_dir) / name
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


def change_manifest(data_dir: pathlib.Path, **changes) -> None:
  path = folder_of(data_dir) / mixture.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(data_dir: pathlib.Path) -> None:
  path = folder_of(data_dir) / mixture.IMAGES
  path.write_bytes(path.read_bytes()[:-1])


REFUSED = {
  'missing': (lambda data_dir: shutil.rmtree(folder_of(data_dir)), r'does not exist; run python -m .*--name=some'),
  'unfinished': (lambda data_dir: (folder_of(data_dir) / 'MANIFEST.json').unlink(), 'is not finished; run'),
  'no images': (
    lambda data_dir: (folder_of(data_dir) / 'images.npy').unlink(),
    "images.npy' is missing; make the set again",
  ),
  'cut': (cut, "images.npy' has .* bytes, but .* in MANIFEST.json; make the set again"),
  'damaged images': (lambda data_dir: flip_byte(data_dir, 'images.npy'), "images.npy' has SHA-256 .* damaged"),
  'damaged labels': (lambda data_dir: flip_byte(data_dir, 'labels.npy'), "labels.npy' has SHA-256"),
  'damaged index': (lambda data_dir: flip_byte(data_dir, 'index.npy'), "index.npy' has SHA-256"),
  'no JSON': (lambda data_dir: (folder_of(data_dir) / 'MANIFEST.json').write_text('{'), 'is damaged or not of this'),
  'other format': (lambda data_dir: change_manifest(data_dir, format='x'), r"value 'x' - at `\$.format"),
  'no copies': (lambda data_dir: change_manifest(data_dir, copies='2'), r'got `str` - at `\$.copies`'),
  'no copy': (lambda data_dir: change_manifest(data_dir, copies=0), r'`int` >= 1 - at `\$.copies`'),
  'fewer than no copies': (lambda data_dir: change_manifest(data_dir, copies=-3), r'`int` >= 1 - at `\$.copies`'),
  'other data': (lambda data_dir: change_manifest(data_dir, train_set={'sha256': 'abc'}), 'images with SHA-256 abc'),
  'more copies': (lambda data_dir: change_manifest(data_dir, copies=3), r'has shape \[\d+, 32, 32, 3\]'),
}


@pytest.mark.parametrize('change, said', REFUSED.values(), ids=REFUSED)
def test_refused(data_dir, change, said):
  change(data_dir)
  with refused(said):
    deepaugment_sets.open_sets(deepaugment_sets.load(data_dir), data_dir)


SMALL, CAE = (
  hashlib.sha256(corruption_nets.find(name).read_bytes()).hexdigest() for name in ('edsr_4x16_x1', 'cae_16')
)
OTHERWISE = {'net': 'edsr', 'weights': {'sha256': SMALL}, 'seed': 3, 'scale': 'published', 'bug_compatible': False}
FLAGS = '--seed=3 --no-bug_compatible --scale=published --name=some --weights=edsr_4x16_x1'


def test_refusals_end_with_the_command_that_the_manifest_tells(data_dir):
  change_manifest(data_dir, **OTHERWISE)
  train = deepaugment_sets.load(data_dir)
  command = f'prepare deepaugment --dataset=pets --copies={{}} {FLAGS} --overwrite --data_dir={data_dir}'

  def refuse(said: str, train: Dataset = train, copies: int | None = None) -> None:
    way_out = f'make more with python -m adversarial_augment.{command.format(3)}' if copies else again
    with refused(f'{said}.*{re.escape(way_out)}'):
      deepaugment_sets.open_sets(train, data_dir, copies)

  shifted = lambda index: Batch(train.read(index).images, (train.read(index).labels + 1) % 3)
  again = f'again with python -m adversarial_augment.{command.format(2)}'
  refuse('has 2 copies, but 3 are wanted; lower ', copies=3)
  refuse('its labels are not those', train._replace(read=shifted))
  refuse('SHA-256', train._replace(provenance=train.provenance | {'sha256': 'abc'}))
  refuse(r'has shape .* but must be uint8 \[\d+, 16, 16, 3\]', train._replace(image_shape=(16, 16, 3)))
  (folder_of(data_dir) / 'index.npy').unlink()
  refuse('index.npy')
  flip_byte(data_dir, 'images.npy')
  refuse('images.npy')


def arguments_of(command: str) -> dict:
  """Returns what `prepare` understands."""
  return vars(prepare._parser().parse_args(shlex.split(command.partition(' (')[0])[3:]))


@pytest.mark.parametrize(
  'about, flags',
  [
    ({}, {}),
    ({'net': 'cae', 'weights': {'sha256': CAE}}, {'net': 'cae'}),
    ({'net': 'edsr', 'weights': {'sha256': CAE}}, {'weights': 'cae_16'}),
    (OTHERWISE | {'copies': 7}, {key: OTHERWISE[key] for key in ('seed', 'scale', 'bug_compatible')} | {
      'copies': 7, 'weights': 'edsr_4x16_x1'
    }),
    ({'weights': {'sha256': 'abc'}}, {'weights': 'FILE.safetensors'}),
    ({'net': [], 'copies': '2', 'weights': None}, {}),
  ],
)  # fmt: skip
def test_commands_are_understood(about, flags):
  for dataset, name, where in (('cifar10', 'edsr', ways_out.DATA_DIR), ('my pets', "it's", 'a folder')):
    command = ways_out.deepaugment(pathlib.Path(where).expanduser() / 'x_deepaugment' / name, dataset, about)
    found = arguments_of(command)
    expected = arguments_of('python -m adversarial_augment.prepare deepaugment')
    own = {} if name == flags.get('net', 'edsr') else {'name': name}
    assert found == expected | flags | own | {'dataset': dataset, 'data_dir': where}
    assert ('(FILE.safetensors is the file with SHA-256 abc)' in command) == ('FILE' in flags.get('weights', ''))
    if not flags and not own:
      assert command == 'python -m adversarial_augment.prepare deepaugment'
