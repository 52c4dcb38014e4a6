"""Any perturbation set as an attack: projected gradient ascent, then, where wanted, the SSIM line search."""

from collections.abc import Callable

import jax.numpy as jnp

from adversarial_augment import registry, ssim, threefry
from adversarial_augment.attacks.ascent import Loss, ascend
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.attacks.steps import STEPS
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PerturbationSet, PyTree


def adversary(
  perturbation_set: PerturbationSet,
  *,
  num_steps: int = 10,
  step: str = 'sign',
  step_fraction: float = 0.25,
  loss: Loss = cross_entropy,
  keep_best: bool = False,
  min_ssim: float = 0.3,
  root: str | None = 'strict',
  group: int | None = 1,
  axis_name: str | None = None,
  measure: Callable[[PyTree, PyTree], dict[str, Array]] = lambda frozen, perturbations: {},
) -> Attack:
  """Makes the attack that searches a perturbation set.

  Args:
    perturbation_set: the feasible set and its action on an image.
    num_steps: steps of projected gradient ascent.
    step: rule of a step, a name of `attacks.steps.STEPS`; the paper's is 'sign' (iterated FGSM).
    step_fraction: step size in units of the median radius over blocks.
    loss: what is climbed.
    keep_best: hands out the best iterate; the paper's reading is the last.
    min_ssim: images whose SSIM with the clean one is smaller are pulled back towards it, each by itself.
    root: rule of that line search, a name of `ssim.ROOTS`; None: there is none.
    group: images that share a perturbation, one after the other; a divisor of their number. None: all images, and
      those of every device along `axis_name`: the environments of appendix C (arXiv 2104.01086).
    axis_name: that mesh axis; unused for groups of a number.
    measure: (frozen, perturbations [m, ...]) -> further metrics, one value per perturbation.

  Returns:
    An `Attack`. Its metrics, one value per image: `attack_loss_start` (after the random start), `attack_loss_end`
    (before the line search), `gradient_norm` (first step), `ssim` (before the line search), of the line search
    `ssim_corrected` and `ssim_below_min` (0 or 1), and those of `measure`. What belongs to a group is repeated for each
    of its images.

  Raises:
    UserError: an unknown rule.
  """
  rule = registry.lookup(STEPS, step, 'attack step')
  if root is not None:
    registry.lookup(ssim.ROOTS, root, 'root')

  @fast_in_loops
  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    ascent = ascend(
        perturbation_set, threefry.own(keys), logits_fn, images, labels, frozen,
        num_steps=num_steps, step=rule, step_fraction=step_fraction, loss=loss, keep_best=keep_best,
        group=group, axis_name=axis_name,
    )  # fmt: skip
    of_groups = {'gradient_norm': ascent.gradient_norm} | measure(frozen, ascent.perturbations)
    metrics = {
      'attack_loss_start': ascent.loss_start,
      'attack_loss_end': ascent.loss_end,
    } | {name: jnp.repeat(value, len(images) // len(value)) for name, value in of_groups.items()}
    if root is None:
      return AttackResult(ascent.images, metrics | {'ssim': ssim.ssim(images, ascent.images)})
    corrected = ssim.correct(images, ascent.images, min_ssim=min_ssim, root=root)
    metrics |= {
      'ssim': corrected.ssim,
      'ssim_corrected': (corrected.gamma < 1).astype(images.dtype),
      'ssim_below_min': (corrected.ssim_after < min_ssim - 1e-4).astype(images.dtype),
    }
    return AttackResult(corrected.images, metrics)

  return attack
