"""Saving, restoring, pruning: what a checkpoint holds, and what it refuses."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import orbax.checkpoint as ocp
import pytest

from adversarial_augment.errors import NumericalError, StorageError, UserError
from adversarial_augment.storage import artifact, checkpoints, state_arrays
from adversarial_augment.types import TrainState
from tests.checkpoint_cases import assert_restores, files_of, flip, largest_file, make_state, output, restore, save

# Round trips.


def test_round_trip_is_bit_exact_and_keeps_types(three):
  _, state, lines = restore(three)
  assert lines == []
  assert isinstance(state, TrainState)
  assert jax.tree.structure(state) == jax.tree.structure(make_state(30))
  for restored, saved in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(30)), strict=True):
    assert restored.dtype == saved.dtype
    assert np.asarray(restored).tobytes() == np.asarray(saved).tobytes()  # -0.0 too


def test_steps_are_the_folders_that_are_named_by_numbers(tmp_path):
  assert restore(tmp_path / 'none') == (None, None, [])
  for name in ('5.tmp', '007', '-1', 'x'):
    (tmp_path / name).mkdir()
  assert checkpoints.steps(tmp_path) == []
  assert restore(tmp_path) == (None, None, [])
  for name in ('100', '20', '3'):
    (tmp_path / name).mkdir()
  assert checkpoints.steps(tmp_path) == [3, 20, 100]


def test_target_may_be_shapes_only_and_saved_may_be_numpy(tmp_path):
  state = {'a': np.asarray(3, np.int32), 'b': np.arange(6, dtype=np.float32).reshape(2, 3).T}
  save(tmp_path / 'c', 1, state)
  step, restored, _ = restore(tmp_path / 'c', jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state)))
  assert step == 1
  assert checkpoints.state_sha256(restored) == checkpoints.state_sha256(state)
  np.testing.assert_array_equal(restored['b'], state['b'])


@pytest.mark.parametrize('leaf', [3, np.int32(3), 'text', np.zeros((0, 2))])
def test_leaves_that_are_no_arrays_are_refused_by_name(tmp_path, leaf):
  with pytest.raises(TypeError, match='opt/momentum'):
    save(tmp_path / 'c', 1, {'opt': {'momentum': leaf}})


def test_two_leaves_with_one_path_are_refused(tmp_path):
  with pytest.raises(ValueError, match='a/b'):
    save(tmp_path / 'c', 1, {'a/b': jnp.ones(1), 'a': {'b': jnp.ones(1)}})


@pytest.mark.parametrize('target_devices', [1, 2, 8])
@pytest.mark.parametrize('source_devices', [1, 8])
def test_device_counts_may_change(tmp_path, source_devices, target_devices):
  def shardings(count: int) -> dict[str, NamedSharding]:
    mesh = Mesh(np.asarray(jax.devices()[:count]), ('data',))
    return {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in (('whole', ()), ('split', ('data',)))}

  value = {'whole': jax.random.normal(jax.random.key(0), (8, 33)), 'split': jax.random.normal(jax.random.key(1), (16,))}
  save(tmp_path / 'c', 1, jax.device_put(value, shardings(source_devices)))
  target = jax.device_put(jax.tree.map(jnp.zeros_like, value), shardings(target_devices))
  _, restored, _ = restore(tmp_path / 'c', target)
  assert jax.tree.map(lambda leaf: leaf.sharding, restored) == shardings(target_devices)
  assert checkpoints.state_sha256(restored) == checkpoints.state_sha256(value)


def test_restored_copies_do_not_share_memory_that_a_donating_step_writes(tmp_path):
  sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ('data',)), PartitionSpec())
  value = {'w': jax.device_put(jnp.arange(4096.0).reshape(64, 64), sharding)}
  save(tmp_path / 'c', 1, value)
  _, restored, _ = restore(tmp_path / 'c', value)
  update = jax.jit(lambda tree: {'w': tree['w'] * 1.5 + 1}, donate_argnums=0)
  expected = np.arange(4096.0).reshape(64, 64)
  for _ in range(3):
    restored, expected = update(restored), expected * 1.5 + 1
  for shard in restored['w'].addressable_shards:
    np.testing.assert_array_equal(np.asarray(shard.data), expected.astype(np.float32))


def test_checkpoints_of_format_1_with_an_array_for_each_leaf_are_read_and_kept(tmp_path):
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


# The state's hash.


def test_state_hash_sees_names_shapes_dtypes_and_bytes():
  base = {'a': jnp.zeros((2, 3)), 'b': jnp.zeros(4, jnp.int32)}
  others = [
    {'c': base['a'], 'b': base['b']},
    {'a': base['b'], 'b': base['a']},
    {**base, 'a': base['a'].reshape(3, 2)},
    {**base, 'b': base['b'].view(jnp.uint32)},
    {**base, 'a': -base['a']},  # -0.0 is equal and not the same
    {**base, 'a': base['a'].at[1, 2].set(1e-45)},
    {'a': base['a']},
  ]
  hashes = [checkpoints.state_sha256(tree) for tree in [base, *others]]
  assert len(set(hashes)) == len(hashes)


def test_state_hash_does_not_see_order_containers_or_devices():
  tree = {'a': jnp.arange(6.0).reshape(2, 3), 'b': jnp.ones(4)}
  moved = jax.device_put(tree, jax.devices()[-1])
  expected = checkpoints.state_sha256(tree)
  assert checkpoints.state_sha256({'b': moved['b'], 'a': moved['a']}) == expected
  assert checkpoints.state_sha256({'a': np.asfortranarray(tree['a']), 'b': np.asarray(tree['b'])}) == expected


# Other states.


@pytest.mark.parametrize(
  'target, words',
  [
    (make_state(0, width=5), ["'params/net/~/conv/b'", 'float32[4] in', 'float32[5] here']),
    (make_state(0, dtype=jnp.float16), ["'params/net/~/conv/w'", 'float32[3, 4] in', 'float16[3, 4] here']),
    (make_state(0)._replace(model_state={'bn': jnp.ones(2)}), ["'model_state/bn'", 'absent in', 'float32[2] here']),
    (make_state(0)._replace(opt_state=()), ["'opt_state/0'", 'uint32[3] in', 'absent here']),
    (make_state(0)._replace(step=jnp.zeros(1, jnp.int32)), ["'step'", 'int32[] in', 'int32[1] here']),
  ],
)
def test_another_state_is_refused_by_its_first_leaf(three, target, words):
  with pytest.raises(UserError) as caught:
    restore(three, target)
  for word in ['Checkpoint 30', *words]:
    assert word in str(caught.value)


def test_subtree_of_another_run(three, tmp_path):
  target = make_state(0)._replace(opt_state={'adam': jnp.ones(7)})
  step, state = checkpoints.restore_subtree(three, target, report=pytest.fail)
  assert step == 30
  assert checkpoints.state_sha256(state.params) == checkpoints.state_sha256(make_state(30).params)
  assert state.opt_state is target.opt_state
  assert int(state.step) == 0
  with pytest.raises(UserError, match=r"'params/net/~/conv/b' is float32\[4\] .* float32\[9\] here"):
    checkpoints.restore_subtree(three, make_state(0, width=9), report=pytest.fail)
  with pytest.raises(UserError, match='No checkpoint under'):
    checkpoints.restore_subtree(tmp_path / 'none', make_state(0), report=pytest.fail)


# Saving.


def test_manifest_says_what_is_saved(three):
  manifest = checkpoints.verify(three / '30', 30)
  assert manifest['config_sha256'] == 'c' * 64
  assert manifest['state_sha256'] == checkpoints.state_sha256(make_state(30))
  assert manifest['leaves']['params/net/~/head/w'] == [[2, 2], 'bfloat16']
  assert set(manifest['files']) == {path.relative_to(three / '30').as_posix() for path in files_of(three / '30')} - {
    artifact.MANIFEST
  }


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_state_that_is_not_finite_is_never_committed(directory, value, dtype):
  with pytest.raises(NumericalError, match="'opt_state/m' is not finite after step 40"):
    save(directory, 40, make_state(40)._replace(opt_state={'m': jnp.full(3, value, dtype)}))
  assert checkpoints.steps(directory) == [10, 20, 30]


def test_saving_again_keeps_the_same_and_replaces_the_damaged_or_different(directory):
  inode = (directory / '30').stat().st_ino
  save(directory, 30)
  assert (directory / '30').stat().st_ino == inode
  flip(directory / '30' / 'arrays' / '_METADATA', directory)
  save(directory, 30)
  assert_restores(directory, 30)
  save(directory, 30, make_state(99))
  _, state, _ = restore(directory)
  assert checkpoints.state_sha256(state) == checkpoints.state_sha256(make_state(99))
  assert sorted(os.listdir(directory)) == ['10', '20', '30']


def test_everything_is_on_disk_before_the_rename(tmp_path, monkeypatch):
  events: list[tuple[str, str]] = []
  fsync, rename = os.fsync, os.rename

  def record_fsync(descriptor: int) -> None:
    events.append(('fsync', os.path.relpath(os.readlink(f'/proc/self/fd/{descriptor}'), tmp_path)))
    fsync(descriptor)

  def record_rename(source: Path, destination: Path) -> None:
    if '.orbax-checkpoint-tmp' not in str(source):
      events.append(('rename', os.path.relpath(destination, tmp_path)))
    rename(source, destination)

  monkeypatch.setattr(os, 'fsync', record_fsync)
  monkeypatch.setattr(os, 'rename', record_rename)
  folder = save(tmp_path / 'c', 7)
  assert events[-2:] == [('rename', 'c/7'), ('fsync', 'c')]
  synced = {path for event, path in events[:-2] if event == 'fsync'}
  below = [path.relative_to(folder).as_posix() for path in folder.rglob('*')]
  assert synced >= {f'c/7.tmp/{name}' for name in below} | {'c/7.tmp'}


def test_a_missing_workdir_is_a_storage_error_not_a_new_one(tmp_path):
  with pytest.raises(StorageError, match='No such file'):
    save(tmp_path / 'gone' / 'checkpoints', 1)
  assert not (tmp_path / 'gone').exists()


def test_a_probe_finds_what_a_save_would_meet(tmp_path):
  directory = tmp_path / 'c'
  checkpoints.try_to_save(directory)
  assert not directory.exists()
  with largest_file(1 << 10), pytest.raises(StorageError, match='Cannot write the arrays'):
    checkpoints.try_to_save(directory)
  assert not directory.exists()


def test_no_file_of_a_checkpoint_names_a_folder_of_the_machine(directory):
  for path in files_of(directory / '30'):
    for name in (str(directory), str(directory.parent), '/tmp', os.uname().nodename, str(Path.home())):
      assert name.encode() not in path.read_bytes(), path


SAVES = """
def memory():
  return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1])

state = {f'params/{i}': np.zeros(200, np.float32) for i in range(100)}
for step in range(1, 301):
  state['params/0'] = state['params/0'] + 1
  checkpoints.save(directory, step, state, config_sha256='c')
  checkpoints.prune(directory, 2)
  if step == 100:
    before, blocks = memory(), sys.getallocatedblocks()
print((memory() - before) / 200, (sys.getallocatedblocks() - blocks) / 200)
"""


def test_saves_do_not_fill_the_memory(tmp_path):
  """At one save a second, 1 MB a minute is 17 kB a save."""
  kilobytes, blocks = map(float, output(SAVES, tmp_path / 'c').split())
  assert kilobytes < 12
  assert blocks < 40


# Pruning.


def test_prune_keeps_the_newest_good_ones_and_never_less_than_two(directory):
  checkpoints.prune(directory, 3)
  assert checkpoints.steps(directory) == [10, 20, 30]
  checkpoints.prune(directory, 0)
  assert sorted(os.listdir(directory)) == ['20', '30']


def test_prune_does_not_count_damaged_ones(directory):
  save(directory, 40)
  for step in ('40', '20'):
    flip(directory / step / 'arrays' / '_METADATA', directory)
  checkpoints.prune(directory, 2)
  assert checkpoints.steps(directory) == [10, 20, 30, 40]
  save(directory, 40)
  checkpoints.prune(directory, 2)
  assert checkpoints.steps(directory) == [30, 40]


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
  assert len(kept) == len(list(directory.glob('*.pruned.tmp'))) == 1
  save(directory, 40)
  assert sorted(os.listdir(directory)) == ['20', '30', '40']
