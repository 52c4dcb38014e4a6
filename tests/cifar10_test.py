"""On real CIFAR-10 images, where the environment names them (see conftest.py)."""

import json

import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import datasets, train


def run(workdir, data_dir: str, spec: str, **overrides: str):
  """Trains in this process; returns the lines of the log and the results."""
  config = configs.override(configs.load(spec), {'data_dir': data_dir} | overrides)
  configs.validate(config)
  splits = {split: datasets.load('cifar10', split, data_dir) for split in ('train', 'test')}
  train.train(config, workdir, splits)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return lines, json.loads((workdir / 'results' / 'train.json').read_text())


def test_reads_all_of_it(cifar10_dir):
  train_set = datasets.load('cifar10', 'train', cifar10_dir)
  assert train_set.num_examples == 50_000
  assert train_set.num_classes == 10
  images, labels = train_set.read(np.arange(50_000))
  assert images.shape == (50_000, 32, 32, 3)
  assert images.dtype == np.uint8
  assert np.bincount(labels).tolist() == [5000] * 10
  # The published mean and deviation of CIFAR-10's training images; a JPEG round trip moves them in the third place.
  np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=0.005)
  np.testing.assert_allclose(images.std((0, 1, 2)) / 255, [0.2470, 0.2435, 0.2616], atol=0.005)


def test_laptop_scale_attack_is_alive_from_the_first_step(cifar10_dir, tmp_path):
  overrides = {'num_steps': '3', 'batch_size': '16', 'eval_images': '32', 'log_every': '1', 'checkpoint_every': '0'}
  lines, result = run(tmp_path / 'run', cifar10_dir, 'configs/ada_edsr.py:laptop', **overrides)
  assert [line['step'] for line in lines] == [1, 2, 3]
  for line in lines:
    assert line['gradient_norm'] > 0
    assert line['radius_fraction'] > 0.5
    assert line['attack_loss_end'] > line['attack_loss_start']
    assert 0.9 < line['ssim_mean'] < 1
  assert result['evals']['clean']['num_images'] == 32
  assert result['data']['train']['origin'] == 'unverified'


@pytest.mark.slow
def test_the_papers_setting_makes_two_steps(cifar10_dir, tmp_path):
  overrides = {'num_steps': '2', 'batch_size': '8', 'eval_images': '8', 'log_every': '1', 'checkpoint_every': '0'}
  lines, result = run(tmp_path / 'run', cifar10_dir, 'configs/ada_edsr.py', **overrides)
  assert result['config']['classifier'] == {
    'name': 'preact_resnet', 'depth': 50, 'width': 64, 'batch_norm_decay': 0.99, 'shortcut': 'preact',
    'padding': 'torch', 'mean': None, 'std': None, 'stem_stride': None,
  }  # fmt: skip
  assert result['weights']['network'] == {'name': 'edsr', 'blocks': 16, 'features': 64, 'scale': 4}
  for line in lines:
    assert line['radius_fraction'] > 0.5
    assert line['attack_loss_end'] > line['attack_loss_start']
    assert line['ssim_mean'] > 0.9
