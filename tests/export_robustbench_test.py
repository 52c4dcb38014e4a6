"""Claims for RobustBench: their layout, and that every number is one of the run's results."""

import json

import pytest

from adversarial_augment.exporting import robustbench

LAYOUT = {
  'link', 'name', 'authors', 'additional_data', 'number_forward_passes', 'dataset', 'venue', 'architecture', 'eps',
  'clean_acc', 'reported',
}  # fmt: skip


def card(dataset='cifar10', **results):
  return {
    'architecture': {'name': 'preact_resnet', 'depth': 18, 'width': 64},
    'checkpoint': {'step': 7, 'sha256': 'f' * 64},
    'training': {'config': {'dataset': dataset}},
    'results': results,
  }


def measured(origin='official', num_images=10_000, **values):
  return {'origin': origin, 'num_images': num_images, 'command': 'python -m x', **values}


def attacked(norm, epsilon, **values):
  return measured(attack='autoattack', norm=norm, epsilon=epsilon, robust_accuracy=0.51234, flags=[]) | values


def test_numbers_are_those_of_the_results():
  results = {
    'clean': measured(accuracy=0.9493),
    'cifar10_c': measured(mce=0.0783),
    'robustness_autoattack_linf_8-255': attacked('linf', 8 / 255),
    'robustness_autoattack_l2_1': attacked('l2', 1.0),  # not the leaderboard's radius
    'robustness_pgd_l2_0.5': attacked('l2', 0.5, attack='pgd'),
  }
  found = robustbench.claims(card(**results))
  assert found.keys() == {'robustbench_corruptions.json', 'robustbench_Linf.json'}
  corruptions, linf = found.values()
  assert corruptions.keys() == LAYOUT | {'corruptions_acc', 'made'}
  assert linf.keys() == LAYOUT | {'autoattack_acc', 'made'}
  shared = {'dataset': 'cifar10', 'architecture': 'PreActResNet-18', 'clean_acc': '94.93', 'number_forward_passes': 1}
  for claim, own in (
    (corruptions, {'eps': None, 'reported': '92.17', 'corruptions_acc': '92.17'}),
    (linf, {'eps': '8/255', 'reported': '51.23', 'autoattack_acc': '51.23'}),
  ):
    assert {name: claim[name] for name in (*shared, *own)} == shared | own
    assert claim['made']['numbers']['clean_acc'] == results['clean']
    assert claim['made']['missing'].keys() == {'link', 'name', 'authors', 'venue', 'additional_data'}
    assert all(claim[name] is None for name in claim['made']['missing'])
    json.dumps(claim, allow_nan=False)


@pytest.mark.parametrize(
  'changed, words',
  [
    ({'origin': 'generated'}, 'of the origin generated, not official'),
    ({'num_images': 1000}, '1,000 images were used'),
    ({'subset_of': 20_000}, '10,000 images were used'),
    ({'flags': ['gradient_masking']}, 'unreliable: gradient_masking'),
  ],
)
def test_other_images_do_not_give_the_number_of_the_leaderboard(changed, words):
  results = {'clean': measured(accuracy=0.9), 'a': attacked('l2', 0.5, **changed)}
  claim = robustbench.claims(card(**results))['robustbench_L2.json']
  assert (claim['reported'], claim['autoattack_acc']) == ('51.23', None)
  assert words in claim['made']['missing']['autoattack_acc']


def test_what_was_not_measured_is_null_and_said():
  [claim] = robustbench.claims(card('embedded')).values()
  assert [claim[name] for name in ('dataset', 'clean_acc', 'reported', 'corruptions_acc')] == [None] * 4
  missing = claim['made']['missing']
  assert missing['dataset'] == 'RobustBench has no leaderboard for embedded'
  assert 'not measured' in missing['clean_acc']
  assert 'not measured' in missing['corruptions_acc']


@pytest.mark.parametrize(
  'name, depth, width, spelled',
  [
    ('preact_resnet', 50, 16, 'PreActResNet-50, width 16'),
    ('wide_resnet', 40, 2, 'WideResNet-40-2'),
    ('resnext', 29, 32, 'ResNeXt29_4x32d'),
    ('resnet', 50, 64, 'ResNet-50'),
    ('alexnet', 8, 16, 'AlexNet, width 16'),
  ],
)
def test_architectures_have_the_names_of_robustbench(name, depth, width, spelled):
  about = card() | {'architecture': {'name': name, 'depth': depth, 'width': width}}
  assert robustbench.claims(about)['robustbench_corruptions.json']['architecture'] == spelled
