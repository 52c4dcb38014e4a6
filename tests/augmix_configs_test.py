"""The configs of AugMix's rows, and the fields that they set."""

import types

import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from adversarial_augment.run import summary
from tests import tiny


def classifier_of(config):
  return tuple(config.classifier[name] for name in ('name', 'depth', 'width'))


@pytest.mark.parametrize('file', ['augmix', 'augmix_jsd_resnext', 'augmix_jsd_wrn'])
@pytest.mark.parametrize('variant', ['', 'quickstart', 'laptop', 'smoke'])
def test_rows_have_augmix_and_no_adversary(file, variant):
  config = configs.load(f'configs/{file}.py:{variant}')
  configs.validate(config)
  assert config.augment.after == ('augmix',)
  assert config.augment.jsd == (0.0 if file == 'augmix' else 12.0)
  assert config.attack.name == 'none'
  nominal = configs.load(f'configs/nominal.py:{variant}')
  assert config.dataset == nominal.dataset
  assert config.augment.before == nominal.augment.before
  changed = configs.differences(nominal, config)
  if file == 'augmix':
    assert [line.partition(':')[0] for line in changed] == ['augment.after']
  elif variant:
    assert {line.partition('.')[0] for line in changed} <= {'augment', 'classifier'}
    assert config.num_epochs == nominal.num_epochs


def test_full_settings_are_those_of_augmix():
  resnext, wide = (configs.load(f'configs/augmix_jsd_{name}.py') for name in ('resnext', 'wrn'))
  assert classifier_of(resnext) == ('resnext', 29, 32)
  assert classifier_of(wide) == ('wide_resnet', 40, 2)
  assert (resnext.num_epochs, wide.num_epochs) == (200, 100)
  for config in (resnext, wide):
    assert (config.batch_size, config.optimizer.weight_decay, config.optimizer.learning_rate) == (128, 5e-4, 0.1)
    assert (config.optimizer.warmup_epochs, config.optimizer.momentum, config.optimizer.nesterov) == (0, 0.9, True)


@pytest.mark.parametrize('after', ['', 'flip', 'flip,augmix', 'augmix,augmix_all_ops'])
def test_the_divergence_needs_augmix_alone(after):
  config = configs.override(configs.base_config(), {'augment.jsd': '12', 'augment.after': after})
  with pytest.raises(UserError, match='config.augment.jsd=12.0 .*set --config.augment.after=augmix alone') as error:
    configs.validate(config)
  assert '\n' not in str(error.value)
  for good in ('augmix', 'augmix_all_ops'):
    configs.validate(configs.override(config, {'augment.after': good}))
  configs.validate(configs.override(config, {'augment.jsd': '0'}))


@pytest.mark.parametrize('after, warnings', [('augmix', 0), ('augmix_all_ops', 1)])
def test_operations_like_the_test_corruptions_are_warned_of(after, warnings):
  config = configs.override(configs.load('configs/nominal.py'), {'augment.after': after})
  recipe = types.SimpleNamespace(attack=None, num_steps=200, batch_size=8, mesh=tiny.make_mesh(1))
  state = types.SimpleNamespace(params={'w': np.zeros(3)}, step=0)
  lines = list(summary.opening(config, recipe, {'train': tiny.dataset()}, state, {}))
  found = [line for line in lines if line.startswith('warning: ')]
  assert len(found) == warnings
  assert all('augmix_all_ops' in line and 'contrast' in line for line in found)


def test_augmix_comes_after_the_adversary():
  with pytest.raises(UserError, match='config.augment.before='):
    configs.validate(configs.override(configs.base_config(), {'augment.before': 'augmix'}))
