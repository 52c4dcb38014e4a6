"""Convolutions with per-example kernels: the most expensive operation of AdA.

Arrays are NHWC and HWIO. `vmap` over the kernels of an ordinary convolution is correct but very slow on CPUs: its
weight gradient becomes a grouped convolution whose cost grows faster than the batch, and which automatic sharding
computes wrongly (measurements: docs/performance.md). The formulations of the same function:

- `map`: one example after the other. Wide layers are ordinary convolutions whose gradients are ordinary convolutions
  too, narrow ones are matrix products, and those in between a convolution with matrix products for its gradients.
  Fastest on CPUs, where XLA takes a slow path for a convolution's gradient inside a loop unless it is written as a
  forward convolution in NHWC/HWIO order.
- `im2col`: all examples at once, as batched matrix products of patches, which the backward pass recomputes. Used on
  TPUs for layers that `tpu_conv` does not support.
- `vmap`: `jax.vmap` of `jax.lax.conv_general_dilated`, the oracle of the tests. On GPUs it is cuDNN's grouped
  convolution, the fastest form in float32; in bfloat16, `triton_conv` is (docs/accelerators.md).

A network that takes its convolution as an argument runs per example with `over_examples(apply)` and `example_conv`.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from adversarial_augment import checks
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import platforms

Conv = Callable[..., jax.Array]
Pads = tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


def conv(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding='SAME') -> jax.Array:
  """Returns the plain convolution of [n, h, w, c] with [kh, kw, c, k]; in attacks see attacks/convolutions.py."""
  pads = _pads(images.shape, kernel.shape, stride, padding)
  return jax.lax.conv_general_dilated(images, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS)


def example_conv(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding='SAME') -> jax.Array:
  """Returns `conv`, in the form for networks mapped over examples by `over_examples`."""
  pads, channels = _pads(images.shape, kernel.shape, stride, padding), min(kernel.shape[2:])
  platform = platforms.current()
  if platform == 'gpu':
    from adversarial_augment.per_example_conv import triton_conv  # Pallas takes half a second to import

    if kernel.dtype == jnp.bfloat16 and triton_conv.suits(kernel.shape[2], kernel.shape[3], stride):
      return triton_conv.conv(images, kernel, pads)
    return conv(images, kernel, stride=stride, padding=pads)
  if platform == 'tpu':
    y = _on_tpu(images, kernel, jnp.zeros(kernel.shape[3], kernel.dtype), stride=stride, padding=pads)
    return _rowwise(images, kernel, stride, pads) if y is None else y
  if channels < 32:
    return _rowwise(images, kernel, stride, pads)
  return (_canonical if channels >= 64 else _mixed)(images, kernel, stride, pads)


def layer(
  form: Conv,
  images: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  *,
  relu: bool = False,
  stride: int = 1,
  padding='SAME',
) -> jax.Array:
  """Returns `form(images, kernel) + bias`, with a ReLU if `relu`; on TPUs, all of it is one kernel."""
  y = _on_tpu(images, kernel, bias, relu, stride=stride, padding=padding) if form is example_conv else None
  if y is None:
    y = form(images, kernel, stride=stride, padding=padding) + bias.reshape(1, 1, 1, -1)
    y = _relu(y) if relu else y
  return y


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
  """ReLU whose gradient uses its output, which the next layer keeps anyway."""
  return jnp.maximum(x, 0)


def _relu_forward(x):
  y = _relu(x)
  # Without the barrier, XLA recomputes it on a GPU, and keeps x for that.
  return y, jax.lax.optimization_barrier(y) if platforms.current() == 'gpu' else y


_relu.defvjp(_relu_forward, lambda y, g: (jnp.where(y > 0, g, 0),))


def _on_tpu(
  images: jax.Array, kernel: jax.Array, bias: jax.Array, relu: bool = False, *, stride: int = 1, padding='SAME'
) -> jax.Array | None:
  """The layer as one kernel, in programs for TPUs and if the kernel supports it."""
  if platforms.current() != 'tpu':
    return None
  from adversarial_augment.per_example_conv import tpu_conv

  pads = _pads(images.shape, kernel.shape, stride, padding)
  if not tpu_conv.suits(images.shape, kernel.shape, images.dtype, stride, pads):
    return None
  return tpu_conv.conv(images, kernel, bias, pads, relu=relu)


def side_by_side(images: jax.Array, form: Conv) -> jax.Array:
  """Returns [n, h, w, c] in the shape in which a chain of 3x3 layers of equal width is fastest; reshape it back.

  The shape is [n, h, w / q, q * c]; q is 1 except for layers of the form `example_conv` on TPUs, see tpu_conv.py.
  """
  if form is not example_conv or platforms.current() != 'tpu':
    return images
  from adversarial_augment.per_example_conv import tpu_conv

  channels = images.shape[3]
  layer = (3, 3, channels, channels), images.dtype, 1, ((1, 1), (1, 1))
  return tpu_conv.side_by_side(images, 3, channels) if tpu_conv.suits(images.shape, *layer) else images


def per_example_conv(
  images: jax.Array, kernels: jax.Array, *, stride: int = 1, padding='SAME', impl: str = 'auto'
) -> jax.Array:
  """Convolves every image with its own kernel.

  Args:
    images: [n, h, w, c].
    kernels: [n, kh, kw, c, k].
    stride: of both spatial axes.
    padding: 'SAME', 'VALID', or ((top, bottom), (left, right)).
    impl: 'map', 'im2col', 'vmap', or 'auto', which depends on the platform.

  Returns:
    [n, h', w', k]

  Raises:
    UserError: an unknown `impl`, or shapes that do not match.
  """
  if images.ndim != 4 or kernels.ndim != 5 or len(images) != len(kernels) or images.shape[3] != kernels.shape[3]:
    raise UserError(
      f'per_example_conv takes images [n, h, w, c] and kernels [n, kh, kw, c, k], not {list(images.shape)} and '
      f'{list(kernels.shape)}.'
    )
  forms: dict[str, Conv] = {'auto': example_conv, 'map': example_conv, 'im2col': _rowwise_conv, 'vmap': conv}
  form = checks.lookup(forms, impl, 'impl')
  apply = lambda kernel, image: form(image[None], kernel, stride=stride, padding=padding)[0]
  return over_examples(apply, impl=impl)(kernels, images)


def over_examples(apply: Callable, *, impl: str = 'auto') -> Callable:
  """Returns `apply(params, image)` mapped over the leading axes of both, by `lax.map` or `vmap`."""
  one_by_one = {'auto': platforms.current() == 'cpu', 'map': True, 'im2col': False, 'vmap': False}
  if checks.lookup(one_by_one, impl, 'impl'):
    return lambda params, images: jax.lax.map(lambda both: apply(*both), (params, images))
  return jax.vmap(apply)


def _pads(image_shape, kernel_shape, stride: int, padding) -> Pads:
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(image_shape[1:3], kernel_shape[:2], (stride, stride), padding)
  (top, bottom), (left, right) = padding
  return (int(top), int(bottom)), (int(left), int(right))


def _pad(x: jax.Array, pads: Pads, strides: tuple[int, int] = (1, 1)) -> jax.Array:
  """Inserts stride - 1 zeros between the pixels of [n, h, w, c], and pads by `pads` (negative ones crop)."""
  spatial = [(low, high, stride - 1) for (low, high), stride in zip(pads, strides, strict=True)]
  return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


# The canonical form: forward, input gradient and weight gradient are all NHWC/HWIO/NHWC convolutions.


def columnwise(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
  """The convolution; with few channels, several neighbouring columns are channels of one wider window."""
  kw, c, k = w.shape[1:]
  width = (x.shape[2] + sum(pads[1]) - kw) // stride + 1
  joined = _joined_columns(c, k, width)
  taps = [((0, 0), (i * stride, (joined - 1 - i) * stride), (0, 0), (0, 0)) for i in range(joined)]
  kernel = jnp.concatenate([jnp.pad(w, tap) for tap in taps], -1)
  strides = stride, joined * stride
  y = jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_DIMENSIONS)
  return y.reshape(*y.shape[:2], width, k)


def _joined_columns(inputs: int, outputs: int, width: int) -> int:
  """How many: XLA's CPU backend is up to ten times slower below 24 channels in and 32 out (64, if very few in)."""
  wanted = 1 if inputs >= 24 else (64 if inputs < 8 else 32) // outputs
  return next(n for n in range(max(wanted, 1), 0, -1) if width % n == 0)


def _canonical_backward(stride, pads, saved, g):
  x, w = saved
  # Channels and batch swap places: the gradient is a convolution of x with g as its kernel.
  dilated = _pad(g, ((0, 0), (0, 0)), (stride, stride))
  lhs, rhs = jax.lax.optimization_barrier((x.transpose(3, 1, 2, 0), dilated.transpose(1, 2, 0, 3)))
  sizes = zip(pads, w.shape[:2], dilated.shape[1:3], x.shape[1:3], strict=True)
  dw = conv(lhs, rhs, padding=tuple((low, size - 1 + out - height - low) for (low, _), size, out, height in sizes))
  return input_gradient(x.shape, w, g, stride, pads), dw.transpose(1, 2, 0, 3)


def input_gradient(shape, w: jax.Array, g: jax.Array, stride: int, pads: Pads) -> jax.Array:
  """One convolution of g per row phase, with all column phases as channels, so that no zeros are inserted."""
  n, height, width, c = shape
  kh, kw, _, k = w.shape
  (top, _), (left, _) = pads
  rows, columns = -(-height // stride), -(-width // stride)
  # Tap left + j - stride * d brings column i + d of g to column stride * i + j.
  first, last = -((kw - 1 - left) // stride), (left + stride - 1) // stride  # d
  across = -first, columns - 1 + last - (g.shape[2] - 1)
  size, before = last - first + 1, stride * last - left
  w = jnp.pad(w, ((0, max(stride - kh, 0)), (before, stride * size - kw - before), (0, 0), (0, 0)))
  w = w.reshape(-1, size, stride, c, k)[:, ::-1].transpose(0, 1, 4, 2, 3)
  kernel = jax.lax.optimization_barrier(w.reshape(-1, size, k, stride * c))
  parts = []
  for j in range(stride):
    shift, phase = divmod(top + j, stride)
    taps = kernel[phase::stride][::-1]
    down = len(taps) - 1 - shift, rows - 1 + shift - (g.shape[1] - 1)
    parts.append(columnwise(g, taps, 1, (down, across)))
  return jnp.stack(parts, 2).reshape(n, rows * stride, columns * stride, c)[:, :height, :width]


# The rowwise form: one matrix product with patches one row high, then a sum over the kernel's rows. It moves a
# third of what full patches would, and the sum fuses with what follows it.


def _rowwise_conv(images, kernel, *, stride, padding):
  return _rowwise(images, kernel, stride, _pads(images.shape, kernel.shape, stride, padding))


def _rowwise_forward(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
  kh, kw, c, k = w.shape
  patches = _windows(_pad(x, pads), 2, kw, stride, join=3)  # [n, padded h, w', kw * c]
  return _fold(_dot(patches, w.transpose(1, 2, 0, 3).reshape(kw * c, kh * k)), 1, kh, stride)


def _rowwise_backward(stride, pads, saved, g):
  x, w = saved
  kh, kw, c, k = w.shape
  (top, bottom), (left, right) = pads
  height, width = x.shape[1] + top + bottom, x.shape[2]
  # One stack of rows of g, [n, padded h, w', kh * k], serves both gradients; its taps are in reverse order.
  around = (kh - 1, height - (g.shape[1] - 1) * stride - 1)
  rows = _windows(_pad(g, (around, (0, 0)), (stride, 1)), 1, kh, 1, join=3)
  flipped = w[::-1, ::-1].transpose(0, 3, 1, 2).reshape(kh * k, kw * c)
  across = (kw - 1 - left, width + left - (g.shape[2] - 1) * stride - 1)
  dx = _fold(_pad(_dot(rows, flipped), ((-top, -bottom), across), (1, stride)), 2, kw, 1)
  # Transposed before the windows are made, when there is less to transpose.
  x = jax.lax.pad(
    x.transpose(3, 0, 1, 2), jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (top, bottom, 0), (left, right, 0))
  )
  patches = _windows(x, 3, kw, stride, join=0)  # [kw * c, n, padded h, w']
  dw = jax.lax.dot_general(patches, rows, (((1, 2, 3), (0, 1, 2)), ((), ())))
  return dx, dw.reshape(kw, c, kh, k)[:, :, ::-1].transpose(2, 0, 1, 3)


def _windows(x: jax.Array, axis: int, size: int, stride: int, *, join: int) -> jax.Array:
  """Stacks, along a new axis, the slices of a padded image that the taps of a window along `axis` see."""
  x = jax.lax.optimization_barrier(x)  # otherwise XLA pads again for each tap
  length = (x.shape[axis] - size) // stride * stride + 1
  return jnp.concatenate([jax.lax.slice_in_dim(x, a, a + length, stride, axis) for a in range(size)], join)


def _fold(z: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
  """Adds the contributions of the taps of a window along `axis`, [n, h, w, taps * c]; the transpose of the stacking."""
  length = (z.shape[axis] - size) // stride * stride + 1
  parts = jnp.split(z, size, axis=-1)
  return functools.reduce(
    jnp.add, (jax.lax.slice_in_dim(part, a, a + length, stride, axis) for a, part in enumerate(parts))
  )


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
  return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def _with_gradient(form: Callable[..., jax.Array], backward: Callable[..., tuple[jax.Array, jax.Array]]) -> Conv:
  """Returns `form(x, w, stride, pads)` with the gradients (dx, dw) of `backward(stride, pads, (x, w), g)`."""
  function = jax.custom_vjp(form, nondiff_argnums=(2, 3))
  function.defvjp(lambda x, w, stride, pads: (form(x, w, stride, pads), (x, w)), backward)
  return function


_canonical = _with_gradient(columnwise, _canonical_backward)
_rowwise = _with_gradient(_rowwise_forward, _rowwise_backward)
_mixed = _with_gradient(columnwise, _rowwise_backward)
