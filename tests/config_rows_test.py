"""The config files of the rows of Table 1: in what each differs from the row without its method."""

import types

import numpy as np
import pytest

from adversarial_augment import checks
from adversarial_augment import config as configs
from adversarial_augment.run import summary
from adversarial_augment.training import recipe as recipes
from tests import tiny

AUGMIX = {'augment.after': ('augmix',)}
ONE, TEN = ({'deepaugment.sets': ('edsr', 'cae'), 'deepaugment.copies': copies} for copies in (1, 10))
ROWS = {  # the row without, and what is different
  'nominal': ('ada_edsr', {'attack.name': 'none'}),
  'augmix': ('nominal', AUGMIX),
  'deepaugment': ('nominal', ONE),
  'deepaugment10x': ('nominal', TEN),
  'deepaugment_augmix': ('nominal', ONE | AUGMIX),
  'deepaugment10x_augmix': ('nominal', TEN | AUGMIX),
  'ada_deepaugment_augmix': ('ada_edsr', ONE | AUGMIX),
  'ada_deepaugment10x_augmix': ('ada_edsr', TEN | AUGMIX),
}
OPTIMIZER_OF_RLAT = {
  'learning_rate': 0.1, 'momentum': 0.9, 'nesterov': False, 'weight_decay': 5e-4, 'decay_batch_norm': True,
  'warmup_epochs': 0.0, 'schedule': 'steps', 'drops': (0.34, 0.67),
}  # fmt: skip
VARIANTS = pytest.mark.parametrize('variant', ['', 'quickstart', 'laptop', 'smoke'])


@VARIANTS
@pytest.mark.parametrize('row', ROWS)
def test_what_a_row_changes(row, variant):
  base, changes = ROWS[row]
  config = configs.load(f'configs/{row}.py:{variant}')
  configs.validate(config)
  found, before = (checks.flatten(each) for each in (config, configs.load(f'configs/{base}.py:{variant}')))
  if changes.get('deepaugment.copies') == 10 and variant in ('quickstart', 'smoke'):
    changes = changes | {'deepaugment.copies': 2}
  assert {name: value for name, value in found.items() if value != before[name]} == changes
  assert found['deepaugment.mix'] == 'concat'


@pytest.mark.parametrize('variant', ['', 'quickstart', 'laptop', 'gpu', 'smoke'])
def test_fast_ada_differs_in_its_adversary(variant):
  ada, fast, augmix = (
    configs.load(f'configs/{name}.py:{variant}') for name in ('ada_edsr', 'fast_ada', 'fast_ada_augmix')
  )
  before = checks.flatten(ada)
  changed = {name: value for name, value in checks.flatten(fast).items() if value != before[name]}
  assert {name: value for name, value in changed.items() if not name.startswith('corruption_net.')} == {
    'attack.num_steps': 1, 'attack.moved': 'last_third', 'attack.init': 'zero', 'attack.measure_end': False,
    'attack.nu': fast.attack.nu,
  }  # fmt: skip
  network = fast.corruption_net
  small = (2, 8, 1) if variant == 'laptop' else (4, 16, 1)
  assert (network.name, network.blocks, network.features, network.scale) == ('edsr', *small)
  assert configs.differences(fast, augmix) == ["augment.after: [] -> ['augmix']"]
  for config in (fast, augmix):
    configs.validate(config)


@VARIANTS
@pytest.mark.parametrize('file', ['augmix_jsd_resnext', 'augmix_jsd_wrn'])
def test_rows_with_the_divergence_have_augmix_and_no_adversary(file, variant):
  config, nominal = (configs.load(f'configs/{name}.py:{variant}') for name in (file, 'nominal'))
  configs.validate(config)
  assert (config.augment.after, config.augment.jsd, config.attack.name) == (('augmix',), 12.0, 'none')
  assert (config.dataset, config.augment.before) == (nominal.dataset, nominal.augment.before)
  if variant:
    changed = {line.partition('.')[0] for line in configs.differences(nominal, config)}
    assert changed <= {'augment', 'classifier'}


@VARIANTS
def test_rlat_differs_in_its_adversary(variant):
  nominal, rlat, augmix, deepaugment = (
    configs.load(f'configs/{name}.py:{variant}') for name in ('nominal', 'rlat', 'rlat_augmix', 'rlat_deepaugment')
  )
  own = {"attack.name: 'none' -> 'rlat'", 'attack.epsilon: None -> 0.08'}
  found = configs.differences(nominal, rlat)
  if variant:
    assert set(found) - own <= {'attack.warmup_epochs: 0.8 -> 0.0'}
  for other, epsilon, fields in ((augmix, 0.05, {'augment.before'}), (deepaugment, 0.02, {'deepaugment.sets'})):
    configs.validate(other)
    changed = configs.differences(rlat, other)
    assert f'attack.epsilon: 0.08 -> {epsilon}' in changed
    assert {line.partition(':')[0] for line in changed} - {'deepaugment.copies'} == fields | {'attack.epsilon'}
  assert augmix.augment.before == (*rlat.augment.before, 'augmix')
  assert (deepaugment.deepaugment.sets, deepaugment.deepaugment.copies) == (('edsr', 'cae'), 1)


def test_the_full_setting_is_that_of_rlat():
  config = configs.load('configs/rlat.py')
  assert (config.num_epochs, config.batch_size, config.classifier.depth, config.classifier.width) == (150, 128, 18, 64)
  assert (config.classifier.batch_norm_decay, config.attack.epsilon) == (0.9, 0.08)
  rates = config.optimizer.to_dict()
  assert rates == OPTIMIZER_OF_RLAT | dict.fromkeys(('head_learning_rate', 'clip'))


@pytest.mark.parametrize('file, classifier, epochs', [
  ('augmix_jsd_resnext', ('resnext', 29, 32), 200), ('augmix_jsd_wrn', ('wide_resnet', 40, 2), 100),
])  # fmt: skip
def test_full_settings_are_those_of_augmix(file, classifier, epochs):
  config = configs.load(f'configs/{file}.py')
  assert tuple(config.classifier[name] for name in ('name', 'depth', 'width')) == classifier
  assert (config.num_epochs, config.batch_size, config.optimizer.warmup_epochs) == (epochs, 128, 0)
  assert (config.optimizer.weight_decay, config.optimizer.learning_rate) == (5e-4, 0.1)
  assert (config.optimizer.momentum, config.optimizer.nesterov) == (0.9, True)


@pytest.mark.parametrize('variant', ['', 'quickstart', 'laptop', 'gpu', 'smoke'])
@pytest.mark.parametrize('file, groups', [
  ('nominal_pat', {'classifier', 'optimizer'}), ('alexnet', {'classifier', 'optimizer', 'evals', 'log_every'}),
])  # fmt: skip
def test_classifiers_of_perceptual_training_have_no_adversary(file, groups, variant):
  config, nominal = (configs.load(f'configs/{name}.py:{variant}') for name in (file, 'nominal'))
  configs.validate(config)
  changed = {line.partition(':')[0].partition('.')[0] for line in configs.differences(nominal, config)}
  assert changed <= groups | {'batch_size', 'num_epochs'}
  assert bool(changed) == ((file, variant) != ('nominal_pat', 'laptop'))


def test_full_settings_are_those_of_perceptual_training():
  config = configs.load('configs/nominal_pat.py')
  assert recipes.num_steps_of(config, 50_000) == 100_000
  assert recipes.drops_of(config, 100_000) == [75_000, 90_000]
  assert recipes.learning_rates(config)['body'] == 0.1
  named = ('momentum', 'nesterov', 'weight_decay', 'decay_batch_norm', 'warmup_epochs', 'clip')
  assert tuple(config.optimizer[name] for name in named) == (0.9, False, 2e-4, True, 5, 1)
  assert tuple(config.classifier[name] for name in ('name', 'depth', 'width')) == ('resnet', 50, 64)
  alexnet = configs.load('configs/alexnet.py').classifier
  assert (alexnet.width, alexnet.mean, alexnet.std) == (64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize('after, warnings', [('augmix', 0), ('augmix_all_ops', 1)])
def test_operations_like_the_test_corruptions_are_warned_of(after, warnings):
  config = configs.override(configs.load('configs/nominal.py'), {'augment.after': after})
  recipe = types.SimpleNamespace(attack=None, num_steps=200, batch_size=8, mesh=tiny.make_mesh(1))
  state = types.SimpleNamespace(params={'w': np.zeros(3)}, step=0)
  lines = list(summary.opening(config, recipe, {'train': tiny.dataset()}, state, {}))
  found = [line for line in lines if line.startswith('warning: ')]
  assert len(found) == warnings
  assert all('augmix_all_ops' in line and 'contrast' in line for line in found)


@pytest.mark.parametrize('variant', ['', 'quickstart', 'laptop', 'gpu', 'smoke'])
def test_rows_of_perceptual_training_differ_in_their_adversary(variant):
  nominal, pat_self, alexnet, linf, l2 = (
    configs.load(f'configs/{name}.py:{variant}')
    for name in ('nominal_pat', 'pat_self', 'pat_alexnet', 'linf_adversarial_pat', 'l2_adversarial_pat')
  )
  changed = lambda old, new: {line.partition(':')[0] for line in configs.differences(old, new)} - {'evals'}
  pixels = {'attack.name', 'attack.epsilon', 'attack.batch_norm'}
  assert changed(nominal, pat_self) - {'attack.num_steps'} == pixels | {'attack.distance'}
  assert changed(nominal, linf) - {'attack.num_steps'} == pixels | {'attack.norm', 'attack.step_fraction'}
  assert changed(pat_self, alexnet) == {'attack.distance', 'attack.epsilon'}
  assert changed(linf, l2) == {'attack.norm', 'attack.epsilon', 'attack.step'}
  assert linf.attack.step_fraction == pytest.approx(linf.attack.num_steps**-0.5)
  for config in (pat_self, alexnet, linf, l2):
    configs.validate(config)
    assert config.attack.num_steps == {'': 10, 'smoke': 2}.get(variant, 5)
  radii = [config.attack.epsilon for config in (pat_self, alexnet, linf, l2)]
  assert radii == [0.5, 1.0, 8 / 255, 1.0]
