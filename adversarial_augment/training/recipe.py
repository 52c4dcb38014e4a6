"""From a config to the static parts of a run: the only place that joins config values to tables.

What follows from other values (number of steps, effective learning rate) is worked out here, after every override.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import optax

from adversarial_augment import (
  attacks,
  augmentations,
  classifiers,
  corruption_nets,
  deepaugment,
  per_example_conv,
  registry,
  ssim,
)
from adversarial_augment import config as configs
from adversarial_augment.config import rules
from adversarial_augment.config.tables import NETWORK_OPTIONS
from adversarial_augment.datasets import sampling
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import sharding
from adversarial_augment.per_example_conv import Conv
from adversarial_augment.storage import artifact
from adversarial_augment.training import schedules
from adversarial_augment.types import Attack, Augmentation, Dataset, Network, PyTree

_FEW_STEPS = 100  # from scratch, below which no classifier has learnt much
NUM_OFFSETS = 8  # of phi, whose mixtures `attack.name=advmix` searches


class Recipe(NamedTuple):
  """The static parts of one run; closed over by jit, never traced."""

  classifier: Network
  attacked_classifier: Network  # the same function inside shard_map
  attack_batch_norm: str  # 'batch', 'device' or 'running': the statistics of the classifier under attack
  attack: Attack | None
  warmup_steps: int  # first updates, without the adversary
  before: Augmentation
  after: Augmentation
  jsd: float  # weight of the divergence of three views of an image; 0: there is one view
  trades: float  # weight of the divergence of an adversarial image from the clean one; 0: the former is the only view
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule  # of updates made, this one included
  num_steps: int
  batch_size: int
  seed: int
  mesh: Mesh


def build(
  config: ConfigDict, dataset: Dataset, mesh: Mesh, *, conv: Conv = per_example_conv.example_conv
) -> tuple[Recipe, PyTree]:
  """Returns the recipe of a validated config, and phi.

  Args:
    config: of `train`.
    dataset: the training images.
    mesh: the devices.
    conv: the convolution of the corruption network, see per_example_conv.

  Raises:
    UserError: values that do not go with the data set, the devices, or the weights at hand.
  """
  check_parts(config, mesh.size)
  num_steps = num_steps_of(config, dataset.epoch_size or dataset.num_examples)
  steps_of = functools.partial(_steps_of, config, num_steps)
  peak = schedules.effective_learning_rate(config.optimizer.learning_rate, config.batch_size)
  schedule = schedules.warmup_cosine(peak, num_steps, steps_of(config.optimizer.warmup_epochs))
  classifier = functools.partial(build_classifier, config, dataset.num_classes)
  attack: Attack | None
  phi: PyTree
  attack, phi = None, {}
  if config.attack.name != 'none':
    attack, phi = build_attack(config, mesh, training=True, conv=conv)
  recipe = Recipe(
    classifier=classifier(),
    attacked_classifier=attacked_classifier(config, dataset.num_classes),
    attack_batch_norm=config.attack.batch_norm,
    attack=attack,
    warmup_steps=steps_of(config.attack.warmup_epochs),
    before=augmentations.chain(config.augment.before),
    after=augmentations.chain(config.augment.after),
    jsd=config.augment.jsd,
    trades=config.attack.trades,
    optimizer=sgd(
      schedule,
      **{name: config.optimizer[name] for name in ('momentum', 'nesterov', 'weight_decay', 'decay_batch_norm')},
    ),
    schedule=schedule,
    num_steps=num_steps,
    batch_size=config.batch_size,
    seed=config.seed,
    mesh=mesh,
  )
  return recipe, phi


def num_steps_of(config: ConfigDict, num_examples: int) -> int:
  """Returns the updates of a run: `num_steps`, or what `num_epochs` makes of it.

  Raises:
    UserError: not even one.
  """
  steps = config.num_steps or sampling.num_steps(config.num_epochs, num_examples, config.batch_size)
  if steps < 1:
    raise UserError(rules.no_steps(config.num_epochs, num_examples, config.batch_size))
  return steps


def derived(config: ConfigDict, num_examples: int | None) -> list[str]:
  """Returns lines of what follows from a config: learning rate, steps, images seen.

  Args:
    config: of `train`.
    num_examples: training images; None: not known, and with them perhaps the steps.

  Raises:
    UserError: they make no step.
  """
  batch, attack = config.batch_size, config.attack
  rate = schedules.effective_learning_rate(config.optimizer.learning_rate, batch)
  lines = [f'effective_learning_rate = {rate:g}  # for batches of {batch:,}']
  if num_examples is None and not config.num_steps:
    return lines
  steps = num_steps_of(config, num_examples or 0)
  passes = f'{steps * batch / num_examples:.3g} passes over {num_examples:,} images' if num_examples else 'in all'
  warmup, spared = (
    _steps_of(config, steps, epochs) for epochs in (config.optimizer.warmup_epochs, attack.warmup_epochs)
  )
  lines += [
    f'steps = {steps:,}  # updates, the first {warmup:,} with a rising learning rate',
    f'images_seen = {steps * batch:,}  # {passes}',
  ]
  if attack.name != 'none':
    lines.append(f'attacked_steps = {steps - spared:,}  # with {attack.num_steps} ascent steps each')
  return lines


def too_few_steps(config: ConfigDict, num_steps: int, num_examples: int) -> str:
  """Returns a warning where a run cannot learn much; '' for others, and for those that go on from another run."""
  if num_steps >= _FEW_STEPS or config.init_from is not None:
    return ''
  epochs = math.ceil(_FEW_STEPS * config.batch_size / num_examples)
  field, more = ('num_steps', _FEW_STEPS) if config.num_steps else ('num_epochs', epochs)
  return f'warning: {rules.few_steps(field, config[field], num_steps, more)}'


def _steps_of(config: ConfigDict, num_steps: int, epochs: float) -> int:
  """Returns the steps of so many epochs: a shorter run keeps the shape of a longer one."""
  return int(min(num_steps, num_steps * epochs / config.num_epochs))  # the quotient may be infinite


def build_classifier(
  config: ConfigDict, num_classes: int, *, dtype: jnp.dtype | None = None, axis_name: str | None = None
) -> Network:
  """Returns the classifier of a config.

  Args:
    config: of `train`.
    num_classes: number of logits.
    dtype: of convolutions and activations; None: `config.precision`.
    axis_name: the mapped axis over which batch statistics are averaged; None: those of the images alone.
  """
  make = classifiers.CLASSIFIERS[config.classifier.name]
  options = classifier_options(config) | {'dtype': dtype or jnp.dtype(config.precision)}
  return make(num_classes, axis_name=axis_name, **options)


def classifier_options(config: ConfigDict) -> dict[str, Any]:
  """Returns what the classifier's factory takes beside the number of classes, as plain values."""
  of_others = {'name', 'shortcut'} if config.classifier.name == 'resnext' else {'name'}
  fields = {name: value for name, value in config.classifier.items() if name not in of_others}
  return {**fields, 'dtype': config.precision}


def attacked_classifier(config: ConfigDict, num_classes: int) -> Network:
  """Returns the same function in the form for `shard_map`, in which a device has batch statistics of its own or not."""
  return build_classifier(
    config, num_classes, axis_name=None if config.attack.batch_norm == 'device' else sharding.AXIS
  )


def build_attack(
  config: ConfigDict, mesh: Mesh, *, training: bool = False, conv: Conv = per_example_conv.example_conv
) -> tuple[Attack, PyTree]:
  """Returns an adversary, and what it is built around: phi, or {} for an l_p ball.

  Args:
    config: of `train`.
    mesh: the devices.
    training: the adversary of the config. Otherwise it is the paper's whatever `attack.name`, `attack.fraction` and
      `attack.beta_mode` say, which attacks every image by itself: an evaluation must not depend on batches.
    conv: the convolution of the corruption network, see per_example_conv.

  Raises:
    UserError: no such weights, weights without a norm, or images of a device that do not divide into microbatches or
      groups, or of which the fraction is none.
  """
  local = -(-config.batch_size // mesh.size)
  count, size, group = parts_of(config, local, mesh.size, training=training)
  attack: Attack
  frozen: PyTree
  if training and config.attack.name == 'lp':
    attack, frozen = lp_attack(config), {}
  else:
    network, phi = load_network(config, conv=conv)
    shared = _ascent(config) | {'noisy': True, 'group': group, 'axis_name': sharding.AXIS}
    shared |= {name: config.attack[name] for name in ('min_ssim', 'root')}
    if config.attack.init == 'gaussian':  # of l_p balls alone
      shared['init'] = 'ball'
    if training and config.attack.name == 'advmix':
      attack, frozen = attacks.advmix(network.apply, **shared), _hull(config, phi)
    else:
      attack, frozen = attacks.ada(network.apply, nu=config.attack.nu, **shared), phi
  if size < count:
    attack = attacks.in_microbatches(attack, size)
  if count < local:
    attack = attacks.on_share(attack, count, local)
  return attack, frozen


def lp_attack(config: ConfigDict) -> Attack:
  """Returns the adversary of `attack.name=lp`, for any number of images."""
  loss = 'kl' if config.attack.trades else 'cross_entropy'
  return attacks.lp(norm=config.attack.norm, epsilon=config.attack.epsilon, loss=loss, **_ascent(config))


def _ascent(config: ConfigDict) -> dict[str, Any]:
  return {name: config.attack[name] for name in ('num_steps', 'step', 'step_fraction', 'init', 'keep_best')}


def load_network(config: ConfigDict, *, conv: Conv = per_example_conv.example_conv) -> tuple[Network, PyTree]:
  """Returns the corruption network and phi; `conv` is its convolution, see per_example_conv."""
  net = config.corruption_net
  options = {name: net[name] for name in NETWORK_OPTIONS[net.name]}
  dtype = None if config.precision == 'float32' else jnp.dtype(config.precision)
  network, phi = corruption_nets.load(net.name, weights_of(config), conv=conv, dtype=dtype, **options)
  attacks.check_blocks(phi)
  return network, phi


def has_network(config: ConfigDict) -> bool:
  """Returns whether a run uses its corruption network: it trains against it, and shows that, or evaluates with it."""
  return config.attack.name in ('ada', 'advmix') or has_evaluation_under_attack(config)


def has_evaluation_under_attack(config: ConfigDict) -> bool:
  """Returns whether an evaluation of a run needs AdA."""
  return any(registry.evaluations()[name].under_attack for name in config.evals)


def parts_of(config: ConfigDict, local: int, num_devices: int, *, training: bool) -> tuple[int, int, int | None]:
  """Returns how many of a device's images are attacked, how many at a time, and how many share a perturbation.

  The last is None where all do, with those of every device.

  Raises:
    UserError: parts that do not divide, or are empty.
  """
  attack = config.attack
  count = attacks.attacked_images(attack.fraction if training else 1, local)
  size = attack.microbatch or count
  group = {'example': 1, 'group': attack.group, 'batch': None}[attack.beta_mode] if training else 1
  rules.require(rules.of_attacked(count, size, group, attack.fraction, local, num_devices))
  return count, size, group


def check_parts(config: ConfigDict, num_devices: int) -> None:
  """Looks whether a batch, and what of it is attacked at a time, divides over devices, which need not exist yet.

  Raises:
    UserError: it does not.
  """
  rules.require(rules.of_batch(config.batch_size, num_devices, 'devices'))
  if config.attack.name != 'none':
    parts_of(config, config.batch_size // num_devices, num_devices, training=True)
  if has_network(config):
    check_evaluation_parts(config, num_devices)


def check_evaluation_parts(config: ConfigDict, num_devices: int) -> None:
  """The same for an evaluation under attack, whose batches are filled up.

  Raises:
    UserError: microbatches do not divide.
  """
  parts_of(config, -(-config.batch_size // num_devices), num_devices, training=False)


def _hull(config: ConfigDict, phi: PyTree) -> attacks.Hull:
  """Returns phi and what DeepAugment's damage to it adds, drawn `NUM_OFFSETS` times from the run's seed."""
  settings = deepaugment.Settings(net=config.corruption_net.name, seed=config.seed)
  pristine = jax.tree.map(np.asarray, phi)
  damaged = [deepaugment.damaged_weights(pristine, settings, copy, 0) for copy in range(NUM_OFFSETS)]
  return attacks.Hull(phi, jax.tree.map(lambda p, *others: np.stack(others) - p, pristine, *damaged))


def check_adversary(config: ConfigDict, image_shape: tuple[int, int, int]) -> None:
  """Looks, before any device is touched, whether a config that needs the adversary can have it.

  Raises:
    UserError: images too small for SSIM; a network that has no such adversary; no such weights, a damaged file, weights
      of another network than the config's, or none but zeros.
  """
  height, width, _ = image_shape
  if (has_network(config) or config.attack.name == 'lp') and min(height, width) < ssim.WINDOW:
    raise UserError(rules.too_small(config.dataset, height, width, ssim.WINDOW, 'the SSIM of adversarial images'))
  if not has_network(config):
    return
  net = config.corruption_net
  if config.attack.name == 'advmix' and net.name not in deepaugment.NETS:
    raise UserError(rules.no_offsets(net.name, deepaugment.NETS))
  params, sizes = corruption_nets.read(net.name, weights_of(config))
  rules.require(rules.of_weights(net.name, net.weights, sizes, configs.network_sizes(config)))
  try:
    attacks.check_blocks(params)
  except UserError as error:
    raise UserError(rules.unusable_weights(net.weights, error)) from None


def weights_of(config: ConfigDict) -> str:
  """Returns the weight file that a config asks for, or the name of the weights that ship for its architecture."""
  net = config.corruption_net
  if net.weights is not None:
    return net.weights
  return corruption_nets.shipped_name(net.name, configs.network_sizes(config))


def weights_sha256(config: ConfigDict) -> str | None:
  """Returns the hash of that file; None for a run that has nothing to do with an adversary around a network."""
  if not has_network(config):
    return None
  return artifact.sha256_of(corruption_nets.find(weights_of(config)))


def sgd(
  schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float, decay_batch_norm: bool
) -> optax.GradientTransformation:
  """Returns SGD; the weight decay joins the gradient before the momentum, as an L2 term of the loss would.

  Args:
    schedule: learning rate after so many updates, the current one included: the first update is not made with the
      rate of 0 from which a warm-up starts.
    momentum: its decay.
    nesterov: looks one step ahead.
    weight_decay: coefficient of half the squared norm.
    decay_batch_norm: whether that norm includes the scales and offsets of normalisation: of modules that have no other
      parameters, whatever their names.
  """
  decays = lambda params: jax.tree.map(
    lambda node: jax.tree.map(lambda _: decay_batch_norm or not _is_norm(node), node), params, is_leaf=_is_norm
  )
  return optax.chain(
    optax.add_decayed_weights(weight_decay, mask=decays),
    optax.trace(momentum, nesterov=nesterov),
    optax.scale_by_schedule(lambda count: -schedule(count + 1)),
  )


def _is_norm(node: Any) -> bool:
  """Returns whether a part of a tree of parameters is all that a module has that normalises, in Haiku's spelling."""
  return isinstance(node, Mapping) and bool(node) and node.keys() <= {'scale', 'offset'}
