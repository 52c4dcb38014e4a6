"""One process of two that make five float64 updates of tests/tiny.py; process 0 writes the parameters.

python -m tests.distributed_worker ADDRESS NUM_PROCESSES PROCESS_ID OUTPUT.npz
"""

from pathlib import Path
import sys

import jax
import numpy as np

from adversarial_augment.parallel import sharding
from adversarial_augment.training import train_step
from tests import tiny


def main(address: str, num_processes: int, process_id: int, output: Path) -> None:
  jax.config.update('jax_num_cpu_devices', 1)
  jax.config.update('jax_enable_x64', True)
  if num_processes > 1:
    jax.distributed.initialize(address, num_processes, process_id)
  _, recipe, phi, state = tiny.make(num_processes)
  step = train_step.jitted(recipe)
  losses = []
  for index in range(5):
    # This process's equal part of the batch, as datasets.sampling has it.
    examples = np.array_split(np.arange(recipe.batch_size) + recipe.batch_size * index, num_processes)[process_id]
    batch = sharding.shard_batch(recipe.mesh, tuple(tiny.dataset().read(examples)))
    state, metrics = step(state, np.int32(index), *batch, phi)
    losses.append(float(metrics['loss']))
  leaves = jax.tree_util.tree_leaves_with_path((state.params, state.model_state))
  arrays = {jax.tree_util.keystr(path): np.asarray(leaf.addressable_data(0)) for path, leaf in leaves}
  if process_id == 0:
    np.savez(output, losses=np.asarray(losses), **arrays)


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
