"""EDSR with DeepAugment's damage to features: per image, one draw before the body and one inside it."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.corruption_nets.edsr import MEAN
from adversarial_augment.corruption_nets.layers import pixel_shuffle
from adversarial_augment.deepaugment.edsr_weights import BLOCKS, FEATURES
from adversarial_augment.deepaugment.kernels import scaled
from adversarial_augment.types import Array, Key, PyTree

_LEAST_SKIPPED = 2  # modules 2 to 16 can be skipped: 0 to 15 are the blocks, 16 is the convolution after them


def apply(
  params: Mapping[str, PyTree],
  levels: Array,
  key: Key,
  *,
  bug_compatible: bool,
  conv: per_example_conv.Conv = per_example_conv.example_conv,
) -> Array:
  """Returns the damaged super-resolved image.

  Args:
    params: of EDSR, of any size.
    levels: [h, w, 3] in 0..255.
    key: of the image's draws.
    bug_compatible: see `_swap_channels` and `_body`.
    conv: the convolution, see per_example_conv.

  Returns:
    [scale * h, scale * w, 3], in levels, not clipped.
  """

  def layer(x: Array, name: str) -> Array:
    weights = params[f'edsr/{name}']
    return conv(x, weights['w']) + weights['b'].reshape(1, 1, 1, -1)

  blocks = sum(name.endswith('/conv_0') for name in params)

  def module(x: Array, i: int) -> Array:
    if i == blocks:
      return layer(x, 'body_out')
    return x + layer(jax.nn.relu(layer(x, f'block_{i}/conv_0')), f'block_{i}/conv_1')

  mean = jnp.asarray(255 * MEAN, levels.dtype).reshape(1, 1, 1, 3)
  before, within = jax.random.split(key)
  x = layer(levels[None] - mean, 'head')
  x = _before_body(before, x, bug_compatible)
  x = x + _body(within, x, module, blocks, bug_compatible)
  for i in range(sum(name.startswith('edsr/up_') for name in params)):
    x = pixel_shuffle(layer(x, f'up_{i}'), 2)
  return (layer(x, 'out') + mean)[0]


def _before_body(key: Key, x: Array, bug_compatible: bool) -> Array:
  """Does one of four things: swaps channels, drops 5 % of the values, negates 2.5 % of them, or nothing."""
  which, draws = jax.random.split(key)
  mask = lambda key, x: jnp.where(jax.random.bernoulli(key, 0.95, x.shape), x, 0)
  sign = lambda key, x: jnp.where(jax.random.bernoulli(key, 0.025, x.shape), -x, x)
  swap = lambda key, x: x[..., _swapped(key, x.shape[-1], bug_compatible)]
  return jax.lax.switch(jax.random.randint(which, (), 0, 4), [swap, mask, sign, _keep], draws, x)


def _swapped(key: Key, channels: int, bug_compatible: bool) -> Array:
  """Returns the order of the channels after 5 random swaps (of 64 channels).

  In the published code, both sides of the swap are views of one array, so the second is copied into the first.
  """
  pairs = jax.random.randint(key, (scaled(5, channels, FEATURES), 2), 0, channels)
  order = jnp.arange(channels)
  for first, second in pairs:
    copied = order.at[first].set(order[second])
    order = copied if bug_compatible else copied.at[second].set(order[first])
  return order


def _body(key: Key, x: Array, module: Callable[[Array, int], Array], blocks: int, bug_compatible: bool) -> Array:
  """Runs the body with one of five kinds of damage: after 5 of its 17 modules, features are negated, passed through
  ReLU or GELU, or flipped, including channels; or modules are skipped; or nothing happens.

  The published code means to skip three modules, but gives the body's input to each of the others, so only the last
  one has an effect.
  """
  which, draws, skipping = jax.random.split(key, 3)
  option = jax.random.randint(which, (), 0, 5)
  skips = option == 3
  drawn = jax.random.randint(skipping, (3,), _LEAST_SKIPPED, BLOCKS + 1)
  ours = lambda i: jnp.where(i == BLOCKS, blocks, i * blocks // BLOCKS)  # index of a module in this network
  modules = jnp.arange(BLOCKS + 1)
  last = ours(jnp.max(jnp.where((modules[:, None] == drawn[None]).any(1), -1, modules)))
  y = x
  for i in range(blocks + 1):
    skipped = skips & (i > last if bug_compatible else (ours(drawn) == i).any())
    source = jnp.where(skips, x, y) if bug_compatible else y
    y = jnp.where(skipped, y, module(source, i))
    if i + 1 == max(1, 5 * blocks // BLOCKS):
      y = jax.lax.switch(option, [lambda _, y: -y, _activate, _mirror, _keep, _keep], draws, y)
  return y


def _activate(key: Key, x: Array) -> Array:
  gelu = lambda x: jax.nn.gelu(x, approximate=False)
  return jax.lax.cond(jax.random.bernoulli(key, 1 / 3), jax.nn.relu, gelu, x)


def _mirror(key: Key, x: Array) -> Array:
  height, width = (lambda x: x[:, ::-1, :, ::-1]), (lambda x: x[:, :, ::-1, ::-1])
  return jax.lax.cond(jax.random.bernoulli(key, 1 / 3), height, width, x)


def _keep(_: Key, x: Array) -> Array:
  return x
