"""The updates of a corruption network, and how its weights are measured."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from adversarial_augment import threefry
from adversarial_augment.parallel import sharding
from adversarial_augment.pretraining import objectives
from adversarial_augment.pretraining.objectives import Objective
from adversarial_augment.pretraining.sources import PARTS, Source
from adversarial_augment.training.train_step import update_if_finite
from adversarial_augment.types import Array, PyTree, TrainState


class Pretraining(NamedTuple):
  """The static parts of a run; closed over by jit, never traced."""

  objective: Objective
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule  # learning rate, of updates made, this one included
  batch_size: int
  seed: int


def build(
  name: str,
  sizes: dict[str, int],
  *,
  reconstruction_weight: float,
  learning_rate: float,
  num_steps: int,
  batch_size: int,
  seed: int,
) -> Pretraining:
  """Returns the static parts of a run; `learning_rate` is Adam's after a warm-up and before a cosine decay."""
  objective = objectives.make(name, sizes, reconstruction_weight=reconstruction_weight)
  schedule = optax.schedules.warmup_cosine_decay_schedule(0.0, learning_rate, min(100, num_steps // 10), num_steps + 1)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda count: schedule(count + 1)))
  return Pretraining(objective, optimizer, schedule, batch_size, seed)


def init_state(parts: Pretraining) -> TrainState:
  """Returns the state before the first update; a pure function of the seed."""
  params, rest = parts.objective.init(threefry.key(parts.seed))
  return TrainState(jnp.zeros((), jnp.int32), params, rest, parts.optimizer.init(params))


def train_step(
  parts: Pretraining, state: TrainState, step: Array, batch: tuple[Array, Array]
) -> tuple[TrainState, dict[str, Array]]:
  """Returns the next state and metrics, as `update_if_finite` does.

  A batch is crops, uint8 [n, h, w, 3], and is_native [n], sharded over the devices.
  """
  crops, is_native = batch
  key = jax.random.fold_in(threefry.key(parts.seed), state.step)

  def loss_of(params: PyTree) -> tuple[Array, PyTree]:
    return parts.objective.loss(params, state.model_state, key, crops / jnp.float32(255), is_native)

  (loss, rest), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
  updates, opt_state = parts.optimizer.update(gradient, state.opt_state)
  params = parts.objective.settle(optax.apply_updates(state.params, updates), rest)
  metrics = {'loss': loss, 'learning_rate': parts.schedule(state.step + 1)}
  return update_if_finite(state, TrainState(state.step + 1, params, rest, opt_state), metrics, step)


def read_batch(parts: Pretraining, mesh: Mesh, sources: Sequence[Source], step: int) -> Any:
  """Returns the batch of a step as global arrays; the data sets take turns."""
  crops, is_native = sources[step % len(sources)].read(step)
  own = np.array_split(np.arange(parts.batch_size), jax.process_count())[jax.process_index()]
  return sharding.shard_batch(mesh, (crops[own], is_native[own]))


class Measure:
  """Measures weights on images that are not trained on."""

  def __init__(self, objective: Objective, sources: Sequence[Source]):
    """Reads the images, and compiles nothing yet."""
    self._images = jnp.asarray(np.concatenate([source.held_out() for source in sources])) / 255.0
    self._measure = jax.jit(objective.measure)

  def __call__(self, params: PyTree) -> dict[str, float]:
    """Returns the means of all metrics of x and c_phi(x), the least SSIM, and the number of images."""
    parts = enumerate(jnp.split(self._images, PARTS))
    found = [self._measure(params, threefry.key(index), part) for index, part in parts]
    values = {metric: np.concatenate([part[metric] for part in found]) for metric in found[0]}
    means = {f'{metric}_mean': float(array.mean()) for metric, array in values.items()}
    return means | {'ssim_min': float(values['ssim'].min()), 'num_images': len(self._images)}


def describe(result: dict) -> str:
  """Returns what `Measure` found, as a sentence."""
  means = [f'{key.removesuffix("_mean")} {value:.4g}' for key, value in result.items() if key.endswith('_mean')]
  return f'means over {result["num_images"]} images not trained on, x against c_phi(x): {", ".join(means)}'
