"""CAE, the compressive autoencoder of DeepAugment (Theis et al. 2017, arXiv 1703.00395, as alexandru-dinu/cae has it).

An encoder maps every 4 x 4 pixels to 32 bits, and a decoder maps the bits to an image. With the published widths it has
2,241,859 parameters in 21 layers. Bits are random: +1 with probability (1 + z) / 2, otherwise -1, where z in [-1, 1] is
the encoder's output. Their gradient is that of z (straight-through).
"""

from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.corruption_nets import layers

BITS = 32  # per latent position, whatever the width: they determine how much of an image is kept


def cae(
  *,
  features: int = 64,
  deterministic: bool = False,
  native: bool = True,
  conv: per_example_conv.Conv = per_example_conv.example_conv,
  dtype: jnp.dtype | None = None,
) -> hk.Transformed:
  """Builds the CAE: `init(key, images) -> phi`, `apply(phi, images, key) -> images`.

  Args:
    features: channels of the first layer; the other layers scale with it.
    deterministic: whether bits are the sign of z; `apply` then needs no key, from which they are drawn otherwise.
    native: whether to return images in [0, 1]; otherwise in [-1, 1], before clipping.
    conv, dtype: see the package.
  """
  table = cae_table(features)

  def forward(images: jax.Array) -> jax.Array:
    def code(x: jax.Array) -> jax.Array:
      z = jnp.tanh(x.astype(images.dtype))
      return (z + jax.lax.stop_gradient(bits(z) - z)).astype(x.dtype)

    double = lambda x, name: layers.doubling(x, f'cae/{name}', table[name][2])
    x = run(images if dtype is None else images.astype(dtype), layers.Layers('cae', table, conv), double, code)
    x = jnp.tanh(x.astype(images.dtype))
    return jnp.clip(x, 0.0, 1.0) if native else x

  def bits(z: jax.Array) -> jax.Array:
    if deterministic:
      threshold: jax.Array | float = 0.0
    else:
      threshold = jax.random.uniform(hk.next_rng_key(), (z.size,), z.dtype, -1.0, 1.0).reshape(z.shape)
    return jnp.where(z > threshold, 1.0, -1.0).astype(z.dtype)

  return layers.transform(forward, multiple=4)


def run(x: jax.Array, layer: Callable, double: Callable, code: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """Applies `layer(x, name, ...)` and the transposed `double(x, name)` to images [n, h, w, 3], up to the last tanh.

  h and w are multiples of 4; `code` maps the encoder's output before its tanh to the decoder's input.
  """

  def blocks(x: jax.Array, name: str) -> jax.Array:
    for i in (1, 2, 3):
      x = x + layer(_leaky(layer(x, f'{name}_{i}/conv_0')), f'{name}_{i}/conv_1')
    return x

  def up(x: jax.Array, name: str) -> jax.Array:
    x = _leaky(layer(x, f'{name}/conv', padding='VALID'))
    return double(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), f'{name}/up')

  for name in ('e_conv_1', 'e_conv_2'):
    x = _leaky(layer(x, name, stride=2, padding=((1, 2), (1, 2))))
  x = code(layer(blocks(x, 'e_block'), 'e_conv_3'))
  x = up(blocks(up(x, 'd_up_conv_1'), 'd_block'), 'd_up_conv_2')
  x = _leaky(layer(x, 'd_up_conv_3/conv', padding='VALID'))
  x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode='reflect')
  return layer(x, 'd_up_conv_3/out', padding='VALID')


def cae_table(features: int) -> layers.Table:
  """Returns the layers in the order of the published network, 'up' being the transposed ones."""
  f, half, quarter = features, -(-features // 2), -(-features // 4)
  block = lambda name: {f'{name}_{i}/conv_{j}': (3, 2 * f, 2 * f) for i in (1, 2, 3) for j in (0, 1)}
  return {
    'e_conv_1': (5, 3, f),
    'e_conv_2': (5, f, 2 * f),
    **block('e_block'),
    'e_conv_3': (5, 2 * f, BITS),
    'd_up_conv_1/conv': (3, BITS, f),
    'd_up_conv_1/up': (2, f, 2 * f),
    **block('d_block'),
    'd_up_conv_2/conv': (3, 2 * f, half),
    'd_up_conv_2/up': (2, half, 4 * f),
    'd_up_conv_3/conv': (3, 4 * f, quarter),
    'd_up_conv_3/out': (3, quarter, 3),
  }


def _leaky(x: jax.Array) -> jax.Array:
  return jax.nn.leaky_relu(x, 0.01)
