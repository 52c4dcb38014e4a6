"""A trained classifier as a function of images, restored without its data."""

import json
from pathlib import Path
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import datasets, inference
from adversarial_augment.classifiers import preact_resnet
from adversarial_augment.errors import CheckpointError
from adversarial_augment.inference import load_classifier
from adversarial_augment.parallel import sharding
from adversarial_augment.storage import checkpoints
from tests import tiny
from tests.checkpoint_cases import files_of, flip
from tests.classifier_cases import save_run
from tests.described import refused
from tests.train_run_test import start


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """The run's folder and its states by step."""
  workdir = tmp_path_factory.mktemp('run') / 'w'
  return workdir, save_run(workdir)


@pytest.fixture
def copy(saved, tmp_path) -> Path:
  return Path(shutil.copytree(saved[0], tmp_path / 'w'))


@pytest.fixture(scope='module')
def classify(saved):
  return load_classifier(saved[0], batch_size=8)


def images(n: int) -> np.ndarray:
  return tiny.dataset().read(np.arange(n)).images


def logits_of(state, x: np.ndarray) -> np.ndarray:
  """Those of the network that tiny.OVERRIDES describe."""
  network = preact_resnet(10, depth=10, width=4)
  return np.asarray(network.apply(state.params, state.model_state, None, jnp.asarray(x) / 255.0, is_training=False)[0])


def test_logits_are_those_of_the_trained_network(saved, classify):
  x = images(20)
  found = classify(x)
  assert (found.dtype, found.shape) == (np.float32, (20, 10))
  expected = logits_of(saved[1][2], x)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
  assert np.abs(expected - logits_of(saved[1][1], x)).max() > 1e-3  # another step would show


def test_logits_of_an_image_are_the_same_bits_in_every_batch(classify):
  x = images(20)
  together = classify(x)
  np.testing.assert_array_equal(np.concatenate([classify(x[i : i + 1]) for i in range(20)]), together)
  order = np.random.default_rng(0).permutation(20)
  np.testing.assert_array_equal(classify(x[order]), together[order])
  np.testing.assert_array_equal(classify(x[3:14]), together[3:14])


@pytest.mark.parametrize('batch_size', [1, 64])
def test_batch_size_changes_no_more_than_rounding(saved, classify, batch_size):
  x = images(9)
  np.testing.assert_allclose(load_classifier(saved[0], batch_size=batch_size)(x), classify(x), rtol=0, atol=1e-6)


def test_images_of_all_types_and_sizes(saved, classify):
  x = images(5)
  for same in (x.astype(np.float32) / 255, x.astype(np.float64) / 255, jnp.asarray(x)):
    np.testing.assert_array_equal(classify(same), classify(x))
  halves = jnp.asarray(x, jnp.bfloat16) / 256
  np.testing.assert_array_equal(classify(halves), classify(np.asarray(halves, np.float32)))
  for none in (x[:0], np.zeros((0, 32, 32, 3), np.float32)):
    assert classify(none).shape == (0, 10)
  small = x[:4, :25, :30]
  np.testing.assert_allclose(classify(small), logits_of(saved[1][2], small), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  'bad, words',
  [
    (np.zeros((32, 32, 3), np.uint8), 'uint8 of shape [32, 32, 3]'),
    (np.zeros((2, 3, 32, 32), np.uint8), 'uint8 of shape [2, 3, 32, 32]'),
    (np.zeros((2, 0, 32, 3), np.uint8), 'shape [2, 0, 32, 3]'),
    (np.zeros((2, 32, 32, 3), np.int64), 'int64'),
    (np.zeros((2, 32, 32, 3), bool), 'bool'),
    (np.full((2, 32, 32, 3), 255.0), 'from 255 to 255'),
    (np.full((2, 32, 32, 3), -0.5), 'from -0.5 to -0.5'),
    (np.full((2, 32, 32, 3), np.nan), 'from nan to nan'),
    ([], 'shape [0]'),
  ],
)
def test_what_is_no_batch_of_images_is_refused(classify, bad, words):
  with refused(f'{re.escape(words)}.* must'):
    classify(bad)


def test_whole_run_is_restored_with_the_accuracy_that_it_reported(tmp_path, monkeypatch):
  start(tmp_path / 'w')
  monkeypatch.setattr(datasets, 'load', lambda *_: pytest.fail('it read the data set'))
  test = tiny.dataset().read(np.arange(40, 64))  # what `start` tests on
  classify = load_classifier(str(tmp_path / 'w'))
  reported = json.loads((tmp_path / 'w' / 'results' / 'train.json').read_text())
  assert int((classify(test.images).argmax(-1) == test.labels).sum()) == reported['evals']['clean']['num_correct']
  assert classify.checkpoint_sha256 == reported['state_sha256']
  assert classify.step == reported['step']


# What is known of it.


def test_attributes(saved, classify):
  assert classify.step == 2
  assert classify.num_classes == 10
  assert classify.image_shape == (None, None, 3)
  assert classify.checkpoint_sha256 == checkpoints.state_sha256(saved[1][2])
  assert classify.class_names == tuple('0123456789')  # of the embedded set
  assert classify.config.classifier.width == 4
  assert jax.tree.structure(classify.params) == jax.tree.structure(saved[1][2].params)


@pytest.mark.parametrize('dataset, num_classes, names', [
  ('cifar10', 10, ('airplane', 'automobile')), ('cifar10:3.0.2', 10, ('airplane', 'automobile')),
  ('cifar10', 7, None), ('pets', 10, None),
])  # fmt: skip
def test_class_names_are_those_of_known_data_sets(saved, dataset, num_classes, names):
  config = configs.override(inference.read_config(saved[0]), {'dataset': dataset})
  restored = inference.Restored(2, '', '', saved[1][2])
  found = inference.Classifier(config, num_classes, restored, 1).class_names
  assert (found if found is None else found[:2]) == names


def test_class_names_are_those_that_the_run_has_recorded(copy):
  names = [f'pet {i}' for i in range(10)]
  (copy / 'data.json').write_text(json.dumps({'train': 'f' * 64, 'image_shape': [32, 32, 3], 'class_names': names}))
  assert load_classifier(copy).class_names == tuple(names)


def test_restore_puts_the_classifier_on_every_device(saved):
  workdir, states = saved
  mesh = sharding.data_mesh()
  restored = inference.restore(inference.read_config(workdir), workdir, 10, (32, 32, 3), mesh)
  assert (restored.step, restored.sha256) == (2, checkpoints.state_sha256(states[2]))
  for name in ('params', 'model_state'):
    found, expected = getattr(restored.state, name), getattr(states[2], name)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {sharding.replicated(mesh)}
  assert restored.state.opt_state is None


def test_restoring_changes_nothing_in_the_folder(copy):
  before = {path: path.read_bytes() for path in files_of(copy)}
  load_classifier(copy)
  assert {path: path.read_bytes() for path in files_of(copy)} == before


def test_damaged_checkpoint_is_named_and_the_one_before_used(saved, copy, capsys):
  flip(max(files_of(copy / 'checkpoints' / '2' / 'arrays'), key=lambda path: path.stat().st_size), copy)
  classify = load_classifier(copy)
  assert classify.step == 1
  assert classify.checkpoint_sha256 == checkpoints.state_sha256(saved[1][1])
  assert 'checkpoint 2 rejected: sha256 mismatch' in capsys.readouterr().err
  np.testing.assert_allclose(classify(images(4)), logits_of(saved[1][1], images(4)), rtol=0, atol=1e-6)


def test_only_damaged_checkpoints_are_an_error(copy):
  for step in (1, 2):
    (copy / 'checkpoints' / str(step) / 'MANIFEST.json').write_text('{}')
  with pytest.raises(CheckpointError, match='No usable checkpoint is left of 2'):
    load_classifier(copy)


def break_config(workdir: Path, old: str, new: str) -> None:
  path = workdir / 'config.json'
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
  'spoil, words',
  [
    (lambda w: shutil.rmtree(w), 'it has no config.json; name the workdir of a run of train.'),
    (lambda w: shutil.rmtree(w / 'checkpoints'), 'No checkpoint under'),
    (lambda w: (w / 'config.json').write_text('{"seed"'), 'is not JSON'),
    (lambda w: (w / 'config.json').write_bytes(b'\xff\xfe'), 'Cannot read'),
    (lambda w: (w / 'config.json').write_text(configs.to_json(configs.pretrain_config())), 'a run of pretrain'),
    (lambda w: (w / 'data.json').write_text('{"train": NaN}'), "data.json' is damaged"),
    (lambda w: (w / 'data.json').write_text('{"class_names": "ab"}'), "class_names='ab' must be a list"),
    (lambda w: break_config(w, '"padding": "torch"', '"padding": "same"'), 'is not the config of checkpoint 2'),
    (lambda w: break_config(w, '"depth": 10', '"depth": 18'), 'is of another state'),
    (lambda w: break_config(w, '"depth": 10', '"depth": 11'), 'classifier.depth=11'),
  ],
)
def test_what_is_no_run_is_refused_in_one_line(copy, spoil, words):
  spoil(copy)
  with refused(re.escape(words)):
    load_classifier(copy)


def test_arguments_are_checked(saved):
  for batch_size in (0, 2.5, 'all', None):
    with refused(f'batch_size={batch_size} must be an integer of at least 1'):
      load_classifier(saved[0], batch_size=batch_size)
  for workdir in (None, 3, b'w'):
    with refused('workdir=.* cannot be the name of a file or folder'):
      load_classifier(workdir)


def test_config_is_read_without_jax(saved):
  code = (
    'import sys, pathlib; from adversarial_augment import inference; '
    f"inference.read_config(pathlib.Path({str(saved[0])!r})); print('jax' in sys.modules)"
  )
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'
