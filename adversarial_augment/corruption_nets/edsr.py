"""EDSR, the super-resolution network of Lim et al. 2017 (arXiv 1707.02921), as an image-to-image network.

The baseline (16 blocks of 64 features, x4) has 1,517,571 parameters in 37 convolutions. Its layers see grey levels
0..255 with the mean colour of DIV2K removed; scaling inputs to [0, 1] would change the size of biases relative to
weights, and so the meaning of the relative radii nu_i. Every convolution has a weight and a bias block.

The paper does not say how a x4 network returns an image of the input's size. Here it runs at the native size, and its
output is averaged over `scale` x `scale` pixels, which gives the SSIM of .99 that the paper reports (docs/choices.md).
"""

import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import per_example_conv
from adversarial_augment.corruption_nets import layers, linear_tail

MEAN = np.array([0.4488, 0.4371, 0.4040])  # DIV2K's mean colour in [0, 1]: EDSR-PyTorch, common.py


def edsr(
  *,
  blocks: int = 16,
  features: int = 64,
  scale: int = 4,
  perturb_mean_shift: bool = False,
  native: bool = True,
  tail: str = 'composed',
  conv: per_example_conv.Conv = per_example_conv.example_conv,
  dtype: jnp.dtype | None = None,
) -> hk.Transformed:
  """Builds EDSR: `init(key, images) -> phi`, `apply(phi, images) -> images`.

  Args:
    blocks: residual blocks, at least 1.
    features: channels of all layers but the last.
    scale: 1, 2 or 4; 2 and 4 add one and two pixel-shuffle stages of factor 2.
    perturb_mean_shift: whether the mean colour is a layer with its own blocks (not in the paper's count).
    native: whether to return images of the input's size in [0, 1]; otherwise super-resolved ones, not clipped.
    tail: how native images are computed after the last residual sum: 'composed', see linear_tail.py, or 'layers', one
      after the other. Equal up to rounding.
    conv, dtype: see the package.
  """
  table = edsr_table(blocks, features, scale)
  layer = layers.Layers('edsr', table, conv)
  ups = [f'up_{i}' for i in range(int(math.log2(scale)))]

  def forward(images: jax.Array) -> jax.Array:
    mean = jnp.asarray(255.0 * MEAN, images.dtype).reshape(1, 1, 1, 3)
    if perturb_mean_shift:
      x = _shift(255.0 * images, -1.0, 'edsr/sub_mean')
    else:
      x = 255.0 * images - mean
    if dtype is not None:
      x = x.astype(dtype)
    n, h, w, _ = images.shape
    x = skip = per_example_conv.side_by_side(layer(x, 'head'), conv)
    for i in range(blocks):
      x += layer(layer(x, f'block_{i}/conv_0', relu=True), f'block_{i}/conv_1')
    x = (skip + layer(x, 'body_out')).reshape(n, h, w, features)
    if native and ups and tail == 'composed' and min(h, w) > 1:
      kernels, biases = linear_tail.composed(
        [layer.weights(name, images.dtype) for name in ups], layer.weights('out', images.dtype)
      )
      x = linear_tail.apply(x, kernels.astype(x.dtype), biases.astype(x.dtype), conv).astype(images.dtype)
    else:
      for name in ups:
        x = layers.pixel_shuffle(layer(x, name), 2)
      x = layer(x, 'out').astype(images.dtype)
      if native:
        x = x.reshape(n, h, scale, w, scale, 3).mean((2, 4))
    x = _shift(x, 1.0, 'edsr/add_mean') if perturb_mean_shift else x + mean
    return jnp.clip(x / 255.0, 0.0, 1.0) if native else x / 255.0

  return layers.transform(forward)


def edsr_table(blocks: int, features: int, scale: int) -> layers.Table:
  """Returns the layers."""
  channels = {'head': (3, features)}
  channels |= {f'block_{i}/conv_{j}': (features, features) for i in range(blocks) for j in (0, 1)}
  channels |= {'body_out': (features, features)}
  channels |= {f'up_{i}': (features, 4 * features) for i in range(int(math.log2(scale)))}
  return {name: (3, *pair) for name, pair in (channels | {'out': (features, 3)}).items()}


def _shift(x: jax.Array, sign: float, module: str) -> jax.Array:
  """Adds or removes the mean colour, as a 1x1 convolution."""
  identity = lambda shape, dtype: jnp.eye(3, dtype=dtype)
  colour = lambda shape, dtype: jnp.asarray(sign * 255.0 * MEAN, dtype)
  w, b = layers.parameters(module, x.dtype, {'w': ((3, 3), identity), 'b': ((3,), colour)})
  return x @ w + b.reshape(1, 1, 1, 3)
