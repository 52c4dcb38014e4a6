"""How much device memory an attack takes, before anything is compiled."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from adversarial_augment import trees
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.attacks.weight_ball import weight_ball
from adversarial_augment.types import LogitsFn, PyTree


def attack_bytes(
  apply: Callable,
  phi: PyTree,
  logits_fn: LogitsFn,
  image_shape: tuple,
  num_images: int,
  *,
  group: int = 1,
  noisy: bool = False,
) -> int:
  """Estimates the bytes of one gradient of the attack: what its backward pass keeps, and three copies of beta.

  The weights that an AdvMix-style attack mixes for an image count as its beta does.

  Args:
    apply: the corruption network.
    phi: its parameters, or their shapes.
    logits_fn: the classifier under attack; batch statistics must not need a mesh axis.
    image_shape: (h, w, c).
    num_images: attacked at a time on one device.
    group: images that share a beta.
    noisy: `apply` takes a key too, see `weight_ball`.

  Returns:
    Bytes; what the compiler needs beside that (fusion buffers, patches of convolutions) is not in it.
  """
  ball = weight_ball(apply, nu=1.0, noisy=noisy)
  spec = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)

  def residuals(phi, betas, images, labels, keys):
    loss = lambda betas: cross_entropy(logits_fn(ball.apply_batch(phi, images, betas, keys)), labels).sum()
    return jax.vjp(loss, betas)[1]

  num_betas = num_images // group
  betas = jax.tree.map(lambda p: spec((num_betas, *p.shape), p.dtype), phi)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_images))
  labels = spec((num_images,), jnp.int32)
  kept = jax.eval_shape(residuals, phi, betas, spec((num_images, *image_shape)), labels, keys)
  size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
  return size(kept) + 3 * num_betas * 4 * trees.count(phi)
