"""How much device memory an attack takes, before anything is compiled."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from adversarial_augment import trees
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.attacks.weight_ball import weight_ball
from adversarial_augment.types import LogitsFn, PyTree


def attack_bytes(apply: Callable, phi: PyTree, logits_fn: LogitsFn, image_shape: tuple, num_images: int) -> int:
  """Estimates the bytes of one gradient of the attack: what its backward pass keeps, and three copies of beta.

  Args:
    apply: the corruption network.
    phi: its parameters, or their shapes.
    logits_fn: the classifier under attack; batch statistics must not need a mesh axis.
    image_shape: (h, w, c).
    num_images: attacked at a time on one device.

  Returns:
    Bytes; what the compiler needs beside that (fusion buffers, patches of convolutions) is not in it.
  """
  ball = weight_ball(apply, nu=1.0)
  spec = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)

  def residuals(phi, betas, images, labels):
    loss = lambda betas: cross_entropy(logits_fn(ball.apply_batch(phi, images, betas)), labels).sum()
    return jax.vjp(loss, betas)[1]

  betas = jax.tree.map(lambda p: spec((num_images, *p.shape), p.dtype), phi)
  kept = jax.eval_shape(residuals, phi, betas, spec((num_images, *image_shape)), spec((num_images,), jnp.int32))
  size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
  return size(kept) + 3 * num_images * 4 * trees.count(phi)
