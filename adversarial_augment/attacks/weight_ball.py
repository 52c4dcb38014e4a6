"""AdA's corruption set (section 2, arXiv 2104.01086): an image-to-image network with its weights moved within balls."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import per_example_conv
from adversarial_augment.attacks import trees
from adversarial_augment.errors import UserError
from adversarial_augment.types import PerturbationSet, PyTree

CONSTANT = 'codebook'  # a parameter of this name is no block: its radius is 0


def weight_ball(
  apply: Callable, *, nu: float, init: str = 'ball', impl: str = 'auto', noisy: bool = False, stacked: bool = False
) -> PerturbationSet:
  """Makes C(x) = {c_{phi + beta}(x): ||beta_i||_2 <= nu ||phi_i||_2 for every weight and every bias array i}.

  Args:
    apply: the corruption network, (phi, images [n, h, w, c]) -> images.
    nu: relative radius, at least 0.
    init: distribution of the starting point in each ball: 'ball', 'uniform' or 'zero', see `trees.random_in_balls`.
    impl: how the network runs over examples, see per_example_conv.
    noisy: `apply` takes a third argument, a key from which it draws its noise.
    stacked: points of the set, and radii, are `trees.Stacks` of what they are otherwise, trees like phi.

  Returns:
    A perturbation set around `frozen` = phi. Blocks of norm zero and constants of the network stay at zero.
  """

  def stack(tree, phi):
    return trees.Stacks(phi).stack(tree) if stacked else tree

  def radii_of_blocks(phi):
    of = lambda path, norm: jnp.zeros_like(norm) if path and getattr(path[-1], 'key', None) == CONSTANT else nu * norm
    return jax.tree.map_with_path(of, trees.block_norms(phi))

  def radii(phi):
    return stack(radii_of_blocks(phi), phi)

  def corrupt(phi, images, beta, key=None):
    # phi + beta stays in the precision of phi: bfloat16 would lose a relative change of .015.
    moved = jax.tree.map(jnp.add, stack(phi, phi), beta)
    return run(apply, trees.Stacks(phi).unstack(moved) if stacked else moved, images, key if noisy else None)

  def apply_one(phi, image, beta, key=None):
    return corrupt(phi, image[None], beta, key)[0]

  return PerturbationSet(
    init=lambda key, phi, image: stack(trees.random_in_balls(key, phi, radii_of_blocks(phi), radius=init), phi),
    project=lambda radii, image, beta: trees.project(beta, radii),
    apply=apply_one,
    radii=radii,
    apply_batch=over_groups(corrupt, impl=impl),
  )


def over_groups(corrupt: Callable, *, impl: str = 'auto') -> Callable:
  """Returns an `apply_batch` (see `PerturbationSet`) of `corrupt(frozen, images, perturbation, key)`.

  The images of a group go through the network together, in convolutions of one kernel, and with the first one's key.
  So where devices share a perturbation, each draws noise of its own.
  """

  def apply_batch(frozen, images, perturbations, keys=None):
    num_groups = len(jax.tree.leaves(perturbations)[0])
    groups = images.reshape(num_groups, -1, *images.shape[1:])
    first_keys = None if keys is None else keys.reshape(num_groups, -1)[:, 0]
    one = lambda both, group: corrupt(frozen, group, *both)
    return per_example_conv.over_examples(one, impl=impl)((perturbations, first_keys), groups).reshape(images.shape)

  return apply_batch


def run(apply: Callable, params: PyTree, images: jax.Array, key: jax.Array | None) -> jax.Array:
  """Returns c(images); with a key, of a network that draws noise."""
  if key is None:
    return apply(params, images)
  # The start is drawn from fold_in(key, 0) and (key, 1), which is what `split` gives.
  return apply(params, images, jax.random.fold_in(key, 2))


def check_blocks(phi: PyTree) -> None:
  """Refuses parameters around which every ball is a point: the adversary could not move.

  Raises:
    UserError: no leaf of `phi` has a non-zero entry.
  """
  if not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(phi)):
    raise UserError(
      'All weights of the corruption network are zero, so that every radius nu * ||phi_i|| is; load trained weights.'
    )
