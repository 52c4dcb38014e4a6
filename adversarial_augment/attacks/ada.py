"""AdversarialAugment: the adversary of arXiv 2104.01086, section 2 and appendices A and G."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from adversarial_augment import registry, ssim, trees
from adversarial_augment.attacks.pgd import pgd
from adversarial_augment.attacks.steps import STEPS
from adversarial_augment.attacks.weight_ball import check_blocks, weight_ball
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree


def ada(
  apply: Callable,
  *,
  nu: float = 0.015,
  num_steps: int = 10,
  step: str = 'sign',
  step_fraction: float = 0.25,
  init: str = 'ball',
  keep_best: bool = False,
  min_ssim: float = 0.3,
  root: str = 'strict',
  impl: str = 'auto',
) -> Attack:
  """Makes the adversary that perturbs the weights of a frozen corruption network, image by image.

  Args:
    apply: the corruption network c, (phi, images [n, h, w, 3]) -> images of the same shape in [0, 1].
    nu: relative radius of every weight and bias array; 0 gives c_phi(x).
    num_steps: steps of projected gradient ascent.
    step: rule of a step, a name of `attacks.steps.STEPS`; the paper's is 'sign' (iterated FGSM).
    step_fraction: step size in units of the median radius over blocks.
    init: random start in the balls: 'ball', 'uniform' or 'zero'.
    keep_best: hands out each image's best iterate; the paper's reading is the last.
    min_ssim: images whose SSIM with the clean one is smaller are pulled back towards it.
    root: rule of that line search, a name of `ssim.ROOTS`.
    impl: how the network runs over examples, see per_example_conv.py.

  Returns:
    An `Attack`, called with phi as `frozen`. Its metrics, one value per image: `attack_loss_start` (after the random
    start), `attack_loss_end` (before the line search), `gradient_norm` (first step), `radius_fraction` (median over
    blocks of ||beta_i|| / nu_i), `ssim` (before the line search), and `ssim_corrected`, `ssim_below_min` (0 or 1).

  Raises:
    UserError: an unknown rule, or, when called outside jit, a phi that is zero throughout.
  """
  rule = registry.lookup(STEPS, step, 'attack step')
  registry.lookup(ssim.ROOTS, root, 'root')
  ball = weight_ball(apply, nu=nu, init=init, impl=impl)

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(frozen)):
      check_blocks(frozen)
    ascent = pgd(
        ball, keys, logits_fn, images, labels, frozen,
        num_steps=num_steps, step=rule, step_fraction=step_fraction, keep_best=keep_best,
    )  # fmt: skip
    corrected = ssim.correct(images, ascent.images, min_ssim=min_ssim, root=root)
    metrics = {
      'attack_loss_start': ascent.loss_start,
      'attack_loss_end': ascent.loss_end,
      'gradient_norm': ascent.gradient_norm,
      'radius_fraction': _radius_fraction(ascent.perturbations, ball.radii(frozen)),
      'ssim': corrected.ssim,
      'ssim_corrected': (corrected.gamma < 1).astype(images.dtype),
      'ssim_below_min': (corrected.ssim_after < min_ssim - 1e-4).astype(images.dtype),
    }
    return AttackResult(corrected.images, metrics)

  return attack


def _radius_fraction(perturbations: PyTree, radii: PyTree) -> jax.Array:
  """Returns, per image, the median over blocks of non-zero radius of ||beta_i|| / nu_i."""

  def one(beta):
    norms = jnp.stack(jax.tree.leaves(trees.block_norms(beta)))
    limits = jnp.stack(jax.tree.leaves(radii))
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(limits > 0, norms / limits, jnp.nan)))

  return jax.vmap(one)(perturbations)
