"""The CAE with DeepAugment's damage to the latent image: one draw per image."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.deepaugment.kernels import scaled
from adversarial_augment.types import Array, Key, PyTree

LATENTS = 32  # channels of the published latent image


def apply(
  params: Mapping[str, PyTree],
  levels: Array,
  key: Key,
  *,
  bug_compatible: bool,
  conv: per_example_conv.Conv = per_example_conv.example_conv,
) -> Array:
  """Returns the image decoded from damaged bits.

  Args:
    params: of the CAE, of any width.
    levels: [h, w, 3] in 0..255; sides that are not multiples of 4 are padded by reflection, and the result is cropped.
    key: of the image's draws, including those of the stochastic bits.
    bug_compatible: whether the first kind of damage multiplies the bits by 3 + 4 u U, as the published code does by
      mistake (a misplaced parenthesis), or by 3 + 2 u (2 U - 1), as it reads.
    conv: the convolution, see per_example_conv.

  Returns:
    [h, w, 3], in levels, not clipped.
  """

  def layer(x: Array, name: str, stride: int = 1, padding: str | tuple = 'SAME') -> Array:
    weights = params[f'cae/{name}']
    return conv(x, weights['w'], stride=stride, padding=padding) + weights['b'].reshape(1, 1, 1, -1)

  def block(x: Array, name: str) -> Array:
    return x + layer(_leaky(layer(x, f'{name}/conv_0')), f'{name}/conv_1')

  def up(x: Array, name: str) -> Array:
    x = jnp.pad(_leaky(layer(x, f'{name}/conv', padding='VALID')), ((0, 0), (1, 1), (1, 1), (0, 0)))
    weights = params[f'cae/{name}/up']
    y = jnp.einsum('nhwc,abco->nhawbo', x, weights['w'])
    n, h, w, _ = x.shape
    return y.reshape(n, 2 * h, 2 * w, -1) + weights['b'].reshape(1, 1, 1, -1)

  which, damaging, binarising, scaling = jax.random.split(key, 4)
  option = jax.random.randint(which, (), 0, 9)
  h, w, _ = levels.shape
  x = jnp.pad(levels[None] / 255, ((0, 0), (0, -h % 4), (0, -w % 4), (0, 0)), mode='reflect')
  for name in ('e_conv_1', 'e_conv_2'):
    x = _leaky(layer(x, name, 2, ((1, 2), (1, 2))))
  for i in (1, 2, 3):
    x = block(x, f'e_block_{i}')
  z = damage(option, damaging, jnp.tanh(layer(x, 'e_conv_3')), conv)
  bits = (jax.random.uniform(binarising, z.shape) <= (1 + z) / 2).astype(z.dtype)
  bits = jnp.where(option == 0, bits * _factors(scaling, z.shape, bug_compatible), bits)
  x = up(2 * bits - 1, 'd_up_conv_1')
  for i in (1, 2, 3):
    x = block(x, f'd_block_{i}')
  x = _leaky(layer(up(x, 'd_up_conv_2'), 'd_up_conv_3/conv', padding='VALID'))
  x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode='reflect')
  return 255 * jnp.tanh(layer(x, 'd_up_conv_3/out', padding='VALID'))[0, :h, :w]


def damage(option: Array, key: Key, z: Array, conv: per_example_conv.Conv) -> Array:
  """Damages a latent image [1, h, w, c] in [-1, 1] in one of nine ways; the first is applied to the bits instead."""
  ways = [
    lambda _, z: z,
    lambda key, z: jnp.where(jax.random.bernoulli(key, 0.8, (1, *z.shape[1:3], 1)), z, 0),
    lambda key, z: jnp.where(jax.random.bernoulli(key, 0.1, (1, *z.shape[1:3], 1)), -z, z),
    _permute,
    _mirror_some,
    _mirror_all,
    lambda key, z: conv(z, _identity(z) + jax.random.uniform(key, _kernel_shape(z), z.dtype, -0.1, 0.1)),
    lambda key, z: conv(z, _extra_taps(key, z)),
    lambda key, z: conv(z, _shifts(key, z)),
  ]
  return jax.lax.switch(option, ways, key, z)


def _factors(key: Key, shape: tuple[int, ...], bug_compatible: bool) -> Array:
  one, each = (jax.random.uniform(part, size) for part, size in zip(jax.random.split(key), ((), shape), strict=True))
  return 3 + 4 * one * each if bug_compatible else 3 + 2 * one * (2 * each - 1)


def _permute(key: Key, z: Array) -> Array:
  c = z.shape[-1]
  first = scaled(10, c, LATENTS)
  return z[..., jnp.concatenate([jax.random.permutation(key, first), jnp.arange(first, c)])]


def _mirror(key: Key, z: Array) -> Array:
  """Flips height, width, or both: two of three axes; in the published code, the third is the batch."""
  ways = [lambda z: z[:, ::-1], lambda z: z[:, :, ::-1], lambda z: z[:, ::-1, ::-1]]
  return jax.lax.switch(jax.random.randint(key, (), 0, 3), ways, z)


def _mirror_all(key: Key, z: Array) -> Array:
  return _mirror(key, z)


def _mirror_some(key: Key, z: Array) -> Array:
  """Flips 5 channels (of 32) drawn with replacement; one that is drawn twice is flipped back."""
  way, channels = jax.random.split(key)
  c = z.shape[-1]
  drawn = jax.random.randint(channels, (scaled(5, c, LATENTS),), 0, c)
  odd = jnp.zeros(c, int).at[drawn].add(1) % 2 == 1
  return jnp.where(odd.reshape(1, 1, 1, -1), _mirror(way, z), z)


def _kernel_shape(z: Array) -> tuple[int, int, int, int]:
  return 3, 3, z.shape[-1], z.shape[-1]


def _identity(z: Array) -> Array:
  return jnp.zeros(_kernel_shape(z), z.dtype).at[1, 1].set(jnp.eye(z.shape[-1], dtype=z.dtype))


def _extra_taps(key: Key, z: Array) -> Array:
  """The identity, with one more tap in half of the outputs; the published code's -1, 0, 1 are taps 2, 0, 1."""
  half, inputs, taps = jax.random.split(key, 3)
  c = z.shape[-1]
  extra = jnp.where(jax.random.bernoulli(half, 0.5, (c,)), 1, 0).astype(z.dtype)
  row, column = jax.random.randint(taps, (2, c), 0, 3)
  kernel = _identity(z)
  return kernel.at[row, column, jax.random.randint(inputs, (c,), 0, c), jnp.arange(c)].max(extra)


def _shifts(key: Key, z: Array) -> Array:
  """Shifts every channel by at most one pixel: like the previous channel or, with probability 0.2, by a new draw."""
  taps, changes = jax.random.split(key)
  c = z.shape[-1]
  anew = jax.random.bernoulli(changes, 0.2, (c,))
  latest = jax.lax.cummax(jnp.where(anew, jnp.arange(1, c + 1), 0))  # 0 is the draw before the first channel
  row, column = jax.random.randint(taps, (2, c + 1), 0, 3)[:, latest]
  channels = jnp.arange(c)
  return jnp.zeros(_kernel_shape(z), z.dtype).at[row, column, channels, channels].set(1)


def _leaky(x: Array) -> Array:
  return jax.nn.leaky_relu(x, 0.01)
