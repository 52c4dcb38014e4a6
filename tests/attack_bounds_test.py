"""10,000 images through every attack and both norms: each within the ball and the box, whatever it was before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment.datasets import embedded
from tests import boxed_linear
from tests.lp_ball_test import assert_within, distances

NUM = 715  # for each attack and norm
SHAPE = (32, 32, 3)  # as CIFAR-10: the rounding of an l_2 norm grows with the number of pixels
EPSILONS = {'linf': (0.3 / 255, 8 / 255), 'l2': (0.02, 1.0)}
ATTACKS = {
  'pgd': functools.partial(attacks.pgd, num_steps=8, restarts=2),
  'apgd-ce': functools.partial(attacks.apgd, loss='ce', num_steps=12),
  'apgd-dlr': functools.partial(attacks.apgd, loss='dlr', num_steps=12),
  'apgd-t': functools.partial(attacks.apgd, loss='targeted', num_steps=8, num_targets=2),
  'fab': functools.partial(attacks.fab, num_steps=8, num_targets=2, restarts=2),
  'square': functools.partial(attacks.square, num_queries=60),
  'multitargeted': functools.partial(attacks.multitargeted, num_steps=8, num_targets=2, restarts=1),
}
WEIGHTS = np.float32(np.random.default_rng(0).normal(size=(5, *SHAPE)))


def logits_fn(images):
  """Five classes whose boundaries are no planes."""
  scores = lambda x: jnp.einsum('nhwc,khwc->nk', x, WEIGHTS) / 20
  return jnp.sin(3 * scores(jnp.sin(5 * images))) + scores(images)


def every_kind(number: int, seed: int) -> np.ndarray:
  """Returns as many images: digits, digits of much contrast, noise, black and white, and constant ones of any level."""
  rng = np.random.default_rng(seed)
  digits = embedded.load('test').read(rng.integers(2000, size=number)).images / 255
  levels = rng.choice([0, 1, 0.5, 1e-9, 1 - 2**-24, 1 / 255, *rng.integers(256, size=20) / 255], size=number)
  kinds = (
    digits,
    np.clip(3 * digits - 1, 0, 1),
    rng.uniform(size=(number, *SHAPE)),
    rng.integers(0, 2, size=(number, *SHAPE)),
    np.broadcast_to(levels.reshape(-1, 1, 1, 1), (number, *SHAPE)),
  )
  return np.float32(np.choose((np.arange(number) % len(kinds)).reshape(-1, 1, 1, 1), kinds))


@pytest.mark.slow
@pytest.mark.parametrize('norm', list(EPSILONS))
@pytest.mark.parametrize('name', list(ATTACKS))
def test_every_image_of_every_attack_is_within_the_bounds(name, norm):
  """Together 10,010 images; a third of the labels is wrong from the start."""
  images = every_kind(NUM, seed=len(name))
  labels = np.asarray(logits_fn(images)).argmax(1)
  labels = np.where(np.arange(NUM) % 3 == 0, np.arange(NUM) % 5, labels)
  radius_of = np.arange(NUM) % 2
  for which, epsilon in enumerate(EPSILONS[norm]):
    chosen = radius_of == which
    attack = ATTACKS[name](norm=norm, epsilon=epsilon)
    run = jax.jit(lambda keys, x, y, attack=attack: attack(keys, logits_fn, x, y))
    result = run(boxed_linear.keys(int(chosen.sum())), images[chosen], labels[chosen])
    assert_within(norm, epsilon, images[chosen], result.images)
    moved = distances(norm, images[chosen], result.images) / epsilon
    print(f'{name} {norm} {epsilon:.4g}: {np.mean(moved > 0):.0%} moved, by up to {moved.max():.7f} epsilon')
    assert np.mean(moved > 0) > 0.3
