"""A data set in order, in batches of one size: the last one is padded and masked, so that every image counts once."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np

from adversarial_augment.parallel import sharding
from adversarial_augment.types import Array, Dataset


class EvalBatch(NamedTuple):
  """One batch on the devices; global arrays, sharded over the batch."""

  images: Array  # uint8 [n, h, w, c]
  labels: Array  # int32 [n]
  indices: Array  # int32 [n], of the examples in their data set
  mask: Array  # bool [n]; False is padding


def batches(dataset: Dataset, mesh: Mesh, batch_size: int) -> Iterator[EvalBatch]:
  """Yields all examples in order; every process reads its equal part of each batch.

  Args:
    dataset: the examples.
    mesh: the devices.
    batch_size: over all processes; the next larger one that divides over the devices is taken.
  """
  batch_size = -(-batch_size // mesh.size) * mesh.size
  size = batch_size // jax.process_count()
  for start in range(0, dataset.num_examples, batch_size):
    index = start + jax.process_index() * size + np.arange(size)
    mask = index < dataset.num_examples
    index = np.minimum(index, dataset.num_examples - 1)
    images, labels = dataset.read(index)
    yield EvalBatch(*sharding.shard_batch(mesh, (images, labels, index.astype(np.int32), mask)))
