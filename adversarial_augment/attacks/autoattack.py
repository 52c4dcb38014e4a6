"""AutoAttack for any function from images to logits (Croce and Hein 2020, arXiv 2003.01690)."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import registry, threefry
from adversarial_augment.attacks import inputs, suite_runner, suites
from adversarial_augment.attacks.lp_ball import check_ball
from adversarial_augment.attacks.restarts import attack_result
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

VERSIONS = {'standard': 'autoattack', 'plus': 'autoattack_plus'}
_PROBED = 8  # images whose logits tell whether what is compiled is still the function that is given


class _Compiled(NamedTuple):
  """What is compiled of one function; values that it closes over, such as weights, are constants of it."""

  logits_fn: LogitsFn
  logits: Callable[[np.ndarray], Array]
  attack_batch: Callable
  margins: Callable[[np.ndarray, np.ndarray], Array]


def autoattack(*, norm: str, epsilon: float, version: str = 'standard', batch_size: int = 128) -> Attack:
  """Makes AutoAttack: APGD on the cross-entropy, targeted APGD, targeted FAB, and Square, each on the survivors.

    attack = attacks.autoattack(norm='linf', epsilon=8 / 255)
    result = attack(jax.random.split(jax.random.key(0), len(images)), logits_fn, images, labels)
    robust_accuracy = 1 - result.metrics['success'].mean()

  Unlike the other attacks it runs from the host, so that images that are broken cost nothing more, and cannot be called
  under jit. `logits_fn` is compiled, once for each of two batch sizes and stage; pass the same function again to reuse
  that. Every call asks it anew for the logits of a few images: where they differ, because weights that it closes over
  are others now, all is compiled again. It must treat each image by itself; `attacks.validity` tells whether it does,
  and whether the outcome means something.

  Args:
    norm: 'linf' or 'l2'.
    epsilon: radius of the ball, for images in [0, 1].
    version: 'standard' or 'plus', see `suites.stages`.
    batch_size: images attacked at once; those beyond it follow.

  Returns:
    An `Attack`, of images [n, h, w, c] and integer labels [n], NumPy's or JAX's. Besides `success` and `margin` its
    metrics have `stage` [n], the number of the stage that broke an image: 0 none was needed, -1 it is not broken. It
    raises a UserError for images outside [0, 1], labels that there are not, and logits of another shape than [n, k].

  Raises:
    UserError: an unknown norm or version, an epsilon that is no radius, or no batch size.
  """
  suite = registry.lookup(VERSIONS, version, 'version')
  epsilon = check_ball(norm, epsilon)
  if not isinstance(batch_size, int) or batch_size < 1:
    raise UserError(f'batch_size={batch_size} must be an integer of at least 1.')
  return _from_host(suite, norm, epsilon, batch_size)


def _from_host(suite: str, norm: str, epsilon: float, batch_size: int) -> Attack:
  last: _Compiled | None = None
  # Made once, because what is compiled belongs to the very functions of a stage.
  stages_of = functools.cache(
    lambda num_classes: suites.stages(suite, norm=norm, epsilon=epsilon, num_classes=num_classes)
  )

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    nonlocal last
    del frozen
    if any(isinstance(x, jax.core.Tracer) for x in (keys, images, labels)):
      raise UserError(
        'autoattack runs from the host and cannot be traced; call it outside of jit, grad and vmap, or use '
        'attacks.apgd, fab and square, which can.'
      )
    clean, classes = np.asarray(images), np.asarray(labels)
    num_classes = inputs.check(keys, logits_fn, clean, classes)
    keys = threefry.own(keys)
    clean = np.asarray(jnp.asarray(clean))  # JAX takes float64 for float32, unless 64 bits are on
    classes, stages = classes.astype(np.int32), stages_of(num_classes)
    last = compiled = _of_now(logits_fn, clean, last)

    def attack_part(index: int, inner: int, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
      numbers = np.int32(index), np.int32(inner)
      make = stages[index].attack.make
      found, taken = compiled.attack_batch(make, *numbers, keys[part], clean[part], classes[part])
      return np.asarray(found), np.asarray(taken)

    problem = suite_runner.Problem(clean, classes, norm, epsilon)
    margins = lambda images, labels: np.asarray(compiled.margins(images, labels))
    programs = suite_runner.Programs(attack_part, margins, min(batch_size, len(clean)))
    found = suite_runner.start(problem, programs, len(stages))
    for _ in suite_runner.run(problem, programs, stages, found):
      pass
    return _result(found, stages)

  return attack


def _of_now(logits_fn: LogitsFn, images: np.ndarray, known: _Compiled | None) -> _Compiled:
  """Returns what is compiled of `logits_fn`: what is known, where that still computes the same, else anew."""
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


def _result(found: suite_runner.SuiteState, stages: tuple[suite_runner.Stage, ...]) -> AttackResult:
  ends = np.cumsum([stage.attack.number for stage in stages])
  broken = found.broken_in < suite_runner.ALIVE
  stage = np.where(found.broken_in > 0, np.searchsorted(ends, found.broken_in) + 1, 0)
  metrics: dict[str, Any] = {'success': broken, 'margin': found.margins, 'stage': np.where(broken, stage, -1)}
  return AttackResult(jnp.asarray(found.images), {name: jnp.asarray(value) for name, value in metrics.items()})
