"""VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) as an image-to-image network.

An encoder returns a vector for every 4 x 4 pixels, each is replaced by the nearest vector of a codebook, and a decoder
maps them to an image. The gradient ignores the quantiser (straight-through). The codebook is a constant to the
adversary, as are all parameters of that name (attacks/ada.py): no gradient reaches it, and moving it would move
the codes of all patches together. Widths and blocks are those of the paper's experiments with 128 channels. The decoder
upsamples by pixel shuffle instead of transposed convolutions, a choice of this package.
"""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.corruption_nets import layers

BLOCKS = 2
CODEBOOK = 'vqvae/quantiser'  # the module whose parameter 'codebook' is [codes, features]


class Coded(NamedTuple):
  """The outputs that training needs."""

  images: jax.Array  # [n, h, w, 3], not clipped
  latents: jax.Array  # [n, h / 4, w / 4, features], before quantisation
  codes: jax.Array  # int32 [n, h / 4, w / 4]


def vqvae(
  *,
  features: int = 64,
  codes: int = 512,
  native: bool = True,
  conv: per_example_conv.Conv = per_example_conv.example_conv,
  dtype: jnp.dtype | None = None,
) -> hk.Transformed:
  """Builds the VQ-VAE: `init(key, images) -> phi`, `apply(phi, images) -> images`.

  Args:
    features: channels of the first layer and length of a code; the layers between have twice as many.
    codes: vectors in the codebook, {'codebook': [codes, features]}.
    native: whether to return images in [0, 1]; otherwise a `Coded`, for images whose sides are multiples of 4.
    conv, dtype: see the package; distances to codes always use the type of the images.
  """
  layer = layers.Layers('vqvae', vqvae_table(features), conv)

  def forward(images: jax.Array) -> Coded | jax.Array:
    x = (images if dtype is None else images.astype(dtype)) - 0.5
    for name in ('down_0', 'down_1'):
      x = jax.nn.relu(layer(x, name, stride=2, padding=((1, 1), (1, 1))))
    x = blocks(layer(x, 'encoder'), 'encoder_block')
    latents = layer(x, 'to_code').astype(images.dtype)
    normal = hk.initializers.RandomNormal(0.1)
    (codebook,) = layers.parameters(CODEBOOK, latents.dtype, {'codebook': ((codes, features), normal)})
    quantised, indices = quantise(latents, jax.lax.stop_gradient(codebook))
    x = layer((latents + jax.lax.stop_gradient(quantised - latents)).astype(x.dtype), 'from_code')
    x = blocks(x, 'decoder_block')
    x = jax.nn.relu(layers.pixel_shuffle(layer(x, 'up_0'), 2))
    restored = layers.pixel_shuffle(layer(x, 'up_1'), 2).astype(images.dtype) + 0.5
    return jnp.clip(restored, 0.0, 1.0) if native else Coded(restored, latents, indices)

  def blocks(x: jax.Array, name: str) -> jax.Array:
    for i in range(BLOCKS):
      x = x + layer(jax.nn.relu(layer(jax.nn.relu(x), f'{name}_{i}/conv_0')), f'{name}_{i}/conv_1')
    return jax.nn.relu(x)

  return layers.transform(forward, multiple=4)


def quantise(latents: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the nearest vectors of a codebook [k, d] to [..., d], and their indices [...]."""
  flat = latents.reshape(-1, latents.shape[-1])
  # ||z||^2 is the same for all codes.
  distances = jnp.sum(codebook**2, -1)[None] - 2 * jnp.matmul(flat, codebook.T, precision='highest')
  indices = jnp.argmin(distances, -1).reshape(latents.shape[:-1])
  return codebook[indices], indices


def vqvae_table(features: int) -> layers.Table:
  """Returns the convolutions."""
  f, middle = features, -(-features // 2)
  block = lambda name: {
    key: size
    for i in range(BLOCKS)
    for key, size in ((f'{name}_{i}/conv_0', (3, 2 * f, middle)), (f'{name}_{i}/conv_1', (1, middle, 2 * f)))
  }
  return {
    'down_0': (4, 3, f),
    'down_1': (4, f, 2 * f),
    'encoder': (3, 2 * f, 2 * f),
    **block('encoder_block'),
    'to_code': (1, 2 * f, f),
    'from_code': (3, f, 2 * f),
    **block('decoder_block'),
    'up_0': (3, 2 * f, 4 * f),
    'up_1': (3, f, 12),
  }
