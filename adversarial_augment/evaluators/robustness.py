"""Accuracy under l_p attacks: a sweep over a data set and all devices, with every success judged again in float32."""

from collections.abc import Sequence
import functools

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from adversarial_augment import sharding
from adversarial_augment.attacks import inputs
from adversarial_augment.attacks.rounds import judged
from adversarial_augment.attacks.sweep import Problem, Programs, Stage
from adversarial_augment.types import Array, Dataset, Network, TrainState


def problem(dataset: Dataset, norm: str, epsilon: float) -> Problem:
  """Returns the images and labels of a data set, checked, on the host of every process.

  Raises:
    UserError: labels that there are not.
  """
  images, labels = dataset.read(np.arange(dataset.num_examples))
  inputs.check_labels(labels, dataset.num_examples, dataset.num_classes)
  return Problem(images.astype(np.float32) / 255, labels, norm, epsilon)


def programs(
  attacked: Network,
  classifier: Network,
  mesh: Mesh,
  batch_size: int,
  state: TrainState,
  stages: Sequence[Stage],
  attacked_problem: Problem,
  *,
  seed: int = 0,
) -> Programs:
  """Makes the programs of a sweep, by running statistics, so that no image's result depends on its batch.

  Args:
    attacked: the classifier inside loops and `shard_map`, perhaps in bfloat16.
    classifier: the same function in float32, whose word counts.
    mesh: the devices.
    batch_size: over all processes; the next larger one that divides over the devices is taken.
    state: of the classifier.
    stages: of the suite; each is compiled for one or two batch sizes.
    attacked_problem: the images, on every process.
    seed: the random numbers of an image are of this, its index, the stage and the round.
  """
  data, whole = PartitionSpec(sharding.AXIS), PartitionSpec()
  sharded = functools.partial(jax.shard_map, mesh=mesh, out_specs=data, check_vma=False)

  def attack(make, params, model_state, index, inner, examples, images, labels):
    def local(params, model_state, index, inner, examples, images, labels):
      def logits_fn(images):
        return attacked.apply(params, model_state, None, images, is_training=False)[0]

      def key_of(example):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), example), index)

      return make(inner)(jax.vmap(key_of)(examples), logits_fn, images, labels).images

    specs = (whole, whole, whole, whole, data, data, data)
    return sharded(local, in_specs=specs)(params, model_state, index, inner, examples, images, labels)

  def margins(params, model_state, images, labels):
    def local(params, model_state, images, labels):
      logits = classifier.apply(params, model_state, None, images, is_training=False)[0]
      return judged(logits, images, labels).metrics['margin']

    return sharded(local, in_specs=(whole, whole, data, data))(params, model_state, images, labels)

  attack_step, judge_step = jax.jit(attack, static_argnums=0), jax.jit(margins)
  variables = state.params, state.model_state
  images, labels = attacked_problem.images, attacked_problem.labels

  def run_attack(index: int, inner: int, part: np.ndarray) -> np.ndarray:
    batch = _shard(mesh, part.astype(np.int32), images[part], labels[part])
    found = attack_step(stages[index].rounds.make, *variables, np.int32(index), np.int32(inner), *batch)
    return _to_host(found)

  def run_margins(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return _to_host(judge_step(*variables, *_shard(mesh, images, labels)))

  return Programs(run_attack, run_margins, -(-batch_size // mesh.size) * mesh.size, mesh.size)


def _shard(mesh: Mesh, *arrays: np.ndarray) -> tuple[Array, ...]:
  """Puts arrays that every process holds whole on the devices, in equal parts."""
  size = len(arrays[0]) // jax.process_count()
  own = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
  return sharding.shard_batch(mesh, tuple(array[own] for array in arrays))


def _to_host(array: Array) -> np.ndarray:
  if array.is_fully_addressable:
    return np.asarray(array)
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))
