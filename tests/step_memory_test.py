"""The estimate of the attack's memory, beside what compilers said of the whole step (`plan`: memory of a device)."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest

from adversarial_augment import attacks, corruption_nets
from adversarial_augment import config as configs
from adversarial_augment.parallel import platforms
from adversarial_augment.training import recipe as recipes
from adversarial_augment.training import step_memory, train_step
from adversarial_augment.types import Dataset
from tests import tiny, trainer

# GB. JAX 0.10.2, libtpu 0.0.42.1, jax-cuda13-plugin 0.10.2.
# python -m adversarial_augment.plan --config=CONFIG --topology=h100
PARTS = {'attack.batch_norm': 'running', 'attack.microbatch': '8'}
RECORDED = [
  ('gpu', 'configs/ada_edsr.py', 256, {}, 8.88),
  ('gpu', 'configs/ada_edsr.py', 256, {'precision': 'bfloat16'}, 5.68),
  ('gpu', 'configs/ada_edsr.py', 256, PARTS, 6.29),  # the update takes more than the attack
  ('gpu', 'configs/ada_edsr.py:laptop', 64, {}, 0.112),
  ('tpu', 'configs/ada_edsr.py', 32, {}, 2.45),  # a device of v5e:2x4
  ('tpu', 'configs/ada_edsr.py:laptop', 64, {}, 0.270),  # v5e:1x1
  ('tpu', 'configs/ada_edsr.py:laptop', 32, {}, 0.183),  # a device of v4:1x1x1
]


@pytest.mark.parametrize('platform, name, images, values, said', RECORDED)
def test_the_estimate_is_within_a_quarter_of_the_compiler_s(platform, name, images, values, said, monkeypatch):
  monkeypatch.chdir(trainer.ROOT)
  monkeypatch.setattr(platforms, 'of', lambda mesh: platform)
  config = configs.override(configs.load(name), {'batch_size': str(images)} | values)
  dataset = Dataset('cifar10', 50_000, 10, (32, 32, 3), None, {})
  recipe, phi = recipes.build(config, dataset, tiny.make_mesh(1))
  state = jax.eval_shape(lambda: train_step.init_state(recipe, dataset.image_shape))
  needed = step_memory.estimate(config, recipe, state, phi, dataset.image_shape)
  assert needed / 1e9 == pytest.approx(said, rel=0.25)


@pytest.mark.parametrize(
  'shape, numbers',
  [
    ((32, 32, 32, 64), 32 * 32 * 32 * 128),
    ((2, 32, 32, 3), 2 * 3 * 32 * 128),
    ((64, 32, 32, 16), 128 * 32 * 32 * 16),  # the images along the lanes
    ((16, 8, 128), 16 * 8 * 128),
    ((10,), 8 * 128),
    ((), 8 * 128),
  ],
)
def test_a_tpu_pads_to_whole_registers(shape, numbers, monkeypatch):
  monkeypatch.setattr(platforms, 'current', lambda: 'tpu')
  assert step_memory._numbers(shape) == numbers
  monkeypatch.setattr(platforms, 'current', lambda: 'gpu')
  assert step_memory._numbers(shape) == math.prod(shape)


def test_what_a_backward_pass_keeps(monkeypatch):
  """By hand: of exp(3 * x) @ w, the exponential and w; of its transpose and its multiple, nothing more."""
  monkeypatch.setattr(platforms, 'current', lambda: 'cpu')
  x, w = jnp.ones((4, 8)), jnp.ones((8, 2))
  kept = lambda function, dtype='float32': step_memory.kept_bytes(function, x, w, dtype=dtype)
  assert kept(lambda x, w: (jnp.exp(3 * x) @ w).sum()) == 4 * (4 * 8 + 8 * 2)
  assert kept(lambda x, w: (jnp.exp(3 * x) @ w).sum(), 'bfloat16') == 2 * (4 * 8 + 8 * 2)
  assert kept(lambda x, w: ((2 * x).T.reshape(-1) * x.reshape(-1)).sum()) == 4 * 4 * 8


def test_activations_in_half_precision_take_half(monkeypatch):
  """What does not depend on it: beta, one copy on a GPU."""
  monkeypatch.chdir(trainer.ROOT)
  network, phi = corruption_nets.load('edsr', 'edsr_4x16_x1')
  ball = attacks.weight_ball(network.apply, nu=0.015)
  logits_fn = lambda images: images.reshape(len(images), -1)
  monkeypatch.setattr(platforms, 'current', lambda: 'gpu')
  bytes_of = lambda dtype: step_memory.attack_bytes(ball, phi, logits_fn, (32, 32, 3), 4, dtype=dtype)
  beta = 4 * 4 * optax.tree.size(phi)
  whole, half = bytes_of('float32') - beta, bytes_of('bfloat16') - beta
  assert 0.5 * whole <= half < 0.6 * whole  # masks have a byte in both
