"""Corruption errors on a part of the test images: which part, what says so, and the flag for all of them."""

import json

import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import corruptions
from adversarial_augment.datasets import benchmarks
from adversarial_augment.evaluation import evaluations
from adversarial_augment.run import summary
from tests import tiny
from tests.evaluations_test import LINEAR, NUM, STATE, WEIGHTS, ignore, some_images


def test_a_subset_is_evenly_spaced_and_says_so():
  test = some_images()
  by_class = test._replace(read=lambda index: test.read(np.argsort(test.read(np.arange(NUM)).labels)[index]))

  def measure(images, name='cifar10_c', **overrides):
    config = configs.override(configs.base_config(), {'batch_size': '5'} | overrides)
    found = evaluations.Evaluations(config, LINEAR, tiny.make_mesh(2), benchmarks.Benchmarks(images), None, {})
    return found.measure(name, STATE, ignore), json.dumps(found.conditions(name), sort_keys=True)

  for images in (test, by_class):
    found, _ = measure(images, corrupted_images='4')
    assert (found['num_images'], found['subset_of']) == (4, NUM)
    clean, labels = images.read(np.arange(NUM))
    for name in ('fog', 'jpeg_compression'):
      for severity, right in enumerate(found['num_correct'][name], 1):
        x = corruptions.corrupt(clean, name, severity)[::3].reshape(4, 3072) / 255 - 0.5
        assert right == ((x @ WEIGHTS).argmax(-1) == labels[::3]).sum()
  assert '4 images a cell (of 12, evenly spaced), generated' in '\n'.join(summary.evaluation('cifar10_c', found, {}))

  first, all_of_first = measure(test, eval_images='4'), measure(test, eval_images='4', corrupted_images='9')
  assert 'subset_of' not in first[0]
  assert first == (all_of_first[0] | {'seconds': first[0]['seconds']}, all_of_first[1])
  assert first[1] != measure(test, corrupted_images='4')[1]  # as many images, and others
  assert measure(test, 'clean', corrupted_images='4')[0]['num_images'] == NUM
  assert measure(test, 'clean')[1] == measure(test, 'clean', corrupted_images='4')[1]


@pytest.mark.parametrize('path', ['ada_edsr', 'nominal', 'linf_adversarial', 'augmix'])
def test_every_quickstart_corrupts_the_same_part_and_a_flag_takes_all(path):
  config = configs.load(f'configs/{path}.py:quickstart')
  assert config.corrupted_images == 400
  assert config.eval_images is None
  assert configs.override(config, {'corrupted_images': 'none'}).corrupted_images is None
  assert configs.load(f'configs/{path}.py').corrupted_images is None
