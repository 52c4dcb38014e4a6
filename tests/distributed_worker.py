"""One process of several that make float64 updates of tests/tiny.py, in one folder after the other.

python -m tests.distributed_worker ADDRESS NUM_PROCESSES PROCESS_ID NUM_DEVICES FIELDS STOPS FOLDER...

FIELDS (a=1,b=2) are changed in the config of tests/tiny.py. It goes on from the newest checkpoint of a folder, if there
is one, and saves at each of STOPS (5,10). Process 0 writes the last state and the losses to last.npz, and each process
which examples it has read to read_FIRST_PROCESS.json.
"""

import json
from pathlib import Path
import sys

import jax
import numpy as np

from adversarial_augment.run import train_job
from adversarial_augment.storage import checkpoints, state_arrays
from adversarial_augment.training import train_step
from tests import tiny


def main(
  address: str,
  num_processes: int,
  process_id: int,
  num_devices: int,
  fields: dict[str, str],
  stops: list[int],
  folders: list[Path],
):
  jax.config.update('jax_num_cpu_devices', num_devices // num_processes)
  jax.config.update('jax_enable_x64', True)
  if num_processes > 1:
    jax.distributed.initialize(address, num_processes, process_id)
  _, recipe, phi, initial = tiny.make(num_devices, **fields)
  step = train_step.jitted(recipe)
  read: list[list[int]] = []

  def read_and_record(index: np.ndarray):
    read.append(index.tolist())
    return tiny.dataset().read(index)

  dataset = tiny.dataset()._replace(read=read_and_record)
  for folder in folders:
    read.clear()
    first, state = checkpoints.restore_newest(folder / 'checkpoints', initial, report=print) or (0, initial)
    losses = []
    for index in range(first, stops[-1]):
      state, metrics = step(state, np.int32(index), *train_job.read_batch(recipe, dataset, index), phi)
      losses.append(float(metrics['loss']))
      if index + 1 in stops:
        checkpoints.save(folder / 'checkpoints', index + 1, state, config_sha256='c')
    (folder / f'read_{first}_{process_id}.json').write_text(json.dumps(read))
    if process_id == 0:
      np.savez(folder / 'last.npz', losses=losses, **state_arrays.to_host(state_arrays.flatten(state)))


if __name__ == '__main__':
  changed = dict(field.split('=') for field in sys.argv[5].split(',') if field)
  stops = [*map(int, sys.argv[6].split(','))]
  main(sys.argv[1], *map(int, sys.argv[2:5]), changed, stops, [*map(Path, sys.argv[7:])])
