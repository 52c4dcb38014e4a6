"""The card of an exported classifier, as JSON: what it is, its training data, and its results."""

from collections.abc import Mapping
import importlib.metadata
from pathlib import Path
import platform
from typing import Any

import optax

from adversarial_augment import __version__, results
from adversarial_augment.classifiers.layers import EPSILON, MEAN, STD
from adversarial_augment.config import adversaries
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.storage import sharing
from adversarial_augment.types import PyTree

FORMAT = 'adversarial_augment.card.1'
_PACKAGES = ('jax', 'dm-haiku', 'numpy', 'safetensors')
_LICENSE = (
  'not chosen: whoever publishes these weights names one that the training data, the weights of the corruption network '
  'and the run that they started from (config.init_from) allow'
)


def make(
  workdir: Path,
  config: Mapping[str, Any],
  *,
  config_sha256: str,
  step: int,
  checkpoint_sha256: str,
  num_classes: int,
  class_names: tuple[str, ...] | None,
  params: PyTree,
) -> dict[str, Any]:
  """Returns the card, without its files.

  Args:
    workdir: of the run; results of other checkpoints are left out.
    config: of the run, as in its config.json; the card names files relative to `workdir`.
    config_sha256: its hash.
    step: updates made.
    checkpoint_sha256: of the checkpoint's state.
    num_classes: outputs.
    class_names: of the outputs.
    params: of the network.
  """
  classifier = config['classifier']
  attack = config['attack']
  adversary = adversaries.ADVERSARIES.get(attack['name'])
  method = adversary.method(attack) if adversary else 'without an adversary'
  config = sharing.relative(config, workdir)
  name = f'{classifier["name"]}-{classifier["depth"]}, width {classifier["width"]}'
  return {
    'format': FORMAT,
    'title': f'{name}, trained on {config["dataset"]} {method}',
    'architecture': {**classifier, 'precision': config['precision'], 'num_parameters': optax.tree.size(params)},
    'input': {
      'images': 'float32 in [0, 1], RGB; [n, height, width, 3] in JAX, [n, 3, height, width] in PyTorch',
      'size': _size(workdir),
      'normalisation': {'mean': MEAN, 'std': STD, 'where': 'inside the exported function; do not normalise images'},
    },
    'output': {'logits': ['n', num_classes], 'class_names': class_names},
    'batch_norm': {'statistics': 'running', 'epsilon': EPSILON, 'variance': 'population'},
    'checkpoint': {'step': step, 'sha256': checkpoint_sha256},
    'training': {
      **_origins(workdir, config['dataset']),
      'config': config,
      'config_sha256': config_sha256,
    },
    'results': _results(workdir, checkpoint_sha256),
    'versions': {'adversarial_augment': __version__, 'python': platform.python_version()}
    | {package: importlib.metadata.version(package) for package in _PACKAGES},
    'license': _LICENSE,
  }


def _size(workdir: Path) -> str:
  height, width, _ = results.load_data(workdir).get('image_shape', (0, 0, 3))
  recorded = f'{height}x{width}' if height else 'cifar10 and embedded: 32x32'
  return f'that of the training images ({recorded})'


def _origins(workdir: Path, dataset: str) -> dict[str, Any]:
  """The data and the adversary's weights from the results of the run, or only its hashes of the data."""
  known = sharing.relative(results.load(workdir, 'train'), workdir)  # also those of older versions
  if known:
    return {'data': known['data'], 'corruption_net_weights': known.get('weights')}
  hashes = results.split_hashes(results.load_data(workdir))
  data = {split: {'name': dataset, 'origin': 'unknown', 'sha256': value} for split, value in hashes.items()}
  return {'data': data, 'corruption_net_weights': None}


def _conditions(name: str, result: dict[str, Any]) -> dict[str, Any]:
  """The images and the adversary of a result."""
  about = result['provenance']
  conditions = {key: about.get(key) for key in ('data', 'corruptions')}
  return conditions | ({'attack': about['config']['attack']} if EVALUATIONS[name].under_attack else {})


def _results(workdir: Path, checkpoint_sha256: str) -> dict[str, Any]:
  """The results of this checkpoint, by evaluation."""
  known = {name: sharing.relative(results.load(workdir, name), workdir) for name in EVALUATIONS}
  return {
    name: results.without_details(result) | _conditions(name, result)
    for name, result in known.items()
    if result.get('checkpoint_sha256') == checkpoint_sha256
  }
