"""`evaluate --attack=perceptual`: what is found, written and shown."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, classifiers, datasets, evaluate, inference, report
from adversarial_augment import config as configs
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.evaluation import distances
from adversarial_augment.parallel import devices
from adversarial_augment.storage import checkpoints
from adversarial_augment.training import recipe
from adversarial_augment.types import TrainState
from tests import classifier_cases

NUM_IMAGES = 32
EPSILON = 0.5

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('perceptual') / 'w'
  classifier_cases.save_run(folder)
  config = classifier_cases.make_config()
  network = recipe.build_classifier(config, 10)
  params, model_state = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), is_training=True)  # small margins
  state = TrainState(np.asarray(3, np.int32), params, model_state, {'trace': params})
  checkpoints.save(folder / 'checkpoints', 3, state, config_sha256=configs.sha256(config))
  return folder


@pytest.mark.parametrize('distance', ['alexnet', 'self'])
def test_images_are_within_the_ball_and_the_result_says_of_which(distance, workdir, capsys, monkeypatch):
  monkeypatch.setattr(devices, 'compilation_cache', lambda: None)
  flags = ['--attack=perceptual', f'--distance={distance}', f'--epsilon={EPSILON}', f'--num_examples={NUM_IMAGES}']
  flags += ['--save_images', '--allow_suspect']
  evaluate.main([f'--workdir={workdir}', *flags])
  said = capsys.readouterr().out
  name = f'robustness_perceptual_{distance}_0.5'
  result = json.loads((workdir / 'results' / f'{name}.json').read_text())
  assert result['stages'] == ['lpa', 'ppgd', 'ppgd-200']
  assert result['num_robust'] < result['num_correct']
  assert result['distance']['self_bounded'] == (distance == 'self')
  assert ('not for comparisons' in said) == (distance == 'self')
  if distance == 'alexnet':
    assert result['distance']['file'] == 'alexnet_8.safetensors'
    assert len(result['distance']['sha256']) == 64

  measure = inference.load_classifier(workdir if distance == 'self' else classifiers.SHIPPED_ALEXNET)
  features = lambda images: measure.logits_fn.observe(images)[1]
  with np.load(workdir / 'results' / f'{name}.npz') as saved:
    images, broken = saved['images'], saved['broken']
  clean = datasets.load('embedded', 'test', '').read(np.arange(NUM_IMAGES)).images / np.float32(255)
  distances = np.asarray(attacks.feature_distance(features)(jnp.asarray(clean), jnp.asarray(images)))
  assert distances.max() <= EPSILON * (1 + 1e-3)
  assert (distances[broken] > 0).any()
  classify = inference.load_classifier(workdir)
  labels = datasets.load('embedded', 'test', '').read(np.arange(NUM_IMAGES)).labels
  wrong = np.asarray(classify.logits_fn(jnp.asarray(images))).argmax(1) != labels
  np.testing.assert_array_equal(wrong, broken)


def test_reports_show_both_and_say_that_one_is_not_for_comparisons(workdir):
  page = report.report([workdir]).read_text()
  assert 'perceptual, AlexNet distance' in page
  assert 'perceptual, its own distance' in page
  assert 'not for comparisons' in page


def test_a_result_of_another_alexnet_is_not_replaced_unasked(workdir, monkeypatch):
  monkeypatch.setattr(devices, 'compilation_cache', lambda: None)
  path = workdir / 'results' / 'robustness_perceptual_alexnet_0.5.json'
  result = json.loads(path.read_text())
  result['distance']['sha256'] = other = 64 * 'a'
  path.write_text(json.dumps(result))
  flags = ['--attack=perceptual', '--distance=alexnet', f'--epsilon={EPSILON}', f'--num_examples={NUM_IMAGES}']
  with pytest.raises(ArtifactError, match=f'exists already, with distance.sha256 = "{other[:40]}'):
    evaluate.main([f'--workdir={workdir}', *flags])
  assert json.loads(path.read_text()) == result


def test_a_damaged_run_as_the_distance_is_named_by_its_flag(workdir, tmp_path):
  damaged = tmp_path / 'alexnet'
  shutil.copytree(workdir, damaged)
  for part in (damaged / 'checkpoints').rglob('*'):
    if part.is_file():
      part.write_bytes(b'')
  with pytest.raises(UserError, match=f"--distance_from='{damaged}': "):
    distances.load(str(damaged), distances.FLAG, 'float32')
