"""Which white-box attack is how strong, on a small classifier trained against PGD."""

import functools

import jax
import numpy as np
import pytest

from adversarial_augment import attacks
from tests import patch_classifier

NUM = 512
ALLOWED = 0.005 * NUM  # images


@pytest.mark.slow
@pytest.mark.parametrize('norm, epsilon', [('linf', 1 / 255), ('linf', 8 / 255), ('l2', 0.5)])
def test_targeted_attacks_are_as_strong_as_each_other_and_no_weaker_than_the_rest(norm, epsilon):
  logits_fn = functools.partial(patch_classifier.logits_fn, patch_classifier.trained(0, 'linf', 8 / 255))
  images, labels = patch_classifier.digits('test', NUM)
  keys = jax.random.split(jax.random.key(5), NUM)
  ball = {'norm': norm, 'epsilon': epsilon}

  def num_robust(attack):
    result = jax.jit(lambda keys, images, labels: attack(keys, logits_fn, images, labels))(keys, images, labels)
    return NUM - int(np.asarray(result.metrics['success']).sum())

  targeted = num_robust(attacks.apgd(**ball, loss='targeted'))
  multitargeted = num_robust(attacks.multitargeted(**ball, restarts=1))
  others = {
    'pgd': num_robust(attacks.pgd(**ball)),
    'ce': num_robust(attacks.apgd(**ball)),
    'dlr': num_robust(attacks.apgd(**ball, loss='dlr')),
  }
  assert NUM / 5 < targeted < NUM
  assert abs(targeted - multitargeted) <= ALLOWED
  assert max(targeted, multitargeted) <= min(others.values()) + ALLOWED
  assert others['ce'] <= others['pgd'] + ALLOWED
