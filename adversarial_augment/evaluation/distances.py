"""The networks whose features measure perceptual distances: the classifier itself, or an AlexNet of a run or file."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from adversarial_augment import attacks, classifiers, inference, ssim
from adversarial_augment.attacks.feature_distance import FeatureDistance
from adversarial_augment.errors import CheckpointError, UserError
from adversarial_augment.per_example_conv import Conv
from adversarial_augment.training import recipe
from adversarial_augment.training.builders import Adversary
from adversarial_augment.types import Array, AttackResult, Key, LogitsFn, Network, PyTree

_FIELD, FLAG = 'config.attack.distance_from', '--distance_from'


class Reference(NamedTuple):
  """A fixed network that measures distances."""

  network: Network
  variables: PyTree  # its parameters and state, on the host
  file: str  # or the workdir of its run
  sha256: str  # of the file, or of the state of the run

  def distance(self, variables: PyTree) -> FeatureDistance:
    """Returns the distance by these variables, which may be traced."""
    return attacks.feature_distance(classifiers.features(self.network, *variables))


def load(given: str | None, what: str, precision: str) -> Reference:
  """Returns the AlexNet that the flag or field `what` names, by a run or a file; None: the small one that ships.

  Touches no device.

  Raises:
    UserError: there is no such run or file, it is damaged, or it holds another network.
  """
  path = classifiers.SHIPPED_ALEXNET if given is None else inference.run_folder(given, what)
  if not path.exists():
    raise UserError(f"{what}='{given}' does not exist; name the workdir or the file of an AlexNet, or leave it out.")
  saved = path if path.is_file() else path / 'checkpoints'
  try:
    return _read(path, precision, saved.stat().st_mtime_ns if saved.exists() else 0)
  except (UserError, CheckpointError) as error:
    raise UserError(f"{what}='{given}': {error}") from error


def of_training(config: ConfigDict) -> Reference | None:
  """Returns the network that measures distances in the training of a config; None: there is none but the classifier."""
  if config.attack.distance != 'alexnet':
    return None
  return load(config.attack.distance_from, _FIELD, config.precision)


def pat(config: ConfigDict, group: int | None, conv: Conv) -> Adversary:
  """The builder of PAT: Fast-LPA without a projection, on the images that are still classified correctly."""
  del group, conv
  reference = of_training(config)
  options = {'epsilon': config.attack.epsilon, 'num_steps': config.attack.num_steps, 'projection': 'none'}

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    distance = 'self' if reference is None else reference.distance(frozen)
    search = attacks.perceptual(distance=distance, only_correct=True, **options)
    found = search(keys, logits_fn, images, labels)
    return found._replace(
      metrics={
        'attack_loss_start': found.metrics['clean_margin'],
        'attack_loss_end': found.metrics['margin'],
        'distance': found.metrics['distance'],
        'ssim': ssim.ssim(images, found.images),
      }
    )

  return Adversary(attack, {} if reference is None else reference.variables)


@functools.lru_cache(maxsize=4)
def _read(path: Path, precision: str, changed: int) -> Reference:
  """Reads what was changed at that time."""
  del changed
  found = inference.read_file(path) if path.is_file() else inference.read_run(path)
  name = found.config.classifier.name
  if name != 'alexnet':
    raise UserError(f"it holds a classifier '{name}'; train an AlexNet with configs/alexnet.py.")
  network = recipe.build_classifier(found.config, found.classes.num or 1, dtype=jnp.dtype(precision))
  state = found.restored.state
  return Reference(network, (state.params, state.model_state), path.name, found.sha256)
