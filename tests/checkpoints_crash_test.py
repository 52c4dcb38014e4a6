"""Kills, full disks, failing system calls, readers beside a run, and several processes."""

import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import numpy as np
import pytest

from adversarial_augment.errors import CheckpointError, StorageError
from adversarial_augment.storage import artifact, checkpoints, state_arrays
from tests.checkpoint_cases import (
  ROOT,
  SAVES_WITHOUT_END,
  assert_restores,
  largest_file,
  make_state,
  output,
  python,
  reseal,
  restore,
  save,
)
from tests.trainer import free_port

# Disks.


def large_state() -> dict[str, jax.Array]:
  return {'w': jax.random.normal(jax.random.key(0), (1 << 19,))}  # 2 MiB that do not compress


def assert_a_failed_save_leaves_nothing(directory: Path) -> None:
  with pytest.raises(StorageError) as caught:
    save(directory, 40, large_state())
  assert caught.value.exit_code == 5
  assert '\n' not in str(caught.value)
  assert sorted(os.listdir(directory)) == ['10', '20', '30']
  assert_restores(directory, 30)


def test_too_little_space_is_seen_before_anything_is_written(directory, monkeypatch):
  usage = shutil.disk_usage(directory)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=3 << 20))
  monkeypatch.setattr(checkpoints, '_write_arrays', lambda *arguments: pytest.fail('it wrote'))
  assert_a_failed_save_leaves_nothing(directory)


def test_a_write_that_fails_leaves_the_older_ones_and_no_temporary(directory):
  with largest_file(1 << 18):
    assert_a_failed_save_leaves_nothing(directory)
  save(directory, 40)
  assert_restores(directory, 40)


@pytest.mark.parametrize('function', ['fsync', 'rename'])
def test_a_failure_at_any_system_call_leaves_the_older_ones(directory, monkeypatch, function):
  """The n-th call fails, for every n until a save needs no more calls."""
  real = getattr(os, function)
  for nth in range(100):
    calls = 0

    def fails(*arguments, nth=nth):
      nonlocal calls
      calls += 1
      if calls == nth + 1:
        raise OSError(28, 'No space left on device')
      return real(*arguments)

    with monkeypatch.context() as patch:
      patch.setattr(os, function, fails)
      try:
        save(directory, 40)
      except StorageError:
        assert not [name for name in os.listdir(directory) if name.endswith('tmp')]
        _, _, lines = restore(directory)
        assert lines == []
        if (directory / '40').exists():  # only the last fsync comes after the commit
          shutil.rmtree(directory / '40')
        continue
    break
  assert nth >= 1
  assert_restores(directory, 40)


def test_a_full_disk_and_a_save_after_space_is_freed(three, tmp_path, monkeypatch):
  disk = tmp_path / 'disk'
  disk.mkdir()
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', str(disk)], capture_output=True).returncode:
    pytest.skip('needs the right to mount a small tmpfs')
  try:
    directory = Path(shutil.copytree(three, disk / 'checkpoints'))
    (disk / 'ballast').write_bytes(b'x' * (1 << 20))
    with monkeypatch.context() as patch:
      patch.setattr(artifact, 'check_space', lambda *arguments: None)  # as if another program filled it meanwhile
      assert_a_failed_save_leaves_nothing(directory)
    assert_a_failed_save_leaves_nothing(directory)
    (disk / 'ballast').unlink()
    save(directory, 40)
    assert_restores(directory, 40)
  finally:
    subprocess.run(['umount', str(disk)], check=True)


FAILS = """
state = {f'params/{i}': np.random.default_rng(i).normal(size=20_000).astype(np.float32) for i in range(40)}
checkpoints.save(directory, 1, state, config_sha256='c')
for size in (1 << 10, 1 << 14, 1 << 18, 1 << 20):
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
  try:
    checkpoints.save(directory, 2, state, config_sha256='c')
  except checkpoints.StorageError as error:
    print('failed', size)
assert checkpoints.restore_newest(directory, state, report=print)[0] == 1
"""


def test_a_disk_that_fails_is_told_by_the_error_alone(tmp_path):
  said = output(FAILS, tmp_path / 'c').splitlines()
  assert said == [f'failed {size}' for size in (1 << 10, 1 << 14, 1 << 18, 1 << 20)]


# Kills.


def test_a_killed_replacement_brings_the_old_one_back(directory):
  os.rename(directory / '30', directory / '30.replaced.tmp')
  (directory / '30.tmp').mkdir()
  checkpoints.remove_unfinished(directory)
  assert sorted(os.listdir(directory)) == ['10', '20', '30']
  assert_restores(directory, 30)


CRASH = """
checkpoints.save(directory, 40, {'w': np.arange(4, dtype=np.float32)}, config_sha256='c')
checkpoints.prune(directory, 2)
"""


@pytest.mark.parametrize(
  'point, newest',
  [
    ('before_rename@MANIFEST.json', 30),
    ('after_rename@MANIFEST.json', 30),
    ('before_rename@40', 30),
    ('after_rename@40', 40),
    ('before_rename@20.pruned.tmp', 40),
    ('after_rename@20.pruned.tmp', 40),
  ],
)
def test_a_kill_leaves_a_whole_checkpoint_and_the_next_save_cleans_up(tmp_path, point, newest):
  directory = tmp_path / 'checkpoints'
  state = {'w': np.arange(4, dtype=np.float32)}
  for step in (10, 20, 30):
    save(directory, step, state)
  process = python(CRASH, directory, crash_at=point)
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL
  step, restored, lines = restore(directory, state)
  assert (step, lines) == (newest, [])
  np.testing.assert_array_equal(restored['w'], state['w'])
  save(directory, 50, state)
  assert not [name for name in os.listdir(directory) if name.endswith('tmp')]


def test_an_interrupt_during_a_save_leaves_no_temporary(directory, monkeypatch):
  def interrupted(*arguments):
    raise KeyboardInterrupt

  monkeypatch.setattr(artifact, 'entries', interrupted)
  with pytest.raises(KeyboardInterrupt):
    save(directory, 40)
  assert sorted(os.listdir(directory)) == ['10', '20', '30']


@pytest.mark.slow
def test_kills_at_random_instants_never_cost_a_committed_step(tmp_path):
  directory, state = tmp_path / 'checkpoints', {'w': np.zeros(100_000, np.float32)}
  random.seed(0)
  for _ in range(20):
    process = python(SAVES_WITHOUT_END, directory)
    last = int(process.stdout.readline())
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    last = max([last, *map(int, process.communicate()[0].split())])
    step, restored, lines = restore(directory, state)
    assert lines == []
    assert step in (last, last + 1)
    assert np.unique(restored['w']).tolist() == [step]


# Readers beside a run.


def test_a_checkpoint_is_not_pruned_while_it_is_read(directory, monkeypatch):
  """The reader is slow: meanwhile, the run saves and prunes ten times."""
  read = state_arrays.read

  def slowly(path: Path, *arguments, **how):
    for step in range(40, 50):
      save(directory, step)
      checkpoints.prune(directory, 2)
    assert checkpoints.steps(directory) == [30, 48, 49]
    return read(path, *arguments, **how)

  monkeypatch.setattr(state_arrays, 'read', slowly)
  assert_restores(directory, 30)
  checkpoints.prune(directory, 2)
  assert checkpoints.steps(directory) == [48, 49]


@pytest.mark.parametrize('when', ['before', 'after'])
def test_without_locks_a_reader_takes_the_newest_again(directory, monkeypatch, when):
  """As on some network disks: the checkpoint that is being read vanishes, several times."""
  monkeypatch.setattr(artifact.fcntl, 'flock', lambda *_: (_ for _ in ()).throw(OSError(95, 'Operation not supported')))
  verify, tries = checkpoints.verify, []

  def vanishes(folder: Path, step: int):
    tries.append(step)
    manifest = verify(folder, step) if when == 'after' else None
    if len(tries) < 8:
      newer = Path(shutil.copytree(folder, directory / str(step + 1)))
      reseal(newer, step=step + 1)
      for old in checkpoints.steps(directory)[:-1]:
        shutil.rmtree(directory / str(old))
    return manifest or verify(folder, step)

  monkeypatch.setattr(checkpoints, 'verify', vanishes)
  step, state, lines = restore(directory)
  assert (step, lines) == (37, [])
  assert checkpoints.state_sha256(state) == checkpoints.state_sha256(make_state(30))


def test_a_checkpoint_that_always_vanishes_ends(directory, monkeypatch):
  monkeypatch.setattr(checkpoints, 'steps', lambda directory: [70])
  with pytest.raises(CheckpointError, match='No usable checkpoint'):
    restore(directory)


def test_twenty_reads_beside_a_run_that_saves_without_pause(tmp_path):
  directory, state = tmp_path / 'checkpoints', {'w': np.zeros(100_000, np.float32)}
  with python(SAVES_WITHOUT_END, directory) as process:
    for _ in range(3):
      process.stdout.readline()
    drain = threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True)
    drain.start()
    found = []
    try:
      for _ in range(20):
        step, restored, lines = restore(directory, state)
        assert lines == []
        assert np.unique(restored['w']).tolist() == [step]
        assert checkpoints.newest_manifest(directory)['step'] >= step
        found.append(step)
    finally:
      process.kill()
      drain.join()
  assert found == sorted(found)
  assert found[-1] > found[0]


# Two processes.

WORKER = """
import os
import sys
from pathlib import Path
import jax
jax.config.update('jax_num_cpu_devices', 2)
rank, port, directory = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f'127.0.0.1:{port}', 2, rank)
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import jax.numpy as jnp
import numpy as np
from adversarial_augment.storage import checkpoints
from adversarial_augment.errors import CheckpointError, StorageError, UserError

if rank:  # only process 0 has the folder
  directory = directory / 'not' / 'there'
mesh = Mesh(np.asarray(jax.devices()), ('data',))
values = {
  'whole': (np.arange(6, dtype=np.float32).reshape(2, 3) - 3, PartitionSpec()),
  'zero': (np.asarray([-0.0, 0.0], np.float32), PartitionSpec()),
  'half': (np.asarray([1.5, -0.0, -2.0], jnp.bfloat16), PartitionSpec()),
  'count': (np.asarray(7, np.int32), PartitionSpec()),
  'split': (np.arange(8, dtype=np.uint32), PartitionSpec('data')),
}
state = {
  name: jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda index, value=value: value[index])
  for name, (value, spec) in values.items()
}
expected = checkpoints.state_sha256({name: value for name, (value, _) in values.items()})
assert checkpoints.state_sha256(state) == expected
for step in (10, 20, 30, 40):
  checkpoints.save(directory, step, state, config_sha256='c')
checkpoints.prune(directory, 3)
if rank == 0:
  with open(directory / '40' / 'MANIFEST.json', 'ab') as file:
    file.write(b' ')
lines = []
step, restored = checkpoints.restore_newest(directory, state, report=lines.append)
assert step == 30 and len(lines) == 1 - rank, (step, lines)
assert checkpoints.state_sha256(restored) == expected
assert all(restored[name].sharding == state[name].sharding for name in state)
assert checkpoints.restore_newest(directory / 'none', state, report=print) is None


def caught(action):
  try:
    action()
  except (CheckpointError, StorageError, UserError) as error:
    return type(error), str(error)
  return None


wrong = {**state, 'whole': jax.ShapeDtypeStruct((9,), jnp.float32, sharding=state['whole'].sharding)}
for kind, word, action in [
  (UserError, 'float32[9] here', lambda: checkpoints.restore_newest(directory, wrong, report=print)),
  (StorageError, 'No such file', lambda: checkpoints.save(directory / 'a' / 'b', 1, state, config_sha256='c')),
]:
  error = caught(action)
  assert error is not None and error[0] is kind and word in error[1], error
multihost_utils.sync_global_devices('end')
jax.distributed.shutdown()
print('fine')
"""


def test_two_processes_agree_and_only_the_first_needs_the_disk(tmp_path):
  port = str(free_port())
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', WORKER, str(rank), port, str(tmp_path / 'checkpoints')],
      cwd=ROOT,
      env={**environment, 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=90) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (said, error) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, error
    assert said.strip().endswith('fine')
  one_device = SingleDeviceSharding(jax.devices()[0])
  shapes = {'whole': ((2, 3), 'f4'), 'zero': ((2,), 'f4'), 'half': ((3,), jnp.bfloat16), 'count': ((), 'i4')}
  target = {
    n: jax.ShapeDtypeStruct(*spec, sharding=one_device) for n, spec in (shapes | {'split': ((8,), 'u4')}).items()
  }
  step, restored, lines = restore(tmp_path / 'checkpoints', target)
  assert (step, len(lines)) == (30, 1)
  np.testing.assert_array_equal(restored['split'], np.arange(8))
  assert np.signbit(restored['zero']).tolist() == [True, False]
