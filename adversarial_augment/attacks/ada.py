"""AdversarialAugment: the adversary of arXiv 2104.01086, section 2 and appendices A and G."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from adversarial_augment.attacks import trees
from adversarial_augment.attacks.adversary import adversary
from adversarial_augment.attacks.weight_ball import check_blocks, weight_ball
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import platforms
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
  root: str | None = 'strict',
  group: int | None = 1,
  axis_name: str | None = None,
  impl: str = 'auto',
  noisy: bool = False,
) -> Attack:
  """Makes the adversary that perturbs the weights of a frozen corruption network, image by image.

  It maximises the cross-entropy by projected gradient ascent (Eq. 2), then corrects images that became too dissimilar
  (appendix G). The defaults are the paper's.

  Args:
    apply: the corruption network c, (phi, images [n, h, w, 3]) -> images of the same shape in [0, 1].
    nu: relative radius of every weight and bias array, at least 0: nu_i = nu ||phi_i||_2; 0 gives c_phi(x).
    num_steps: steps of projected gradient ascent, at least 0.
    step: rule of a step: 'sign' (iterated FGSM), 'sign_l2', 'l2' (normalised gradients), 'sgd' or 'adam', see
      attacks/steps.py.
    step_fraction: step size in units of the median radius, of each block's own radius for 'sign_l2' and 'l2'.
    init: random start in the balls: 'ball' (uniform), 'uniform' (at a uniform distance from the centre) or 'zero'.
    keep_best: returns the iterate of the highest loss; the paper's reading is the last one.
    min_ssim: in [-1, 1]; images whose SSIM with the clean one is smaller are pulled back towards it, each by itself.
    root: rule of that line search: 'strict', 'first_crossing' or 'literal', see ssim.py; None: no line search.
    group: images that share a perturbation, one after the other; a divisor of their number. None: all images, and
      those of every device along `axis_name` (appendix C).
    axis_name: that mesh axis; unused for groups of a number.
    impl: how the network runs over examples, see per_example_conv.
    noisy: `apply` takes a key as a third argument, from which it draws its noise.

  Returns:
    An `Attack` of images [n, h, w, 3] in [0, 1], labels [n] and one key per image, called with phi as `frozen`. To the
    metrics of `adversary` it adds `radius_fraction`, the median over blocks of ||beta_i|| / nu_i.

  Raises:
    UserError: a nu out of range, an unknown rule, or, when called outside jit, a phi that is zero throughout.
  """
  if isinstance(nu, int | float) and not 0 <= nu < float('inf'):  # it may be traced
    raise UserError(f'nu={nu} of attacks.ada must be a finite number, at least 0.')

  def search(*, stacked: bool) -> Attack:
    ball = weight_ball(apply, nu=nu, init=init, impl=impl, noisy=noisy, stacked=stacked)
    measure = lambda phi, betas: {'radius_fraction': _radius_fraction(betas, ball.radii(phi))}
    return adversary(
        ball, num_steps=num_steps, step=step, step_fraction=step_fraction, keep_best=keep_best,
        min_ssim=min_ssim, root=root, group=group, axis_name=axis_name, measure=measure,
    )  # fmt: skip

  separate, on_gpus = search(stacked=False), search(stacked=True)  # docs/accelerators.md has what each takes

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(frozen)):
      check_blocks(frozen)
    chosen = on_gpus if platforms.current() == 'gpu' else separate
    return chosen(keys, logits_fn, images, labels, frozen)

  return attack


def _radius_fraction(perturbations: PyTree, radii: PyTree) -> jax.Array:
  """Returns, per perturbation, the median over blocks of non-zero radius of ||beta_i|| / nu_i."""

  def one(beta):
    norms, limits = (
      jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (trees.block_norms(beta, radii), radii)
    )
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(limits > 0, norms / limits, jnp.nan)))

  return jax.vmap(one)(perturbations)
