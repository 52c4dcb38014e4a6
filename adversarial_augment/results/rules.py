"""What files of results must hold, whoever wrote or edited them: one check for all that read them."""

from collections.abc import Mapping
import itertools
import math
import re
from typing import Any

from adversarial_augment import metrics
from adversarial_augment.config.fields import Kind, choice, integer, number, optional, parse_fraction, show, text
from adversarial_augment.errors import UserError
from adversarial_augment.results import outcomes

# A rule is a kind of value, a list of rules one for each item, or {name: rule}; other names may be there too.
Rule = Kind | list | dict

# What an evaluation's own file says, and the one that closes a run does not: it holds several.
OF_ONE = (
  'eval', 'split', 'step', 'seed', 'seconds', 'checkpoint_sha256', 'conditions_sha256', 'provenance', 'calibration',
  'ssim_histogram', 'correct',
)  # fmt: skip

FINITE, COUNT, PART = number(-1e300, 1e300), integer(1, 10**12), integer(0, 10**12)
OBJECT = Kind('a JSON object', lambda value: isinstance(value, dict), str)
STRING = Kind('a string', lambda value: isinstance(value, str), str)
_STRINGS = Kind('a list of strings', lambda value: isinstance(value, list) and all(map(STRING.accepts, value)), str)
_FRACTION = number(0, 1)
_SSIM = number(-1.001, 1.001)  # of equal images it may round to more than 1
_ORIGIN = choice(
  'official', 'generated', 'generated, in memory', metrics.GENERATED_OLDER, 'own', 'embedded', 'unverified'
)
_INTERVAL: Rule = [_FRACTION, _FRACTION]
ATTACK: dict[str, Rule] = {'name': text(), 'nu': FINITE, 'num_steps': PART, 'min_ssim': _SSIM}

_ACCURACY: dict[str, Rule] = {
  'accuracy': _FRACTION, 'num_correct': PART, 'num_images': COUNT, 'interval': _INTERVAL, 'origin': _ORIGIN,
}  # fmt: skip
_PROVENANCE: dict[str, Rule] = {
  'data': OBJECT, 'config': OBJECT, 'versions': OBJECT, 'devices': {'kind': text(), 'count': COUNT},
}  # fmt: skip
_COMMON: dict[str, Rule] = {
  'step': PART, 'split': text(), 'num_images': COUNT, 'origin': _ORIGIN, 'seconds': number(0, 1e12),
  'seed': optional(PART),  # official files have none
  'checkpoint_sha256': text(), 'provenance': _PROVENANCE,
}  # fmt: skip
_CALIBRATION: Rule = {
  'edges': [_FRACTION] * 16, 'count': [PART] * 15, 'num_correct': [PART] * 15, 'confidence': [FINITE] * 15,
  'ece': _FRACTION,
}  # fmt: skip
_CLEAN: dict[str, Rule] = _COMMON | _ACCURACY | {'calibration': _CALIBRATION}


def _corruptions(names: tuple[str, ...], mean: str) -> dict[str, Rule]:
  return _COMMON | {
    mean: _FRACTION,
    'interval': _INTERVAL,
    'corruption_error': dict.fromkeys(names, _FRACTION),
    'severity_error': [_FRACTION] * 5,
    'error': {name: [_FRACTION] * 5 for name in names},
  }


_OWN: dict[str, dict[str, Rule]] = {
  'clean': _CLEAN,
  'ada': _CLEAN | {
    'provenance': _PROVENANCE | {'config': {'attack': ATTACK}},
    'ssim': _SSIM, 'ssim_corrected': _FRACTION, 'ssim_below_min': _FRACTION,
    'attack_loss_start': FINITE, 'attack_loss_end': FINITE,
    'ssim_histogram': {'edges': [_SSIM] * 201, 'count': [PART] * 200},
  },
  'cifar10_c': _corruptions(metrics.NAMES, 'mce'),
  'cifar10_c_extra': _corruptions(metrics.EXTRA_NAMES, 'mean_error'),
  'cifar10_1': _COMMON | _ACCURACY | dict.fromkeys(metrics.CIFAR10_1_COUNTS, _ACCURACY),
}  # fmt: skip
EVALUATIONS: dict[str, dict[str, Rule]] = {name: {'eval': choice(name)} | rule for name, rule in _OWN.items()}

ROBUSTNESS = 'robustness_'  # begins the names of what l_p attacks have left
_ROBUSTNESS: dict[str, Rule] = {name: rule for name, rule in _COMMON.items() if name != 'seconds'} | {
  'attack': text(), 'norm': choice('linf', 'l2'), 'epsilon': number(0, 1e12), 'epsilon_text': text(),
  'num_correct': PART, 'num_robust': PART, 'num_robust_uint8': PART,
  'clean_accuracy': _FRACTION, 'robust_accuracy': _FRACTION, 'robust_accuracy_uint8': _FRACTION,
  'interval': _INTERVAL, 'stages': _STRINGS, 'survivors': OBJECT, 'seconds': OBJECT, 'left_out': _STRINGS,
  'flags': _STRINGS, 'conditions_sha256': text(),
}  # fmt: skip

_SEVERAL: dict[str, Rule] = _PROVENANCE | {
  'data': {'train': {'name': text()}}, 'config': {'attack': ATTACK}, 'seed': PART, 'command': STRING,
  'step': PART, 'num_steps': COUNT, 'split': text(), 'state_sha256': text(), 'evals': OBJECT,
}  # fmt: skip

DATA: dict[str, Rule] = {'image_shape': [COUNT] * 3, 'class_names': _STRINGS}  # of data.json, beside hashes


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


def check(name: str, result: Any, source: str, remedy: str) -> None:
  """Checks results: that they hold what they must, and that means are those of their parts.

  Args:
    name: of an evaluation; any other one stands for a file that sums up several.
    result: as JSON gives it.
    source: the file, for the message.
    remedy: ends the message.

  Raises:
    UserError: the first rule that is broken.
  """
  if name in EVALUATIONS:
    _evaluation(EVALUATIONS[name], result, source, remedy)
    return
  if name.startswith(ROBUSTNESS):
    _robustness(name, result, source, remedy)
    return
  conform(result, _SEVERAL, source, remedy)
  for other in EVALUATIONS.keys() & result['evals'].keys():
    rule = {field: inner for field, inner in EVALUATIONS[other].items() if field not in OF_ONE}
    _evaluation(rule, result['evals'][other], source, remedy, f'evals.{other}')


def _evaluation(rule: dict[str, Rule], result: Any, source: str, remedy: str, place: str = '') -> None:
  conform(result, rule, source, remedy, place)
  before = f'{place}.' if place else ''
  if 'subset_of' in result:
    conform(result['subset_of'], COUNT, source, remedy, f'{before}subset_of')
  for histogram in ('calibration', 'ssim_histogram'):
    if histogram in rule and not all(left < right for left, right in itertools.pairwise(result[histogram]['edges'])):
      raise UserError(f'{source}: {before}{histogram}.edges must rise; {remedy}.')
  _agree(_stated_twice(rule, result), source, remedy, before)
  for within, part in _parts(rule, result).items():
    if 'correct' in part:  # results of older versions do not say which images these are
      _right_images(rule, part, source, remedy, f'{before}{within}correct')


def _right_images(rule: dict[str, Rule], part: Any, source: str, remedy: str, place: str) -> None:
  """Checks that `correct` holds as many right images as the other numbers say."""
  cells = {place: (part['correct'], part.get('accuracy'))}
  if 'error' in rule:
    errors = {name: part['error'][name] for name in rule['error']}  # type: ignore[union-attr]
    conform(part['correct'], dict.fromkeys(errors, [STRING] * 5), source, remedy, place)
    cells = {
      f'{place}.{name}[{index}]': (part['correct'][name][index], 1 - error)
      for name, row in errors.items()
      for index, error in enumerate(row)
    }
  for cell, (bits, accuracy) in cells.items():
    _agree_images(bits, part['num_images'], accuracy, source, remedy, cell)


def _agree_images(bits: Any, n: int, accuracy: float, source: str, remedy: str, place: str) -> None:
  conform(bits, STRING, source, remedy, place)
  try:
    right = outcomes.unpack(bits, n).mean()
  except ValueError as error:
    raise UserError(f'{source}: {place} is damaged: {error}; {remedy}.') from error
  _agree({f'the share of images in {place}': (float(right), accuracy)}, source, remedy)


def _agree(pairs: Mapping[str, tuple[float, float]], source: str, remedy: str, before: str = '') -> None:
  for field, (stated, worked_out) in pairs.items():
    if not math.isclose(stated, worked_out, abs_tol=1e-6):
      raise UserError(
        f'{source}: {before}{field} is {stated}, but must be {worked_out:.6g} by the other numbers; {remedy}.'
      )


def robustness_name(attack: str, norm: str, epsilon: str) -> str:
  """Returns the name of the results of an attack; `epsilon` as text, such as 8/255."""
  return f'{ROBUSTNESS}{attack}_{norm}_{epsilon.replace("/", "-")}'


def is_robustness_name(name: str) -> bool:
  """Returns whether `robustness_name` gives such names; 'robustness_pgd_l2_0.5 copy' is none."""
  return re.fullmatch(rf'{ROBUSTNESS}\w+_(linf|l2)_[\w.+-]+', name) is not None


def _robustness(name: str, result: Any, source: str, remedy: str) -> None:
  conform(result, _ROBUSTNESS, source, remedy)
  its_name = robustness_name(*(result[field] for field in ('attack', 'norm', 'epsilon_text')))
  if name != its_name:
    raise UserError(f'{source}: attack, norm and epsilon_text are those of {its_name}; {remedy}.')
  try:
    epsilon = parse_fraction(result['epsilon_text'])
  except ValueError:
    epsilon = math.nan
  if not math.isclose(result['epsilon'], epsilon, rel_tol=1e-9):
    raise UserError(
      f'{source}: epsilon is {result["epsilon"]}, but epsilon_text {show(result["epsilon_text"])}; {remedy}.'
    )
  stages = result['stages']
  if not stages or len(set(stages)) < len(stages):
    raise UserError(f'{source}: stages={show(stages)} must be one name or more, each once; {remedy}.')
  conform(result['survivors'], dict.fromkeys(stages, PART), source, remedy, 'survivors')
  conform(result['seconds'], dict.fromkeys(stages, number(0, 1e12)), source, remedy, 'seconds')
  n, flags = result['num_images'], result['flags']
  parts = {
    'clean_accuracy': 'num_correct',
    'robust_accuracy': 'num_robust',
    'robust_accuracy_uint8': 'num_robust_uint8',
  }
  _agree({field: (result[field], result[count] / n) for field, count in parts.items()}, source, remedy)
  for field, accuracy in (('correct', 'clean_accuracy'), ('robust', 'robust_accuracy')):
    if field in result:
      _agree_images(result[field], n, result[accuracy], source, remedy, field)
  bounds = zip(result['interval'], metrics.binomial_interval(result['num_robust'], n), strict=True)
  _agree({f'interval[{index}]': pair for index, pair in enumerate(bounds)}, source, remedy)
  is_random = 'stochastic_logits' in flags  # then what is asked again is answered otherwise
  left = [*([] if is_random else [result['num_correct']]), *(result['survivors'][stage] for stage in stages)]
  if any(before < after for before, after in itertools.pairwise(left)):
    raise UserError(f'{source}: survivors must not rise from stage to stage, but are {left}; {remedy}.')
  if not is_random:
    _agree({'num_robust': (result['num_robust'], left[-1])}, source, remedy)


def _stated_twice(rule: Mapping[str, Rule], result: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
  """Returns {place: (what stands there, what it must be by other numbers)}."""
  pairs: dict[str, tuple[float, float]] = {}
  if 'error' in rule:
    errors = {corruption: result['error'][corruption] for corruption in rule['error']}  # type: ignore[union-attr]
    mean = 'mce' if 'mce' in rule else 'mean_error'
    pairs[mean] = result[mean], sum(map(sum, errors.values())) / (5 * len(errors))
    for corruption, row in errors.items():
      pairs[f'corruption_error.{corruption}'] = result['corruption_error'][corruption], sum(row) / 5
    for index, cells in enumerate(zip(*errors.values(), strict=True)):
      pairs[f'severity_error[{index}]'] = result['severity_error'][index], sum(cells) / len(errors)
  else:
    for place, part in _parts(rule, result).items():
      pairs[f'{place}accuracy'] = part['accuracy'], part['num_correct'] / part['num_images']
  for histogram in ('calibration', 'ssim_histogram'):
    if histogram in rule:
      pairs[f'the sum of {histogram}.count'] = sum(result[histogram]['count']), result['num_images']
  return pairs


def _parts(rule: Mapping[str, Rule], result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Returns what has images of its own, by place: the result, and its versions of CIFAR-10.1."""
  return {'': result} | {f'{version}.': result[version] for version in metrics.CIFAR10_1_COUNTS if version in rule}
