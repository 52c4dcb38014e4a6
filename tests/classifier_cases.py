"""Classifiers for tests: random ones of any depth, and a run's directory with such ones, without a trainer."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import config as configs
from adversarial_augment import inference
from adversarial_augment.storage import checkpoints
from adversarial_augment.training import recipe
from adversarial_augment.types import TrainState
from tests import tiny


def make_config(**classifier):
  """The config of a small run on the embedded set, with these fields of the classifier."""
  fields = {f'classifier.{name}': str(value) for name, value in classifier.items()}
  return configs.override(configs.base_config(), tiny.OVERRIDES | {'attack.name': 'none'} | fields)


def random_state(config, step: int, num_classes: int = 10) -> TrainState:
  """A state with random weights, and statistics that are far from the initial ones."""
  network = recipe.build_classifier(config, num_classes)
  trees = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), is_training=True))
  rng = np.random.default_rng(step)
  draw = {
    'w': lambda shape: rng.normal(0, np.sqrt(1 / np.prod(shape[:-1])), shape),
    'b': lambda shape: rng.normal(0, 1, shape),
    'scale': lambda shape: rng.uniform(0.5, 1.5, shape),
    'offset': lambda shape: rng.normal(0, 0.3, shape),
    'mean': lambda shape: rng.normal(0, 0.3, shape),
    'var': lambda shape: rng.uniform(1, 4, shape),
    'count': lambda shape: np.full(shape, step),
  }
  params, state = jax.tree.map_with_path(lambda path, leaf: draw[path[-1].key](leaf.shape).astype(leaf.dtype), trees)
  return TrainState(np.asarray(step, np.int32), params, state, {'trace': params})


def random_classifier(depth: int, num_classes: int = 10, **fields) -> inference.Classifier:
  """A classifier of width 64, where no other one is given."""
  config = make_config(**{'depth': depth, 'width': 64} | fields)
  restored = inference.Restored(3, 'f' * 64, 'e' * 64, random_state(config, 3, num_classes))
  return inference.Classifier(config, num_classes, restored, batch_size=4)


def save_run(workdir: Path) -> dict[int, TrainState]:
  """Writes a run's config and its checkpoints 1 and 2 to a new folder; returns their states."""
  config = make_config()
  workdir.mkdir()
  (workdir / 'config.json').write_text(configs.to_json(config))
  states = {step: random_state(config, step) for step in (1, 2)}
  for step, state in states.items():
    checkpoints.save(workdir / 'checkpoints', step, state, config_sha256=configs.sha256(config))
  return states


def card_of(folder: Path) -> dict:
  return json.loads((folder / 'card.json').read_text())


def images(n: int, height: int = 32, width: int = 32) -> np.ndarray:
  return np.random.default_rng(0).random((n, height, width, 3), np.float32)


def load_by_card(folder: Path, file: str, monkeypatch, **names) -> dict:
  """Runs the lines that the card has for a file, in its folder; returns what they define."""
  monkeypatch.chdir(folder)
  exec(card_of(folder)['files'][file]['load'], names)
  return names
