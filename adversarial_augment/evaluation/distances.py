"""The networks whose features measure perceptual distances: the classifier itself, or an AlexNet of a file."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from adversarial_augment import attacks, classifiers, inference, ssim
from adversarial_augment.attacks.feature_distance import FeatureDistance
from adversarial_augment.errors import UserError
from adversarial_augment.per_example_conv import Conv
from adversarial_augment.storage import files
from adversarial_augment.training import recipe
from adversarial_augment.training.builders import Adversary
from adversarial_augment.types import Array, AttackResult, Key, LogitsFn, Network, PyTree

_FIELD, FLAG = 'config.attack.distance_from', '--distance_from'


class Reference(NamedTuple):
  """A fixed network that measures distances."""

  network: Network
  variables: PyTree  # its parameters and state, on the host
  file: str
  sha256: str  # of the file

  def distance(self, variables: PyTree) -> FeatureDistance:
    """Returns the distance by these variables, which may be traced."""
    return attacks.feature_distance(classifiers.features(self.network, *variables))


def load(given: str | None, what: str, precision: str) -> Reference:
  """Returns the AlexNet that the flag or field `what` names, by a file or a folder; None: the small one that ships.

  Raises:
    UserError: there is no such file, or it holds another network.
  """
  path = _file(given, what)
  if not path.is_file():
    raise UserError(f"{what}='{given}' is no file; name a classifier.safetensors of an AlexNet, or leave it out.")
  try:
    return _read(path, precision, path.stat().st_mtime_ns)
  except UserError as error:
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


def _file(given: str | None, what: str) -> Path:
  if given is None:
    return classifiers.SHIPPED_ALEXNET
  path = files.user_path(given, what)
  exported = path / 'export' / 'classifier.safetensors'
  if path.is_dir() and not exported.exists():
    raise UserError(
      f"{what}='{given}' has no export/classifier.safetensors; make it with python -m adversarial_augment.export "
      f"--workdir='{given}', or name a classifier.safetensors."
    )
  return exported if path.is_dir() else path


@functools.lru_cache(maxsize=4)
def _read(path: Path, precision: str, changed: int) -> Reference:
  """Reads a file that was changed at that time."""
  del changed
  found = inference.read_file(path)
  name = found.config.classifier.name
  if name != 'alexnet':
    raise UserError(f"it holds a classifier '{name}'; train an AlexNet with configs/alexnet.py, and export it.")
  network = recipe.build_classifier(found.config, found.classes.num or 1, dtype=jnp.dtype(precision))
  state = found.restored.state
  return Reference(network, (state.params, state.model_state), path.name, found.file_sha256)
