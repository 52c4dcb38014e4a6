"""From a config to its adversary: the corruption network, the attack, and how a batch is split under it.

A builder makes the attack of one entry of `config.adversaries.ADVERSARIES`, which names it:
(config, group, conv) -> `Adversary`.
"""

from collections.abc import Callable
import functools
import math
import pkgutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import optax

from adversarial_augment import attacks, corruption_nets, deepaugment, per_example_conv, ssim
from adversarial_augment import config as configs
from adversarial_augment.attacks.ascent import STEPS
from adversarial_augment.config import adversaries, rules
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.config.fields import spell
from adversarial_augment.config.tables import NETWORK_OPTIONS
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import sharding
from adversarial_augment.per_example_conv import Conv
from adversarial_augment.storage import artifact
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, Network, PerturbationSet, PyTree

EVALUATED = 'ada'  # the adversary of evaluations, whatever that of the training


class Adversary(NamedTuple):
  """An attack, and what its perturbation set is built around."""

  attack: Attack | None  # None: training is nominal, or the adversary is a part of the train step
  frozen: PyTree  # phi, a `Hull`, or {} where there is neither


class Replay(NamedTuple):
  """What free replay needs, see training/free_replay.py."""

  updates: int  # on a batch
  ball: PerturbationSet
  rule: Callable[[PyTree], optax.GradientTransformation]  # radii -> a step


class Split(NamedTuple):
  """How a device's images are attacked."""

  local: int  # images
  attacked: int  # of those; the others stay clean
  at_a_time: int  # of the attacked: the most that divide them and that the config allows
  group: int | None  # that share a perturbation; None: all do, with those of every device


def ada(config: ConfigDict, group: int | None, conv: Conv) -> Adversary:
  """The builder of AdA."""
  network, phi = load_network(config, conv=conv)
  moved = moved_blocks(config)
  make = functools.partial(attacks.ada, network.apply, moved=moved, **_weights(config, group))
  if not config.attack.growth_epochs:
    return Adversary(make(nu=config.attack.nu), phi)

  def growing(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    return make(nu=config.attack.nu * frozen.share)(keys, logits_fn, images, labels, frozen.phi)

  return Adversary(growing, phi)


def advmix(config: ConfigDict, group: int | None, conv: Conv) -> Adversary:
  """The builder of the AdvMix-style adversary, whose offsets are drawn from the seed of the run."""
  network, phi = load_network(config, conv=conv)
  settings = deepaugment.Settings(net=config.corruption_net.name, seed=config.seed)
  pristine = jax.tree.map(np.asarray, phi)
  damaged = [deepaugment.damaged_weights(pristine, settings, copy, 0) for copy in range(adversaries.NUM_OFFSETS)]
  hull = attacks.Hull(phi, jax.tree.map(lambda p, *others: np.stack(others) - p, pristine, *damaged))
  return Adversary(attacks.advmix(network.apply, **_weights(config, group)), hull)


def lp(config: ConfigDict, group: int | None, conv: Conv) -> Adversary:
  """The builder of the adversary within an l_p ball, whose images share nothing."""
  del group, conv
  loss = 'kl' if config.attack.trades else 'cross_entropy'
  ball = {name: config.attack[name] for name in ('norm', 'epsilon', 'init')}
  return Adversary(attacks.lp(loss=loss, **ball, **_ascent(config)), {})


def rlat(config: ConfigDict, group: int | None, conv: Conv) -> Adversary:
  """The builder of RLAT, which is a part of the train step: see `Recipe.layers`."""
  del config, group, conv
  return Adversary(None, {})


def moved_blocks(config: ConfigDict) -> str | tuple[str, ...]:
  """Returns `attack.moved` as `attacks.weight_ball` takes it: layers by name."""
  net, moved = config.corruption_net, config.attack.moved
  if moved not in corruption_nets.ENDS:
    return moved
  return corruption_nets.last_layers(net.name, configs.network_sizes(config), moved)


def _ascent(config: ConfigDict) -> dict[str, Any]:
  return {name: config.attack[name] for name in ('num_steps', 'step', 'step_fraction', 'keep_best', 'measure_end')}


def _weights(config: ConfigDict, group: int | None) -> dict[str, Any]:
  """Returns what adversaries that move weights have in common."""
  # A start that only others know is replaced where this one evaluates a run of theirs.
  init = config.attack.init if config.attack.init in adversaries.ADVERSARIES[EVALUATED].starts else 'ball'
  search = {name: config.attack[name] for name in ('min_ssim', 'root')} | _ascent(config)
  return search | {'init': init, 'noisy': True, 'group': group, 'axis_name': sharding.AXIS}


def build(
  config: ConfigDict, name: str, *, group: int | None = 1, conv: Conv = per_example_conv.example_conv
) -> Adversary:
  """Returns the adversary of this name with the settings of a config, for any number of images.

  `group` images share a perturbation (None: all do); `conv` is the convolution of the corruption network.
  """
  return pkgutil.resolve_name(adversaries.ADVERSARIES[name].builder)(config, group, conv)


def training_adversary(config: ConfigDict, mesh: Mesh, *, conv: Conv = per_example_conv.example_conv) -> Adversary:
  """Returns the adversary of a run, for the batches of its devices; see `training_split` and `load_network`."""
  if config.attack.name not in adversaries.ADVERSARIES:
    return Adversary(None, {})
  if config.attack.replay > 1:
    return Adversary(None, load_network(config, conv=conv)[1])
  split = training_split(config, mesh.size)
  return _split(build(config, config.attack.name, group=split.group, conv=conv), split)


def free_replay(config: ConfigDict, *, conv: Conv = per_example_conv.example_conv) -> Replay | None:
  """Returns what a run with free replay has instead of an attack; None for others."""
  attack = config.attack
  if attack.replay == 1:
    return None
  apply = load_network(config, conv=conv)[0].apply
  ball = attacks.weight_ball(apply, nu=attack.nu, init=attack.init, moved=moved_blocks(config), noisy=True)
  return Replay(attack.replay, ball, lambda radii: STEPS[attack.step](radii, attack.step_fraction))


def evaluation_adversary(config: ConfigDict, mesh: Mesh) -> Adversary:
  """Returns the adversary of the evaluation under attack: AdA on every image by itself, whatever the training has.

  So an outcome does not depend on batches, and runs that were trained otherwise compare.
  """
  config = configs.override(config, {'attack.growth_epochs': '0', 'attack.measure_end': 'true'})
  return _split(build(config, EVALUATED), evaluation_split(config, mesh.size))


def _split(adversary: Adversary, split: Split) -> Adversary:
  attack = adversary.attack
  if attack is None:
    return adversary
  if split.at_a_time < split.attacked:
    attack = attacks.in_microbatches(attack, split.at_a_time)
  if split.attacked < split.local:
    attack = attacks.on_share(attack, split.attacked, split.local)
  return adversary._replace(attack=attack)


def training_split(config: ConfigDict, num_devices: int) -> Split:
  """Returns how the images of each device are attacked in training; raises UserError for parts that do not divide."""
  attack = config.attack
  group = {'example': 1, 'group': attack.group, 'batch': None}[attack.beta_mode]
  return _checked_split(config, num_devices, attack.fraction, group)


def evaluation_split(config: ConfigDict, num_devices: int) -> Split:
  """Returns the same for the evaluation under attack, which attacks every image by itself; nothing is refused."""
  return _checked_split(config, num_devices, 1, 1)


def _checked_split(config: ConfigDict, num_devices: int, fraction: float, group: int | None) -> Split:
  local = -(-config.batch_size // num_devices)  # the batches of an evaluation are filled up
  count = attacks.attacked_images(fraction, local)
  most = min(config.attack.microbatch or count, count)
  each = f'images of each of the {num_devices} devices'
  if not count:
    least = math.ceil(1000 / local) / 1000
    few = f'{spell(config, "attack.fraction")} of the {local} {each} is less than one image'
    raise UserError(f'{few}; set at least {least}, or raise the batch size.')
  whole = group or count  # images that cannot be parted
  size = next((n for n in range(most, 0, -1) if count % n == n % whole == 0), None)
  if size is None:
    parted = count if count % whole else most
    raise UserError(f'{spell(config, "attack.group")} must divide the {parted} {each} that are attacked at a time.')
  return Split(local, count, size, group)


def check_parts(config: ConfigDict, num_devices: int) -> None:
  """Raises UserError where a batch, or what of it is attacked at a time, does not divide over devices."""
  rules.check_batch(config.batch_size, num_devices, 'devices')
  if config.attack.name in adversaries.ADVERSARIES:
    training_split(config, num_devices)


def has_network(config: ConfigDict) -> bool:
  """Returns whether a run uses its corruption network: it trains against it, and shows that, or evaluates with it."""
  return adversaries.moves_weights(config.attack) or has_evaluation_under_attack(config)


def has_evaluation_under_attack(config: ConfigDict) -> bool:
  """Returns whether an evaluation of a run needs AdA."""
  return any(EVALUATIONS[name].under_attack for name in config.evals)


def load_network(config: ConfigDict, *, conv: Conv = per_example_conv.example_conv) -> tuple[Network, PyTree]:
  """Returns the corruption network and phi; raises UserError for missing weights, and for those without a norm."""
  net = config.corruption_net
  options = {name: net[name] for name in NETWORK_OPTIONS[net.name]}
  dtype = None if config.precision == 'float32' else jnp.dtype(config.precision)
  network, phi = corruption_nets.load(net.name, weights_of(config), conv=conv, dtype=dtype, **options)
  attacks.check_blocks(phi)
  return network, phi


def check_adversary(config: ConfigDict, image_shape: tuple[int, int, int]) -> None:
  """Checks, before any device is touched, that a config that needs an adversary can have it.

  It cannot with images too small for SSIM, or weights that are missing, damaged, zero, or of another network.
  """
  height, width, _ = image_shape
  shows_images = config.attack.name in adversaries.ADVERSARIES and not adversaries.moves_activations(config.attack)
  if (has_network(config) or shows_images) and min(height, width) < ssim.WINDOW:
    raise rules.too_small(config.dataset, height, width, ssim.WINDOW, 'the SSIM of adversarial images')
  if not has_network(config):
    return
  params, held = corruption_nets.read(config.corruption_net.name, weights_of(config))
  asked = configs.network_sizes(config)
  file = spell(config, 'corruption_net.weights')
  if different := [name for name in held if asked[name] != held[name]]:
    sizes = spell({f'corruption_net.{name}': asked[name] for name in different})
    found = ' '.join(f'{name}={size}' for name, size in held.items())
    raise UserError(
      f'{file} holds {config.corruption_net.name} with {found}, but {sizes}; set the sizes that the file holds, or '
      'name another file.'
    )
  try:
    attacks.check_blocks(params)
  except UserError as error:
    raise UserError(f'{file}: {error}') from None


def weights_of(config: ConfigDict) -> str:
  """Returns the weight file that a config asks for, or the name of the weights that ship for its architecture."""
  net = config.corruption_net
  return net.weights or corruption_nets.shipped_name(net.name, configs.network_sizes(config))


def weights_sha256(config: ConfigDict) -> str | None:
  """Returns the hash of that file; None for a run that has nothing to do with an adversary around a network."""
  return artifact.sha256_of(corruption_nets.find(weights_of(config))) if has_network(config) else None
