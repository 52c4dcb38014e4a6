"""AdA's corruption set (section 2, arXiv 2104.01086): an image-to-image network with its weights moved within balls."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import per_example_conv, trees
from adversarial_augment.errors import UserError
from adversarial_augment.types import PerturbationSet, PyTree


def weight_ball(apply: Callable, *, nu: float, init: str = 'ball', impl: str = 'auto') -> PerturbationSet:
  """Makes C(x) = {c_{phi + beta}(x): ||beta_i||_2 <= nu ||phi_i||_2 for every weight and every bias array i}.

  Args:
    apply: the corruption network, (phi, images [n, h, w, c]) -> images.
    nu: relative radius, at least 0.
    init: distribution of the starting point in each ball: 'ball', 'uniform' or 'zero', see `trees.random_in_balls`.
    impl: how the network runs over examples, see per_example_conv.py.

  Returns:
    A perturbation set around `frozen` = phi. Blocks of norm zero stay at zero.
  """
  radii = lambda phi: jax.tree.map(lambda norm: nu * norm, trees.block_norms(phi))

  def corrupt(phi, image, beta):
    # phi + beta stays in the precision of phi: bfloat16 would lose a relative change of .015.
    return apply(jax.tree.map(jnp.add, phi, beta), image[None])[0]

  def corrupt_batch(phi, images, betas):
    one = lambda beta, image: corrupt(phi, image, beta)
    return per_example_conv.over_examples(one, impl=impl)(betas, images)

  return PerturbationSet(
    init=lambda key, phi, image: trees.random_in_balls(key, phi, radii(phi), radius=init),
    project=lambda phi, image, beta: trees.project(beta, radii(phi)),
    apply=corrupt,
    radii=radii,
    apply_batch=corrupt_batch,
  )


def check_blocks(phi: PyTree) -> None:
  """Refuses parameters around which every ball is a point: the adversary could not move.

  Raises:
    UserError: no leaf of `phi` has a non-zero entry.
  """
  if not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(phi)):
    raise UserError(
      'All weights of the corruption network are zero, so that every radius nu * ||phi_i|| is; load trained weights.'
    )
