"""The tail of EDSR as one small convolution for each image.

Between the last residual sum and the average over `scale` x `scale` pixels, EDSR has no non-linearity: convolutions and
pixel shuffles, an output convolution and the mean are one linear map. Away from the border it is a 5x5 convolution from
the features to 3 channels at the native size. Its kernel is composed from the weights of the layers, from the last one
backwards, so that no array of the enlarged size ever exists. At the border every layer pads with zeros of its own,
which makes the outermost ring of pixels another map: the first and the last row and column have kernels of their own,
which leave out what lies outside of the enlarged image.

Equal to the layers one after the other up to rounding, in values and gradients (`edsr(tail='layers')` is the oracle).
"""

from collections.abc import Iterable, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import per_example_conv

Layer = tuple[jax.Array, jax.Array]  # weight [3, 3, c, k] and bias [k]

_WINDOW = 5  # side of the composed kernel
_FIRST, _INSIDE, _LAST = range(3)  # where a row or column of the image lies


def composed(ups: Sequence[Layer], out: Layer) -> tuple[jax.Array, jax.Array]:
  """Composes convolutions 3x3, each but the last followed by a pixel shuffle of factor 2, and the mean.

  Args:
    ups: the layers before each shuffle, c -> 4 c channels; at least one.
    out: the last layer, c -> k channels, whose output is averaged over blocks of 2 ** len(ups) pixels a side.

  Returns:
    Kernels [3, 3, 5, 5, c, k] and biases [3, 3, k], by the row's and the column's place: first, between, last.
  """
  scale = 2 ** len(ups)
  (weight, bias), k = out, out[0].shape[-1]
  # What each position before the layer at hand, in a window around one native pixel, adds to the output of that pixel:
  # [row's place, column's place, h, w, k, c]; the places are alike until something lies outside.
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
  """Takes effects of a layer's outputs [a, b, h, w, o, k] to those of its inputs [3, 3, h + 2, w + 2, o, c].

  Args:
    effect: a and b are 3, or 1 where all places are alike.
    weight: of the layer, [3, 3, c, k].
    inside: [3, h], which of the outputs exist; h = w.
  """
  # A plain matrix product: gradients of one with several summed axes crash in XLA's CPU backend (jaxlib 0.10.2).
  c, k = weight.shape[2:]
  taps = effect.reshape(-1, k) @ weight.transpose(3, 0, 1, 2).reshape(k, -1)
  taps = jnp.moveaxis(taps.reshape(*effect.shape[:5], 3, 3, c), 4, 6)
  # Output p sees input p + d - 1 by tap d.
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
  """Takes effects on positions after a pixel shuffle [a, b, h, w, o, c] to those before it, with 4 c channels."""
  low = below % 2
  high = (effect.shape[2] + low) % 2
  effect = jnp.pad(effect, [(0, 0), (0, 0), (low, high), (low, high), (0, 0), (0, 0)])
  a, b, h, w, o, c = effect.shape
  effect = effect.reshape(a, b, h // 2, 2, w // 2, 2, o, c)
  return effect.transpose(0, 1, 2, 4, 6, 7, 3, 5).reshape(a, b, h // 2, w // 2, o, 4 * c)  # PyTorch's channel order


def _inside(size: int, below: int, scale: int) -> np.ndarray:
  """[3, size]: 1 where a position of the window lies in the image: for the first row, one between, and the last."""
  position = np.arange(size) - below
  return np.stack([position >= 0, np.ones(size, bool), position < scale]).astype(np.float32)


def apply(x: jax.Array, kernels: jax.Array, biases: jax.Array, conv: per_example_conv.Conv) -> jax.Array:
  """Returns the tail of [n, h, w, c], of at least 2 pixels a side: [n, h, w, k].

  Args:
    x: the features.
    kernels: [3, 3, 5, 5, c, k], see `composed`.
    biases: [3, 3, k], likewise.
    conv: of the inner pixels, which are nearly all.
  """
  n, h, w, c = x.shape
  reach = _WINDOW // 2
  inside = conv(x, kernels[_INSIDE, _INSIDE]) + biases[_INSIDE, _INSIDE].reshape(1, 1, 1, -1)

  def line(x, kernel, row, column):  # the three rows nearest to a border [n, 3, length, c] -> one row
    padded = jnp.pad(x, ((0, 0), (0, 0), (reach, reach), (0, 0)))
    length = x.shape[2]
    patches = jnp.concatenate([padded[:, :, i : i + length] for i in range(_WINDOW)], -1)  # [n, 3, length, 5 c]
    kernel = kernel.reshape(x.shape[1], _WINDOW * c, -1)
    return jnp.einsum('nrlc,rck->nlk', patches, kernel) + biases[row, column].reshape(1, 1, -1)

  rows, columns = min(h, reach + 1), min(w, reach + 1)
  near = {_FIRST: slice(0, rows), _LAST: slice(h - rows, h)}
  beside = {_FIRST: slice(0, columns), _LAST: slice(w - columns, w)}
  window = lambda size, place: slice(reach, reach + size) if place == _FIRST else slice(reach + 1 - size, reach + 1)

  def corner(place, side):
    kernel = kernels[place, side, window(rows, place), window(columns, side)]
    product = jnp.einsum('nrlc,rlck->nk', x[:, near[place], beside[side]], kernel)
    return (product + biases[place, side].reshape(1, -1))[:, None]

  def row(place):
    across = line(x[:, near[place]], kernels[place, _INSIDE, window(rows, place)], place, _INSIDE)
    return jnp.concatenate([corner(place, _FIRST), across[:, 1:-1], corner(place, _LAST)], 1)[:, None]

  def column(side):
    kernel = kernels[_INSIDE, side, :, window(columns, side)].swapaxes(0, 1)
    return line(x[:, :, beside[side]].swapaxes(1, 2), kernel, _INSIDE, side)[:, 1:-1, None]

  middle = jnp.concatenate([column(_FIRST), inside[:, 1:-1, 1:-1], column(_LAST)], 2)
  return jnp.concatenate([row(_FIRST), middle, row(_LAST)], 1)
