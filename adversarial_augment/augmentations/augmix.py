"""AugMix (Hendrycks et al., arXiv 1912.02781): mixes an image with chains of simple operations on it; and its loss.

Constants and distributions are those of the authors' code for CIFAR-10 (github.com/google-research/augmix).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment import threefry
from adversarial_augment.augmentations import augmix_ops
from adversarial_augment.parallel import platforms
from adversarial_augment.types import Array, Augmentation, Key

SEVERITY = 3.0  # an operation's level is uniform from LEAST to this
LEAST = 0.1
WIDTH = 3  # chains
DEPTH = 3  # largest number of operations in a chain


def _whole(level: Array, limit: float) -> Array:
  """Returns `level` / 10 of `limit`, truncated to an integer."""
  return (level * (limit / 10)).astype(jnp.int32)


def _factor(level: Array) -> Array:
  return jnp.abs(level) * (1.8 / 10) + 0.1


# (image, level) -> image. The sign of a level is the direction, for operations that have one.
OPS = (
  lambda image, level: augmix_ops.autocontrast(image),
  lambda image, level: augmix_ops.equalize(image),
  lambda image, level: augmix_ops.posterize(image, 4 - _whole(jnp.abs(level), 4)),
  lambda image, level: augmix_ops.rotate(image, _whole(level, 30).astype(jnp.float32)),
  lambda image, level: augmix_ops.solarize(image, 256 - _whole(jnp.abs(level), 256)),
  lambda image, level: augmix_ops.shear_x(image, level * (0.3 / 10)),
  lambda image, level: augmix_ops.shear_y(image, level * (0.3 / 10)),
  lambda image, level: augmix_ops.translate_x(image, _whole(level, image.shape[1] / 3).astype(jnp.float32)),
  lambda image, level: augmix_ops.translate_y(image, _whole(level, image.shape[0] / 3).astype(jnp.float32)),
)
# Four more, which resemble corruptions of the test sets.
ALL_OPS = (
  *OPS,
  lambda image, level: augmix_ops.color(image, _factor(level)),
  lambda image, level: augmix_ops.contrast(image, _factor(level)),
  lambda image, level: augmix_ops.brightness(image, _factor(level)),
  lambda image, level: augmix_ops.sharpness(image, _factor(level)),
)


class Draws(NamedTuple):
  """The random numbers of one image."""

  ops: Array  # int32 [WIDTH, DEPTH]: which operation
  levels: Array  # float32 [WIDTH, DEPTH]: LEAST to SEVERITY, of either sign
  depths: Array  # int32 [WIDTH]: operations of each chain, 1 to DEPTH
  weights: Array  # float32 [WIDTH], weights of the chains: Dirichlet(1, ..., 1)
  share: Array  # float32 [], share of the chains in the result: Beta(1, 1)


def draw(key: Key, num_ops: int) -> Draws:
  """Returns the random numbers of one image."""
  keys, shape = jax.random.split(threefry.own(key), 5), (WIDTH, DEPTH)
  levels = jax.random.uniform(keys[1], shape, jnp.float32, LEAST - SEVERITY, SEVERITY - LEAST)
  weights = jax.random.exponential(keys[3], (WIDTH,), jnp.float32)  # divided by its sum, it is Dirichlet distributed
  return Draws(
    ops=jax.random.randint(keys[0], shape, 0, num_ops, jnp.int32),
    levels=levels + jnp.copysign(LEAST, levels),
    depths=jax.random.randint(keys[2], (WIDTH,), 1, DEPTH + 1, jnp.int32),
    weights=weights / weights.sum(),
    share=jax.random.uniform(keys[4], (), jnp.float32),
  )


def mix(draws: Draws, image: Array, ops: tuple = OPS) -> Array:
  """Returns (1 - share) * image + share * (weighted mean of the chains); the chains start from whole grey levels."""
  levels = jnp.round(255 * image).astype(jnp.int32)

  def add_chain(i, total):
    apply = lambda j, x: jax.lax.switch(draws.ops[i, j], ops, x, draws.levels[i, j])
    chain = jax.lax.fori_loop(0, draws.depths[i], apply, levels)
    return total + draws.weights[i].astype(image.dtype) * chain.astype(image.dtype)

  chains = jax.lax.fori_loop(0, WIDTH, add_chain, jnp.zeros_like(image)) / 255
  share = draws.share.astype(image.dtype)
  return (1 - share) * image + share * chains


def _augmix(ops: tuple, key: Key, image: Array) -> Array:
  """AugMix of one image [h, w, 3] in [0, 1], with at least 3 pixels per side."""
  one = functools.partial(mix, ops=ops)
  if platforms.current() == 'cpu':
    # One image after the other: under vmap, a switch computes every operation for every image.
    one = jax.custom_batching.sequential_vmap(one)
  return one(draw(key, len(ops)), image)


augmix: Augmentation = functools.partial(_augmix, OPS)
augmix_all_ops: Augmentation = functools.partial(_augmix, ALL_OPS)


def jensen_shannon(logits: Array) -> Array:
  """Returns the Jensen-Shannon divergence of the views of each image: [n, views, classes] -> [n], in nats.

  As in the authors' code, the mixture of the probabilities is clipped to [1e-7, 1] before the logarithm.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
  p = jnp.exp(log_p)
  log_mixture = jnp.log(jnp.clip(p.mean(1, keepdims=True), 1e-7, 1))
  return (p * (log_p - log_mixture)).sum(-1).mean(1)
