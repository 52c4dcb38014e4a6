"""The adversary against a trained residual network, on real images."""

import jax
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import datasets, train
from adversarial_augment.parallel import sharding
from adversarial_augment.training import recipe as recipes
from adversarial_augment.training import train_step
from tests import tiny

SHORT = {'num_steps': '150', 'evals': '', 'checkpoint_every': '0'}


def load(spec: str, **overrides: str):
  config = configs.override(configs.load(spec), {name.replace('__', '.'): value for name, value in overrides.items()})
  configs.validate(config)
  return config


@pytest.fixture(scope='module')
def splits():
  return {split: datasets.load('embedded', split, None) for split in ('train', 'test')}


@pytest.fixture(scope='module')
def trained(splits, tmp_path_factory):
  state = train.train(
    load('configs/nominal.py:quickstart', **SHORT), tmp_path_factory.mktemp('nominal') / 'run', splits
  )
  return jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [1, 8])
@pytest.mark.parametrize('batch_norm', ['batch', 'running'])
def test_the_loss_rises_on_nearly_all_images(trained, splits, num_devices, batch_norm):
  config = load(
    'configs/ada_edsr.py:quickstart',
    attack__nu='0.015',
    attack__num_steps='10',
    attack__warmup_epochs='0',
    attack__batch_norm=batch_norm,
    batch_size='256',
  )
  mesh = tiny.make_mesh(num_devices)
  recipe, phi = recipes.build(config, splits['train'], mesh)
  state, phi = sharding.replicate(mesh, trained), sharding.replicate(mesh, phi)
  keys = jax.random.split(jax.random.key(1), 256)
  images, labels = splits['test'].read(np.arange(256))
  corrupt = jax.jit(lambda *arrays: train_step.corrupt(recipe, *arrays))
  corrupted, metrics = corrupt(keys, *sharding.shard_batch(mesh, (images, labels)), state, phi)
  start, end = (np.asarray(metrics[f'attack_loss_{when}']) for when in ('start', 'end'))
  assert (end > start).mean() >= 0.95
  assert (np.asarray(metrics['gradient_norm']) > 0).all()
  assert np.median(metrics['radius_fraction']) > 0.5
  assert np.min(corrupted) >= 0
  assert np.max(corrupted) <= 1
