"""Projected gradient ascent on l_p balls with restarts, of a loss (PGD, arXiv 1706.06083) or of a margin to each class.

The latter is MultiTargeted (Gowal et al. 2019, arXiv 1910.09338).
"""

import math

import optax

from adversarial_augment import checks
from adversarial_augment.attacks import losses
from adversarial_augment.attacks.ascent import STEPS, Loss, StepRule, ascend
from adversarial_augment.attacks.lp_ball import lp_ball
from adversarial_augment.attacks.restarts import Restart, RestartedAttack, attack_result, check_numbers, restarted
from adversarial_augment.types import AttackResult, PerturbationSet, PyTree

LOSSES = {'cross_entropy': losses.cross_entropy, 'margin': losses.margin, 'dlr': losses.dlr}
STARTS = {'random': 'ball', 'none': 'zero'}  # the `init` of `lp_ball`


def pgd(
  *,
  norm: str,
  epsilon: float,
  num_steps: int = 40,
  step: str | None = None,
  step_size: float = 0.25,
  restarts: int = 1,
  loss: str = 'cross_entropy',
  start: str = 'random',
) -> RestartedAttack:
  """Makes projected gradient ascent on an l_p ball; of each restart, the iterate of the highest margin is kept.

  Args:
    norm, epsilon: the ball, see `lp_ball`.
    num_steps: steps of ascent, each followed by a projection.
    step: a name of `attacks.ascent.STEPS`; None: 'sign' for linf, 'l2' (normalised gradients) for l2.
    step_size: in units of epsilon. For the rules 'sign', 'adam' and 'sgd', whose steps are per pixel, on an l2 ball:
      of epsilon / sqrt(number of pixels and channels), so that all pixels together move by about step_size * epsilon.
      There, 'sign' and 'adam' are the weaker choices: their fixed points are not those of the ascent.
    restarts: tries, each with keys of its own.
    loss: the loss that is maximised, 'cross_entropy', 'margin' or 'dlr'.
    start: 'random' (uniform in the ball) or 'none' (at the image; restarts then repeat each other).
  """
  ball = lp_ball(norm, epsilon, init=checks.lookup(STARTS, start, 'start'))
  check_numbers('pgd', {'num_steps': num_steps, 'restarts': restarts}, {'step_size': step_size})
  maximised = checks.lookup(LOSSES, loss, 'loss')
  step = {'linf': 'sign', 'l2': 'l2'}[norm] if step is None else step
  rule = checks.lookup(STEPS, step, 'attack step')
  per_pixel = norm == 'l2' and step in ('sign', 'adam', 'sgd')

  def search(given: Restart) -> AttackResult:
    size = step_size / math.sqrt(math.prod(given.images.shape[1:])) if per_pixel else step_size
    return _climb(ball, given, num_steps, rule, size, maximised)

  return restarted(search, restarts)


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
    norm, epsilon: the ball, see `lp_ball`.
    num_targets: targets, in the order of the clean logits; at most the number of classes - 1, which is every other
      class. Of 1000 classes, a few.
    restarts: tries of each target.
    num_steps: steps of each try.
    learning_rate: the first one, in units of epsilon. The group's 0.1 is 3.2 * 8/255; it would step over smaller
      balls until its last quarter. For l2 it is the length of a step.
  """
  ball = lp_ball(norm, epsilon)
  counts = {'num_targets': num_targets, 'restarts': restarts, 'num_steps': num_steps}
  check_numbers('multitargeted', counts, {'learning_rate': learning_rate})
  rule = STEPS[{'linf': 'adam', 'l2': 'l2'}[norm]]

  def decayed(radii: PyTree, size: float) -> optax.GradientTransformation:
    drops = {num_steps // 2: 0.1, num_steps * 3 // 4: 0.1}
    schedule = optax.piecewise_constant_schedule(1.0, drops)
    return optax.chain(rule(radii, size), optax.scale_by_schedule(schedule))

  def search(given: Restart) -> AttackResult:
    loss = lambda logits, labels: losses.targeted_margin(logits, labels, given.targets)
    return _climb(ball, given, num_steps, decayed, learning_rate, loss)

  return restarted(search, restarts, num_targets)


def _climb(
  ball: PerturbationSet, given: Restart, num_steps: int, step: StepRule, step_size: float, loss: Loss
) -> AttackResult:
  """Returns what one ascent of a loss finds: of each image, the iterate of the highest margin."""
  ascent = ascend(
    ball, given.keys, given.logits_fn, given.images, given.labels, None,
    num_steps=num_steps, step=step, step_fraction=step_size, loss=loss, keep_best=True, score=losses.margin,
  )  # fmt: skip
  return attack_result(given.logits_fn(ascent.images), ascent.images, given.labels)
