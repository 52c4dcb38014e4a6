"""From a config to the static parts of a run: the only place that joins config values to tables.

What follows from other values (number of steps, effective learning rate) is worked out here, after every override.
"""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import optax

from adversarial_augment import attacks, augmentations, classifiers, per_example_conv
from adversarial_augment.classifiers.alexnet import STEM_STRIDE
from adversarial_augment.classifiers.layers import MEAN, STD
from adversarial_augment.config import adversaries
from adversarial_augment.config.fields import spell
from adversarial_augment.config.tables import NOT_ITS_OWN
from adversarial_augment.datasets import sampling
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import sharding
from adversarial_augment.per_example_conv import Conv
from adversarial_augment.training import builders
from adversarial_augment.types import Array, Attack, Augmentation, Dataset, Network, PyTree

_FEW_STEPS = 100  # from scratch, below which no classifier has learnt much


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
  frozen_statistics: bool = False  # the classifier is trained with the running statistics, which stay as they are
  layers: Mapping[str, attacks.Layer] = {}  # that RLAT moves, in network order; {} without it
  every: int = 1  # of so many updates after the warm-up, the last has the adversary
  replay: builders.Replay | None = None  # with free replay, which has no `attack`
  growth_steps: int = 0  # updates after the warm-up over which its radius grows; 0: it has its size at once

  def is_attacked(self, step: int | Array) -> Any:
    """Returns whether the update after so many has the adversary, if there is one; `step` may be traced."""
    return (step >= self.warmup_steps) & ((step + 1 - self.warmup_steps) % self.every == 0)


def build(
  config: ConfigDict, dataset: Dataset, mesh: Mesh, *, conv: Conv = per_example_conv.example_conv
) -> tuple[Recipe, PyTree]:
  """Returns the recipe of a validated config on its training images, and phi.

  Raises:
    UserError: values that do not go with the data set, the devices, or the weights at hand.
  """
  builders.check_parts(config, mesh.size)
  num_steps = num_steps_of(config, dataset.epoch_size or dataset.num_examples)
  steps_of = functools.partial(_steps_of, config, num_steps)
  warmup = steps_of(config.attack.warmup_epochs)
  if config.attack.name in adversaries.ADVERSARIES and not attacked_steps(num_steps, warmup, config.attack.every):
    none = f'{spell(config, "attack.every")} leaves none of {num_steps - warmup:,} steps for the adversary'
    raise UserError(f'{none}; set at most {num_steps - warmup}.')
  optimizer, schedule = build_optimizer(config, num_steps)
  adversary = builders.training_adversary(config, mesh, conv=conv)
  classifier = build_classifier(config, dataset.num_classes)
  is_layerwise = adversaries.moves_activations(config.attack)
  recipe = Recipe(
    classifier=classifier,
    attacked_classifier=attacked_classifier(config, dataset.num_classes),
    attack_batch_norm=config.attack.batch_norm,
    attack=adversary.attack,
    warmup_steps=warmup,
    before=augmentations.chain(config.augment.before),
    after=augmentations.chain(config.augment.after),
    jsd=config.augment.jsd,
    trades=config.attack.trades,
    optimizer=optimizer,
    schedule=schedule,
    num_steps=num_steps,
    batch_size=config.batch_size,
    seed=config.seed,
    mesh=mesh,
    frozen_statistics=config.freeze == 'body',
    layers=moved_layers(config, classifier, dataset.image_shape) if is_layerwise else {},
    every=config.attack.every,
    replay=builders.free_replay(config, conv=conv),
    growth_steps=max(steps_of(config.attack.growth_epochs), 1) if config.attack.growth_epochs else 0,
  )
  return recipe, adversary.frozen


def moved_layers(
  config: ConfigDict, classifier: Network, image_shape: tuple[int, int, int]
) -> dict[str, attacks.Layer]:
  """Returns the layers that RLAT moves, in the order of the network, with their radii."""
  shapes = {attacks.INPUT: image_shape}

  def note(images):
    params, state = classifier.init(jax.random.key(0), images, is_training=True)
    (_, activations), _ = classifier.apply(params, state, None, images, is_training=False, with_activations=True)
    shapes.update({name: x.shape[1:] for name, x in activations.items()})  # JAX would return them by alphabet

  jax.eval_shape(note, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  chosen = {name: shape for name, shape in shapes.items() if name in (config.attack.layers or shapes)}
  radii = attacks.layerwise_radii([*chosen.values()], config.attack.epsilon, image_size=math.prod(image_shape))
  return {name: attacks.Layer(shape, radius) for (name, shape), radius in zip(chosen.items(), radii, strict=True)}


def build_optimizer(config: ConfigDict, num_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns the optimiser of a run, and the learning rate of its body, or of its head where the body is frozen."""
  names = ('momentum', 'nesterov', 'weight_decay', 'decay_batch_norm', 'clip')
  options = {name: config.optimizer[name] for name in names}
  warmup = _steps_of(config, num_steps, config.optimizer.warmup_epochs)
  rates = learning_rates(config)
  if config.optimizer.schedule == 'steps':
    make = functools.partial(warmup_steps, warmup_steps=warmup, drops=drops_of(config, num_steps))
  else:
    make = functools.partial(warmup_cosine, num_steps=num_steps, warmup_steps=warmup)
  body, head = (make(rates[part]) for part in ('body', 'head'))
  is_frozen = config.freeze != 'none'
  if not is_frozen and rates['body'] == rates['head']:
    return sgd(body, **options), body
  parts = {'body': optax.set_to_zero() if is_frozen else sgd(body, **options), 'head': sgd(head, **options)}
  return optax.multi_transform(parts, classifiers.parts), head if is_frozen else body


def learning_rates(config: ConfigDict) -> dict[str, float]:
  """Returns the effective learning rates of 'body' and 'head', of which the former may be frozen."""
  usual, head = config.optimizer.learning_rate, config.optimizer.head_learning_rate
  rates = {'body': usual, 'head': usual if head is None else head}
  return {part: effective_learning_rate(rate, config.batch_size) for part, rate in rates.items()}


def drops_of(config: ConfigDict, num_steps: int) -> list[int]:
  """Returns the updates after which the learning rate of a run drops."""
  return [round(share * num_steps) for share in config.optimizer.drops]


def num_steps_of(config: ConfigDict, num_examples: int) -> int:
  """Returns the updates of a run: `num_steps`, or what `num_epochs` makes of it; raises UserError if there are none."""
  steps = config.num_steps or sampling.num_steps(config.num_epochs, num_examples, config.batch_size)
  if steps < 1:
    none = f'{spell(config, "num_epochs")} of {num_examples} images make no batch of {spell(config, "batch_size")}'
    raise UserError(f'{none}; lower the batch size, or set the number of steps.')
  return steps


def derived(config: ConfigDict, num_examples: int | None) -> list[str]:
  """Returns lines of what follows from a config and its number of training images, if known: rate, steps, images."""
  batch, attack = config.batch_size, config.attack
  rates = learning_rates(config)
  lines = [f'effective_learning_rate = {rates["body"]:g}  # for batches of {batch:,}']
  if config.freeze != 'none':
    lines = [
      f'effective_learning_rate = {rates["head"]:g}  # for batches of {batch:,}, of the head; the body is frozen'
    ]
  elif rates['head'] != rates['body']:
    lines.append(f'effective_head_learning_rate = {rates["head"]:g}')
  if num_examples is None and not config.num_steps:
    return lines
  steps = num_steps_of(config, num_examples or 0)
  passes = f'{steps * batch / num_examples:.3g} passes over {num_examples:,} images' if num_examples else 'in all'
  warmup = _steps_of(config, steps, config.optimizer.warmup_epochs)
  lines += [
    f'steps = {steps:,}  # updates, the first {warmup:,} with a rising learning rate',
    f'images_seen = {steps * batch:,}  # {passes}',
  ]
  if drops := drops_of(config, steps):
    lines.append(f'learning_rate_drops = {", ".join(f"{step:,}" for step in drops)}  # updates, then it is a tenth')
  if attack.name in adversaries.ADVERSARIES:
    attacked = attacked_steps(steps, _steps_of(config, steps, attack.warmup_epochs), attack.every)
    lines.append(f'attacked_steps = {attacked:,}  # {adversaries.find(attack).strength(attack)}')
  return lines


def too_few_steps(config: ConfigDict, num_steps: int, num_examples: int) -> str:
  """Returns a warning where a run cannot learn much; '' for others, and for those that go on from another run."""
  if num_steps >= _FEW_STEPS or config.init_from is not None:
    return ''
  epochs = math.ceil(_FEW_STEPS * config.batch_size / num_examples)
  field, enough = ('num_steps', _FEW_STEPS) if config.num_steps else ('num_epochs', epochs)
  too_few = f'{spell(config, field)} makes {num_steps:,} updates, too few to learn from scratch'
  return f'warning: {too_few}; set {enough} or more'


def _steps_of(config: ConfigDict, num_steps: int, epochs: float) -> int:
  """Returns the steps of so many epochs: a shorter run keeps the shape of a longer one."""
  return int(min(num_steps, num_steps * epochs / config.num_epochs))  # the quotient may be infinite


def attacked_steps(num_steps: int, warmup_steps: int, every: int) -> int:
  """Returns how many of a run's updates have its adversary."""
  return (num_steps - warmup_steps) // every


def build_classifier(
  config: ConfigDict, num_classes: int, *, dtype: jnp.dtype | None = None, axis_name: str | None = None
) -> Network:
  """Returns the classifier of a config, with batch statistics averaged over a mapped axis, if one is named.

  It computes in `dtype`; None: `config.precision`.
  """
  make = classifiers.CLASSIFIERS[config.classifier.name]
  options = classifier_options(config) | {'dtype': dtype or jnp.dtype(config.precision)}
  return make(num_classes, axis_name=axis_name, **options)


def classifier_options(config: ConfigDict) -> dict[str, Any]:
  """Returns what the classifier's factory takes beside the number of classes, as plain values."""
  not_its_own = ('name', *NOT_ITS_OWN.get(config.classifier.name, ()))
  fields = {name: value for name, value in config.classifier.items() if name not in not_its_own}
  return {**fields, **resolved(config), 'dtype': config.precision}


def resolved(config: ConfigDict) -> dict[str, Any]:
  """Returns the fields of the classifier that may be None, with what None stands for."""
  usual = STEM_STRIDE if config.classifier.name == 'alexnet' else 1
  return {**normalisation(config), 'stem_stride': config.classifier.stem_stride or usual}


def normalisation(config: ConfigDict) -> dict[str, tuple[float, ...]]:
  """Returns the 'mean' and 'std' of each channel by which the classifier of a config normalises images."""
  known = {'mean': MEAN, 'std': STD}
  return {name: tuple(config.classifier[name] or usual) for name, usual in known.items()}


def attacked_classifier(config: ConfigDict, num_classes: int) -> Network:
  """Returns the same function in the form for `shard_map`, in which a device has batch statistics of its own or not."""
  axis_name = None if config.attack.batch_norm == 'device' else sharding.AXIS
  return build_classifier(config, num_classes, axis_name=axis_name)


def effective_learning_rate(learning_rate: float, batch_size: int) -> float:
  """Returns max(lr * batch_size / 256, lr): the linear scaling rule, which never scales down (appendix A)."""
  return max(learning_rate * batch_size / 256, learning_rate)


def warmup_cosine(peak: float, num_steps: int, warmup_steps: int) -> optax.Schedule:
  """Returns a linear warm-up from 0 and a cosine to 0: 0 at step 0, `peak` at `warmup_steps`, 0 at `num_steps`.

  A run of a single update would have a rate of 0 there; it gets the middle of the cosine.
  """
  start = peak if warmup_steps == 0 else 0.0
  end = max(num_steps, warmup_steps + 2)
  schedule = optax.schedules.warmup_cosine_decay_schedule(start, peak, warmup_steps, end)
  # Optax would divide an int32 count in float32 even where everything else is float64.
  return lambda count: schedule(jnp.asarray(count, jnp.result_type(float)))


def warmup_steps(peak: float, *, warmup_steps: int, drops: Sequence[int]) -> optax.Schedule:
  """Returns a linear warm-up from 0 to `peak`, which drops to a tenth after each of so many updates."""

  def schedule(count: jax.Array) -> jax.Array:
    count = jnp.asarray(count, jnp.result_type(float))
    rate = peak * jnp.minimum(count / max(warmup_steps, 1), 1.0)
    for drop in drops:
      rate = jnp.where(count > drop, 0.1 * rate, rate)
    return rate

  return schedule


def sgd(
  schedule: optax.Schedule,
  *,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  decay_batch_norm: bool,
  clip: float | None = None,
) -> optax.GradientTransformation:
  """Returns SGD; the weight decay joins the gradient before the momentum, as an L2 term of the loss would.

  Args:
    schedule: learning rate after so many updates, the current one included: the first update is not made with the
      rate of 0 from which a warm-up starts.
    momentum: its decay.
    nesterov: looks one step ahead.
    weight_decay: coefficient of half the squared norm.
    decay_batch_norm: whether that includes modules that have no parameters but a scale and an offset.
    clip: largest absolute value of each number of the gradient, before the weight decay; None: any.
  """
  decays = lambda params: jax.tree.map(
    lambda node: jax.tree.map(lambda _: decay_batch_norm or not _is_norm(node), node), params, is_leaf=_is_norm
  )
  return optax.chain(
    *([] if clip is None else [optax.clip(clip)]),
    optax.add_decayed_weights(weight_decay, mask=decays),
    optax.trace(momentum, nesterov=nesterov),
    optax.scale_by_schedule(lambda count: -schedule(count + 1)),
  )


def _is_norm(node: Any) -> bool:
  """Returns whether a part of a tree of parameters is all that a module has that normalises, in Haiku's spelling."""
  return isinstance(node, Mapping) and bool(node) and node.keys() <= {'scale', 'offset'}
