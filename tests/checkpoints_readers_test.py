"""Checkpoints that are read beside the run that prunes them, those of older versions, and what a save leaves behind."""

import os
from pathlib import Path
import resource
import shutil
import subprocess
import sys
import threading

import numpy as np
import orbax.checkpoint as ocp
import pytest

from adversarial_augment.errors import CheckpointError, StorageError
from adversarial_augment.storage import artifact, checkpoints, state_arrays
from tests.checkpoint_cases import ROOT, assert_restores, files_of, flip, make_state, restore, save

# Beside a run.


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
      save_newer(directory, step)
    return manifest or verify(folder, step)

  def save_newer(directory: Path, step: int) -> None:
    shutil.copytree(directory / str(step), directory / str(step + 1))
    body = verify(directory / str(step), step) | {'step': step + 1}
    del body['manifest_sha256']
    (directory / str(step + 1) / artifact.MANIFEST).write_bytes(checkpoints.sealed(body))
    for old in checkpoints.steps(directory)[:-1]:
      shutil.rmtree(directory / str(old))

  monkeypatch.setattr(checkpoints, 'verify', vanishes)
  step, state, lines = restore(directory)
  assert (step, lines) == (37, [])
  assert checkpoints.state_sha256(state) == checkpoints.state_sha256(make_state(30))


def test_a_checkpoint_that_always_vanishes_ends(directory, monkeypatch):
  monkeypatch.setattr(checkpoints, 'steps', lambda directory: [70])
  with pytest.raises(CheckpointError, match='No usable checkpoint'):
    restore(directory)


def test_damage_is_still_damage_beside_a_run(directory):
  flip(directory / '30' / 'arrays' / '_METADATA', directory)
  assert_restores(directory, 20, lines=1)


WRITER = """
import itertools
import sys
from pathlib import Path
import numpy as np
from adversarial_augment.storage import checkpoints
directory = Path(sys.argv[1])
for step in itertools.count(1):
  checkpoints.save(directory, step, {'w': np.full(100_000, step, np.float32)}, config_sha256='c')
  checkpoints.prune(directory, 2)
  print(step, flush=True)
"""


def test_twenty_reads_beside_a_run_that_saves_without_pause(tmp_path):
  directory, state = tmp_path / 'checkpoints', {'w': np.zeros(100_000, np.float32)}
  process = subprocess.Popen(
    [sys.executable, '-c', WRITER, str(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
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
    process.wait()
    drain.join()
    process.stdout.close()
  assert found == sorted(found)
  assert found[-1] > found[0]


def test_what_nfs_keeps_of_a_file_that_is_read_does_not_stop_a_run(directory, monkeypatch):
  """The folder cannot be removed yet; the next save does it."""
  removes, kept = os.rmdir, []

  def keeps(path, *arguments, **how):
    if not kept:
      kept.append(path)
      raise OSError(39, 'Directory not empty')
    removes(path, *arguments, **how)

  monkeypatch.setattr(os, 'rmdir', keeps)
  checkpoints.prune(directory, 2)
  assert checkpoints.steps(directory) == [20, 30]
  assert len(kept) == 1
  assert len(list(directory.glob('*.pruned.tmp'))) == 1
  save(directory, 40)
  assert sorted(os.listdir(directory)) == ['20', '30', '40']


# The format of older versions.


def test_checkpoints_with_an_array_for_each_leaf_are_read_and_kept(tmp_path):
  directory, state = tmp_path / 'c', make_state(30)
  arrays = state_arrays.to_host(state_arrays.flatten(state))
  folder = directory / '30'
  folder.mkdir(parents=True)
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    checkpointer.save(folder / 'arrays', args=ocp.args.StandardSave(arrays))
  body = {
    'format': 1,
    'step': 30,
    'config_sha256': 'c' * 64,
    'leaves': state_arrays.describe(arrays),
    'state_sha256': state_arrays.hash_arrays(arrays),
    'files': artifact.entries(folder),
  }
  (folder / artifact.MANIFEST).write_bytes(checkpoints.sealed(body))
  assert_restores(directory, 30)
  inode = folder.stat().st_ino
  save(directory, 30)
  assert folder.stat().st_ino == inode
  step, part = checkpoints.restore_subtree(directory, make_state(0), ('params',), report=pytest.fail)
  assert checkpoints.state_sha256(part.params) == checkpoints.state_sha256(state.params)


# What a save leaves behind.


def test_no_file_of_a_checkpoint_names_a_folder_of_the_machine(directory):
  save(directory, 40)
  for path in files_of(directory / '40'):
    for name in (str(directory), str(directory.parent), '/tmp', os.uname().nodename, str(Path.home())):
      assert name.encode() not in path.read_bytes(), path


SAVES = """
import sys
from pathlib import Path
import numpy as np
from adversarial_augment.storage import checkpoints

def memory():
  return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1])

state = {f'params/{i}': np.zeros(200, np.float32) for i in range(100)}
for step in range(1, 301):
  state['params/0'] = state['params/0'] + 1
  checkpoints.save(Path(sys.argv[1]), step, state, config_sha256='c')
  checkpoints.prune(Path(sys.argv[1]), 2)
  if step == 100:
    before, blocks = memory(), sys.getallocatedblocks()
print((memory() - before) / 200, (sys.getallocatedblocks() - blocks) / 200)
"""


def test_saves_do_not_fill_the_memory(tmp_path):
  """At one save a second, 1 MB a minute is 17 kB a save."""
  done = subprocess.run(
    [sys.executable, '-c', SAVES, str(tmp_path / 'c')], cwd=ROOT, capture_output=True, text=True, timeout=240
  )
  assert done.returncode == 0, done.stderr
  kilobytes, blocks = map(float, done.stdout.split())
  assert kilobytes < 12
  assert blocks < 40


FAILS = """
import resource
import sys
from pathlib import Path
import numpy as np
from adversarial_augment.storage import checkpoints

state = {f'params/{i}': np.random.default_rng(i).normal(size=20_000).astype(np.float32) for i in range(40)}
directory = Path(sys.argv[1])
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
  done = subprocess.run(
    [sys.executable, '-c', FAILS, str(tmp_path / 'c')], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [f'failed {size}' for size in (1 << 10, 1 << 14, 1 << 18, 1 << 20)]
  assert done.stderr == ''


def test_a_probe_finds_what_a_save_would_meet(tmp_path):
  directory = tmp_path / 'c'
  checkpoints.try_to_save(directory)
  assert not directory.exists()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
  try:
    with pytest.raises(StorageError, match='Cannot write the arrays'):
      checkpoints.try_to_save(directory)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not directory.exists()
