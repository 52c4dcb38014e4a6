"""Accuracy on a data set, clean or under an adversary, from integer counts."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from adversarial_augment import sharding
from adversarial_augment.evaluators.batches import EvalBatch, batches
from adversarial_augment.types import Array, Attack, Dataset, Network, PyTree, TrainState

_KEY = 0  # evaluations draw from a fixed key: the adversary of an image is the same for every classifier and run


def accuracy(
  classifier: Network,
  dataset: Dataset,
  mesh: Mesh,
  batch_size: int,
  *,
  attack: Attack | None = None,
  phi: PyTree = None,
) -> Callable[[TrainState, Callable[[], None]], dict[str, Any]]:
  """Makes an evaluator that uses the running statistics, so that no image's result depends on its batch.

  Args:
    classifier: under attack, one that is fast inside loops.
    dataset: every image of it counts once.
    mesh: the devices.
    batch_size: over all processes.
    attack: corrupts each image first, by its index in the data set; None is clean accuracy.
    phi: parameters of the corruption network.

  Returns:
    (state, poll) -> `accuracy` in [0, 1], `num_correct`, `num_images`, and the means of the attack's metrics; `poll` is
    called before every batch.
  """
  data, whole = PartitionSpec(sharding.AXIS), PartitionSpec()

  def local(params, model_state, phi, batch: EvalBatch) -> dict[str, Array]:
    def logits_fn(images):
      return classifier.apply(params, model_state, None, images, is_training=False)[0]

    images = batch.images.astype(jax.tree.leaves(params)[0].dtype) / 255
    metrics: dict[str, Array] = {}
    if attack is not None:
      keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(_KEY)))(batch.indices)
      images, metrics = attack(keys, logits_fn, images, batch.labels, phi)
    correct = (logits_fn(images).argmax(-1) == batch.labels) & batch.mask
    sums = {name: jnp.where(batch.mask, value, 0).sum() for name, value in metrics.items()}
    return jax.lax.psum(sums | {'num_correct': correct.sum(), 'num_images': batch.mask.sum()}, sharding.AXIS)

  step = jax.jit(
    jax.shard_map(local, mesh=mesh, in_specs=(whole, whole, whole, data), out_specs=whole, check_vma=False)
  )

  def evaluate(state: TrainState, poll: Callable[[], None]) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    for batch in batches(dataset, mesh, batch_size):
      poll()
      sums = jax.device_get(step(state.params, state.model_state, phi, batch))
      totals = {name: totals.get(name, 0) + np.asarray(value, np.float64) for name, value in sums.items()}
    count = {name: int(totals.pop(name)) for name in ('num_correct', 'num_images')}
    means = {name: float(value / count['num_images']) for name, value in totals.items()}
    return count | {'accuracy': count['num_correct'] / count['num_images']} | means

  return evaluate
