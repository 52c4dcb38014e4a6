"""Where arrays live: one mesh axis, 'data', over all devices of all processes."""

from collections import Counter

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from adversarial_augment.cli import progress
from adversarial_augment.errors import UserError
from adversarial_augment.types import PyTree

AXIS = 'data'


def data_mesh() -> Mesh:
  """Returns the mesh over all devices; raises UserError on all processes if they have different numbers of devices."""
  counts = Counter(device.process_index for device in jax.devices())
  if other := next((index for index in sorted(counts) if counts[index] != counts[0]), None):
    raise UserError(
      f'The processes of the run differ: there are {counts[0]} devices on process 0 and {counts[other]} on process '
      f'{other}; give each the same number (JAX_NUM_CPU_DEVICES, XLA_FLAGS, CUDA_VISIBLE_DEVICES).'
    )
  return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, batch: PyTree) -> PyTree:
  """Makes global arrays of every process's equal part of a batch."""
  progress.made()
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
  """Puts a tree, equal on all processes, on every device."""
  return jax.device_put(tree, replicated(mesh))
