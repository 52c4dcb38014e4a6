"""What `train` has the loop do: a recipe's compiled step, its batches, its lines of the log, its forecast."""

from collections.abc import Callable
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment.cli import progress
from adversarial_augment.datasets import sampling
from adversarial_augment.parallel import sharding
from adversarial_augment.run.loop import Job
from adversarial_augment.run.run_log import Forecast
from adversarial_augment.storage import kills
from adversarial_augment.training import train_step
from adversarial_augment.training.recipe import Recipe
from adversarial_augment.types import Dataset, PyTree, TrainState

_IN_WARM_UP = ('loss', 'accuracy', 'learning_rate', 'jsd')  # metrics of every step, whether attacked or not


def make(
  config: ConfigDict,
  recipe: Recipe,
  dataset: Dataset,
  state: TrainState,
  phi: PyTree,
  evaluate: Callable[[TrainState, int, Callable[[], None]], None],
  compile_evaluations: Callable[[TrainState], float],
) -> Job:
  """Returns the job of a run from `state` on, with its step compiled and timed; a finished run needs neither.

  `evaluate` is that of `Job`; `compile_evaluations` returns the seconds that the closing ones will take.
  """
  read = functools.partial(read_batch, recipe, dataset)
  step: Any = None
  forecast: Forecast | None = None
  if int(state.step) < recipe.num_steps:
    step = compile_step(recipe, state, read, phi)
    forecast = Forecast(
      recipe.num_steps,
      warmup_steps=recipe.warmup_steps if recipe.attack else 0,
      attacked=_time_attacked(recipe, state, step, read, phi),
      eval_every=config.eval_every,
      evaluation=compile_evaluations(state),
    )
  return Job(
    num_steps=recipe.num_steps,
    images_per_step=recipe.batch_size,
    keep_checkpoints=config.keep_checkpoints,
    tensorboard=config.tensorboard,
    step=lambda state, index, batch: step(state, index, *batch, phi),
    read=read,
    describe=functools.partial(log_line, recipe, dataset),
    evaluate=evaluate,
    dump=functools.partial(_dump, recipe, dataset),
    forecast=forecast,
  )


def read_batch(recipe: Recipe, dataset: Dataset, step: int) -> tuple[jax.Array, jax.Array]:
  """Returns the images and labels of a step as global arrays: a function of the step alone."""
  index = sampling.indices(
    recipe.seed, step, dataset.num_examples, recipe.batch_size, jax.process_count(), jax.process_index()
  )
  return sharding.shard_batch(recipe.mesh, tuple(dataset.read(index)))


def compile_step(recipe: Recipe, state: TrainState, read: Callable[[int], Any], phi: PyTree) -> Callable:
  """Returns the compiled train step: (state, step, images, labels, phi) -> state, metrics."""
  start = time.monotonic()
  progress.log('compiling the train step...')
  lowered = train_step.jitted(recipe).lower(state, np.int32(0), *read(0), phi)
  kills.crash_point('first_compile')
  compiled = lowered.compile()
  progress.log(f'compiled in {time.monotonic() - start:.1f} s')
  return compiled


def _time_attacked(
  recipe: Recipe, state: TrainState, step: Callable, read: Callable[[int], Any], phi: PyTree
) -> float | None:
  """Returns the seconds of a step with the adversary, on a copy of the state; None if the first step has it."""
  if recipe.attack is None or int(state.step) >= recipe.warmup_steps:
    return None
  first = recipe.warmup_steps + recipe.every - 1

  @functools.partial(jax.jit, out_shardings=sharding.replicated(recipe.mesh))
  def after_warmup(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)._replace(step=jnp.full_like(state.step, first))

  def seconds() -> float:
    copied = jax.block_until_ready(after_warmup(state))
    start = time.monotonic()
    jax.block_until_ready(step(copied, np.int32(first), *batch, phi))
    return time.monotonic() - start

  batch = read(0)
  with progress.stage('timing a step with the adversary', progress.log):
    return min(seconds() for _ in range(2))  # the first one takes longer: its memory is new


def log_line(recipe: Recipe, dataset: Dataset, step: int, values: Any) -> dict[str, Any]:
  """Returns the line of metrics.jsonl; metrics of the adversary are null for steps without it."""
  epoch = step * recipe.batch_size / (dataset.epoch_size or dataset.num_examples)
  line: dict[str, Any] = {'step': step, 'epoch': epoch}
  attacked, names = recipe.is_attacked(step - 1), {'ssim': 'ssim_mean'}
  shown = lambda name, value: value if attacked or name in _IN_WARM_UP else None
  return line | {names.get(name, name): shown(name, value) for name, value in values.items()}


def _dump(recipe: Recipe, dataset: Dataset, step: int) -> dict[str, Any]:
  index = sampling.indices(recipe.seed, step, dataset.num_examples, recipe.batch_size)
  images, labels = dataset.read(index)
  return {'images': images, 'labels': labels, 'index': index, 'seed': recipe.seed}
