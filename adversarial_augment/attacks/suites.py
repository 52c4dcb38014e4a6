"""AutoAttack and its kin: sequences of attacks that robust accuracies are stated against; images must withstand all."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import checks, threefry
from adversarial_augment.attacks import inputs, suite_runner
from adversarial_augment.attacks.apgd import apgd
from adversarial_augment.attacks.fab import fab
from adversarial_augment.attacks.feature_distance import Distance
from adversarial_augment.attacks.lp_ball import check_ball
from adversarial_augment.attacks.perceptual import restarted_perceptual
from adversarial_augment.attacks.pgd import multitargeted, pgd
from adversarial_augment.attacks.restarts import attack_result, check_numbers
from adversarial_augment.attacks.square import square
from adversarial_augment.attacks.suite_runner import Stage
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

_VERSIONS = {'standard': 'autoattack', 'plus': 'autoattack_plus'}
_PROBED = 8  # images whose logits tell whether the compiled function is still the given one

_TARGETS = 9  # the most likely wrong classes, at most
_LONGER_TARGETS = 3
_FARTHEST = 10.0  # beyond any distance of features: of five layers it is at most 2 sqrt(5)
_QUERIES = 1000  # of Square beside a suite that has none

# Steps and queries are those of their defaults.
_ATTACKS: dict[str, Callable] = {
  'pgd': pgd,
  'apgd-ce': apgd,
  'apgd-dlr': functools.partial(apgd, loss='dlr'),
  'apgd-t': functools.partial(apgd, loss='targeted'),
  'fab-t': fab,
  'multitargeted': multitargeted,
  'square': square,
}
_PERCEPTUAL: dict[str, dict[str, Any]] = {
  'lpa': {'method': 'lpa'},
  'ppgd': {'method': 'ppgd'},
  'ppgd-200': {'method': 'ppgd', 'num_steps': 200},
}
_TARGETED = ('apgd-t', 'fab-t', 'multitargeted')
_CLASSES = {'apgd-dlr': 3, 'apgd-t': 4}  # whose logits the losses divide by; others need 2

DistanceOf = Callable[[PyTree], Distance | str]  # `frozen` -> see `perceptual`

# Suite -> stage -> restarts.
SUITES: dict[str, dict[str, int]] = {
  'pgd': {'pgd': 5},
  'multitargeted': {'multitargeted': 20},
  'autoattack': {'apgd-ce': 1, 'apgd-t': 1, 'fab-t': 1, 'square': 1},
  'autoattack_plus': {'apgd-ce': 5, 'apgd-dlr': 5, 'apgd-t': 1, 'fab-t': 5, 'square': 1},
  'paper': {'apgd-ce': 5, 'apgd-dlr': 5, 'multitargeted': 20, 'square': 1},
  'perceptual': {'lpa': 1, 'ppgd': 1, 'ppgd-200': 2},
}


def autoattack(*, norm: str, epsilon: float, version: str = 'standard', batch_size: int = 128) -> Attack:
  """Makes AutoAttack: APGD on the cross-entropy, targeted APGD, targeted FAB, and Square, each on the survivors.

    attack = attacks.autoattack(norm='linf', epsilon=8 / 255)
    result = attack(jax.random.split(jax.random.key(0), len(images)), logits_fn, images, labels)
    robust_accuracy = 1 - result.metrics['success'].mean()

  Unlike the other attacks it runs from the host, so that images that are broken cost nothing more, and cannot be called
  under jit. `logits_fn` is compiled once for each of two batch sizes and stage; pass the same function again to reuse
  that. Every call asks it anew for the logits of a few images: where they differ, because weights that it closes over
  have changed, all is compiled again. It must treat each image by itself; `attacks.validity` tells whether it does, and
  whether the outcome means something.

  Args:
    norm, epsilon: the ball, see `lp_ball`.
    version: 'standard' or 'plus', see `suites.stages`.
    batch_size: images attacked at once.

  Returns:
    An `Attack`, of images [n, h, w, c] and integer labels [n], NumPy's or JAX's. Besides `success` and `margin` its
    metrics have `stage` [n], the number of the stage that broke an image: 0 none was needed, -1 it is not broken. It
    raises a UserError for images outside [0, 1], out-of-range labels, and logits of another shape than [n, k].
  """
  suite = checks.lookup(_VERSIONS, version, 'version')
  epsilon = check_ball(norm, epsilon)
  check_numbers('autoattack', {'batch_size': batch_size})
  last: _Compiled | None = None
  # Made once, because compiled programs are found by the functions of a stage.
  stages_of = functools.cache(lambda num_classes: stages(suite, norm=norm, epsilon=epsilon, num_classes=num_classes))

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    nonlocal last
    if any(isinstance(x, jax.core.Tracer) for x in (keys, images, labels)):
      raise UserError(
        'autoattack runs from the host and cannot be traced; call it outside of jit, grad and vmap, or use '
        'attacks.apgd, fab and square, which can.'
      )
    clean, classes = np.asarray(images), np.asarray(labels)
    steps = stages_of(inputs.check(keys, logits_fn, clean, classes))
    keys = threefry.own(keys)
    clean = np.asarray(jnp.asarray(clean))  # JAX takes float64 for float32, unless 64 bits are on
    problem = suite_runner.Problem(clean, classes.astype(np.int32), norm, epsilon)
    last = compiled = _compile(logits_fn, clean, last)

    def attack_part(index: int, inner: int, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
      found, taken = compiled.attack_batch(
        steps[index].attack.make, np.int32(index), np.int32(inner), keys[part], clean[part], problem.labels[part]
      )
      return np.asarray(found), np.asarray(taken)

    margins = lambda images, labels: np.asarray(compiled.margins(images, labels))
    programs = suite_runner.Programs(attack_part, margins, min(batch_size, len(clean)))
    found = suite_runner.start(problem, programs, len(steps))
    for _ in suite_runner.run(problem, programs, steps, found):
      pass
    broken = found.broken_in < suite_runner.ALIVE
    ends = np.cumsum([stage.attack.number for stage in steps])
    stage = np.where(found.broken_in > 0, np.searchsorted(ends, found.broken_in) + 1, 0)
    metrics = {'success': broken, 'margin': found.margins, 'stage': np.where(broken, stage, -1)}
    return AttackResult(jnp.asarray(found.images), {name: jnp.asarray(value) for name, value in metrics.items()})

  return attack


class _Compiled(NamedTuple):
  """The compiled programs of one function; values that it closes over, such as weights, are their constants."""

  logits_fn: LogitsFn
  logits: Callable[[np.ndarray], Array]
  attack_batch: Callable
  margins: Callable[[np.ndarray, np.ndarray], Array]


def _compile(logits_fn: LogitsFn, images: np.ndarray, known: _Compiled | None) -> _Compiled:
  """Returns the compiled programs of `logits_fn`: the known ones where they still compute the same, else new ones."""
  logits = jax.jit(lambda images: logits_fn(images))  # another function for JAX, which remembers those that it knows
  few = suite_runner.padded(images[:_PROBED], _PROBED)
  if known and known.logits_fn is logits_fn and np.array_equal(known.logits(few), logits(few), equal_nan=True):
    return known
  logits(few)  # traced now, as what follows is

  @functools.partial(jax.jit, static_argnums=0)
  def attack_batch(make, index, inner, keys, images, labels):
    keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
    result = make(inner)(keys, logits_fn, images, labels)
    return result.images, result.metrics['success']

  @jax.jit
  def margins(images, labels):
    return attack_result(logits_fn(images), images, labels).metrics['margin']

  return _Compiled(logits_fn, logits, attack_batch, margins)


def stages(
  suite: str, *, norm: str, epsilon: float, num_classes: int, distance: DistanceOf | None = None
) -> tuple[Stage, ...]:
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
  - `perceptual`: LPA and PPGD (arXiv 2006.12655), 40 steps each as published, then PPGD of 200 steps, 2 restarts,
    in a ball of `distance`; `norm` is not used.

  The DLR loss divides by differences of the third largest logit, the targeted one by those of the fourth: with fewer
  classes than that, their stages are left out, which `left_out` names.
  """
  table = checks.lookup(SUITES, suite, 'attack')
  if distance is None:
    epsilon = check_ball(norm, epsilon)
  if num_classes < 2:
    raise UserError(f'num_classes={num_classes} must be at least 2: an attack needs a class to aim at.')

  def made(name: str, restarts: int) -> Stage:
    if distance is not None:
      search = restarted_perceptual(distance=distance, epsilon=epsilon, restarts=restarts, **_PERCEPTUAL[name])
      return Stage(name, search)
    targets = {'num_targets': min(_TARGETS, num_classes - 1)} if name in _TARGETED else {}
    return Stage(name, _ATTACKS[name](norm=norm, epsilon=epsilon, restarts=restarts, **targets))

  return tuple(made(name, table[name]) for name in table if name not in left_out(suite, num_classes))


def left_out(suite: str, num_classes: int) -> tuple[str, ...]:
  """Returns the stages of a suite that need more classes."""
  return tuple(name for name in SUITES[suite] if num_classes < _CLASSES.get(name, 2))


def longer(suite: str, *, norm: str, epsilon: float, num_classes: int, distance: DistanceOf | None = None) -> Stage:
  """Returns an attack of more steps than those of a suite: where it breaks what they left, they had not converged."""
  if distance is not None:
    return Stage('longer', restarted_perceptual(distance=distance, epsilon=epsilon, method='ppgd', num_steps=400))
  ball: dict[str, Any] = {'norm': norm, 'epsilon': epsilon}
  targets = min(_LONGER_TARGETS, num_classes - 1)
  if suite == 'pgd':
    attack = pgd(**ball, num_steps=200)
  elif 'multitargeted' in SUITES[suite]:
    attack = multitargeted(**ball, num_steps=400, restarts=1, num_targets=targets)
  elif num_classes < _CLASSES['apgd-t']:
    attack = apgd(**ball, num_steps=200, restarts=_LONGER_TARGETS)
  else:
    attack = apgd(**ball, loss='targeted', num_steps=200, num_targets=targets)
  return Stage('longer', attack)


def black_box(suite: str, *, norm: str, epsilon: float) -> Stage | None:
  """Returns Square, for a suite that does without: it sees no gradients, so that nothing can hide them from it."""
  if 'square' in SUITES[suite] or suite == 'perceptual':
    return None
  return Stage('square', square(norm=norm, epsilon=epsilon, num_queries=_QUERIES))


def transfer(norm: str, epsilon: float) -> Stage:
  """Returns an attack whose images are to fool other classifiers too: it goes on beyond the boundary."""
  return Stage('transfer', pgd(norm=norm, epsilon=epsilon, num_steps=100, loss='margin'))


def far(norm: str, image_shape: Sequence[int], distance: DistanceOf | None = None) -> tuple[float, Stage]:
  """Returns a radius within which every image can become any other, and an attack within it."""
  if distance is not None:
    attack = restarted_perceptual(distance=distance, epsilon=_FARTHEST, method='lpa', restarts=2)
    return _FARTHEST, Stage('far', attack)
  epsilon = 1.0 if norm == 'linf' else math.sqrt(math.prod(image_shape))
  return epsilon, Stage('far', apgd(norm=norm, epsilon=epsilon, restarts=2))
