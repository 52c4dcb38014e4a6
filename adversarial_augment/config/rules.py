"""The rules between the fields of a config, and between them and what a run finds: its devices, images and weights.

Each is a sentence that says what is broken, and what to set.
"""

from collections.abc import Iterable, Iterator, Mapping
import math
from typing import Any

from adversarial_augment.config import adversaries, evaluations
from adversarial_augment.config.tables import AUGMIX, CLASSIFIER_DEPTHS, NETWORK_OPTIONS, NETWORK_SIZES
from adversarial_augment.errors import UserError


def require(broken: Iterable[str]) -> None:
  """Raises UserError with the first rule that is broken."""
  for sentence in broken:
    raise UserError(sentence)


def of_networks(flat: Mapping[str, Any]) -> Iterator[str]:
  """Yields what is wrong with the sizes and options of the corruption network; of `train` and `pretrain`."""
  name = flat['corruption_net.name']
  own = (*NETWORK_SIZES[name], *NETWORK_OPTIONS[name])
  others = {item for table in (NETWORK_SIZES, NETWORK_OPTIONS) for items in table.values() for item in items}
  wrong = {field: flat[field] for item in sorted(others - {*own}) if flat.get(field := f'corruption_net.{item}')}
  if wrong:
    said = ', '.join(f'config.{field}={value}' for field, value in wrong.items())
    flags = ' '.join(f'--config.{field}={"false" if value is True else "none"}' for field, value in wrong.items())
    yield f'{said}: config.corruption_net.name={name} has no such field, only {", ".join(own)}; set {flags}.'


def _of_classifiers(flat: Mapping[str, Any]) -> Iterator[str]:
  name, depth, width, shortcut = (flat[f'classifier.{field}'] for field in ('name', 'depth', 'width', 'shortcut'))
  if depth not in CLASSIFIER_DEPTHS[name]:
    yield (
      f'config.classifier.depth={depth} must be one of {", ".join(map(str, CLASSIFIER_DEPTHS[name]))} with '
      f'config.classifier.name={name}.'
    )
  if name == 'wide_resnet' and width > 16:
    yield (
      f'config.classifier.width={width} must be at most 16 with config.classifier.name=wide_resnet, whose widening '
      'factor it is; WRN-40-2 has --config.classifier.width=2.'
    )
  if name == 'resnext' and shortcut != 'preact':
    yield (
      f'config.classifier.shortcut={shortcut} goes with pre-activation networks only, not with '
      'config.classifier.name=resnext; leave it at preact.'
    )


def of_training(flat: Mapping[str, Any]) -> Iterator[str]:
  """Yields what is wrong between the fields of `train`."""
  yield from _of_classifiers(flat)
  for evaluation in evaluations.EVALUATIONS.values():
    yield from evaluation.broken_rules(flat)
  yield from adversaries.broken_rules(flat)
  jsd, after = flat['augment.jsd'], tuple(flat['augment.after'])
  if jsd and after not in ((name,) for name in AUGMIX):
    yield (
      f'config.augment.jsd={jsd} compares an image with two of its AugMix, but config.augment.after='
      f'{",".join(after) or "none"}; set --config.augment.after=augmix alone, or --config.augment.jsd=0.'
    )
  warmup, epochs = flat['optimizer.warmup_epochs'], flat['num_epochs']
  if warmup >= epochs:
    yield (
      f'config.optimizer.warmup_epochs={warmup} must be below config.num_epochs={epochs}; lower it, for example '
      f'--config.optimizer.warmup_epochs={epochs / 10:g}.'
    )
  clean = flat['attack.warmup_epochs']
  if flat['attack.name'] in adversaries.ADVERSARIES and clean >= epochs:
    yield (
      f'config.attack.warmup_epochs={clean} must be below config.num_epochs={epochs}, or the adversary never acts; '
      f'lower it, for example --config.attack.warmup_epochs={epochs / 3:g}.'
    )
  group, beta_mode = flat['attack.group'], flat['attack.beta_mode']
  if group > 1 and beta_mode != 'group':
    yield (
      f'config.attack.group={group} must be 1 with config.attack.beta_mode={beta_mode}; '
      'set config.attack.beta_mode=group.'
    )
  micro, batch = flat['attack.microbatch'], flat['batch_size']
  if micro is not None:
    if flat['attack.batch_norm'] != 'running':
      whole = {'batch': 'the whole batch', 'device': 'all images of a device'}[flat['attack.batch_norm']]
      yield (
        f'config.attack.microbatch={micro} cannot go with config.attack.batch_norm={flat["attack.batch_norm"]}, whose '
        f'statistics are those of {whole}; set config.attack.batch_norm=running or config.attack.microbatch=none.'
      )
    if beta_mode == 'batch':
      yield (
        f'config.attack.microbatch={micro} cannot go with config.attack.beta_mode=batch, whose images are attacked '
        'together; set config.attack.microbatch=none.'
      )
    if batch % micro:
      below = next(n for n in range(min(micro, batch), 0, -1) if batch % n == 0)
      yield f'config.attack.microbatch={micro} must divide config.batch_size={batch}; try {below}.'


# ---- What a run finds.


def of_batch(batch_size: int, count: int, parts: str) -> Iterator[str]:
  """Yields what is wrong with a batch that is divided over so many devices or processes."""
  if batch_size % count:
    below = batch_size // count * count
    near = ' or '.join(str(size) for size in (below, below + count) if size)
    yield f'config.batch_size={batch_size} must be a multiple of the {count} {parts}; try {near}.'


def no_steps(num_epochs: float, num_examples: int, batch_size: int) -> str:
  """Refuses a run without a step."""
  return (
    f'config.num_epochs={num_epochs} of {num_examples} images make no batch of config.batch_size={batch_size}; lower '
    'config.batch_size or set config.num_steps.'
  )


def few_steps(field: str, value: float, num_steps: int, enough: int) -> str:
  """Warns of a run too short to learn from scratch, and says which value of `field` is enough."""
  return (
    f'config.{field}={value:g} makes {num_steps:,} updates, too few to learn from scratch; set '
    f'--config.{field}={enough} or more'
  )


def of_attacked(
  count: int, size: int, group: int | None, fraction: float, num_local: int, num_devices: int
) -> Iterator[str]:
  """Yields what is wrong with the images of a device that are attacked.

  Args:
    count: how many are attacked.
    size: how many at a time.
    group: how many share a perturbation; None: all.
    fraction: `attack.fraction`.
    num_local: images of the device.
    num_devices: devices.
  """
  of_each = f'of each of the {num_devices} devices'
  if not count:
    yield (
      f'config.attack.fraction={fraction:g} of the {num_local} images {of_each} is less than one image; '
      f'set at least {math.ceil(1000 / num_local) / 1000}, or raise config.batch_size.'
    )
  elif count % size:
    yield f'config.attack.microbatch={size} must divide the {count} images {of_each} that are attacked.'
  elif size % (group or size):
    yield f'config.attack.group={group} must divide the {size} images {of_each} that are attacked at a time.'


def too_small(dataset: str, height: int, width: int, least: int, reader: str) -> str:
  """Refuses images that are smaller than what reads them needs."""
  return (
    f'config.dataset={dataset} has images of {height}x{width}, but {reader} needs at least {least} pixels a side; '
    'prepare them larger, for example with --size=32.'
  )


def other_classes(evaluation: str, classes_of: str, dataset: str) -> str:
  """Refuses an evaluation on images of other classes than the data set's."""
  return f'config.evals has {evaluation}, with the classes of {classes_of}, but config.dataset={dataset}; leave it out.'


def unusable_frost(folder: str, reason: object) -> str:
  """Refuses a folder of frost photographs."""
  return f"config.frost_dir='{folder}': {reason}"


def of_weights(network: str, weights: str | None, held: Mapping[str, int], asked: Mapping[str, int]) -> Iterator[str]:
  """Yields what is wrong with the sizes that a weight file holds, where the config asks for others."""
  different = [name for name in held if asked[name] != held[name]]
  if different:
    found = ' '.join(f'{name}={size}' for name, size in held.items())
    wanted = ', '.join(f'config.corruption_net.{name}={asked[name]}' for name in different)
    flags = ' '.join(f'--config.corruption_net.{name}={held[name]}' for name in different)
    yield (
      f"config.corruption_net.weights='{weights}' holds {network} with {found}, but {wanted}; set {flags}, or name "
      'another file.'
    )


def unusable_weights(weights: str | None, reason: object) -> str:
  """Refuses a weight file."""
  return f"config.corruption_net.weights='{weights}': {reason}"


def too_much_memory(available: int, microbatch: int, images: int) -> str:
  """Warns of a step that needs more than the bytes of a device, where `images` are attacked at a time."""
  return (
    f'a device has {available / 1e9:.2f} GB; lower config.batch_size, or set config.attack.batch_norm=running and '
    f'config.attack.microbatch={microbatch} (it must divide {images})'
  )
