"""A run small enough for tests: a recipe and phi made of a config, on any part of the virtual devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
import numpy as np

from adversarial_augment import config as configs
from adversarial_augment.parallel import sharding
from adversarial_augment.training import recipe as recipes
from adversarial_augment.training import train_step
from adversarial_augment.types import Batch, Dataset, TrainState

OVERRIDES = {
  'dataset': 'embedded',
  'batch_size': '8',
  'num_steps': '100',
  'classifier.depth': '10',
  'classifier.width': '4',
  'corruption_net.blocks': '4',
  'corruption_net.features': '16',
  'corruption_net.scale': '1',
  'attack.num_steps': '2',
}


def make_mesh(num_devices: int) -> Mesh:
  return jax.make_mesh((num_devices,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices])


@functools.cache
def dataset(num_examples: int = 64) -> Dataset:
  """Random smooth colour images whose class is their mean colour's order; learnable and quick to make."""
  rng = np.random.default_rng(0)
  labels = rng.integers(10, size=num_examples).astype(np.int32)
  coarse = rng.uniform(0, 60, (num_examples, 4, 4, 3)) + 18 * labels[:, None, None, None]
  images = np.kron(coarse, np.ones((1, 8, 8, 1))) + rng.normal(0, 8, (num_examples, 32, 32, 3))
  images = images.clip(0, 255).astype(np.uint8)
  read = lambda index: Batch(images[index], labels[index])
  return Dataset('tiny', num_examples, 10, (32, 32, 3), read, {'origin': 'embedded'})


def make(num_devices: int = 1, **overrides: str):
  """Returns the config, recipe and phi, and a first state, all on `num_devices` devices."""
  changed = OVERRIDES | {name.replace('__', '.'): value for name, value in overrides.items()}
  config = configs.override(configs.base_config(), changed)
  configs.validate(config)
  mesh = make_mesh(num_devices)
  recipe, phi = recipes.build(config, dataset(), mesh)
  state = train_step.init_state(recipe, (32, 32, 3))
  state, phi = (sharding.replicate(mesh, to_default_float(tree)) for tree in (state, phi))
  return config, recipe, phi, state


def to_default_float(tree):
  """Casts floats to float64 under x64; leaves integers alone."""
  cast = lambda x: jnp.asarray(x, jnp.result_type(float)) if jnp.issubdtype(x.dtype, jnp.floating) else x
  return jax.tree.map(cast, tree)


def batch(recipe: recipes.Recipe, step: int):
  """Returns the images and labels of a step, sharded."""
  index = (np.arange(recipe.batch_size) + step * recipe.batch_size) % dataset().num_examples
  return sharding.shard_batch(recipe.mesh, tuple(dataset().read(index)))


def run(recipe: recipes.Recipe, phi, state: TrainState, num_steps: int):
  """Makes some updates; returns the last state and the metrics of every one."""
  step = jax.jit(functools.partial(train_step.train_step, recipe))
  metrics = []
  for index in range(num_steps):
    state, values = step(state, np.int32(index), *batch(recipe, index), phi)
    metrics.append(jax.device_get(values))
  return state, metrics
