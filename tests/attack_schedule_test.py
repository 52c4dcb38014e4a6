"""Which steps of a run have the adversary, and with what radius."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from adversarial_augment.exporting import card
from adversarial_augment.run import train_job
from adversarial_augment.training import train_step
from tests import tiny

pytestmark = pytest.mark.usefixtures('quick_compile')


def params_after(num_steps, **overrides):
  _, recipe, phi, state = tiny.make(**{'attack__nu': '0.1', **overrides})
  return tiny.run(recipe, phi, state, num_steps)


def one_step(recipe, phi, state, index):
  step = jax.jit(functools.partial(train_step.train_step, recipe))
  return step(state, np.int32(index), *tiny.batch(recipe, index), phi)


def assert_same(one, other):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one.params, other.params)


def test_every_third_step_after_the_warm_up_is_attacked():
  _, recipe, phi, state = tiny.make(attack__every='3', attack__warmup_epochs='2', num_epochs='100')
  assert recipe.warmup_steps == 2
  assert [step for step in range(10) if recipe.is_attacked(step)] == [4, 7]
  _, metrics = tiny.run(recipe, phi, state, 6)
  assert [one['attack_loss_end'] > 0 for one in metrics] == [False, False, False, False, True, False]
  lines = [train_job.log_line(recipe, tiny.dataset(), step + 1, one) for step, one in enumerate(metrics)]
  assert [line['attack_loss_end'] is None for line in lines] == [True, True, True, True, False, True]


@pytest.mark.slow
def test_the_steps_before_are_nominal():
  first, _ = params_after(1, attack__name='none')
  second, _ = params_after(2, attack__every='2')
  _, recipe, phi, _ = tiny.make(attack__nu='0.1')
  assert_same(second, one_step(recipe, phi, first, 1)[0])
  _, recipe, phi, _ = tiny.make(attack__name='none')
  with pytest.raises(AssertionError):
    assert_same(second, one_step(recipe, phi, first, 1)[0])


@pytest.mark.slow
def test_a_growing_radius_is_a_share_of_the_whole_one():
  grown, metrics = params_after(1, attack__growth_epochs='4', num_epochs='100')  # of 100 steps
  quarter, plain = params_after(1, attack__nu='0.025', num_epochs='100')
  assert_same(grown, quarter)
  np.testing.assert_allclose(metrics[0]['attack_loss_end'], plain[0]['attack_loss_end'], rtol=1e-4)


@pytest.mark.slow
def test_a_radius_stays_where_it_has_grown_to():
  _, recipe, phi, state = tiny.make(attack__growth_epochs='2', num_epochs='100')
  _, same, _, _ = tiny.make(num_epochs='100')
  assert recipe.growth_steps == 2
  state = state._replace(step=jnp.int32(7))
  assert_same(one_step(recipe, phi, state, 7)[0], one_step(same, phi, state, 7)[0])


@pytest.mark.slow
def test_a_radius_grows_after_the_warm_up():
  fields = {'attack__warmup_epochs': '3', 'attack__growth_epochs': '4', 'attack__every': '2', 'num_epochs': '100'}
  _, recipe, phi, state = tiny.make(attack__nu='0.1', **fields)
  _, half, _, _ = tiny.make(attack__nu='0.05', num_epochs='100')
  assert [step for step in range(9) if recipe.is_attacked(step)] == [4, 6, 8]
  state = state._replace(step=jnp.int32(4))  # as a run that resumes there
  assert_same(one_step(recipe, phi, state, 4)[0], one_step(half, phi, state, 4)[0])


@pytest.mark.slow
def test_one_and_two_devices_make_the_same_steps():
  fields = {'attack__every': '2', 'attack__fraction': '0.5', 'attack__moved': 'last_third', 'num_epochs': '100'}
  fields |= {'attack__growth_epochs': '4', 'attack__nu': '0.1', 'attack__measure_end': 'false'}
  with jax.enable_x64(True):
    found = []
    for devices in (1, 2):
      _, recipe, phi, state = tiny.make(devices, **fields)
      found.append(tiny.run(recipe, phi, state, 4)[0])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found[0].params, found[1].params)


def test_a_run_without_an_attacked_step_is_refused():
  with pytest.raises(UserError, match='every=99 leaves none of 98 steps for the adversary; set at most 98'):
    tiny.make(attack__every='99', attack__warmup_epochs='2', num_epochs='100')
  assert tiny.make(attack__every='98', attack__warmup_epochs='2', num_epochs='100')[1].is_attacked(99)


def test_a_growth_of_less_than_a_step_is_one_step():
  _, recipe, _, _ = tiny.make(attack__growth_epochs='0.5')  # of 300 epochs in 100 steps
  assert recipe.growth_steps == 1


def test_without_the_loss_at_the_end_an_update_is_the_same():
  found = []
  for measured in ('true', 'false'):
    _, recipe, phi, state = tiny.make(attack__measure_end=measured)
    found.append(one_step(recipe, phi, state, 0))
  (state, metrics), (same, fewer) = found
  assert_same(state, same)
  assert metrics.keys() - fewer.keys() == {'attack_loss_end'}
  assert fewer['attack_loss_start'] == pytest.approx(float(metrics['attack_loss_start']), rel=1e-5)


def test_a_card_says_in_what_an_adversary_is_cheaper():
  fields = {'attack.moved': 'tail', 'attack.every': '4', 'attack.fraction': '0.25', 'attack.growth_epochs': '3'}
  config = configs.override(configs.base_config(), fields)
  told = 'in a cheaper form: moves tail, at one of 4 steps, on 0.25 of the images, of a growing radius'
  assert card.title(config).endswith(f'with AdversarialAugment (arXiv 2104.01086), {told}')
  assert card.title(configs.base_config()).endswith('with AdversarialAugment (arXiv 2104.01086)')


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'attack.every': '0'}, 'attack.every=.*0.* must be'),
    ({'attack.moved': 'half'}, "attack.moved='half'"),
    ({'attack.growth_epochs': '400'}, 'growth_epochs=400.0 must end within config.num_epochs=300.0; lower it, for'),
    (
      {'attack.growth_epochs': '3', 'attack.name': 'lp', 'attack.norm': 'linf', 'attack.epsilon': '8/255'},
      'growth_epochs=3.0 cannot go with config.attack.name=lp, but only with ada; set .*growth_epochs=0.0, or',
    ),
    ({'attack.every': '2', 'attack.name': 'rlat', 'attack.epsilon': '0.08'}, 'every=2 cannot go with .*rlat.*every=1'),
    (
      {'attack.measure_end': 'false', 'attack.name': 'none'},
      'measure_end=false cannot go with .*name=none, but only with ada, advmix or lp; set .*measure_end=true, or',
    ),
  ],
)
def test_what_does_not_go_together_is_refused(fields, said):
  with pytest.raises(UserError, match=said):
    configs.validate(configs.override(configs.base_config(), fields))
