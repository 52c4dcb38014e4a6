"""Projected gradient ascent on l_p balls (arXiv 1706.06083): iterated signs, normalised gradients or Adam, restarts."""

import math

from adversarial_augment import registry
from adversarial_augment.attacks import losses
from adversarial_augment.attacks.ascent import Loss, ascend
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.lp_ball import lp_ball
from adversarial_augment.attacks.restarts import (
  RestartedAttack,
  attack_result,
  better,
  check_counts,
  restart_keys,
)
from adversarial_augment.attacks.steps import STEPS, StepRule
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PerturbationSet, PyTree

LOSSES = {'cross_entropy': losses.cross_entropy, 'margin': losses.margin, 'dlr': losses.dlr}
STARTS = {'random': 'ball', 'none': 'zero'}  # the `init` of `lp_ball`
DEFAULT_STEPS = {'linf': 'sign', 'l2': 'l2'}


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
    norm: 'linf' or 'l2'.
    epsilon: radius of the ball, for images in [0, 1].
    num_steps: steps of ascent, each followed by a projection.
    step: a name of `attacks.steps.STEPS`; None: 'sign' for linf, 'l2' (normalised gradients) for l2.
    step_size: in units of epsilon. For the rules 'sign', 'adam' and 'sgd', whose steps are per pixel, on an l2 ball:
      of epsilon / sqrt(number of pixels and channels), so that all pixels together move by about step_size * epsilon.
      There, 'sign' and 'adam' are the weaker choices: their fixed points are not those of the ascent.
    restarts: tries, each with keys of its own.
    loss: 'cross_entropy', 'margin' or 'dlr': what is climbed.
    start: 'random' (uniform in the ball) or 'none' (at the image; restarts then repeat each other).

  Returns:
    A `RestartedAttack` with the metrics `success` and `margin`.

  Raises:
    UserError: no ball, an unknown name, or a number out of its range.
  """
  ball = lp_ball(norm, epsilon, init=registry.lookup(STARTS, start, 'start'))
  check_counts('pgd', {'num_steps': num_steps, 'restarts': restarts})
  if not 0 < step_size < math.inf:
    raise UserError(f'step_size={step_size} of attacks.pgd must be a finite number above 0, in units of epsilon.')
  climbed = registry.lookup(LOSSES, loss, 'loss')
  step = DEFAULT_STEPS[norm] if step is None else step
  rule = registry.lookup(STEPS, step, 'attack step')
  per_pixel = norm == 'l2' and step in ('sign', 'adam', 'sgd')

  def make(index: Array | int) -> Attack:
    @fast_in_loops
    def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
      clean = attack_result(logits_fn(images), images, labels)
      size = step_size / math.sqrt(math.prod(images.shape[1:])) if per_pixel else step_size
      found = climb(
        ball, restart_keys(keys, index), logits_fn, images, labels,
        num_steps=num_steps, step=rule, step_size=size, loss=climbed,
      )  # fmt: skip
      return better(clean, found)

    return attack

  return RestartedAttack(restarts, make)


def climb(
  ball: PerturbationSet,
  keys: Key,
  logits_fn: LogitsFn,
  images: Array,
  labels: Array,
  *,
  num_steps: int,
  step: StepRule,
  step_size: float,
  loss: Loss,
) -> AttackResult:
  """Returns what one ascent of a loss finds: of each image, the iterate of the highest margin."""
  ascent = ascend(
    ball, keys, logits_fn, images, labels, None,
    num_steps=num_steps, step=step, step_fraction=step_size, loss=loss, keep_best=True, score=losses.margin,
  )  # fmt: skip
  return attack_result(logits_fn(ascent.images), ascent.images, labels)
