"""Several processes of one run, on loopback: equal numbers, one log, one end."""

import itertools
import json
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from adversarial_augment.datasets import writer
from adversarial_augment.storage import artifact
from tests import trainer

LONG = '--config.num_steps=100000'


@pytest.fixture(scope='module')
def rig(tmp_path_factory) -> trainer.Rig:
  return trainer.Rig(tmp_path_factory.getbasetemp())


def codes(runs: list[trainer.Run]) -> list[int]:
  return [run.wait() for run in runs]


def finish_pair(rig: trainer.Rig, workdirs: list[Path], *flags: str, base=trainer.NOMINAL) -> list[trainer.Run]:
  runs = rig.start_pair(workdirs, *flags, base=base)
  assert codes(runs) == [0, 0], [run.err for run in runs]
  return runs


def make_steps(rig: trainer.Rig, machine: tuple[int, int], stops: str, *folders: Path, fields: str = '') -> None:
  """Has tests.distributed_worker make float64 steps; `machine` is its numbers of devices and processes."""
  devices, processes = machine
  for folder in folders:
    folder.mkdir(exist_ok=True)
  address = f'127.0.0.1:{trainer.free_port()}'
  # The code runs for a second and compiles for half a minute: less of that.
  env = os.environ | rig.env | {'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  arguments = (str(devices), fields, stops, *map(str, folders))
  command = lambda index: [sys.executable, '-m', 'tests.distributed_worker', address, str(processes), str(index)]
  workers = [subprocess.Popen([*command(i), *arguments], env=env, cwd=trainer.ROOT) for i in range(processes)]
  try:
    assert [worker.wait(2 * trainer.PATIENCE) for worker in workers] == [0] * processes, machine
  finally:
    for worker in workers:
      worker.kill()


def assert_same_float64(folder: Path, straight: Path) -> None:
  """The last states differ by rounding, if at all."""
  found, wanted = (dict(np.load(one / 'last.npz')) for one in (folder, straight))
  assert found.keys() == wanted.keys()
  assert len(found) > 40
  wanted['losses'] = wanted['losses'][-len(found['losses']) :]
  assert max(np.abs(found[name] - wanted[name]).max() for name in wanted) <= 1e-9
  assert np.ptp(wanted['losses']) > 1e-3  # it trains


def examples_read(folder: Path, first: int, processes: int) -> list[list[int]]:
  """Returns the examples of each step from `first` on, by all processes."""
  read = [json.loads((folder / f'read_{first}_{index}.json').read_text()) for index in range(processes)]
  return [sum(pieces, []) for pieces in zip(*read, strict=True)]


@pytest.mark.slow
def test_two_processes_go_on_in_float64_with_what_one_began(rig, tmp_path):
  straight, resized = tmp_path / 'straight', tmp_path / 'resized'
  make_steps(rig, (1, 1), '3,6', straight)
  shutil.copytree(straight / 'checkpoints' / '3', resized / 'checkpoints' / '3')
  make_steps(rig, (2, 2), '6', resized)
  assert_same_float64(resized, straight)
  assert examples_read(resized, 3, 2) == examples_read(straight, 0, 1)[3:]


@pytest.mark.slow
@pytest.mark.parametrize('fields', [
  'attack.name=rlat,attack.epsilon=0.08',
  'attack.name=pat,attack.distance=self,attack.epsilon=0.5,attack.batch_norm=running',
  'attack.name=pat,attack.distance=alexnet,attack.epsilon=1,attack.batch_norm=running',
], ids=['rlat', 'pat_self', 'pat_alexnet'])  # fmt: skip
def test_two_processes_take_the_steps_of_one_in_float64(rig, tmp_path, fields):
  for machine in ((1, 1), (2, 2)):
    make_steps(rig, machine, '4', tmp_path / str(machine[0]), fields=fields)
  assert_same_float64(tmp_path / '2', tmp_path / '1')


@pytest.mark.slow
def test_each_machine_goes_on_with_what_another_one_began(rig, tmp_path):
  """Each makes 20 steps of its own, and the last 10 of the one before it."""
  tour = ((1, 1), (8, 4), (2, 1), (4, 2), (8, 1), (2, 2), (4, 1), (8, 2), (4, 4))
  begun = {machine: tmp_path / f'begun_on_{machine}' for machine in tour}
  straight = begun[1, 1]
  make_steps(rig, (1, 1), '10,20', straight)
  in_order = examples_read(straight, 0, 1)
  seen = sum(in_order, [])
  assert sorted(seen[:64]) == sorted(seen[64:128]) == list(range(64))  # each image once in an epoch
  for before, machine in itertools.pairwise((*tour, (1, 1))):
    resized = tmp_path / f'{before}_to_{machine}'
    shutil.copytree(begun[before] / 'checkpoints' / '10', resized / 'checkpoints' / '10')
    folders = [folder for folder in (begun[machine], resized) if folder != straight]
    make_steps(rig, machine, '10,20', *folders)
    for folder in folders:
      assert_same_float64(folder, straight)
    assert examples_read(begun[machine], 0, machine[1]) == in_order
    assert examples_read(resized, 10, machine[1]) == in_order[10:]


def test_sigterm_to_one_of_two_saves_the_same_step_of_both_and_the_pair_goes_on(rig, tmp_path):
  """The folder of process 1 is never made: process 0 alone writes."""
  straight, workdirs = [tmp_path / 's0', tmp_path / 's1'], [tmp_path / 'w0', tmp_path / 'w1']
  finish_pair(rig, straight)
  runs = rig.start_pair(workdirs)
  runs[0].wait_for_line('step 1/')
  runs[1].process.send_signal(signal.SIGTERM)
  assert codes(runs) == [75, 75], [run.err for run in runs]
  saved = trainer.newest(workdirs[0])
  assert saved == trainer.last_step(workdirs[0]) >= 1
  for run in runs:
    assert f'stopped by SIGTERM after step {saved} of {trainer.NUM_STEPS}, which is saved' in run.err
  runs = finish_pair(rig, workdirs)
  assert f'resuming from step {saved}' in runs[0].err
  trainer.assert_same_end(workdirs[0], straight[0])
  assert 'clean accuracy' in runs[0].out
  assert 'clean accuracy' not in runs[1].out
  assert 'step ' not in runs[1].err
  assert not workdirs[1].exists()
  assert not straight[1].exists()


def test_a_ctrl_c_that_arrives_twice_saves_the_same_step_of_both(rig, tmp_path):
  workdirs = [tmp_path / 'w0', tmp_path / 'w1']
  runs = rig.start_pair(workdirs, LONG)
  runs[0].wait_for_line('step 1/')
  for run in runs * 2:  # as a terminal sends it to all of a group, and a launcher to its children once more
    run.process.send_signal(signal.SIGINT)
  assert codes(runs) == [75, 75], [run.err for run in runs]
  assert trainer.newest(workdirs[0]) == trainer.last_step(workdirs[0]) >= 1
  for run in runs:
    assert run.err.count('SIGINT: saving after a step of all processes; press Ctrl-C again') == 1


def test_an_error_of_process_0_ends_both_with_its_code(rig, tmp_path):
  """Process 1 knows nothing of the lock, and would wait for ever."""
  workdirs = [tmp_path / 'w0', tmp_path / 'w1']
  workdirs[0].mkdir()
  with artifact.lock(workdirs[0]):
    runs = rig.start_pair(workdirs)
    assert codes(runs) == [2, 2], [run.err for run in runs]
  assert all('is in use by process' in run.err for run in runs)
  assert all('Traceback' not in run.err for run in runs)


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--config.seed=1'], 'The processes of the run differ: config.seed is 0 on process 0 and 1 on process 1;'),
    (['--config.sed=1'], "process 1: Unknown config field 'sed'."),
    ([f'--config.data_dir={Path(__file__).parent}', '--config.dataset=cifar10'], "process 1: No data set 'cifar10'"),
  ],
)
def test_processes_that_were_not_started_alike_end_before_a_step(rig, tmp_path, flags, words):
  began = time.monotonic()
  port, workdirs = trainer.free_port(), [tmp_path / 'w0', tmp_path / 'w1']
  meet = [f'--coordinator_address=127.0.0.1:{port}', '--num_processes=2']
  runs = [rig.start(workdirs[i], *meet, f'--process_id={i}', *(flags if i else [])) for i in range(2)]
  assert codes(runs) == [2, 2], [run.err for run in runs]
  assert time.monotonic() - began < 60
  assert words in runs[0].err
  assert words.removeprefix('process 1: ') in runs[1].err
  assert not workdirs[0].exists()


def test_processes_with_other_numbers_of_devices_end_before_a_step(rig, tmp_path):
  meet = [f'--coordinator_address=127.0.0.1:{trainer.free_port()}', '--num_processes=2']
  runs = [rig.start(tmp_path / f'w{i}', *meet, f'--process_id={i}', JAX_NUM_CPU_DEVICES=str(2 - i)) for i in range(2)]
  assert codes(runs) == [2, 2], [run.err for run in runs]
  assert all('there are 2 devices on process 0 and 1 on process 1; give each' in run.err for run in runs)
  assert all('Traceback' not in run.err for run in runs)


def test_processes_with_other_images_of_the_same_form_end_before_a_step(rig, tmp_path):
  port, runs = trainer.free_port(), []
  for i in range(2):
    images, labels = np.random.default_rng(i).integers(0, 256, (40, 32, 32, 3), np.uint8), np.arange(40) % 3
    splits = {split: writer.Split(40, zip(images, labels, strict=True)) for split in ('train', 'test')}
    description = writer.Description('pets', '1.0.0', 'x', ('a', 'b', 'c'), (32, 32, 3), 'own', None)
    writer.write(description, splits, tmp_path / f'data{i}')
    flags = ['--config.dataset=pets', f'--config.data_dir={tmp_path}/data{i}', '--config.holdout=0']
    meet = [f'--coordinator_address=127.0.0.1:{port}', '--num_processes=2', f'--process_id={i}']
    runs.append(rig.start(tmp_path / f'w{i}', *flags, *meet))
  assert codes(runs) == [2, 2], [run.err for run in runs]
  for run in runs:
    assert 'The processes of the run differ: data.train.sha256 is "' in run.err


@pytest.mark.slow
def test_every_error_of_process_0_ends_both_with_its_code(rig, tmp_path):
  workdirs = [tmp_path / 'w0', tmp_path / 'w1']
  finish_pair(rig, workdirs)
  runs = rig.start_pair(workdirs, '--config.seed=1')
  assert codes(runs) == [2, 2]
  assert all('seed: 0 -> 1' in run.err for run in runs)
  for manifest in (workdirs[0] / 'checkpoints').glob('*/MANIFEST.json'):
    manifest.unlink()
  runs = rig.start_pair(workdirs)
  assert codes(runs) == [4, 4]
  assert all('No usable checkpoint is left' in run.err for run in runs)
  (tmp_path / 'file').touch()
  runs = rig.start_pair([tmp_path / 'file', tmp_path / 'x'])
  assert codes(runs) == [2, 2]


@pytest.mark.slow
def test_signals_to_either_process_at_any_stage_change_nothing(rig, tmp_path):
  straight, workdirs = [tmp_path / 's0', tmp_path / 's1'], [tmp_path / 'w0', tmp_path / 'w1']
  finish_pair(rig, straight)
  places = (
    ('compiling the train step...', 0, signal.SIGTERM),
    ('step 2/', 0, signal.SIGINT),
    ('step 6/', 1, signal.SIGINT),
    ('evaluating on the test set', 1, signal.SIGTERM),
  )
  for place, index, number in places:
    runs = rig.start_pair(workdirs)
    runs[0].wait_for_line(place)
    runs[index].process.send_signal(number)
    ended = codes(runs)
    assert ended in ([75, 75], [0, 0]), [run.err for run in runs]
    assert trainer.newest(workdirs[0]) == trainer.last_step(workdirs[0])
  finish_pair(rig, workdirs)
  trainer.assert_same_end(workdirs[0], straight[0])


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_other_at_once_and_the_pair_goes_on(rig, tmp_path, victim):
  straight, workdirs = [tmp_path / 's0', tmp_path / 's1'], [tmp_path / 'w0', tmp_path / 'w1']
  runs = rig.start_pair(workdirs)
  runs[0].wait_for_line('step 4/')
  began = time.monotonic()
  runs[victim].kill()
  assert runs[1 - victim].wait() == 75
  assert time.monotonic() - began < 20
  assert f'Process {victim} of the run, on {socket.gethostname()}, was lost: ' in runs[1 - victim].err
  assert 'Traceback' not in runs[1 - victim].err
  finish_pair(rig, workdirs)
  finish_pair(rig, straight)
  trainer.assert_same_end(workdirs[0], straight[0])
