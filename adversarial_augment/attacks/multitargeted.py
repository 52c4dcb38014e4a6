"""MultiTargeted (Gowal et al. 2019, arXiv 1910.09338): ascents of the logit margin to every other class in turn."""

import math

import optax

from adversarial_augment.attacks import losses, steps
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.lp_ball import lp_ball
from adversarial_augment.attacks.pgd import climb
from adversarial_augment.attacks.restarts import (
  RestartedAttack,
  attack_result,
  better,
  check_counts,
  ranked_target,
  restart_keys,
)
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

RULES = {'linf': steps.adam, 'l2': steps.l2}


def multitargeted(
  *,
  norm: str,
  epsilon: float,
  num_targets: int = 9,
  restarts: int = 10,
  num_steps: int = 200,
  learning_rate: float = 3.2,
) -> RestartedAttack:
  """Makes MultiTargeted on an l_p ball: every target, then every target again from another random start.

  Each climbs z_target - z_label from a uniform start in the ball, projected after every step, and keeps the iterate of
  the highest margin: for linf with Adam (b1 .9, b2 .999, eps 1e-9), for l2 with normalised gradients, because Adam's
  steps are near to signs and point away from the farthest point of an l_2 ball. The learning rate falls to a tenth
  after half of the steps, and to a hundredth after three quarters.

  Args:
    norm: 'linf' or 'l2'.
    epsilon: radius of the ball, for images in [0, 1].
    num_targets: targets, in the order of the clean logits; at most the number of classes - 1, which is every other
      class. Of 1000 classes, a few.
    restarts: tries of each target.
    num_steps: steps of each try.
    learning_rate: the first one, in units of epsilon. The group's 0.1 is 3.2 * 8/255; it would step over smaller
      balls until its last quarter. For l2 it is the length of a step.

  Returns:
    A `RestartedAttack` with the metrics `success` and `margin`: num_targets * restarts of them.

  Raises:
    UserError: no ball, a number out of its range, or, when traced, fewer than num_targets + 1 classes.
  """
  ball = lp_ball(norm, epsilon)
  check_counts('multitargeted', {'num_targets': num_targets, 'restarts': restarts, 'num_steps': num_steps})
  if not 0 < learning_rate < math.inf:
    raise UserError(f'learning_rate={learning_rate} of attacks.multitargeted must be a finite number above 0.')

  rule = RULES[norm]

  def decayed(radii: PyTree, size: float) -> optax.GradientTransformation:
    drops = {num_steps // 2: 0.1, num_steps * 3 // 4: 0.1}
    schedule = optax.piecewise_constant_schedule(1.0, drops)
    return optax.chain(rule(radii, size), optax.scale_by_schedule(schedule))

  def make(index: Array | int) -> Attack:
    @fast_in_loops
    def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
      logits = logits_fn(images)
      clean = attack_result(logits, images, labels)
      targets = ranked_target(logits, labels, index % num_targets, num_targets)
      found = climb(
        ball, restart_keys(keys, index), logits_fn, images, labels,
        num_steps=num_steps, step=decayed, step_size=learning_rate,
        loss=lambda logits, labels: losses.targeted_margin(logits, labels, targets),
      )  # fmt: skip
      return better(clean, found)

    return attack

  return RestartedAttack(num_targets * restarts, make)
