"""AdversarialAugment: the adversary of arXiv 2104.01086, section 2 and appendices A and G."""

from collections.abc import Callable
from typing import Any

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
  init: str = 'ball',
  impl: str = 'auto',
  noisy: bool = False,
  **options: Any,
) -> Attack:
  """Makes the adversary that perturbs the weights of a frozen corruption network, image by image.

  Args:
    apply: the corruption network c, (phi, images [n, h, w, 3]) -> images of the same shape in [0, 1].
    nu: relative radius of every weight and bias array; 0 gives c_phi(x).
    init: random start in the balls: 'ball', 'uniform' or 'zero'.
    impl: how the network runs over examples, see per_example_conv.
    noisy: `apply` takes a key too, see `weight_ball`.
    **options: of `adversary`, whose defaults are the paper's.

  Returns:
    An `Attack`, called with phi as `frozen`. To the metrics of `adversary` it adds `radius_fraction`, the median over
    blocks of ||beta_i|| / nu_i.

  Raises:
    UserError: an unknown rule, or, when called outside jit, a phi that is zero throughout.
  """
  if isinstance(nu, int | float) and not 0 <= nu < float('inf'):  # it may be traced
    raise UserError(f'nu={nu} of attacks.ada must be a finite number, at least 0.')

  def search(*, stacked: bool) -> Attack:
    ball = weight_ball(apply, nu=nu, init=init, impl=impl, noisy=noisy, stacked=stacked)
    measure = lambda phi, betas: {'radius_fraction': _radius_fraction(betas, ball.radii(phi))}
    return adversary(ball, **options, measure=measure)

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
