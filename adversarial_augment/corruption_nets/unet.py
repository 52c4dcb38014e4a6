"""A U-Net (Ronneberger et al. 2015, arXiv 1505.04597) that adds a correction to its input, for filling in holes.

Three resolutions of 64, 128 and 256 channels, two 3x3 convolutions with ReLU in each, average pooling, upsampling by
repetition, no batch norm. The later version of arXiv 2104.01086 only says that it trains a U-Net on a task like
inpainting; the architecture is a choice of this package.
"""

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.corruption_nets import layers

LEVELS = 3


def unet(
  *,
  features: int = 64,
  native: bool = True,
  conv: per_example_conv.Conv = per_example_conv.example_conv,
  dtype: jnp.dtype | None = None,
) -> hk.Transformed:
  """Builds the U-Net: `init(key, images) -> phi`, `apply(phi, images) -> images`.

  Args:
    features: channels at full resolution; each of the two lower resolutions doubles them.
    native: whether to clip the images to [0, 1].
    conv, dtype: see the package.
  """
  convolve = layers.Layers('unet', unet_table(features), conv)

  def forward(images: jax.Array) -> jax.Array:
    layer = lambda x, name: jax.nn.relu(convolve(x, name))
    twice = lambda x, name: layer(layer(x, f'{name}/conv_0'), f'{name}/conv_1')
    x = twice(images if dtype is None else images.astype(dtype), 'down_0')
    skips = []
    for level in range(1, LEVELS):
      skips.append(x)
      n, h, w, c = x.shape
      x = twice(x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4)), f'down_{level}')
    for level in reversed(range(LEVELS - 1)):
      x = layer(x.repeat(2, 1).repeat(2, 2), f'up_{level}/conv')
      x = twice(jnp.concatenate([skips[level], x], -1), f'up_{level}')
    restored = images + convolve(x, 'out').astype(images.dtype)
    return jnp.clip(restored, 0.0, 1.0) if native else restored

  return layers.transform(forward, multiple=2 ** (LEVELS - 1))


def unet_table(features: int) -> layers.Table:
  """Returns the layers: 'down_0' to 'down_2' from fine to coarse, 'up_1', 'up_0' and 'out' back."""
  table: dict[str, tuple[int, int, int]] = {}
  for level in range(LEVELS):
    f = features << level
    table |= {f'down_{level}/conv_0': (3, f // 2 if level else 3, f), f'down_{level}/conv_1': (3, f, f)}
  for level in range(LEVELS - 1):
    f = features << level
    table |= {f'up_{level}/conv': (3, 2 * f, f), f'up_{level}/conv_0': (3, 2 * f, f), f'up_{level}/conv_1': (3, f, f)}
  return table | {'out': (3, features, 3)}
