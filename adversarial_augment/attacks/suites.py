"""The sequences of attacks that robust accuracies are stated against; an image must withstand all of them."""

from collections.abc import Callable, Sequence
import math
from typing import Any

from adversarial_augment import registry
from adversarial_augment.attacks.apgd import apgd
from adversarial_augment.attacks.fab import fab
from adversarial_augment.attacks.lp_ball import check_ball
from adversarial_augment.attacks.multitargeted import multitargeted
from adversarial_augment.attacks.pgd import pgd
from adversarial_augment.attacks.square import square
from adversarial_augment.attacks.suite_runner import Stage
from adversarial_augment.errors import UserError

_TARGETS = 9  # the most likely wrong classes, at most
_LONGER_TARGETS = 3
_QUERIES = 1000  # of Square beside a suite that has none
_DLR_CLASSES, _TARGETED_DLR_CLASSES = 3, 4  # whose logits the losses divide by


def stages(suite: str, *, norm: str, epsilon: float, num_classes: int) -> tuple[Stage, ...]:
  """Returns the attacks of a suite, in order.

  - `autoattack`: the standard AutoAttack (Croce and Hein 2020, arXiv 2003.01690): APGD on the cross-entropy, 100 steps;
    APGD on the targeted DLR loss and FAB-T (arXiv 1907.02044), each at the 9 most likely wrong classes; Square (arXiv
    1912.00049), 5000 queries.
  - `autoattack_plus`: its stronger version, with APGD on the DLR loss besides, 5 restarts of both and of FAB-T. The
    reference's has FAB untargeted with 5 restarts, and FAB-T with one.
  - `paper`: "AutoAttack & MultiTargeted" of arXiv 2104.01086, which says no more. Read as the sequence that its authors
    give elsewhere: APGD on the cross-entropy and on the DLR loss, 5 restarts of 100 steps each; MultiTargeted (arXiv
    1910.09338) on margins, 20 restarts of 200 steps; Square, 5000 queries. FAB is no part of it.
  - `multitargeted`: that MultiTargeted alone.
  - `pgd`: projected gradient ascent on the cross-entropy (arXiv 1706.06083), 5 restarts of 40 steps.

  The DLR loss divides by differences of the third largest logit, the targeted one by those of the fourth: with fewer
  classes than that, their stages are left out, which `left_out` names.

  Args:
    suite: its name.
    norm: 'linf' or 'l2'.
    epsilon: radius of the ball.
    num_classes: of the classifier, at least 2.

  Raises:
    UserError: an unknown suite, no ball (see `lp_ball.check_ball`), or fewer than 2 classes.
  """
  table = registry.lookup(SUITES, suite, 'attack')
  epsilon = check_ball(norm, epsilon)
  if num_classes < 2:
    raise UserError(f'num_classes={num_classes} must be at least 2: an attack needs a class to aim at.')
  return tuple(
    Stage(name, _ATTACKS[name](norm, epsilon, num_classes, restarts))
    for name, restarts in table.items()
    if num_classes >= _NEEDS.get(name, 2)
  )


def left_out(suite: str, num_classes: int) -> tuple[str, ...]:
  """Returns the stages of a suite that need more classes."""
  return tuple(name for name in SUITES[suite] if num_classes < _NEEDS.get(name, 2))


def longer(suite: str, *, norm: str, epsilon: float, num_classes: int) -> Stage:
  """Returns an attack of more steps than those of a suite: where it breaks what they left, they had not converged."""
  ball: dict[str, Any] = {'norm': norm, 'epsilon': epsilon}
  targets = min(_LONGER_TARGETS, num_classes - 1)
  if suite == 'pgd':
    attack = pgd(**ball, num_steps=200)
  elif 'multitargeted' in SUITES[suite]:
    attack = multitargeted(**ball, num_steps=400, restarts=1, num_targets=targets)
  elif num_classes < _TARGETED_DLR_CLASSES:
    attack = apgd(**ball, loss='ce', num_steps=200, restarts=_LONGER_TARGETS)
  else:
    attack = apgd(**ball, loss='targeted', num_steps=200, num_targets=targets)
  return Stage('longer', attack)


def black_box(suite: str, *, norm: str, epsilon: float) -> Stage | None:
  """Returns Square, for a suite that does without: it sees no gradients, so that nothing can hide them from it."""
  if 'square' in SUITES[suite]:
    return None
  return Stage('square', square(norm=norm, epsilon=epsilon, num_queries=_QUERIES))


def transfer(norm: str, epsilon: float) -> Stage:
  """Returns an attack whose images are to fool other classifiers too: it goes on beyond the boundary."""
  return Stage('transfer', pgd(norm=norm, epsilon=epsilon, num_steps=100, loss='margin'))


def far(norm: str, image_shape: Sequence[int]) -> tuple[float, Stage]:
  """Returns a radius within which every image can become any other, and an attack within it."""
  epsilon = 1.0 if norm == 'linf' else math.sqrt(math.prod(image_shape))
  return epsilon, Stage('far', apgd(norm=norm, epsilon=epsilon, loss='ce', num_steps=100, restarts=2))


def _targets(num_classes: int) -> int:
  return min(_TARGETS, num_classes - 1)


# Stage -> (norm, epsilon, num_classes, restarts) -> its attack.
_ATTACKS: dict[str, Callable] = {
  'pgd': lambda norm, epsilon, _, restarts: pgd(norm=norm, epsilon=epsilon, num_steps=40, restarts=restarts),
  'apgd-ce': lambda norm, epsilon, _, restarts: apgd(
    norm=norm, epsilon=epsilon, loss='ce', num_steps=100, restarts=restarts
  ),
  'apgd-dlr': lambda norm, epsilon, _, restarts: apgd(
    norm=norm, epsilon=epsilon, loss='dlr', num_steps=100, restarts=restarts
  ),
  'apgd-t': lambda norm, epsilon, classes, restarts: apgd(
    norm=norm, epsilon=epsilon, loss='targeted', num_steps=100, restarts=restarts, num_targets=_targets(classes)
  ),
  'fab-t': lambda norm, epsilon, classes, restarts: fab(
    norm=norm, epsilon=epsilon, num_steps=100, restarts=restarts, num_targets=_targets(classes)
  ),
  'multitargeted': lambda norm, epsilon, classes, restarts: multitargeted(
    norm=norm, epsilon=epsilon, num_steps=200, restarts=restarts, num_targets=_targets(classes)
  ),
  'square': lambda norm, epsilon, _, restarts: square(
    norm=norm, epsilon=epsilon, num_queries=5000, restarts=restarts
  ),
}  # fmt: skip
_NEEDS = {'apgd-dlr': _DLR_CLASSES, 'apgd-t': _TARGETED_DLR_CLASSES}

# Suite -> stage -> restarts.
SUITES: dict[str, dict[str, int]] = {
  'pgd': {'pgd': 5},
  'multitargeted': {'multitargeted': 20},
  'autoattack': {'apgd-ce': 1, 'apgd-t': 1, 'fab-t': 1, 'square': 1},
  'autoattack_plus': {'apgd-ce': 5, 'apgd-dlr': 5, 'apgd-t': 1, 'fab-t': 5, 'square': 1},
  'paper': {'apgd-ce': 5, 'apgd-dlr': 5, 'multitargeted': 20, 'square': 1},
}
