"""Saving, restoring, pruning: what a checkpoint holds, and what it refuses."""

import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from adversarial_augment.errors import UserError
from adversarial_augment.storage import checkpoints
from adversarial_augment.types import TrainState
from tests.checkpoint_cases import flip, make_state, restore, save

# Round trips.


def test_round_trip_is_bit_exact_and_keeps_types(three):
  _, state, lines = restore(three)
  assert lines == []
  assert isinstance(state, TrainState)
  assert jax.tree.structure(state) == jax.tree.structure(make_state(30))
  for restored, saved in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(30)), strict=True):
    assert restored.dtype == saved.dtype
    assert np.asarray(restored).tobytes() == np.asarray(saved).tobytes()  # -0.0 too


def test_no_checkpoint_is_none(tmp_path):
  assert restore(tmp_path / 'checkpoints') == (None, None, [])
  (tmp_path / 'checkpoints' / '10.tmp').mkdir(parents=True)
  (tmp_path / 'checkpoints' / 'notes').mkdir()
  assert restore(tmp_path / 'checkpoints') == (None, None, [])
  assert checkpoints.steps(tmp_path / 'checkpoints') == []


def test_steps_are_numbers_in_order(tmp_path):
  for name in ('100', '20', '3', '007', '-1', '5.tmp', 'x'):
    (tmp_path / name).mkdir()
  assert checkpoints.steps(tmp_path) == [3, 20, 100]


def test_target_may_be_shapes_only_and_saved_may_be_numpy(tmp_path):
  state = {'a': np.asarray(3, np.int32), 'b': np.arange(6, dtype=np.float32).reshape(2, 3).T}
  save(tmp_path / 'c', 1, state)
  step, restored, _ = restore(tmp_path / 'c', jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state)))
  assert step == 1
  assert checkpoints.state_sha256(restored) == checkpoints.state_sha256(state)
  np.testing.assert_array_equal(restored['b'], state['b'])


@pytest.mark.parametrize('leaf', [3, 2.5, np.int32(3), 'text', np.zeros((0, 2))])
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
  for _ in range(3):
    restored = update(restored)
  expected = np.arange(4096.0).reshape(64, 64)
  for _ in range(3):
    expected = expected * 1.5 + 1
  for shard in restored['w'].addressable_shards:
    np.testing.assert_array_equal(np.asarray(shard.data), expected.astype(np.float32))


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


# A checkpoint of another state.


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


def test_subtree_of_another_run(three):
  target = make_state(0)._replace(opt_state={'adam': jnp.ones(7)})
  step, state = checkpoints.restore_subtree(three, target, report=pytest.fail)
  assert step == 30
  assert checkpoints.state_sha256(state.params) == checkpoints.state_sha256(make_state(30).params)
  assert state.opt_state is target.opt_state
  assert int(state.step) == 0


def test_subtree_refuses_other_shapes_and_missing_checkpoints(three, tmp_path):
  with pytest.raises(UserError, match=r"'params/net/~/conv/b' is float32\[4\] .* float32\[9\] here"):
    checkpoints.restore_subtree(three, make_state(0, width=9), report=pytest.fail)
  with pytest.raises(UserError, match='No checkpoint under'):
    checkpoints.restore_subtree(tmp_path / 'none', make_state(0), report=pytest.fail)


# Pruning.


def test_prune_keeps_the_newest_good_ones_and_never_less_than_two(directory):
  checkpoints.prune(directory, 3)
  assert checkpoints.steps(directory) == [10, 20, 30]
  checkpoints.prune(directory, 0)
  assert sorted(os.listdir(directory)) == ['20', '30']


def test_prune_does_not_count_damaged_ones(directory):
  save(directory, 40)
  flip(directory / '40' / 'arrays' / '_METADATA', directory)
  flip(directory / '20' / 'arrays' / '_METADATA', directory)
  checkpoints.prune(directory, 2)
  assert checkpoints.steps(directory) == [10, 20, 30, 40]
  save(directory, 40)
  checkpoints.prune(directory, 2)
  assert checkpoints.steps(directory) == [30, 40]
