"""Files of a classifier: what `export` writes is read back, and other or damaged files are one line."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from adversarial_augment import export, inference
from adversarial_augment.classifiers import weight_files
from adversarial_augment.errors import UserError
from adversarial_augment.exporting import torch_layout
from adversarial_augment.storage import tensor_files
from tests.classifier_cases import images, random_classifier

NORMALISATION = {'mean': '0.5,0.5,0.4', 'std': '0.5,0.5,0.6'}


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A classifier and its file."""
  folder = tmp_path_factory.mktemp('exported')
  classifier = random_classifier(10, num_classes=3, width=4, shortcut='input', **NORMALISATION)
  export.export(classifier, folder, folder / 'out', ['safetensors'])
  return classifier, folder / 'out' / 'classifier.safetensors'


def test_a_file_of_export_is_loaded_as_its_run_is(written):
  classifier, path = written
  found = inference.load_classifier(path, batch_size=4)
  assert (found.num_classes, found.class_names) == (3, None)
  assert (found.step, found.checkpoint_sha256) == (classifier.step, classifier.checkpoint_sha256)
  assert found.config.classifier.shortcut == 'input'
  np.testing.assert_array_equal(found(images(4)), classifier(images(4)))


def test_images_are_normalised_as_the_config_says(written):
  classifier, _ = written
  usual = random_classifier(10, num_classes=3, width=4, shortcut='input')  # of the same weights
  x = images(4)
  mean, std = ([np.float32(value) for value in values.split(',')] for values in NORMALISATION.values())
  moved = (x - mean) / std * np.float32((0.2471, 0.2435, 0.2616)) + np.float32((0.4914, 0.4822, 0.4465))
  np.testing.assert_allclose(classifier(x), usual.logits_fn(moved), rtol=0, atol=1e-4)
  assert np.abs(classifier(x) - usual(x)).max() > 1e-2


def rewrite(path: Path, target: Path, change) -> Path:
  """Writes a file with other trees and card."""
  trees, card = weight_files.read(path)
  change(*trees, card)
  target.write_bytes(weight_files.encode(*trees, json.dumps(card)))
  return target


HEAD, NORM = 'preact_resnet/head', 'preact_resnet/norm'
CHANGES = {
  'a missing array': (lambda params, state, card: params.pop(HEAD), "lacks 'params/preact_resnet/head/b'"),
  'a strange array': (lambda params, state, card: params[NORM].update(x=np.zeros(3, np.float32)), 'does not have'),
  'another width': (lambda params, state, card: card['architecture'].update(width=8), r'must have \[64\]'),
  'an unknown network': (lambda params, state, card: card['architecture'].update(name='vgg'), 'must be one of'),
  'a wrong type': (lambda params, state, card: card['architecture'].update(depth='x'), 'this version cannot read'),
  'an unknown field': (lambda params, state, card: card['architecture'].update(dropout=0.1), 'cannot read'),
  'no normalisation': (lambda params, state, card: card.pop('input'), 'cannot read'),
  'another card': (lambda params, state, card: card.update(format='x'), 'no classifier of this package'),
  'NaN': (lambda params, state, card: params[HEAD].update(b=np.float32([0, np.nan, 0])), 'NaN or infinite'),
}


@pytest.mark.parametrize('name', CHANGES)
def test_files_that_are_not_what_their_card_says_are_one_line(written, tmp_path, name):
  change, said = CHANGES[name]
  path = rewrite(written[1], tmp_path / 'w.safetensors', change)
  with pytest.raises(UserError, match=said) as error:
    inference.load_classifier(path)
  assert str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_damaged_and_other_files_are_one_line(written, tmp_path):
  classifier, path = written
  raw = path.read_bytes()
  trees = jax.device_get((classifier.params, classifier.model_state))
  state_dict = {key: value.astype(np.float32) for key, value in torch_layout.state_dict(*trees).items()}
  header = {'card': json.dumps(weight_files.read(path)[1])}
  for content, said in (
    (raw[:-10], 'is damaged or not a .safetensors'),
    (raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:], 'do not have the SHA-256 in its header'),
    (b'PK\3\4', 'is damaged or not'),
    (tensor_files.encode({'x': np.zeros(3, np.float32)}, {}), 'its header has no card of one; name a classifier.safe'),
    (tensor_files.encode({'x': np.zeros(3, np.float32)}, {'card': '{'}), 'is no JSON'),
    (tensor_files.encode(state_dict, header), 'holds a state dict of PyTorch'),
  ):
    (tmp_path / 'w').write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
      inference.read_file(tmp_path / 'w')
    assert '\n' not in str(error.value)


def test_files_of_versions_without_a_hash_are_read(written, tmp_path):
  from safetensors.numpy import load_file, save_file

  card = json.dumps(weight_files.read(written[1])[1])
  save_file(load_file(written[1]), tmp_path / 'w', metadata={'card': card})
  assert inference.read_file(tmp_path / 'w').classes.num == 3
