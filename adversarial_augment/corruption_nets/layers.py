"""Layers of the corruption networks, and the tables of layers that determine the shapes of their parameters.

Every layer has a weight and a bias block, initialised as in PyTorch by default, so that no bias block is zero.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv

Table = Mapping[str, tuple[int, int, int]]  # name -> (side of the kernel, channels in, channels out)
Shapes = dict[str, dict[str, tuple[int, ...]]]


def shapes(network: str, table: Table) -> Shapes:
  """Returns the names and shapes of a network's parameters in a weight file."""
  return {f'{network}/{name}': {'w': (size, size, n, k), 'b': (k,)} for name, (size, n, k) in table.items()}


def transform(forward: Callable[[jax.Array], Any], *, multiple: int = 1) -> hk.Transformed:
  """Builds `init(key, images) -> phi` and `apply(phi, images, key=None) -> images` from a function that calls layers.

  Where h and w are no multiples of `multiple`, images [n, h, w, 3] are padded by reflection at their right and lower
  edges, and the result is cropped. The key is for networks that draw noise; others ignore it.
  """

  def fitted(images: jax.Array) -> Any:
    _, h, w, _ = images.shape
    if h % multiple == w % multiple == 0:
      return forward(images)
    pads = ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0))
    return forward(jnp.pad(images, pads, mode='reflect'))[:, :h, :w]

  pure = hk.transform(fitted)
  return hk.Transformed(pure.init, lambda phi, images, key=None: pure.apply(phi, key, images))


@dataclasses.dataclass(frozen=True)
class Layers:
  """The convolutions of a table: `layer(x, name, relu=, stride=, padding=)`."""

  network: str
  table: Table
  conv: per_example_conv.Conv

  def __call__(self, x: jax.Array, name: str, **options: Any) -> jax.Array:
    return per_example_conv.layer(self.conv, x, *self.weights(name, x.dtype), **options)

  def weights(self, name: str, dtype: jnp.dtype) -> list[jax.Array]:
    """Returns the weight [kh, kw, c, k] and the bias [k] of a layer."""
    size, inputs, channels = self.table[name]
    return _weights(f'{self.network}/{name}', (size, size, inputs, channels), size**2 * inputs, dtype)


def doubling(x: jax.Array, name: str, channels: int) -> jax.Array:
  """Returns a biased transposed convolution 2x2 of stride 2: y[2i + a, 2j + b] = x[i, j] w[a, b]."""
  n, h, width, inputs = x.shape
  w, b = _weights(name, (2, 2, inputs, channels), 4 * channels, x.dtype)
  y = (x @ w.transpose(2, 0, 1, 3).reshape(inputs, -1)).reshape(n, h, width, 2, 2, channels)
  return y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * width, channels) + b.reshape(1, 1, 1, -1)


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
  """[n, h, w, c * r * r] -> [n, r * h, r * w, c] with PyTorch's channel order c * r * r + a * r + b."""
  n, h, w, channels = x.shape
  x = x.reshape(n, h, w, channels // factor**2, factor, factor)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, h * factor, w * factor, channels // factor**2)


def parameters(
  module: str, dtype: jnp.dtype, blocks: Mapping[str, tuple[tuple[int, ...], hk.initializers.Initializer]]
) -> list[jax.Array]:
  """Returns parameters of a module of this name, each with its shape and initialiser, cast to a type."""
  return [value.astype(dtype) for value in _Named(module)(blocks)]


class _Named(hk.Module):
  def __init__(self, name: str):
    super().__init__(hk.experimental.force_name(name))

  def __call__(self, blocks: Mapping[str, tuple[tuple[int, ...], Any]]) -> list[jax.Array]:
    return [hk.get_parameter(name, shape, init=init) for name, (shape, init) in blocks.items()]


def _weights(module: str, shape: tuple[int, int, int, int], fan_in: int, dtype: jnp.dtype) -> list[jax.Array]:
  bound = 1 / math.sqrt(fan_in)

  def uniform(shape, dtype):  # drawn as a vector: XLA takes a second to compile random bits for each 4-D shape
    return jax.random.uniform(hk.next_rng_key(), (math.prod(shape),), dtype, -bound, bound).reshape(shape)

  return parameters(module, dtype, {'w': (shape, uniform), 'b': (shape[-1:], uniform)})
