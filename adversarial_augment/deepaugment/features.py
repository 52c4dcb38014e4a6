"""DeepAugment's damage to features, of one image: EDSR's before and inside its body, the CAE's to its latent image.

Options and constants are those of the published code (arXiv 2006.16241; hendrycks/imagenet-r), whose mistakes
`bug_compatible` repeats: see `_swapped`, `_body` and `_factors`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.corruption_nets.cae import BITS
from adversarial_augment.corruption_nets.cae import run as run_cae
from adversarial_augment.corruption_nets.edsr import MEAN
from adversarial_augment.corruption_nets.layers import pixel_shuffle
from adversarial_augment.deepaugment.weights import BLOCKS, FEATURES, scaled
from adversarial_augment.types import Array, Key, PyTree

_LEAST_SKIPPED = 2  # modules 2 to 16 can be skipped: 0 to 15 are the blocks, 16 is the convolution after them


def edsr(
  params: Mapping[str, PyTree],
  levels: Array,
  key: Key,
  *,
  bug_compatible: bool,
  conv: per_example_conv.Conv = per_example_conv.example_conv,
) -> Array:
  """Returns the damaged super-resolved image: [h, w, 3] in 0..255 -> [scale * h, scale * w, 3], not clipped."""
  layer = _layers(params, 'edsr', conv)
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


def cae(
  params: Mapping[str, PyTree],
  levels: Array,
  key: Key,
  *,
  bug_compatible: bool,
  conv: per_example_conv.Conv = per_example_conv.example_conv,
) -> Array:
  """Returns the image decoded from damaged bits: [h, w, 3] in 0..255 -> [h, w, 3], not clipped.

  Sides that are not multiples of 4 are padded by reflection, and the result is cropped.
  """
  which, damaging, binarising, scaling = jax.random.split(key, 4)
  option = jax.random.randint(which, (), 0, 9)

  def double(x: Array, name: str) -> Array:
    weights = params[f'cae/{name}']
    n, h, w, _ = x.shape
    y = jnp.einsum('nhwc,abco->nhawbo', x, weights['w'])
    return y.reshape(n, 2 * h, 2 * w, -1) + weights['b'].reshape(1, 1, 1, -1)

  def code(x: Array) -> Array:
    z = damage_latents(option, damaging, jnp.tanh(x), conv)
    bits = (jax.random.uniform(binarising, z.shape) <= (1 + z) / 2).astype(z.dtype)
    return 2 * jnp.where(option == 0, bits * _factors(scaling, z.shape, bug_compatible), bits) - 1

  h, w, _ = levels.shape
  x = jnp.pad(levels[None] / 255, ((0, 0), (0, -h % 4), (0, -w % 4), (0, 0)), mode='reflect')
  return 255 * jnp.tanh(run_cae(x, _layers(params, 'cae', conv), double, code))[0, :h, :w]


def _layers(params: Mapping[str, PyTree], network: str, conv: per_example_conv.Conv) -> Callable[..., Array]:
  def layer(x: Array, name: str, **options) -> Array:
    weights = params[f'{network}/{name}']
    return conv(x, weights['w'], **options) + weights['b'].reshape(1, 1, 1, -1)

  return layer


def _keep(_: Key, x: Array) -> Array:
  return x


# EDSR.


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
      y = jax.lax.switch(option, [lambda _, y: -y, _activate, _flip, _keep, _keep], draws, y)
  return y


def _activate(key: Key, x: Array) -> Array:
  gelu = lambda x: jax.nn.gelu(x, approximate=False)
  return jax.lax.cond(jax.random.bernoulli(key, 1 / 3), jax.nn.relu, gelu, x)


def _flip(key: Key, x: Array) -> Array:
  height, width = (lambda x: x[:, ::-1, :, ::-1]), (lambda x: x[:, :, ::-1, ::-1])
  return jax.lax.cond(jax.random.bernoulli(key, 1 / 3), height, width, x)


# CAE.


def damage_latents(option: Array, key: Key, z: Array, conv: per_example_conv.Conv) -> Array:
  """Damages a latent image [1, h, w, c] in [-1, 1] in one of nine ways; the first is applied to the bits instead."""
  zeros = jnp.zeros((3, 3, BITS, BITS), z.dtype)
  identity = zeros.at[1, 1].set(jnp.eye(BITS, dtype=z.dtype))
  ways = [
    _keep,
    lambda key, z: jnp.where(jax.random.bernoulli(key, 0.8, (1, *z.shape[1:3], 1)), z, 0),
    lambda key, z: jnp.where(jax.random.bernoulli(key, 0.1, (1, *z.shape[1:3], 1)), -z, z),
    _permute,
    _mirror_some,
    _mirror,
    lambda key, z: conv(z, identity + jax.random.uniform(key, zeros.shape, z.dtype, -0.1, 0.1)),
    lambda key, z: conv(z, _extra_taps(key, identity)),
    lambda key, z: conv(z, _shifts(key, zeros)),
  ]
  return jax.lax.switch(option, ways, key, z)


def _factors(key: Key, shape: tuple[int, ...], bug_compatible: bool) -> Array:
  """Draws 3 + 4 u U, as the published code does by a misplaced parenthesis, or 3 + 2 u (2 U - 1), as it means."""
  one, each = (jax.random.uniform(part, size) for part, size in zip(jax.random.split(key), ((), shape), strict=True))
  return 3 + 4 * one * each if bug_compatible else 3 + 2 * one * (2 * each - 1)


def _permute(key: Key, z: Array) -> Array:
  return z[..., jnp.concatenate([jax.random.permutation(key, 10), jnp.arange(10, BITS)])]


def _mirror(key: Key, z: Array) -> Array:
  """Flips height, width, or both: two of three axes; in the published code, the third is the batch."""
  ways = [lambda z: z[:, ::-1], lambda z: z[:, :, ::-1], lambda z: z[:, ::-1, ::-1]]
  return jax.lax.switch(jax.random.randint(key, (), 0, 3), ways, z)


def _mirror_some(key: Key, z: Array) -> Array:
  """Flips 5 channels, drawn with replacement; one that is drawn twice is flipped back."""
  way, channels = jax.random.split(key)
  drawn = jax.random.randint(channels, (5,), 0, BITS)
  odd = jnp.zeros(BITS, int).at[drawn].add(1) % 2 == 1
  return jnp.where(odd.reshape(1, 1, 1, -1), _mirror(way, z), z)


def _extra_taps(key: Key, identity: Array) -> Array:
  """Adds one more tap to half of the outputs; the published code's -1, 0, 1 are taps 2, 0, 1."""
  half, inputs, taps = jax.random.split(key, 3)
  extra = jax.random.bernoulli(half, 0.5, (BITS,)).astype(identity.dtype)
  row, column = jax.random.randint(taps, (2, BITS), 0, 3)
  return identity.at[row, column, jax.random.randint(inputs, (BITS,), 0, BITS), jnp.arange(BITS)].max(extra)


def _shifts(key: Key, zeros: Array) -> Array:
  """Shifts every channel by at most one pixel: like the previous channel or, with probability 0.2, by a new draw."""
  taps, changes = jax.random.split(key)
  channels = jnp.arange(BITS)
  anew = jax.random.bernoulli(changes, 0.2, (BITS,))
  latest = jax.lax.cummax(jnp.where(anew, channels + 1, 0))  # 0 is the draw before the first channel
  row, column = jax.random.randint(taps, (2, BITS + 1), 0, 3)[:, latest]
  return zeros.at[row, column, channels, channels].set(1)
