"""Claims for the leaderboards of RobustBench (github.com/RobustBench/robustbench), from the results on a card.

A claim is a file of its folder model_info/DATASET/THREAT_MODEL; README there tells of the submission. What it needs and
no result of the run gives is null, and `made` says why, and how each number came about.
"""

from collections.abc import Mapping
import math
from typing import Any

FILES = tuple(f'robustbench_{threat}.json' for threat in ('corruptions', 'Linf', 'L2'))

_LP = {'robustbench_Linf.json': ('linf', '8/255', 8 / 255), 'robustbench_L2.json': ('l2', '0.5', 0.5)}
_NUM_IMAGES = 10_000  # of the test sets of CIFAR-10 and CIFAR-100
_BY_AUTHORS = ('link', 'name', 'authors', 'venue', 'additional_data')
_CODE = """\
import torch
from classifier_torch import Classifier, load

torch.save(load().state_dict(), 'checkpoint.pt')  # to upload
# The class goes to robustbench/model_zoo, with this entry in the file of the data set:
# ('NAME', {'model': Classifier, 'gdrive_id': 'of checkpoint.pt'})
"""


def claims(card: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns the content of each file: always that on corruptions, and one per norm that AutoAttack has measured."""
  measured = card['results']
  dataset = card['training']['config']['dataset'].partition(':')[0]
  clean = measured.get('clean')
  corrupted = measured.get(f'{dataset}_c') or measured.get('cifar10_c')
  accuracy = None if corrupted is None else 1 - corrupted['mce']
  found = {FILES[0]: _claim(card, dataset, clean, None, 'corruptions_acc', corrupted, accuracy)}
  for file, (norm, text, epsilon) in _LP.items():
    for result in measured.values():
      if result.get('attack') == 'autoattack' and result['norm'] == norm and math.isclose(result['epsilon'], epsilon):
        found[file] = _claim(card, dataset, clean, text, 'autoattack_acc', result, result['robust_accuracy'])
  return found


def code() -> str:
  """Returns the lines that make the checkpoint, and those of the entry in RobustBench's list of models."""
  return _CODE


def _claim(
  card: Mapping[str, Any],
  dataset: str,
  clean: Mapping[str, Any] | None,
  epsilon: str | None,
  field: str,
  result: Mapping[str, Any] | None,
  accuracy: float | None,
) -> dict[str, Any]:
  missing = dict.fromkeys(_BY_AUTHORS, 'for the authors to fill in')
  if dataset not in ('cifar10', 'cifar100'):
    missing['dataset'] = f'RobustBench has no leaderboard for {dataset}'
  if clean is None:
    missing['clean_acc'] = 'not measured on this checkpoint: evaluate clean'
  if result is None:
    missing['reported'] = missing[field] = f'not measured on this checkpoint: evaluate {dataset}_c'
  elif reason := _unlike(result):
    missing[field] = f'{reason}; RobustBench measures it on all {_NUM_IMAGES:,} official images'
  percent = lambda share: None if share is None else f'{100 * share:.2f}'
  used = {'clean_acc': clean, 'reported': result}
  return {
    **dict.fromkeys(_BY_AUTHORS),
    'number_forward_passes': 1,
    'dataset': None if 'dataset' in missing else dataset,
    'architecture': _architecture(card['architecture']),
    'eps': epsilon,
    'clean_acc': percent(clean and clean['accuracy']),
    'reported': percent(accuracy),
    field: None if field in missing else percent(accuracy),
    'made': {
      'checkpoint': card['checkpoint'],
      'training': card['training'],
      'numbers': {name: about for name, about in used.items() if about is not None},
      'missing': missing,
    },
  }


def _unlike(result: Mapping[str, Any]) -> str:
  """Returns what tells the images or the outcome of a result from those of the leaderboard; '' if nothing does."""
  if result['origin'] != 'official':
    return f'the images are of the origin {result["origin"]}, not official'
  if result['num_images'] != _NUM_IMAGES or result.get('subset_of', _NUM_IMAGES) != _NUM_IMAGES:
    return f'{result["num_images"]:,} images were used'
  return f'the number is marked as unreliable: {", ".join(result["flags"])}' if result.get('flags') else ''


def _architecture(about: Mapping[str, Any]) -> str:
  """Returns the name in RobustBench's spelling, such as PreActResNet-18, WideResNet-40-2, or ResNeXt29_4x32d."""
  name, depth, width = (about[field] for field in ('name', 'depth', 'width'))
  if name == 'wide_resnet':
    return f'WideResNet-{depth}-{width}'
  if name == 'resnext':
    return f'ResNeXt{depth}_4x{width}d'
  title = {'preact_resnet': f'PreActResNet-{depth}', 'resnet': f'ResNet-{depth}', 'alexnet': 'AlexNet'}[name]
  return title + (f', width {width}' if width != 64 else '')
