"""Any perturbation set as an attack on a batch, or on parts of it: projected gradient ascent, then the SSIM search."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import checks, ssim, threefry
from adversarial_augment.attacks.ascent import STEPS, Loss, ascend
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PerturbationSet, PyTree


def adversary(
  perturbation_set: PerturbationSet,
  *,
  num_steps: int = 10,
  step: str = 'sign',
  step_fraction: float = 0.25,
  loss: Loss = cross_entropy,
  keep_best: bool = False,
  measure_end: bool = True,
  min_ssim: float = 0.3,
  root: str | None = 'strict',
  group: int | None = 1,
  axis_name: str | None = None,
  measure: Callable[[PyTree, PyTree], dict[str, Array]] = lambda frozen, perturbations: {},
) -> Attack:
  """Makes the attack that searches a perturbation set. The defaults are those of arXiv 2104.01086.

  Args:
    perturbation_set: the feasible set and its action on an image.
    num_steps: steps of projected gradient ascent, at least 0.
    step: rule of a step: 'sign' (iterated FGSM), 'sign_l2', 'l2' (normalised gradients), 'sgd' or 'adam'; see
      attacks/ascent.py.
    step_fraction: step size in units of the median radius, of each block's own radius for 'sign_l2' and 'l2'.
    loss: the loss that is maximised.
    keep_best: returns the iterate of the highest loss; the paper's reading is the last one.
    measure_end: whether the metrics have `attack_loss_end`, which costs a forward pass of the classifier, and, without
      steps, `attack_loss_start`; always with keep_best.
    min_ssim: in [-1, 1]; images whose SSIM with the clean one is smaller are pulled back towards it, each by itself.
    root: rule of that line search: 'strict', 'first_crossing' or 'literal', see ssim.py; None: no line search.
    group: images that share a perturbation, one after the other; a divisor of their number. None: all images, and
      those of every device along `axis_name`: the environments of appendix C.
    axis_name: that mesh axis; unused for groups of a number.
    measure: (frozen, perturbations [m, ...]) -> further metrics, one value per perturbation.

  Returns:
    An `Attack` of images [n, h, w, c] in [0, 1], labels [n] and one key per image. Its metrics, one value per image:
    `attack_loss_start` (after the random start), `attack_loss_end` and `ssim` (before the line search),
    `gradient_norm` (first step), of the line search `ssim_corrected` and `ssim_below_min` (0 or 1), and those of
    `measure`. What belongs to a group is repeated for each of its images.
  """
  rule = checks.lookup(STEPS, step, 'attack step')
  if root is not None:
    checks.lookup(ssim.ROOTS, root, 'root')

  @fast_in_loops
  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    ascent = ascend(
        perturbation_set, threefry.own(keys), logits_fn, images, labels, frozen,
        num_steps=num_steps, step=rule, step_fraction=step_fraction, loss=loss, keep_best=keep_best,
        measure_end=measure_end, group=group, axis_name=axis_name,
    )  # fmt: skip
    losses = {'attack_loss_start': ascent.loss_start, 'attack_loss_end': ascent.loss_end}
    metrics = {name: loss for name, loss in losses.items() if loss is not None}
    per_group = {'gradient_norm': ascent.gradient_norm} | measure(frozen, ascent.perturbations)
    metrics |= {name: jnp.repeat(value, len(images) // len(value)) for name, value in per_group.items()}
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


def attacked_images(fraction: float, num_images: int) -> int:
  """Returns how many of a device's images `fraction` of them is, rounded down (but 0.29 of 100 is 29)."""
  return math.floor(fraction * num_images + 1e-6)


def on_share(attack: Attack, count: int, num_images: int) -> Attack:
  """Returns `attack`, run on `count` of `num_images` images; the others stay clean.

  They are evenly spaced. Batches are shuffled, so that no draw is needed, and where every device attacks an equal share
  without rounding, the same images of the global batch are attacked on any number of devices. Only they go through the
  networks, and batch statistics under attack are theirs; the metrics have one value for each of them, [count].
  """
  index = np.flatnonzero(np.diff(np.arange(num_images + 1) * count // num_images))

  def attack_share(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    result = attack(keys[index], logits_fn, images[index], labels[index], frozen)
    return result._replace(images=images.at[index].set(result.images))

  return attack_share


def in_microbatches(attack: Attack, size: int) -> Attack:
  """Returns `attack`, run on `size` images after the other; their number must be a multiple of it.

  Equal to `attack` where the logits of an image do not depend on the others: not under batch statistics.
  """

  def attack_parts(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    split = lambda x: x.reshape((x.shape[0] // size, size) + x.shape[1:])
    one = lambda part: attack(part[0], logits_fn, part[1], part[2], frozen)
    result = jax.lax.map(one, (split(keys), split(images), split(labels)))
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), result)

  return attack_parts
