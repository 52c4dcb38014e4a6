"""What a run's files must hold for a report to be made of them."""

from collections.abc import Sequence
import itertools
import math
from typing import Any

from adversarial_augment import metrics
from adversarial_augment.errors import UserError
from adversarial_augment.fields import Kind, choice, integer, number, optional, show, text

# A rule is a kind of value, a list of rules one for each item, or {name: rule}; other names may be there too.
Rule = Kind | list | dict

_FRACTION, _FINITE, _COUNT, _PART = number(0, 1), number(-1e300, 1e300), integer(1, 10**12), integer(0, 10**12)
_ORIGIN = choice('official', 'generated', 'generated, in memory', 'own', 'embedded', 'unverified')
_OBJECT = Kind('a JSON object', lambda value: isinstance(value, dict), str)
_STRING = Kind('a string', lambda value: isinstance(value, str), str)
_INTERVAL: Rule = [_FRACTION, _FRACTION]
_ACCURACY: dict[str, Rule] = {
  'accuracy': _FRACTION, 'num_correct': _PART, 'num_images': _COUNT, 'interval': _INTERVAL, 'origin': _ORIGIN,
}  # fmt: skip
_PROVENANCE: dict[str, Rule] = {
  'data': _OBJECT, 'config': _OBJECT, 'versions': _OBJECT, 'devices': {'kind': text(), 'count': _COUNT},
}  # fmt: skip
_COMMON: dict[str, Rule] = {
  'step': _PART, 'split': text(), 'num_images': _COUNT, 'origin': _ORIGIN, 'seed': _PART, 'seconds': number(0, 1e12),
  'checkpoint_sha256': text(), 'provenance': _PROVENANCE,
}  # fmt: skip
_CALIBRATION: Rule = {
  'edges': [_FRACTION] * 16, 'count': [_PART] * 15, 'num_correct': [_PART] * 15, 'confidence': [_FINITE] * 15,
  'ece': _FRACTION,
}  # fmt: skip
_CLEAN: dict[str, Rule] = _COMMON | _ACCURACY | {'calibration': _CALIBRATION}
_SSIM = number(-1.001, 1.001)  # of equal images it may round to more than 1
_ATTACK: Rule = {'name': text(), 'nu': _FINITE, 'num_steps': _PART, 'min_ssim': _SSIM}


def _corruptions(names: tuple[str, ...], mean: str) -> dict[str, Rule]:
  return _COMMON | {
    mean: _FRACTION,
    'interval': _INTERVAL,
    'corruption_error': dict.fromkeys(names, _FRACTION),
    'severity_error': [_FRACTION] * 5,
    'error': {name: [_FRACTION] * 5 for name in names},
  }


EVALUATIONS: dict[str, dict[str, Rule]] = {
  'clean': _CLEAN,
  'ada': _CLEAN | {
    'provenance': _PROVENANCE | {'config': {'attack': _ATTACK}},
    'ssim': _SSIM, 'ssim_corrected': _FRACTION, 'ssim_below_min': _FRACTION,
    'attack_loss_start': _FINITE, 'attack_loss_end': _FINITE,
    'ssim_histogram': {'edges': [_SSIM] * 201, 'count': [_PART] * 200},
  },
  'cifar10_c': _corruptions(metrics.NAMES, 'mce'),
  'cifar10_c_extra': _corruptions(metrics.EXTRA_NAMES, 'mean_error'),
  'cifar10_1': _COMMON | _ACCURACY | {'v4': _ACCURACY, 'v6': _ACCURACY},
}  # fmt: skip

CONFIG: Rule = {
  'dataset': text(), 'seed': _PART, 'batch_size': _COUNT,
  'classifier': {'name': text(), 'depth': _COUNT, 'width': _COUNT},
  'attack': _ATTACK,
  'corruption_net': {'name': text()},
}  # fmt: skip
CLOSING: Rule = _PROVENANCE | {'step': _PART, 'num_steps': _COUNT, 'command': _STRING}
_BETWEEN: Rule = {'step': _PART, 'split': text(), 'evals': _OBJECT}
_BETWEEN_EVALS: dict[str, Rule] = {'clean': {'accuracy': _FRACTION}, 'cifar10_c': {'mce': _FRACTION}}
_LINE: Rule = {'step': _PART}


def conform(value: Any, rule: Rule, source: str, remedy: str, place: str = '') -> None:
  """Checks a value that was read from a file.

  Args:
    value: as JSON gives it.
    rule: what it must be.
    source: the file, for the message.
    remedy: ends the message.
    place: where in the file.

  Raises:
    UserError: it is something else.
  """
  if isinstance(rule, Kind):
    if not rule.accepts(value):
      raise UserError(f'{source}: {place}={show(value)} must be {rule.expected}; {remedy}.')
  elif isinstance(rule, list):
    if not isinstance(value, list) or len(value) != len(rule):
      raise UserError(f'{source}: {place}={show(value)} must be a list of {len(rule)}; {remedy}.')
    for index, (item, inner) in enumerate(zip(value, rule, strict=True)):
      conform(item, inner, source, remedy, f'{place}[{index}]')
  else:
    if not isinstance(value, dict):
      raise UserError(f'{source}: {place or "the file"} must be a JSON object, not {show(value)}; {remedy}.')
    for name, inner in rule.items():
      inside = f'{place}.{name}' if place else name
      if name not in value:
        raise UserError(f'{source}: {inside} is missing; {remedy}.')
      conform(value[name], inner, source, remedy, inside)


def evaluation(name: str, result: Any, source: str, remedy: str) -> None:
  """Checks the result of an evaluation, and that its means are those of its parts.

  Raises:
    UserError: it does not conform, or contradicts itself.
  """
  conform(result, EVALUATIONS[name], source, remedy)
  pairs: dict[str, tuple[float, float]] = {}
  if 'error' in EVALUATIONS[name]:
    mean = 'mce' if name == 'cifar10_c' else 'mean_error'
    cells = [result['error'][corruption] for corruption in EVALUATIONS[name]['error']]
    pairs[mean] = result[mean], sum(map(sum, cells)) / (5 * len(cells))
    for corruption, errors in zip(EVALUATIONS[name]['error'], cells, strict=True):
      pairs[f'corruption_error.{corruption}'] = result['corruption_error'][corruption], sum(errors) / 5
    for index, errors in enumerate(zip(*cells, strict=True)):
      pairs[f'severity_error[{index}]'] = result['severity_error'][index], sum(errors) / len(cells)
  else:
    parts = {'': result} | {f'{version}.': result[version] for version in ('v4', 'v6') if name == 'cifar10_1'}
    for place, part in parts.items():
      pairs[f'{place}accuracy'] = part['accuracy'], part['num_correct'] / part['num_images']
  for histogram in ('calibration', 'ssim_histogram'):
    if histogram in EVALUATIONS[name]:
      pairs[f'the sum of {histogram}.count'] = sum(result[histogram]['count']), result['num_images']
      if not all(left < right for left, right in itertools.pairwise(result[histogram]['edges'])):
        raise UserError(f'{source}: {histogram}.edges must rise; {remedy}.')
  for place, (stated, worked_out) in pairs.items():
    if not math.isclose(stated, worked_out, abs_tol=1e-6):
      raise UserError(f'{source}: {place} is {stated}, but must be {worked_out:.6g} by the other numbers; {remedy}.')


def between(result: Any, source: str, remedy: str) -> None:
  """Checks what was evaluated between steps.

  Raises:
    UserError: it does not conform.
  """
  conform(result, _BETWEEN, source, remedy)
  evals = result['evals']
  conform(evals, {name: rule for name, rule in _BETWEEN_EVALS.items() if name in evals}, source, remedy, 'evals')


def log_line(line: Any, names: Sequence[str], source: str, remedy: str) -> None:
  """Checks a line of metrics.jsonl: its step, and those of `names` that it has.

  Raises:
    UserError: it does not conform.
  """
  conform(line, _LINE, source, remedy)
  conform(line, {name: optional(_FINITE) for name in names if name in line}, source, remedy)
