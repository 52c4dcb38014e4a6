"""How much device memory an attack takes, before anything is compiled."""

import math

import jax
import jax.numpy as jnp

from adversarial_augment import threefry, trees
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.types import LogitsFn, PerturbationSet, PyTree


def attack_bytes(
  perturbation_set: PerturbationSet,
  frozen: PyTree,
  logits_fn: LogitsFn,
  image_shape: tuple,
  num_images: int,
  *,
  group: int = 1,
) -> int:
  """Estimates the bytes of one gradient of the attack: what its backward pass keeps, and three copies of beta.

  Args:
    perturbation_set: what the attack searches.
    frozen: parameters the set is built around, or their shapes.
    logits_fn: the classifier under attack; batch statistics must not need a mesh axis.
    image_shape: (h, w, c).
    num_images: attacked at a time on one device.
    group: images that share a beta.

  Returns:
    Bytes; what the compiler needs beside that (fusion buffers, patches of convolutions) is not in it.
  """
  spec = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)

  def residuals(frozen, betas, images, labels, keys):
    corrupted = lambda betas: perturbation_set.apply_batch(frozen, images, betas, keys)
    return jax.vjp(lambda betas: cross_entropy(logits_fn(corrupted(betas)), labels).sum(), betas)[1]

  keys = jax.eval_shape(lambda: jax.random.split(threefry.key(0), num_images))
  images, labels = spec((num_images, *image_shape)), spec((num_images,), jnp.int32)
  start = jax.vmap(lambda key, image, frozen: perturbation_set.init(key, frozen, image), (0, 0, None))
  first = lambda x: spec((num_images // group, *x.shape[1:]), x.dtype)
  betas = jax.tree.map(first, jax.eval_shape(start, keys, images, frozen))
  kept = jax.eval_shape(residuals, frozen, betas, images, labels, keys)
  size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
  return size(kept) + 3 * 4 * trees.count(betas)
