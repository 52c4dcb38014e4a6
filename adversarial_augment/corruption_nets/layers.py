"""Layers of the corruption networks, and the tables of layers that determine the shapes of their parameters.

Every layer has a weight and a bias block, initialised as in PyTorch by default, so that no bias block is zero.
"""

from collections.abc import Callable, Mapping
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

  Args:
    forward: images [n, h, w, 3] in [0, 1] -> images of the same size.
    multiple: h and w must be multiples of it; other images are padded by reflection at their right and lower edges,
      and the result is cropped.

  Returns:
    A pair of pure functions; `key` is for networks that draw noise; others ignore it.
  """

  def fitted(images: jax.Array) -> Any:
    _, h, w, _ = images.shape
    if h % multiple == w % multiple == 0:
      return forward(images)
    pads = ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0))
    return forward(jnp.pad(images, pads, mode='reflect'))[:, :h, :w]

  pure = hk.transform(fitted)
  return hk.Transformed(pure.init, lambda phi, images, key=None: pure.apply(phi, key, images))


def layers_of(network: str, table: Table, conv: per_example_conv.Conv) -> Callable[..., jax.Array]:
  """Returns `layer(x, name, relu=, stride=, padding=)`, the convolutions of a table."""

  def layer(x: jax.Array, name: str, *, relu: bool = False, stride: int = 1, padding: Any = 'SAME') -> jax.Array:
    size, inputs, channels = table[name]
    weights = Weights(f'{network}/{name}', size)(inputs, channels, x.dtype)
    return per_example_conv.layer(conv, x, *weights, relu=relu, stride=stride, padding=padding)

  return layer


def weights_of(network: str, table: Table) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns `weights(name, dtype)`: the weight [kh, kw, c, k] and the bias [k] of a layer of a table."""

  def weights(name: str, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    size, inputs, channels = table[name]
    return Weights(f'{network}/{name}', size)(inputs, channels, dtype)

  return weights


class Weights(hk.Module):
  """The weight [size, size, c, k] and the bias [k] of a convolution."""

  def __init__(self, name: str, size: int):
    super().__init__(hk.experimental.force_name(name))
    self._size = size

  def __call__(self, inputs: int, channels: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    return _parameters((self._size, self._size, inputs, channels), self._size**2 * inputs, dtype)


class Doubling(hk.Module):
  """A biased transposed convolution 2x2 of stride 2: y[2i + a, 2j + b] = x[i, j] w[a, b]."""

  def __init__(self, channels: int, name: str):
    super().__init__(hk.experimental.force_name(name))
    self._channels = channels

  def __call__(self, x: jax.Array) -> jax.Array:
    n, h, width, inputs = x.shape
    w, b = _parameters((2, 2, inputs, self._channels), 4 * self._channels, x.dtype)
    y = (x @ w.transpose(2, 0, 1, 3).reshape(inputs, -1)).reshape(n, h, width, 2, 2, self._channels)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * width, self._channels) + b.reshape(1, 1, 1, -1)


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
  """[n, h, w, c * r * r] -> [n, r * h, r * w, c] with PyTorch's channel order c * r * r + a * r + b."""
  n, h, w, channels = x.shape
  x = x.reshape(n, h, w, channels // factor**2, factor, factor)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, h * factor, w * factor, channels // factor**2)


def _parameters(shape: tuple[int, int, int, int], fan_in: int, dtype) -> tuple[jax.Array, jax.Array]:
  """The weight [kh, kw, c, k] and the bias [k] of the current module."""
  bound = 1 / math.sqrt(fan_in)

  def uniform(shape, dtype):  # drawn as a vector: XLA takes a second to compile random bits for each 4-D shape
    return jax.random.uniform(hk.next_rng_key(), (math.prod(shape),), dtype, -bound, bound).reshape(shape)

  w = hk.get_parameter('w', shape, init=uniform)
  b = hk.get_parameter('b', shape[-1:], init=uniform)
  return w.astype(dtype), b.astype(dtype)
