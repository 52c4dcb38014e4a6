"""The sharded train step against the one-device oracle in float64, and on 1 and on 8 devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment.training import train_step
from tests import oracle, tiny

NUM_STEPS = 5


def learning_rate(update: int) -> float:
  """Of update 1, 2, ... of the 100 that tiny.py sets: one of warm-up (100 * 5 / 300), then a cosine to 0."""
  return 0.05 * (1 + math.cos(math.pi * (update - 1) / 99))


def largest_difference(a, b) -> float:
  differences = jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x, float) - np.asarray(y, float)))), a, b)
  return max(jax.tree.leaves(differences))


_by_oracle: dict[tuple, tuple] = {}


def by_oracle(key: tuple, made: tuple, num_steps: int, **options) -> tuple:
  """Returns the oracle's last state and the losses of its steps; once for all numbers of devices."""
  if key not in _by_oracle:
    _, recipe, phi, state = made
    end = (0, *jax.device_get((state.params, state.model_state, jax.tree.map(jnp.zeros_like, state.params))))
    step = jax.jit(
        functools.partial(
            oracle.train_step, classifier=recipe.classifier, before=recipe.before, seed=0, momentum=0.9, decay=1e-4,
            **options,
        ),
    )  # fmt: skip
    losses = []
    for index in range(num_steps):
      images, labels = tiny.dataset().read((np.arange(recipe.batch_size) + recipe.batch_size * index) % 64)
      end, *found = step(end, images, labels, jax.device_get(phi), learning_rate(index + 1))
      losses.append([float(loss) for loss in found])
    _by_oracle[key] = end, losses
  return _by_oracle[key]


def assert_equal(end, metrics, expected: tuple) -> None:
  last, losses = expected
  for got, (loss, start, attacked) in zip(metrics, losses, strict=True):
    assert got['loss'] == pytest.approx(loss, abs=1e-9)
    assert got['attack_loss_start'] == pytest.approx(start, abs=1e-9)
    assert got['attack_loss_end'] == pytest.approx(attacked, abs=1e-9)
  assert largest_difference(end.params, last[1]) < 1e-9
  assert largest_difference(end.model_state, last[2]) < 1e-9


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize(
  'num_devices, batch_norm',
  [(8, 'batch'), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 'batch'), (2, 'device')))],
)
def test_five_steps_equal_the_oracle(num_devices, batch_norm):
  made = _, recipe, phi, state = tiny.make(num_devices, attack__batch_norm=batch_norm)
  adversary = functools.partial(oracle.attack, blocks=4, nu=0.015, num_steps=2)
  parts = num_devices if batch_norm == 'device' else 1
  expected = by_oracle(('ada', batch_norm), made, NUM_STEPS, adversary=adversary, parts=parts)
  end, metrics = tiny.run(recipe, phi, state, NUM_STEPS)
  assert_equal(end, metrics, expected)
  assert int(end.step) == NUM_STEPS


@pytest.mark.parametrize(
  'batch_norm, waits', [('batch', True), ('device', False), pytest.param('running', False, marks=pytest.mark.slow)]
)
def test_devices_wait_for_each_other_in_an_attack_with_statistics_of_the_whole_batch_alone(batch_norm, waits):
  _, recipe, phi, state = tiny.make(4, attack__batch_norm=batch_norm)
  corrupt = jax.jit(functools.partial(train_step.corrupt, recipe))
  keys = jax.random.split(jax.random.key(0), 8)
  lowered = corrupt.lower(keys, *tiny.batch(recipe, 0), state, phi)
  text = lowered.compile({'xla_backend_optimization_level': 0}).as_text()  # of the machine code, which is not run
  collectives = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter')
  assert any(name in text for name in collectives) == waits


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_statistics_of_one_device_are_those_of_the_batch():
  ends = []
  for batch_norm in ('batch', 'device'):
    _, recipe, phi, state = tiny.make(1, attack__batch_norm=batch_norm)
    ends.append(tiny.run(recipe, phi, state, 1))
  assert largest_difference(*ends) < 1e-9


LINF = {'attack__name': 'lp', 'attack__norm': 'linf', 'attack__epsilon': '8/255'}
TRADES = LINF | {'attack__trades': '6', 'attack__init': 'gaussian', 'attack__batch_norm': 'running'}


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('options', [LINF, pytest.param(TRADES, marks=pytest.mark.slow)], ids=['linf', 'trades'])
@pytest.mark.parametrize('num_devices', [pytest.param(1, marks=pytest.mark.slow), 8])
def test_steps_of_adversarial_training_equal_the_oracle(num_devices, options):
  made = _, recipe, phi, state = tiny.make(num_devices, **options)
  assert phi == {}
  trades = 6.0 if options is TRADES else 0.0
  adversary = functools.partial(oracle.linf_attack, epsilon=8 / 255, num_steps=2, trades=bool(trades))
  expected = by_oracle(('linf', trades), made, 3, adversary=adversary, local_stats=not trades, trades=trades)
  end, metrics = tiny.run(recipe, phi, state, 3)
  assert_equal(end, metrics, expected)
  for got in metrics:
    assert ('kl' in got) == bool(trades)
    assert got['finite']


@pytest.fixture(scope='module')
def on_two_devices():
  """A recipe, phi, a first state, and the step, which is compiled once for all tests."""
  _, recipe, phi, state = tiny.make(2)
  return recipe, phi, state, train_step.jitted(recipe)


def test_an_update_that_is_not_finite_leaves_the_state_and_so_do_those_after_it(on_two_devices):
  recipe, phi, state, step = on_two_devices
  state = jax.tree.map(jnp.copy, state)  # the step consumes it
  state, _ = step(state, np.int32(0), *tiny.batch(recipe, 0), phi)
  before = jax.device_get(state)
  broken = jax.tree.map(lambda p: p * jnp.nan, phi)  # the adversary's images are no numbers
  state, metrics = step(state, np.int32(1), *tiny.batch(recipe, 1), broken)
  assert not metrics['finite']
  state, metrics = step(state, np.int32(2), *tiny.batch(recipe, 2), phi)  # was on its way already
  assert not metrics['finite']
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
  state, metrics = step(state, np.int32(1), *tiny.batch(recipe, 1), phi)
  assert metrics['finite']
  assert int(state.step) == 2


def test_long_runs_stay_finite(on_two_devices):
  """The square of the number of updates leaves int32 after 46,340 of them; the paper's run has 58,593."""
  recipe, phi, state, step = on_two_devices
  late = lambda x: jax.device_put(jnp.full_like(x, 2**30), x.sharding) if x.dtype == jnp.int32 else jnp.copy(x)
  end, metrics = step(jax.tree.map(late, state), np.int32(2**30), *tiny.batch(recipe, 0), phi)
  assert metrics['finite']
  assert int(end.step) == 2**30 + 1


def test_the_step_is_compiled_once(on_two_devices):
  recipe, phi, state, step = on_two_devices
  state = jax.tree.map(jnp.copy, state)
  for index in range(3):
    state, _ = step(state, np.int32(index), *tiny.batch(recipe, index), phi)
  assert step._cache_size() == 1
  assert int(state.step) == 3
