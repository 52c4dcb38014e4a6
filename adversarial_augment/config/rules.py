"""The rules between the fields of a config; each broken one is a sentence that says what to set."""

from collections.abc import Iterator, Mapping
from typing import Any

from adversarial_augment.checks import did_you_mean
from adversarial_augment.config import adversaries, evaluations
from adversarial_augment.config.fields import clash, spell
from adversarial_augment.config.tables import (
  AUGMIX,
  CLASSIFIER_DEPTHS,
  CLASSIFIER_LAYERS,
  NETWORK_OPTIONS,
  NETWORK_SIZES,
  NOT_ITS_OWN,
)
from adversarial_augment.errors import UserError


def broken(program: str, flat: Mapping[str, Any]) -> Iterator[str]:
  """Yields what is wrong between the fields of a config of `train` or `pretrain`."""
  yield from _network(flat)
  if program == 'train':
    yield from _classifier(flat)
    for evaluation in evaluations.EVALUATIONS.values():
      yield from evaluation.broken_rules(flat)
    yield from adversaries.broken_rules(flat)
    yield from _layers(flat)
    yield from _frozen(flat)
    yield from _training(flat)
    yield from _microbatch(flat)


def _network(flat: Mapping[str, Any]) -> Iterator[str]:
  name = flat['corruption_net.name']
  own = (*NETWORK_SIZES[name], *NETWORK_OPTIONS[name])
  others = {item for table in (NETWORK_SIZES, NETWORK_OPTIONS) for items in table.values() for item in items} - {*own}
  wrong = [field for other in sorted(others) if flat.get(field := f'corruption_net.{other}')]
  if wrong:
    flags = ' '.join(f'--config.{field}={"false" if flat[field] is True else "none"}' for field in wrong)
    named = spell(flat, 'corruption_net.name')
    yield f'{spell(flat, *wrong)}: {named} has no such field, only {", ".join(own)}; set {flags}.'


def _classifier(flat: Mapping[str, Any]) -> Iterator[str]:
  name, known = flat['classifier.name'], CLASSIFIER_DEPTHS[flat['classifier.name']]
  named = spell(flat, 'classifier.name')
  if flat['classifier.depth'] not in known:
    yield f'{spell(flat, "classifier.depth")} must be one of {", ".join(map(str, known))} with {named}.'
  if name == 'wide_resnet' and flat['classifier.width'] > 16:
    yield (
      f'{spell(flat, "classifier.width")} must be at most 16 with {named}, whose widening factor it is; WRN-40-2 has '
      '--config.classifier.width=2.'
    )
  mean, std = 'classifier.mean', 'classifier.std'
  if (flat[mean] is None) != (flat[std] is None):
    yield f'{spell(flat, mean, std)}: images are normalised by both; set both, or none of them.'
  if name in NOT_ITS_OWN and flat['classifier.shortcut'] != 'preact':
    reason = 'which has no pre-activation'
    yield clash(flat, 'classifier.shortcut', 'classifier.name', reason, 'config.classifier.shortcut=preact')


def _layers(flat: Mapping[str, Any]) -> Iterator[str]:
  name, known = 'attack.layers', ('input', *CLASSIFIER_LAYERS[flat['classifier.name']])
  for layer in flat[name] or ():
    if layer not in known:
      named = spell(flat, 'classifier.name')
      yield f'{spell(flat, name)} must be of {", ".join(known)} with {named}.{did_you_mean(layer, known)}'


def _training(flat: Mapping[str, Any]) -> Iterator[str]:
  is_layerwise = adversaries.moves_activations({'name': flat['attack.name']})
  if flat['augment.jsd'] and is_layerwise:
    yield clash(flat, 'augment.jsd', 'attack.name', 'whose step has one view of an image', 'config.augment.jsd=0')
  elif flat['augment.jsd'] and tuple(flat['augment.after']) not in ((name,) for name in AUGMIX):
    yield (
      f'{spell(flat, "augment.jsd")} compares an image with two of its AugMix, but there is '
      f'{spell(flat, "augment.after")}; set --config.augment.after=augmix alone, or --config.augment.jsd=0.'
    )
  if {*AUGMIX} & {*flat['augment.before']} and not is_layerwise:
    yield clash(flat, 'augment.before', 'attack.name', 'where AugMix comes last', 'config.augment.after=augmix')
  epochs = flat['num_epochs']
  warmups = ('optimizer.warmup_epochs', 'attack.warmup_epochs')
  for warmup in warmups if flat['attack.name'] in adversaries.ADVERSARIES else warmups[:1]:
    if flat[warmup] >= epochs:
      lower = f'lower it, for example --config.{warmup}={epochs / 10:g}'
      yield f'{spell(flat, warmup)} must be below {spell(flat, "num_epochs")}; {lower}.'
  if flat['optimizer.drops'] and flat['optimizer.schedule'] != 'steps':
    remedy = 'config.optimizer.schedule=steps, or --config.optimizer.drops='
    yield clash(flat, 'optimizer.drops', 'optimizer.schedule', 'which has none', remedy)
  if flat['attack.group'] > 1 and flat['attack.beta_mode'] != 'group':
    mode = spell(flat, 'attack.beta_mode')
    yield f'{spell(flat, "attack.group")} must be 1 with {mode}; set config.attack.beta_mode=group.'


def _frozen(flat: Mapping[str, Any]) -> Iterator[str]:
  if flat['freeze'] == 'none':
    return
  if flat['init_from'] is None:
    reason = 'whose body would stay as it was drawn at random'
    yield clash(flat, 'freeze', 'init_from', reason, 'config.init_from=WORKDIR, or config.freeze=none')
  is_attacked = flat['attack.name'] in adversaries.ADVERSARIES
  if flat['freeze'] == 'body' and is_attacked and flat['attack.batch_norm'] != 'running':
    reason = 'which would attack another function than the one that is trained'
    yield clash(flat, 'attack.batch_norm', 'freeze', reason, 'config.attack.batch_norm=running')


def _microbatch(flat: Mapping[str, Any]) -> Iterator[str]:
  name, whole = 'attack.microbatch', 'config.attack.microbatch=none'
  size, batch = flat[name], flat['batch_size']
  if size is None:
    return
  if flat['attack.batch_norm'] != 'running':
    reason, running = 'whose statistics need all images at once', 'config.attack.batch_norm=running'
    yield clash(flat, name, 'attack.batch_norm', reason, f'{running} or {whole}')
  if flat['attack.beta_mode'] == 'batch':
    yield clash(flat, name, 'attack.beta_mode', 'whose images are attacked together', whole)
  if batch % size:
    below = next(n for n in range(min(size, batch), 0, -1) if batch % n == 0)
    yield f'{spell(flat, name)} must divide {spell(flat, "batch_size")}; try {below}.'


def check_batch(batch_size: int, count: int, parts: str) -> None:
  """Raises UserError where a batch does not divide over so many devices or processes."""
  if batch_size % count:
    below = batch_size // count * count
    near = ' or '.join(str(size) for size in (below, below + count) if size)
    raise UserError(f'config.batch_size={batch_size} must be a multiple of the {count} {parts}; try {near}.')


def too_small(dataset: str, height: int, width: int, least: int, reader: str) -> UserError:
  """Returns the refusal of images that are smaller than what reads them needs."""
  return UserError(
    f'config.dataset={dataset} has images of {height}x{width}, but {reader} needs at least {least} pixels a side; '
    'prepare them larger, for example with --size=32.'
  )
