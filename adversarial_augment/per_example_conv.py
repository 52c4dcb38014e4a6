"""Convolutions whose kernels differ from example to example: the hot kernel of AdA.

Arrays are NHWC and HWIO. `vmap` over the kernels of an ordinary convolution is correct and very slow: its weight
gradient lowers to a grouped convolution whose cost grows faster than the batch, and which automatic sharding even gets
wrong (docs/design.md has the measurements). Three formulations of one function take its place:

- `map`: one example after the other, each an ordinary convolution whose gradients are ordinary convolutions too, or,
  for narrow layers, matrix products. Fastest on CPUs, where XLA runs a convolution's gradient inside any loop through a
  slow path unless it is written as a forward convolution in NHWC/HWIO order.
- `im2col`: all examples at once, as batched matrix products of patches that the backward pass makes again. For GPUs
  and TPUs.
- `vmap`: `jax.vmap` of `jax.lax.conv_general_dilated`, the oracle of the tests.

A network that takes its convolution as an argument runs per example with `over_examples(apply)` and `example_conv`.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from adversarial_augment import registry

Conv = Callable[..., jax.Array]
Pads = tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
_WIDE = 32  # channels from which an Eigen convolution beats the matrix product of patches on a CPU


def conv(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding='SAME') -> jax.Array:
  """Returns the plain convolution of [n, h, w, c] with [kh, kw, c, k]; fastest outside loops."""
  pads = _pads(images.shape, kernel.shape, stride, padding)
  return jax.lax.conv_general_dilated(images, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS)


def loop_conv(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding='SAME') -> jax.Array:
  """Returns `conv`, in a form whose gradient is fast inside `fori_loop`, `scan` and `map` on every platform."""
  if jax.default_backend() != 'cpu':
    return conv(images, kernel, stride=stride, padding=padding)
  return _canonical(images, kernel, stride, _pads(images.shape, kernel.shape, stride, padding))


def example_conv(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding='SAME') -> jax.Array:
  """Returns `conv`, in the form that suits a network mapped over examples by `over_examples`."""
  pads = _pads(images.shape, kernel.shape, stride, padding)
  wide = min(kernel.shape[2:]) >= _WIDE
  form = _canonical if wide and jax.default_backend() == 'cpu' else _patchwise
  return form(images, kernel, stride, pads)


def per_example_conv(
  images: jax.Array, kernels: jax.Array, *, stride: int = 1, padding='SAME', impl: str = 'auto'
) -> jax.Array:
  """Convolves every image with a kernel of its own.

  Args:
    images: [n, h, w, c].
    kernels: [n, kh, kw, c, k].
    stride: of both spatial axes.
    padding: 'SAME', 'VALID', or ((top, bottom), (left, right)).
    impl: 'map', 'im2col', 'vmap', or 'auto': 'map' on a CPU, else 'im2col'.

  Returns:
    [n, h', w', k]

  Raises:
    UserError: an unknown `impl`.
  """
  one: dict[str, Conv] = {'map': example_conv, 'im2col': _patchwise_conv, 'vmap': conv}
  impl = _resolve(impl, one)
  apply = lambda kernel, image: one[impl](image[None], kernel, stride=stride, padding=padding)[0]
  return over_examples(apply, impl=impl)(kernels, images)


def over_examples(apply: Callable, *, impl: str = 'auto') -> Callable:
  """Returns `apply(params, image)` mapped over the leading axes of both, in the order that suits the platform."""
  impl = _resolve(impl, ('map', 'im2col', 'vmap'))
  if impl == 'map':
    return lambda params, images: jax.lax.map(lambda both: apply(*both), (params, images))
  return jax.vmap(apply)


def _resolve(impl: str, known) -> str:
  auto = 'map' if jax.default_backend() == 'cpu' else 'im2col'
  return registry.lookup({'auto': auto} | {name: name for name in known}, impl, 'impl')


def _pads(image_shape, kernel_shape, stride: int, padding) -> Pads:
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(image_shape[1:3], kernel_shape[:2], (stride, stride), padding)
  (top, bottom), (left, right) = padding
  return (int(top), int(bottom)), (int(left), int(right))


def _pad(x: jax.Array, pads: Pads, stride: int = 1) -> jax.Array:
  """Puts `stride` - 1 zeros between the pixels of [n, h, w, ...] and `pads` around them (negative ones crop)."""
  config = [(0, 0, 0)] + [(low, high, stride - 1) for low, high in pads] + [(0, 0, 0)] * (x.ndim - 3)
  return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _transposed_pads(x, w, g, stride: int, pads: Pads) -> Pads:
  """Pads of the dilated output gradient with which a stride-1 convolution gives the input gradient."""
  vertical, horizontal = (
    (w.shape[axis] - 1 - low, x.shape[axis + 1] + low - (g.shape[axis + 1] - 1) * stride - 1)
    for axis, (low, _) in enumerate(pads)
  )
  return vertical, horizontal


# The canonical form: forward, input gradient and weight gradient are all NHWC/HWIO/NHWC convolutions.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _canonical(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
  return jax.lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=_DIMENSIONS)


def _canonical_forward(x, w, stride, pads):
  return _canonical(x, w, stride, pads), (x, w)


def _canonical_backward(stride, pads, saved, g):
  x, w = saved
  dilated = _pad(g, ((0, 0), (0, 0)), stride)
  flipped = jax.lax.optimization_barrier(w[::-1, ::-1].swapaxes(2, 3))
  dx = conv(dilated, flipped, padding=_transposed_pads(x, w, g, stride, pads))
  # Channels take the place of the batch: the gradient is a convolution of x with g as its kernel.
  lhs, rhs = jax.lax.optimization_barrier((x.transpose(3, 1, 2, 0), dilated.transpose(1, 2, 0, 3)))
  sizes = zip(pads, w.shape[:2], dilated.shape[1:3], x.shape[1:3], strict=True)
  dw = conv(lhs, rhs, padding=tuple((low, size - 1 + out - height - low) for (low, _), size, out, height in sizes))
  return dx, dw.transpose(1, 2, 0, 3)


_canonical.defvjp(_canonical_forward, _canonical_backward)


# The patchwise form: matrix products with patches of whichever side, input or output, has fewer channels.


def _patchwise_conv(images, kernel, *, stride, padding):
  return _patchwise(images, kernel, stride, _pads(images.shape, kernel.shape, stride, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _patchwise(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
  kh, kw, c, k = w.shape
  if c <= k:
    return _dot(_patches(_pad(x, pads), (kh, kw), stride), w.reshape(kh * kw * c, k))
  taps = _dot(x, w.transpose(2, 0, 1, 3).reshape(c, kh * kw * k))
  return _fold(_pad(taps, pads), (kh, kw), stride)


def _patchwise_forward(x, w, stride, pads):
  return _patchwise(x, w, stride, pads), (x, w)


def _patchwise_backward(stride, pads, saved, g):
  x, w = saved
  kh, kw, c, k = w.shape
  around = _transposed_pads(x, w, g, stride, pads)
  flipped = w[::-1, ::-1].swapaxes(2, 3)  # [kh, kw, k, c]
  if c < k:
    dw = _outer(_patches(_pad(x, pads), (kh, kw), stride), g).reshape(kh, kw, c, k)
    taps = _dot(g, flipped.transpose(2, 0, 1, 3).reshape(k, kh * kw * c))
    return _fold(_pad(taps, around, stride), (kh, kw), 1), dw
  # One matrix of patches of g serves both gradients.
  patches = _patches(_pad(g, around, stride), (kh, kw), 1)
  dx = _dot(patches, flipped.reshape(kh * kw * k, c))
  dw = _outer(x, patches).reshape(c, kh, kw, k)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
  return dx, dw


_patchwise.defvjp(_patchwise_forward, _patchwise_backward)


def _taps(x: jax.Array, size: tuple[int, int], stride: int) -> list[jax.Array]:
  """Returns, for each tap of a window, the pixels of a padded [n, h, w, ...] that it sees, [n, h', w', ...]."""
  out = [(x.shape[axis + 1] - size[axis]) // stride + 1 for axis in (0, 1)]
  rows = [slice(a, a + (out[0] - 1) * stride + 1, stride) for a in range(size[0])]
  columns = [slice(b, b + (out[1] - 1) * stride + 1, stride) for b in range(size[1])]
  return [x[:, row, column] for row in rows for column in columns]


def _patches(x: jax.Array, size: tuple[int, int], stride: int) -> jax.Array:
  """[n, h, w, c] -> [n, h', w', kh * kw * c]"""
  return jnp.concatenate(_taps(x, size, stride), axis=-1)


def _fold(z: jax.Array, size: tuple[int, int], stride: int) -> jax.Array:
  """[n, h, w, kh * kw * c] -> [n, h', w', c]: the sum over taps of what each contributes."""
  parts = jnp.split(z, size[0] * size[1], axis=-1)
  return functools.reduce(jnp.add, (_taps(part, size, stride)[tap] for tap, part in enumerate(parts)))


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
  return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def _outer(x: jax.Array, g: jax.Array) -> jax.Array:
  """Sums x g^T over all pixels: [n, h, w, a], [n, h, w, b] -> [a, b]."""
  return jax.lax.dot_general(x, g, (((0, 1, 2), (0, 1, 2)), ((), ())))
