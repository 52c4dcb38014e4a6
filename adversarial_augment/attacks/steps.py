"""Rules by which projected gradient ascent moves a perturbation.

Each is an `optax.GradientTransformation` over the perturbation of one example, made from the radii of its blocks.
`size` is the step in units of the median radius over blocks (1/4 in appendix A of arXiv 2104.01086).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from adversarial_augment.attacks import trees
from adversarial_augment.types import PyTree

StepRule = Callable[[PyTree, float], optax.GradientTransformation]


def sign(radii: PyTree, size: float) -> optax.GradientTransformation:
  """Iterated FGSM, the paper's choice: every entry moves by `size` times the median radius.

  On a block of n entries that step has an l2 length of sqrt(n) times as much, mostly beyond the ball: the iterate is
  the sign of the gradient, rescaled to the sphere by the projection.
  """
  step = size * trees.median_radius(radii)
  return optax.stateless(lambda gradient, _: jax.tree.map(lambda g: step * jnp.sign(g), gradient))


def sign_l2(radii: PyTree, size: float) -> optax.GradientTransformation:
  """The sign of the gradient, with an l2 length of `size` times the block's own radius."""
  return _per_block(radii, size, jnp.sign)


def l2(radii: PyTree, size: float) -> optax.GradientTransformation:
  """Normalised gradient ascent (footnote 1): an l2 length of `size` times the block's own radius."""
  return _per_block(radii, size, lambda g: g)


def sgd(radii: PyTree, size: float) -> optax.GradientTransformation:
  """Plain gradient ascent (footnote 1), its learning rate `size` times the median radius."""
  return optax.scale(size * trees.median_radius(radii))


def adam(radii: PyTree, size: float) -> optax.GradientTransformation:
  """Adam (footnote 1) with the constants of the group's published code, its learning rate as for `sgd`."""
  return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-9), sgd(radii, size))


STEPS: dict[str, StepRule] = {'sign': sign, 'sign_l2': sign_l2, 'l2': l2, 'sgd': sgd, 'adam': adam}


def _per_block(radii: PyTree, size: float, direction: Callable) -> optax.GradientTransformation:
  def update(gradient, _):
    directions = jax.tree.map(direction, gradient)
    norms = trees.block_norms(directions, radii)
    factors = jax.tree.map(lambda n, r: size * r / jnp.where(n > 0, n, 1), norms, radii)
    return jax.tree.map(lambda d, f: d * jnp.expand_dims(f, range(f.ndim, d.ndim)), directions, factors)

  return optax.stateless(update)
