"""Per-example convolutions in bfloat16 on NVIDIA GPUs: each pass is one Triton kernel, written with Pallas.

A pass reads its arrays once and writes its result once: there are no patches in memory. Sums are in float32.
Other types work too, but in float32 cuDNN's grouped convolutions are faster (docs/accelerators.md). The oracle of the
tests is `jax.lax.conv_general_dilated`; on a CPU the kernels run in Pallas' interpreter.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from adversarial_augment.parallel import platforms

Pads = tuple[tuple[int, int], tuple[int, int]]

# Near the best tiling for both kinds of pass on an H100 and an H200 (docs/accelerators.md).
_PIXELS = 128  # of an output tile, or of a step along the summed pixels
_WARPS, _STAGES = 8, 3
_FEW, _CHANNELS = (16, 32), 64  # channels of a tile: tensor cores need at least 16


def suits(channels: int, outputs: int, stride: int) -> bool:
  """Whether the kernels support this number of channels."""
  tiles = lambda n: n <= _FEW[-1] or n % _CHANNELS == 0
  return stride == 1 and tiles(channels) and tiles(outputs)


def conv(x: jax.Array, w: jax.Array, pads: Pads) -> jax.Array:
  """Returns the convolution of [n, h, w, c] with [kh, kw, c, k], stride 1; `vmap` it over kernels."""
  c, k = w.shape[2:]
  more_c, more_k = (next((few for few in _FEW if n <= few), n) - n for n in (c, k))
  x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more_c)))
  w = jnp.pad(w, ((0, 0), (0, 0), (0, more_c), (0, more_k)))
  return _conv(x, w, pads)[..., :k]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, w: jax.Array, pads: Pads) -> jax.Array:
  return _correlate(x, w.swapaxes(2, 3), pads)


def _conv_forward(x, w, pads):
  return _conv(x, w, pads), (x, w)


def _conv_backward(pads, saved, g):
  x, w = saved
  (top, bottom), (left, right) = pads
  down, across = w.shape[0] - 1, w.shape[1] - 1
  dx = _correlate(g, w[::-1, ::-1], ((down - top, down - bottom), (across - left, across - right)))
  return dx, _kernel_gradient(x, g, w.shape, pads).astype(w.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _correlate(x: jax.Array, w: jax.Array, pads: Pads) -> jax.Array:
  """The convolution with a kernel [kh, kw, k, c], outputs before inputs, as its tiles are loaded."""
  n, height, width, channels = x.shape
  kh, kw, outputs, _ = w.shape
  (top, bottom), (left, right) = pads
  out_height, out_width = height + top + bottom - kh + 1, width + left + right - kw + 1
  step, tile, pixels = min(channels, _CHANNELS), min(outputs, _CHANNELS), out_height * out_width

  def kernel(x_ref, w_ref, y_ref):
    image = pl.program_id(0)
    position = pl.program_id(1) * _PIXELS + jnp.arange(_PIXELS)
    columns = pl.program_id(2) * tile + jnp.arange(tile)
    row, column = _divide(position, out_width)
    row, column = row - top, column - left
    total = jnp.zeros((_PIXELS, tile), jnp.float32)
    for a in range(kh):
      for b in range(kw):
        inside = (row + a >= 0) & (row + a < height) & (column + b >= 0) & (column + b < width)
        source = jnp.where(inside, (row + a) * width + column + b, 0)
        for first in range(0, channels, step):
          taps = first + jnp.arange(step)
          patch = triton.load(x_ref.at[image, source[:, None], taps[None]], mask=inside[:, None], other=0)
          weights = triton.load(w_ref.at[a, b, columns[:, None], taps[None]])
          total += jnp.dot(patch, weights.T, preferred_element_type=jnp.float32)
    triton.store(
      y_ref.at[image, position[:, None], columns[None]], total.astype(y_ref.dtype), mask=(position < pixels)[:, None]
    )

  shape = jax.ShapeDtypeStruct((n, pixels, outputs), x.dtype)
  grid = (n, pl.cdiv(pixels, _PIXELS), outputs // tile)
  y = _call(kernel, shape, grid)(x.reshape(n, height * width, channels), w)
  return y.reshape(n, out_height, out_width, outputs)


def _kernel_gradient(x: jax.Array, g: jax.Array, shape: tuple[int, ...], pads: Pads) -> jax.Array:
  """The gradient [kh, kw, c, k] of the kernel, in float32."""
  n, height, width, _ = x.shape
  kh, kw, channels, outputs = shape
  _, out_height, out_width, _ = g.shape
  (top, _), (left, _) = pads
  step, tile, pixels = min(channels, _CHANNELS), min(outputs, _CHANNELS), out_height * out_width
  blocks = pl.cdiv(pixels, _PIXELS)

  def kernel(x_ref, g_ref, w_ref):
    tap = pl.program_id(0)
    a, b = _divide(tap, kw)
    taps = pl.program_id(1) * step + jnp.arange(step)
    columns = pl.program_id(2) * tile + jnp.arange(tile)

    def add(i, total):
      image, block = _divide(i, blocks)
      position = block * _PIXELS + jnp.arange(_PIXELS)
      row, column = _divide(position, out_width)
      row, column = row + a - top, column + b - left
      exists = position < pixels
      inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
      source = jnp.where(inside, row * width + column, 0)
      patch = triton.load(x_ref.at[image, source[:, None], taps[None]], mask=inside[:, None], other=0)
      slope = triton.load(
        g_ref.at[image, jnp.where(exists, position, 0)[:, None], columns[None]], mask=exists[:, None], other=0
      )
      return total + jnp.dot(patch.T, slope, preferred_element_type=jnp.float32)

    total = jax.lax.fori_loop(0, n * blocks, add, jnp.zeros((step, tile), jnp.float32))
    triton.store(w_ref.at[tap, taps[:, None], columns[None]], total)

  result = jax.ShapeDtypeStruct((kh * kw, channels, outputs), jnp.float32)
  grid = (kh * kw, channels // step, outputs // tile)
  flat = lambda array: array.reshape(n, -1, array.shape[-1])
  return _call(kernel, result, grid)(flat(x), flat(g)).reshape(shape)


def _divide(x: jax.Array, divisor: int) -> tuple[jax.Array, jax.Array]:
  """Returns quotient and remainder of a non-negative number; Triton rejects the general form of `//`."""
  divisors = jnp.full(x.shape, divisor, x.dtype)
  return jax.lax.div(x, divisors), jax.lax.rem(x, divisors)


def _call(kernel, shape, grid):
  return pl.pallas_call(
    kernel,
    out_shape=shape,
    grid=grid,
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
    interpret=platforms.current() == 'cpu',
  )
