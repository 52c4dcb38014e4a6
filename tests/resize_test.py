"""A run that goes on with other numbers of devices and processes, as a user starts it."""

import signal

import pytest

from tests import trainer

FLAG = '--xla_force_host_platform_device_count'


@pytest.fixture(scope='module')
def rig(tmp_path_factory) -> trainer.Rig:
  return trainer.Rig(tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_with_other_devices_and_processes(rig, tmp_path):
  workdirs = [tmp_path / 'w0', tmp_path / 'w1']
  first = rig.start(workdirs[0], XLA_FLAGS=f'{FLAG}=2')
  first.wait_for_step(2)
  first.process.send_signal(signal.SIGTERM)
  assert first.wait() == 75, first.err
  one = trainer.newest(workdirs[0])

  refused = rig.start(workdirs[0], JAX_NUM_CPU_DEVICES='3')
  assert refused.wait() == 2
  assert trainer.complaints(refused.err) == [
    'train: config.batch_size=8 must be a multiple of the 3 devices; try 6 or 9.'
  ]

  pair = rig.start_pair(workdirs)
  pair[0].wait_for_step(one + 2)
  pair[1].process.send_signal(signal.SIGTERM)
  assert [run.wait() for run in pair] == [75, 75], [run.err for run in pair]
  two = trainer.newest(workdirs[0])
  assert f'resuming from step {one} on 2 devices in 2 processes; until here 2 devices in 1 process' in pair[0].err

  last = rig.finish(workdirs[0], JAX_NUM_CPU_DEVICES='1')
  assert f'resuming from step {two} on 1 device in 1 process; until here 2 devices in 2 processes' in last.err
  rig.finish(workdirs[0], JAX_NUM_CPU_DEVICES='4')  # which has nothing to do
  found = trainer.result(workdirs[0])['segments']
  assert [(s['first_step'], s['last_step'], s['devices'], s['processes']) for s in found] == [
    (1, one, 2, 1), (one + 1, two, 2, 2), (two + 1, trainer.NUM_STEPS, 1, 1),
  ]  # fmt: skip
  assert all(s['device_kind'] == 'cpu' and s['host'] and 'jax' in s['versions'] for s in found)
  assert trainer.steps(workdirs[0]) == list(range(1, trainer.NUM_STEPS + 1))
