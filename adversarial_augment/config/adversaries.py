"""The adversaries of training: one entry of `ADVERSARIES` holds all that tells one from another.

Configs are checked before JAX starts, so nothing here imports it: an entry names the function that builds its attack.
`tables.register` adds an entry; docs/design.md says what it declares.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adversarial_augment.checks import too_large_radius
from adversarial_augment.config.fields import (
  Field,
  boolean,
  choice,
  clash,
  fraction,
  integer,
  labels,
  number,
  optional,
  spell,
  text,
)

NUM_OFFSETS = 8  # of phi, whose mixtures `advmix` searches
_BUILDERS = 'adversarial_augment.training.builders'
_TRADES = 'arXiv 1901.08573'
_RLAT = 'arXiv 2103.02325'
_PAT = 'arXiv 2006.12655'


def _steps(attack: Mapping[str, Any]) -> str:
  return f'{attack["num_steps"]} step' + ('' if attack['num_steps'] == 1 else 's')


def _strength_of_ada(attack: Mapping[str, Any]) -> str:
  moved = '' if attack.get('moved', 'all') == 'all' else f', moves {attack["moved"]}'
  return f'nu {attack["nu"]:g}, {_steps(attack)}{moved}'


def _method_of_ada(attack: Mapping[str, Any]) -> str:
  of = lambda name, usual: attack.get(name, usual)  # older configs do not have all
  cheaper = {
    f'moves {of("moved", "all")}': of('moved', 'all') != 'all',
    f'at one of {of("every", 1)} steps': of('every', 1) > 1,
    f'on {of("fraction", 1):g} of the images': of('fraction', 1) < 1,
    'of a growing radius': of('growth_epochs', 0) > 0,
    'by free replay': of('replay', 1) > 1,
  }
  parts = ', '.join(part for part, holds in cheaper.items() if holds)
  return 'with AdversarialAugment (arXiv 2104.01086)' + (f', in a cheaper form: {parts}' if parts else '')


# What free replay has in no other way: it has the step of the batch in training, on all images, and no line search.
_FIXED_IN_REPLAY = {
  'attack.num_steps': 1, 'attack.fraction': 1, 'attack.beta_mode': 'example', 'attack.batch_norm': 'batch',
  'attack.warmup_epochs': 0, 'attack.every': 1, 'attack.growth_epochs': 0, 'attack.microbatch': None,
  'attack.keep_best': False, 'attack.min_ssim': -1, 'augment.after': (), 'freeze': 'none',
  'optimizer.head_learning_rate': None,
}  # fmt: skip


def _broken_rules_of_ada(flat: Mapping[str, Any]) -> Iterator[str]:
  if flat['attack.replay'] > 1:
    yield from _fixed(flat, _FIXED_IN_REPLAY, 'attack.replay', 'whose steps are those of the batch in training')
  epochs, warmup, growth = (flat[name] for name in ('num_epochs', 'attack.warmup_epochs', 'attack.growth_epochs'))
  if growth and warmup + growth > epochs * (1 + 1e-9):
    lower = f'lower it, for example --config.attack.growth_epochs={(epochs - warmup) / 2:g}'
    yield f'{spell(flat, "attack.growth_epochs")} must end within {spell(flat, "num_epochs")}; {lower}.'


def _fixed(flat: Mapping[str, Any], values: Mapping[str, Any], field: str, reason: str) -> Iterator[str]:
  """Yields that fields have other values than the only ones that go with `field`."""
  for name, value in values.items():
    if flat[name] != value:
      yield clash(flat, name, field, reason, spell({name: value}, name))


class Adversary(NamedTuple):
  """One adversary. An `attack` below is the fields `attack.*` of a config, without that prefix."""

  meaning: str  # in the help of attack.name
  builder: str  # 'package.module:function', see training/builders.py
  moves: str  # 'weights' of the corruption network, 'pixels', or 'activations' of the classifier, in the step itself
  method: Callable[[Mapping[str, Any]], str]  # attack -> how it trains, as model cards say it: 'by ...', 'with ...'
  strength: Callable[[Mapping[str, Any]], str] = _steps  # attack -> radius and steps, as logs and reports say it
  departure: str = ''  # in what it is not the adversary of Eq. 3 (arXiv 2104.01086), for the log of a run
  fields: Mapping[str, Field] = {}  # 'attack.NAME', that not all have; adversaries without one need its default
  starts: tuple[str, ...] = ('ball', 'uniform', 'zero')  # the values of attack.init that it knows
  broken_rules: Callable[[Mapping[str, Any]], Iterator[str]] = lambda flat: iter(())  # config -> what is wrong, to set


def _broken_rules_of_advmix(flat: Mapping[str, Any]) -> Iterator[str]:
  if flat['corruption_net.name'] not in ('edsr', 'cae'):
    yield (
      f'{spell(flat, "attack.name")} mixes what DeepAugment does to weights, which is not defined for '
      f'{spell(flat, "corruption_net.name")}; set one of edsr, cae.'
    )


def _strength_of_lp(attack: Mapping[str, Any]) -> str:
  epsilon = f'{255 * attack["epsilon"]:g}/255' if attack['norm'] == 'linf' else f'{attack["epsilon"]:g}'
  trades = f', TRADES {attack["trades"]:g}' if attack['trades'] else ''
  return f'{attack["norm"]} epsilon {epsilon}, {_steps(attack)}{trades}'


def _method_of_lp(attack: Mapping[str, Any]) -> str:
  paper = f'TRADES ({_TRADES})' if attack['trades'] else 'adversarial training (arXiv 1706.06083)'
  return f'by {paper}, {_strength_of_lp(attack)}'


def _broken_rules_of_lp(flat: Mapping[str, Any]) -> Iterator[str]:
  norm, epsilon = flat['attack.norm'], flat['attack.epsilon']
  if norm is None or epsilon is None:
    ball = spell(flat, 'attack.norm', 'attack.epsilon')
    yield (
      f'config.attack.name=lp must have a ball, but {ball}; set for example --config.attack.norm=linf '
      '--config.attack.epsilon=8/255.'
    )
    return
  if wrong := too_large_radius(norm, epsilon):
    yield f'config.attack.epsilon={epsilon:g} of config.attack.norm={norm} {wrong}'
  steps = {'linf': ('sign', 'adam', 'sgd'), 'l2': ('l2', 'sign_l2')}[norm]
  if flat['attack.step'] not in steps:
    reason = f'whose steps are {"of each pixel" if norm == "linf" else "of a length over all pixels"}'
    yield clash(flat, 'attack.step', 'attack.norm', reason, f'one of {", ".join(steps)}')
  if flat['attack.beta_mode'] != 'example':
    reason = 'where each image has a ball of its own'
    yield clash(flat, 'attack.beta_mode', 'attack.name', reason, 'config.attack.beta_mode=example')
  if flat['attack.trades'] and flat['attack.init'] == 'zero':
    reason = 'whose divergence is flat at the image itself'
    yield clash(flat, 'attack.init', 'attack.trades', reason, 'config.attack.init=gaussian')
  if flat['attack.trades'] and flat['augment.after']:
    reason, remedy = 'which compares an image with its adversarial one', '--config.augment.after= to nothing'
    yield clash(flat, 'augment.after', 'attack.trades', reason, f'{remedy}, or --config.attack.trades=0')


def _strength_of_rlat(attack: Mapping[str, Any]) -> str:
  layers = ', '.join(attack['layers'] or ['all layers'])
  return f'epsilon {attack["epsilon"]:g}, {layers}, one step'


# What RLAT has in no other way; the rest of `attack` is that of evaluations under AdA.
_FIXED_IN_RLAT = {
  'attack.fraction': 1, 'attack.beta_mode': 'example', 'attack.warmup_epochs': 0, 'attack.microbatch': None,
  'attack.every': 1,
}  # fmt: skip


def _broken_rules_of_rlat(flat: Mapping[str, Any]) -> Iterator[str]:
  if not flat['attack.epsilon']:
    radius = spell(flat, 'attack.epsilon')
    way_out = 'set for example --config.attack.epsilon=0.08'
    yield f'config.attack.name=rlat must have a radius above 0, but {radius}; {way_out}.'
  if flat['attack.layers'] is not None and not flat['attack.layers']:
    yield 'config.attack.layers= names no layer; set some, such as input,stem, or none for all of them.'
  statistics = {'attack.batch_norm': 'running' if flat['freeze'] == 'body' else 'batch'}
  reason = 'whose one step is that of the batch in training'
  yield from _fixed(flat, _FIXED_IN_RLAT | statistics, 'attack.name', reason)
  if flat['augment.after']:
    reason, remedy = 'which moves what the network sees', 'config.augment.after to nothing, and augment.before instead'
    yield clash(flat, 'augment.after', 'attack.name', reason, remedy)


def _strength_of_pat(attack: Mapping[str, Any]) -> str:
  of = {'self': 'its own features', 'alexnet': 'AlexNet'}[attack['distance']]
  return f'epsilon {attack["epsilon"]:g} in the distance of {of}, {_steps(attack)}'


def _broken_rules_of_pat(flat: Mapping[str, Any]) -> Iterator[str]:
  if flat['attack.distance'] is None or not flat['attack.epsilon']:
    ball = spell(flat, 'attack.distance', 'attack.epsilon')
    yield (
      f'config.attack.name=pat must have a ball of a radius above 0, but {ball}; set for example '
      '--config.attack.distance=self --config.attack.epsilon=0.5.'
    )
  if flat['attack.distance_from'] is not None and flat['attack.distance'] != 'alexnet':
    remedy = 'config.attack.distance_from=none, or config.attack.distance=alexnet'
    yield clash(flat, 'attack.distance_from', 'attack.distance', 'which has no file', remedy)
  if not flat['attack.num_steps']:
    yield f'{spell(flat, "attack.num_steps")} must be at least 1 with config.attack.name=pat.'
  if flat['attack.beta_mode'] != 'example':
    reason = 'where each image has a ball of its own'
    yield clash(flat, 'attack.beta_mode', 'attack.name', reason, 'config.attack.beta_mode=example')
  if flat['attack.distance'] == 'self' and flat['attack.batch_norm'] != 'running':
    reason = 'by which the distance of two images would depend on others'
    yield clash(flat, 'attack.batch_norm', 'attack.distance', reason, 'config.attack.batch_norm=running')


_EPSILON = Field(
  None,
  optional(fraction(0, 1e3)),
  'radius for images in [0, 1]: of the ball of lp, and of rlat the l_2 one of the input, from which its others follow; '
  'of pat in its distance',
)
_MEASURE_END = {
  'attack.measure_end': Field(
    True, boolean(), 'whether attack_loss_end of ada, advmix and lp is measured, by one more pass of the classifier'
  )
}
ADVERSARIES: dict[str, Adversary] = {
  'ada': Adversary(
    meaning='moves the weights of the corruption network within balls (Eq. 3, arXiv 2104.01086)',
    builder=f'{_BUILDERS}:ada',
    moves='weights',
    method=_method_of_ada,
    strength=_strength_of_ada,
    fields={
      'attack.moved': Field(
        'all',
        choice('all', 'last_third', 'tail', 'biases', 'scales'),
        'the blocks that ada moves: all (Eq. 1), those of the last third of the layers or after the body, biases, or '
        'each weight array by a scale per output channel; what does not move is computed once for all steps',
      ),
      'attack.growth_epochs': Field(
        0.0,
        number(0, 1e6),
        'epochs after attack.warmup_epochs over which the radius nu of ada grows in proportion to the steps made',
      ),
      'attack.replay': Field(
        1,
        integer(1, 16),
        'updates on each batch; with several, the gradient of each moves the classifier down and every beta one step '
        'up (free adversarial training, arXiv 1904.12843)',
      ),
      **_MEASURE_END,
    },
    broken_rules=_broken_rules_of_ada,
  ),
  'advmix': Adversary(
    meaning='mixes DeepAugment offsets of those weights (AdvMix-style, no disentangled generator)',
    builder=f'{_BUILDERS}:advmix',
    moves='weights',
    method=lambda attack: 'with an AdvMix-style adversary (arXiv 2104.01086, appendix C)',
    departure=(
      f'mixtures of {NUM_OFFSETS} DeepAugment offsets instead of balls of radius nu, AdvMix-style, no disentangled '
      'generator'
    ),
    fields=_MEASURE_END,
    starts=('ball', 'zero'),
    broken_rules=_broken_rules_of_advmix,
  ),
  'lp': Adversary(
    meaning='moves pixels within an l_p ball',
    builder=f'{_BUILDERS}:lp',
    moves='pixels',
    method=_method_of_lp,
    strength=_strength_of_lp,
    fields={
      'attack.norm': Field(None, optional(choice('linf', 'l2')), 'of the ball of lp, over pixels and channels'),
      'attack.epsilon': _EPSILON,
      **_MEASURE_END,
      'attack.trades': Field(
        0.0,
        number(0, 1e3),
        'weight of KL(clean || adversarial), which lp then climbs, beside the loss of clean images; there 6; 0: the '
        f'loss is that of adversarial images ({_TRADES})',
      ),
    },
    starts=('ball', 'gaussian', 'zero'),
    broken_rules=_broken_rules_of_lp,
  ),
  'rlat': Adversary(
    meaning=f'moves the input and activations of the classifier ({_RLAT})',
    builder=f'{_BUILDERS}:rlat',
    moves='activations',
    method=lambda attack: f'by relaxed LPIPS adversarial training ({_RLAT}), {_strength_of_rlat(attack)}',
    strength=_strength_of_rlat,
    fields={
      'attack.epsilon': _EPSILON,
      'attack.layers': Field(None, optional(labels('layers')), 'that rlat moves: input, stem, stage1, ...; None: all'),
    },
    broken_rules=_broken_rules_of_rlat,
  ),
  'pat': Adversary(
    meaning=f'moves pixels within a ball of a perceptual distance, by Fast-LPA ({_PAT})',
    builder='adversarial_augment.evaluation.distances:pat',
    moves='pixels',
    method=lambda attack: f'by perceptual adversarial training ({_PAT}), {_strength_of_pat(attack)}',
    strength=_strength_of_pat,
    fields={
      'attack.epsilon': _EPSILON,
      'attack.distance': Field(
        None,
        optional(choice('self', 'alexnet')),
        'of pat: of the features of the classifier in training, or of a fixed AlexNet',
      ),
      'attack.distance_from': Field(
        None,
        optional(text('a path')),
        'the workdir of that AlexNet, or its classifier.safetensors; None: the small one that ships',
      ),
    },
    broken_rules=_broken_rules_of_pat,
  ),
}
_NOMINAL = Adversary('is nominal', builder='', moves='nothing', method=lambda attack: 'without an adversary')


def find(attack: Mapping[str, Any]) -> Adversary:
  """Returns the adversary that the fields `attack.*` name; for 'none' and unknown names, one that moves nothing."""
  return ADVERSARIES.get(attack['name'], _NOMINAL)


def describe(attack: Mapping[str, Any], network: str = '') -> str:
  """Returns the name and strength of the adversary that the fields `attack.*` name, and what network it moves."""
  if attack['name'] == 'none':
    return 'no adversary'
  through = f' through {network}' if network and moves_weights(attack) else ''
  return f'{attack["name"]}{through}, {find(attack).strength(attack)}'


def moves_weights(attack: Mapping[str, Any]) -> bool:
  """Returns whether the adversary that the fields `attack.*` name moves weights of the corruption network."""
  return find(attack).moves == 'weights'


def moves_activations(attack: Mapping[str, Any]) -> bool:
  """Returns whether that adversary is a part of the train step, and makes no images that can be shown."""
  return find(attack).moves == 'activations'


def _either(names: Sequence[str]) -> str:
  *others, last = names
  return f'{", ".join(others)} or {last}' if others else last


def broken_rules(flat: Mapping[str, Any]) -> Iterator[str]:
  """Yields what is wrong with the adversary of a config, or with the fields of another one."""
  chosen = find({'name': flat['attack.name']})
  for field, about in {field: about for one in ADVERSARIES.values() for field, about in one.fields.items()}.items():
    if field not in chosen.fields and flat[field] != about.default:
      owners = [other for other, adversary in ADVERSARIES.items() if field in adversary.fields]
      remedy = f'--{spell({field: about.default}, field)}, or --config.attack.name={owners[0]}'
      yield clash(flat, field, 'attack.name', f'but only with {_either(owners)}', remedy)
  if flat['attack.init'] not in chosen.starts:
    yield clash(flat, 'attack.init', 'attack.name', '', f'config.attack.init={_either(chosen.starts)}')
  yield from chosen.broken_rules(flat)
