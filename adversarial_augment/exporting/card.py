"""The card of an exported classifier, as JSON: what it is, its training data, and its results."""

from collections.abc import Mapping
import importlib.metadata
import json
from pathlib import Path
import platform
from typing import Any

import optax

from adversarial_augment import __version__, results
from adversarial_augment import config as configs
from adversarial_augment.classifiers.layers import EPSILON
from adversarial_augment.classifiers.weight_files import CARD
from adversarial_augment.config import adversaries
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.inference import Classifier
from adversarial_augment.storage import sharing
from adversarial_augment.training import recipe

_PACKAGES = ('jax', 'dm-haiku', 'numpy', 'safetensors')
_LICENSE = (
  'not chosen: whoever publishes these weights names one that the training data, the weights of the corruption network '
  'and the run that they started from (init_from in the config) allow'
)


def make(workdir: Path, classifier: Classifier) -> dict[str, Any]:
  """Returns the card of the classifier of a run, without its files; results of other checkpoints are left out."""
  config = json.loads(configs.to_json(classifier.config))
  return of_network(classifier, _size(workdir)) | {
    'title': title(config),
    'checkpoint': {'step': classifier.step, 'sha256': classifier.checkpoint_sha256},
    'training': {
      **_origins(workdir, config['dataset']),
      'config': sharing.relative(config, workdir),
      'config_sha256': classifier.config_sha256,
    },
    'results': _results(workdir, classifier.checkpoint_sha256),
    'license': _LICENSE,
  }


def of_network(classifier: Classifier, size: str) -> dict[str, Any]:
  """Returns the part of a card that tells of the network alone; `size` is that of its images, in words."""
  config = json.loads(configs.to_json(classifier.config))
  num_parameters, has_norms = optax.tree.size(classifier.params), bool(classifier.model_state)
  versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
  return {
    'format': CARD,
    'architecture': {**config['classifier'], 'precision': config['precision'], 'num_parameters': num_parameters},
    'input': {
      'images': 'float32 in [0, 1], RGB; [n, height, width, 3] in JAX, [n, 3, height, width] in PyTorch and ONNX',
      'size': size,
      'normalisation': {
        **recipe.normalisation(classifier.config),
        'where': 'inside the exported function; do not normalise images',
      },
    },
    'output': {'logits': ['n', classifier.num_classes], 'class_names': classifier.class_names},
    'batch_norm': {'statistics': 'running', 'epsilon': EPSILON, 'variance': 'population'} if has_norms else None,
    'versions': {'adversarial_augment': __version__, 'python': platform.python_version(), **versions},
  }


def title(config: Mapping[str, Any]) -> str:
  """Returns in one line what a config trains, on what, and by which method."""
  classifier, method = config['classifier'], adversaries.find(config['attack']).method(config['attack'])
  name = f'{classifier["name"]}-{classifier["depth"]}, width {classifier["width"]}'
  return f'{name}, trained on {config["dataset"]} {method}'


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


def _results(workdir: Path, checkpoint_sha256: str) -> dict[str, Any]:
  """The results of this checkpoint by evaluation or attack, each with its images, adversary and command."""
  measured = {name: results.load(workdir, name) for name in EVALUATIONS}
  for result in results.load_robustness(workdir):
    measured[results.robustness_name(result['attack'], result['norm'], result['epsilon_text'])] = result
  found = {}
  for name, result in sharing.relative(measured, workdir).items():
    if result.get('checkpoint_sha256') == checkpoint_sha256:
      about = result['provenance']
      found[name] = results.without_details(result) | {
        'seed': result['seed'],
        **{key: about.get(key) for key in ('data', 'corruptions', 'command')},
      }
      if name in EVALUATIONS and EVALUATIONS[name].under_attack:
        found[name]['attack'] = about['config']['attack']
  return found
