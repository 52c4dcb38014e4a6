"""Attacking a share of each batch: which images, how many, and what a run says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from adversarial_augment.run import summary
from adversarial_augment.training import builders, train_step
from adversarial_augment.types import AttackResult
from tests import linear_attack, tiny

IMAGES = np.random.default_rng(0).uniform(size=(16, 12, 12, 3)).astype(np.float32)
LABELS = np.arange(16, dtype=np.int32)


def test_a_fraction_is_rounded_down():
  cases = (1.0, 7), (0.5, 8), (0.5, 7), (0.29, 100), (1 / 3, 3), (0.99, 2), (0.49, 2), (1e-9, 64)
  assert [attacks.attacked_images(*case) for case in cases] == [7, 4, 3, 29, 1, 1, 0, 0]


def negative(keys, logits_fn, images, labels, frozen=None):
  """An attack that is easy to see, whose metric says whom it met."""
  return AttackResult(1 - images, {'label': labels, 'key': jax.random.bits(keys[0], (1,)).repeat(len(labels))})


@pytest.mark.parametrize('count', [1, 3, 8, 15])
def test_the_share_alone_is_attacked_and_evenly_spaced(count):
  keys = jax.random.split(jax.random.key(0), 16)
  result = attacks.on_share(negative, count, 16)(keys, None, jnp.asarray(IMAGES), jnp.asarray(LABELS))
  attacked = np.asarray(result.metrics['label'])
  assert attacked.shape == (count,)
  assert set(np.diff(attacked)) <= {16 // count, -(-16 // count)}
  assert result.metrics['key'][0] == jax.random.bits(keys[attacked[0]])
  expected = IMAGES.copy()
  expected[attacked] = 1 - expected[attacked]
  np.testing.assert_array_equal(result.images, expected)


@pytest.mark.parametrize('count', [4, 8, 12])
def test_the_same_images_of_a_batch_are_attacked_on_any_number_of_devices(count):
  found = []
  for num_devices in (1, 2, 4):
    share = attacks.on_share(negative, count // num_devices, 16 // num_devices)
    shards = zip(np.split(IMAGES, num_devices), np.split(LABELS, num_devices), strict=True)
    keys = jax.random.split(jax.random.key(0), 16 // num_devices)
    metrics = [share(keys, None, jnp.asarray(x), jnp.asarray(y)).metrics['label'] for x, y in shards]
    found.append(np.concatenate(metrics).tolist())
  assert found[0] == found[1] == found[2]


def small(tmp_path, **overrides: str) -> dict[str, str]:
  """Overrides with random weights of the smallest EDSR."""
  net = {'blocks': '1', 'features': '4', 'weights': linear_attack.smallest_edsr(tmp_path)}
  return {f'corruption_net__{name}': value for name, value in net.items()} | overrides


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('options', [
  pytest.param({'fraction': '0.5', 'beta_mode': 'group', 'group': '2'}, marks=pytest.mark.slow),
  {'fraction': '0.5', 'beta_mode': 'batch', 'name': 'advmix'},
], ids=str)  # fmt: skip
def test_one_device_gives_what_four_give_in_the_stage_of_the_train_step(tmp_path, options):
  """With batch statistics, which are those of the attacked images of all devices."""
  overrides = small(tmp_path, batch_size='16', **{f'attack__{name}': value for name, value in options.items()})
  found = []
  for num_devices in (1, 4):
    _, recipe, phi, state = tiny.make(num_devices, **overrides)
    keys = jax.random.split(jax.random.key(1), 16)
    corrupt = jax.jit(lambda *arrays, recipe=recipe: train_step.corrupt(recipe, *arrays))
    found.append(jax.device_get(corrupt(keys, *tiny.batch(recipe, 0), state, phi)))
  (one, one_metrics), (four, four_metrics) = found
  np.testing.assert_allclose(one, four, atol=1e-9)
  for name, values in one_metrics.items():
    assert values.shape == (8,), name
    np.testing.assert_allclose(values, four_metrics[name], atol=1e-9, err_msg=name)
  assert one_metrics['attack_loss_end'].sum() > one_metrics['attack_loss_start'].sum()
  keys_before = jax.vmap(lambda key: jax.random.split(key, 3))(keys)[:, 0]
  before = np.asarray(jax.vmap(recipe.before)(keys_before, tiny.batch(recipe, 0)[0].astype(jnp.float64) / 255))
  clean = (np.abs(one[:, 0] - before) < 1e-12).all((1, 2, 3))
  np.testing.assert_array_equal(clean, np.arange(16) % 2 == 0)


@pytest.mark.parametrize('attack, words', [
  ({'fraction': '0.3'}, '=0.3 of the 2 images of each of the 8 devices is less than one image; set at least 0.5'),
  ({'fraction': '0.5', 'beta_mode': 'group', 'group': '2'}, 'group=2 must divide the 1 images'),
  ({'beta_mode': 'group', 'group': '3'}, 'group=3 must divide the 2 images of each of the 8 devices'),
])  # fmt: skip
def test_parts_that_do_not_divide_are_refused(tmp_path, attack, words):
  overrides = {f'attack__{name}': value for name, value in attack.items()}
  with pytest.raises(UserError, match=words) as error:
    tiny.make(8, batch_size='16', **small(tmp_path, **overrides))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('devices, attack, at_a_time', [
  (1, {'microbatch': '16'}, 16),
  (8, {'microbatch': '16'}, 6),  # all of a device
  (4, {'microbatch': '8'}, 6),
  (2, {'microbatch': '16'}, 12),
  (2, {'microbatch': '16', 'beta_mode': 'group', 'group': '8'}, 8),
  (8, {'microbatch': '4', 'fraction': '0.67'}, 4),
])  # fmt: skip
def test_the_most_images_at_a_time_that_divide_those_of_a_device(devices, attack, at_a_time):
  """So one config goes for any number of devices that divides the batch."""
  overrides = {'batch_size': '48', 'attack.batch_norm': 'running'} | {f'attack.{n}': v for n, v in attack.items()}
  config = configs.override(configs.base_config(), overrides)
  configs.validate(config)
  assert builders.training_split(config, devices).at_a_time == at_a_time


@pytest.mark.parametrize('attack, words', [
  ({'group': '4'}, 'config.attack.group=4 must be 1 with config.attack.beta_mode=example'),
  ({'beta_mode': 'batch', 'microbatch': '64', 'batch_norm': 'running'}, 'microbatch=64 cannot go with .*beta_mode=bat'),
  ({'name': 'advmix', 'init': 'uniform'}, 'config.attack.init=uniform cannot go with'),
  ({'fraction': '0'}, 'config.attack.fraction=0.0 must be a number above 0'),
  ({'fraction': '1.5'}, 'config.attack.fraction=1.5 must be a number above 0 and at most 1'),
])  # fmt: skip
def test_fields_that_do_not_go_together_are_refused(attack, words):
  overrides = {f'attack.{name}': value for name, value in attack.items()}
  with pytest.raises(UserError, match=words) as error:
    configs.validate(configs.override(configs.base_config(), overrides))
  assert '\n' not in str(error.value)


def opening(num_devices, **overrides) -> str:
  config, recipe, phi, state = tiny.make(num_devices, **overrides)
  return '\n'.join(summary.opening(config, recipe, {'train': tiny.dataset()}, state, phi))


def test_a_run_says_in_what_it_departs_from_the_paper(tmp_path):
  text = opening(2, **small(tmp_path, batch_size='8'))
  assert 'departs' not in text
  assert ' blocks, nu 0.015, ' in text
  text = opening(2, **small(tmp_path, batch_size='8', attack__fraction='0.5', attack__beta_mode='batch'))
  assert 'departs from Eq. 3: 2 of the 4 images on each device are attacked, the others stay clean' in text
  assert 'departs from Eq. 3: all attacked images of a batch share a perturbation' in text
  assert 'with 2 images under attack at a time' in text
  grouped = {'attack__beta_mode': 'group', 'attack__group': '2', 'attack__name': 'advmix'}
  text = opening(2, **small(tmp_path, batch_size='8', **grouped))
  assert 'departs from Eq. 3: 2 images share a perturbation (attack.beta_mode=group)' in text
  assert 'AdvMix-style, no disentangled generator' in text
  assert 'nu 0' not in text  # it plays no part there
  assert ' parameters in 10 blocks' in text  # those of phi, without the offsets
