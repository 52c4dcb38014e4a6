"""The tail of EDSR as one small convolution per image.

Between the last residual sum and the average over `scale` x `scale` pixels, EDSR has no non-linearity: convolutions and
pixel shuffles, an output convolution and the mean are one linear map. Away from the border it is a 5x5 convolution from
the features to 3 channels at the native size. Its kernel is composed from the weights of the layers, from the last one
backwards, so that no array of the enlarged size ever exists. At the border, every layer pads with zeros, so the first
and last row and column have other kernels, which omit positions outside the enlarged image.

Equal to the layers up to rounding, in values and gradients (`edsr(tail='layers')` is the oracle).
"""

from collections.abc import Iterable, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import per_example_conv

Layer = Sequence[jax.Array]  # weight [3, 3, c, k] and bias [k]

_WINDOW = 5  # side of the composed kernel
_PLACES = 3  # of a row or column in the image: first, between, last


def composed(ups: Sequence[Layer], out: Layer) -> tuple[jax.Array, jax.Array]:
  """Composes convolutions 3x3, each but the last followed by a pixel shuffle of factor 2, and the mean.

  Args:
    ups: the layers before each shuffle, c -> 4 c channels; at least one.
    out: the last layer, c -> k channels, whose output is averaged over blocks of 2 ** len(ups) pixels per side.

  Returns:
    Kernels [3, 3, 5, 5, c, k] and biases [3, 3, k], indexed by the place of row and column: first, between, last.
  """
  scale = 2 ** len(ups)
  (weight, bias), k = out, out[0].shape[-1]
  # The effect of each position before the current layer, in a window around a native pixel, on the output of that
  # pixel: [row's place, column's place, h, w, k, c]; places are equal until a position lies outside.
  effect = jnp.broadcast_to(jnp.eye(k, dtype=weight.dtype) / scale**2, (1, 1, scale, scale, k, k))
  effect, below = _through(effect, weight, np.ones((1, scale), np.float32)), 1
  total = jnp.broadcast_to(bias, (3, 3, k))
  for weight, bias in reversed(ups):
    effect, below = _before_shuffle(effect, below), -(-below // 2)
    scale //= 2
    inside = _inside(effect.shape[2], below, scale)
    masked = effect * _along(inside, 0, 2, 6) * _along(inside, 1, 3, 6)
    total += masked.sum((2, 3)) @ bias
    effect, below = _through(effect, weight, inside), below + 1
  return effect.swapaxes(4, 5), total


def _through(effect: jax.Array, weight: jax.Array, inside: np.ndarray) -> jax.Array:
  """Maps effects of a layer's outputs [a, b, h, w, o, k] to those of its inputs [3, 3, h + 2, w + 2, o, c].

  a and b are 3, or 1 if all places are equal; `inside` [3, h] says whether each output exists; h = w.
  """
  # A plain matrix product: gradients with several summed axes crash in XLA's CPU backend (jaxlib 0.10.2).
  c, k = weight.shape[2:]
  taps = effect.reshape(-1, k) @ weight.transpose(3, 0, 1, 2).reshape(k, -1)
  taps = jnp.moveaxis(taps.reshape(*effect.shape[:5], 3, 3, c), 4, 6)
  # Output p sees input p + d - 1 through tap d.
  taps *= _along(inside, 0, 2, 8)
  rows = _sum(jnp.pad(taps[:, :, :, :, d], _at(d, axis=2, ndim=7)) for d in range(3))
  rows *= _along(inside, 1, 3, 7)
  return _sum(jnp.pad(rows[:, :, :, :, d], _at(d, axis=3, ndim=6)) for d in range(3))


def _sum(parts: Iterable[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, parts)


def _along(inside: np.ndarray, place: int, position: int, ndim: int) -> np.ndarray:
  """[places, positions] with these as two of `ndim` axes."""
  return inside.reshape(
    [inside.shape[(place, position).index(i)] if i in (place, position) else 1 for i in range(ndim)]
  )


def _at(d: int, *, axis: int, ndim: int) -> list[tuple[int, int]]:
  return [(d, 2 - d) if i == axis else (0, 0) for i in range(ndim)]


def _before_shuffle(effect: jax.Array, below: int) -> jax.Array:
  """Maps effects on positions after a pixel shuffle [a, b, h, w, o, c] to those before it, with 4 c channels."""
  low = below % 2
  high = (effect.shape[2] + low) % 2
  effect = jnp.pad(effect, [(0, 0), (0, 0), (low, high), (low, high), (0, 0), (0, 0)])
  a, b, h, w, o, c = effect.shape
  effect = effect.reshape(a, b, h // 2, 2, w // 2, 2, o, c)
  return effect.transpose(0, 1, 2, 4, 6, 7, 3, 5).reshape(a, b, h // 2, w // 2, o, 4 * c)  # PyTorch's channel order


def _inside(size: int, below: int, scale: int) -> np.ndarray:
  """[3, size]: 1 where a position of the window lies in the image, for the first, a middle, and the last row."""
  position = np.arange(size) - below
  return np.stack([position >= 0, np.ones(size, bool), position < scale]).astype(np.float32)


def apply(x: jax.Array, kernels: jax.Array, biases: jax.Array, conv: per_example_conv.Conv) -> jax.Array:
  """Applies what `composed` returns to features [n, h, w, c] with at least 2 pixels per side: [n, h, w, k].

  One convolution computes all places for every pixel, and one of them is selected: the extra channels cost less than
  nine operations.
  """
  n, h, w, _ = x.shape
  c, k = kernels.shape[4:]
  size = _PLACES**2 * k
  kernel = kernels.transpose(2, 3, 4, 0, 1, 5).reshape(_WINDOW, _WINDOW, c, size)
  every = conv(x, kernel) + biases.reshape(1, 1, 1, size)
  places = jnp.asarray(_places(h)[:, None, :, None] * _places(w)[None, :, None, :], x.dtype)
  return (every.reshape(n, h, w, -1, k) * places.reshape(1, h, w, -1, 1)).sum(3)


def _places(size: int) -> np.ndarray:
  """[size, 3]: 1 where a row or column is the first, between, the last."""
  position = np.arange(size)
  return np.stack([position == 0, (position > 0) & (position < size - 1), position == size - 1], -1).astype(np.float32)
