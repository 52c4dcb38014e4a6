"""Per-example convolutions on TPUs: forward and backward are one kernel each, written with Pallas (Mosaic).

A TPU works on 128 lanes, and an image of 64 channels fills half of them. So q neighbouring pixels lie side by side in
the lanes, [h, w / q, q * c]. Outputs of q pixels need kh matrices [q * c, q * k] for each of two or three *groups* of
columns: the image itself, and arrays assembled from its neighbours to the left and right. An image, its kernel and all
intermediate arrays stay in fast memory: rows are shifted by whole tiles, columns by a rotation, and the matrix units
get products of full width. Bias, ReLU and their gradients are part of the kernels. Operands of products are rounded to
bfloat16, as is a TPU's default for float32; if another precision is set, XLA's convolutions are used. Sums are in
float32.

The oracle of the tests is `jax.lax.conv_general_dilated`; on a CPU the kernels run in Pallas' interpreter.
docs/accelerators.md compares the compiler's estimates of this and other forms.
"""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from adversarial_augment.parallel import platforms

Pads = tuple[tuple[int, int], tuple[int, int]]
Shape = Sequence[int]

_LANES, _SUBLANES = 128, 8  # of a tile
_MEMORY = 14 * 2**20  # bytes of the 16 MiB that a kernel may use by default


class _Layer(NamedTuple):
  """Static facts of a layer; outputs have the size of the images, [h * columns, q pixels side by side]."""

  pads: Pads
  columns: int
  q: int
  relu: bool
  outputs_first: bool  # the kernel is [kh, kw, k, c]


def suits(images: Shape, kernel: Shape, dtype: Any, stride: int, pads: Pads) -> bool:
  """Whether `conv` supports images [n, h, w, c], or with pixels side by side, and a kernel [kh, kw, c, k]."""
  (top, bottom), (left, right) = pads
  rows, taps, c, k = kernel
  if stride != 1 or min(top, bottom, left, right) < 0 or jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
    return False
  precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  if jnp.dtype(dtype) == jnp.float32 and precision not in (None, 'default', 'fastest', 'bfloat16'):
    return False
  if images[3] != c:
    return (top + bottom, left + right) == (rows - 1, taps - 1)
  q = _pixels(images[2], taps, c, k)
  pixels = (images[1] + rows) * _fitting(images[2], q) // q
  # Four bytes each: x, dx, y and g, twice, as one image is fetched while another is processed, and what is made of
  # them; the kernel and its gradient, twice; the matrices.
  images_and_more = pixels * (5 * _full(q * c) + 7 * _full(q * k))
  needed = 4 * (images_and_more + rows * taps * (4 * min(c, k) * _full(max(c, k)) + q * c * _full(q * k) // 2))
  return top < rows and left < taps and needed <= _MEMORY


def side_by_side(images: jax.Array, kernel_side: int, channels: int) -> jax.Array:
  """Reshapes images [n, h, w, c] to [n, h, w / q, q * c], as layers from c to c channels expect them; q may be 1."""
  n, h, w, c = images.shape
  q = _pixels(w, kernel_side, c, channels)
  return images.reshape(n, h, w // q, q * c) if _fitting(w, q) == w else images


def conv(x: jax.Array, w: jax.Array, bias: jax.Array, pads: Pads, *, relu: bool = False) -> jax.Array:
  """Returns the convolution of [n, h, w, c] with [kh, kw, c, k], stride 1, plus bias [k]; `vmap` it over kernels.

  Of images [n, h, w / q, q * c] with q pixels side by side, see `suits`, it is [n, h, w / q, q * k].
  """
  n, h, columns, lanes = x.shape
  rows, taps, c, k = w.shape
  # The longer axis of a kernel goes into the lanes: three of 128 would waste memory and time.
  outputs_first = k < c
  w = w.swapaxes(2, 3) if outputs_first else w
  if lanes != c:
    layer = _Layer(pads, columns, lanes // c, relu, outputs_first)
    return _conv(x.reshape(n, h * columns, lanes), w, bias[None], layer).reshape(n, h, columns, -1)
  (top, bottom), (left, right) = pads
  q = _pixels(columns, taps, c, k)
  height, width = h + top + bottom - rows + 1, columns + left + right - taps + 1
  # Outputs have the size of the inputs; surplus ones at the end are cut off.
  tall, wide = max(h, height), _fitting(max(columns, width), q)
  x = jnp.pad(x, ((0, 0), (0, tall - h), (0, wide - columns), (0, 0))).reshape(n, -1, q * c)
  fitted = (top, rows - 1 - top), (left, taps - 1 - left)
  y = _conv(x, w, bias[None], _Layer(fitted, wide // q, q, relu, outputs_first))
  return y.reshape(n, tall, wide, k)[:, :height, :width]


def _full(lanes: int) -> int:
  return -(-lanes // _LANES) * _LANES


def _fitting(width: int, q: int) -> int:
  """The width, zero-padded on the right, at which rows of images are whole tiles."""
  return -(-width // (_SUBLANES * q)) * _SUBLANES * q


def _pixels(width: int, taps: int, c: int, k: int) -> int:
  """The number of pixels side by side that minimises the products."""
  work = lambda q: len(_groups(taps, taps // 2, q)) * _full(q * c) * _full(q * k) * _fitting(width, q) // q
  return min((1, 2, 4, 8, 16), key=work)


def _groups(taps: int, left: int, q: int) -> list[list[int | None]]:
  """The columns that outputs 0 .. q - 1 see, in groups that have at most one column per position modulo q."""
  columns = sorted(range(-left, taps - left + q - 1), key=lambda column: abs(column // q))
  places = [[column for column in columns if column % q == place] for place in range(q)]
  return [[dict(enumerate(place)).get(i) for place in places] for i in range(max(map(len, places)))]


def _taps(taps: int, left: int, q: int) -> Iterator[tuple[int, int, int, int]]:
  """Yields the group and position of a column, the output, and the tap that connects them."""
  for group, columns in enumerate(_groups(taps, left, q)):
    for place, column in enumerate(columns):
      for output in range(q):
        if column is not None and 0 <= column - output + left < taps:
          yield group, place, output, column - output + left


def _gather(groups, x: jax.Array, taps: int, left: int, top: int, layer: _Layer) -> None:
  """Writes the part of an image [h * columns, q * c] that each group sees, with rows of zeros above and below."""
  size, lanes = x.shape
  column = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, x.shape, 0), jnp.int32(layer.columns))
  place = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1), jnp.int32(lanes // layer.q))

  @functools.cache
  def moved(by: int) -> jax.Array:
    inside = (column + by >= 0) & (column + by < layer.columns)
    return jnp.where(inside, pltpu.roll(x, -by % size, 0), 0) if by else x

  first, last = top * layer.columns, top * layer.columns + size
  for group, wanted in enumerate(_groups(taps, left, layer.q)):
    columns = [(i, source // layer.q) for i, source in enumerate(wanted) if source is not None]
    seen = moved(columns[0][1])
    for i, by in columns[1:]:
      seen = jnp.where(place == i, moved(by), seen)
    groups[group, first:last] = seen.astype(groups.dtype)
    for start, stop in ((0, first), (last, groups.shape[1])):
      if start < stop:
        groups[group, start:stop] = jnp.zeros((stop - start, lanes), groups.dtype)


def _widen(matrices, w, left: int, layer: _Layer, *, backward: bool) -> None:
  """Writes the matrix of each row and group, with the blocks of w; backward, the groups are those of gradients."""
  rows, taps = w.shape[:2]
  tap_of = {(group, place, output): tap for group, place, output, tap in _taps(taps, left, layer.q)}
  swapped = backward != layer.outputs_first
  for row in range(rows):
    weights = [w[row, tap].astype(matrices.dtype) for tap in range(taps)]
    weights = weights[::-1] if backward else weights
    for group in range(matrices.shape[1]):
      found = [[tap_of.get((group, *((j, i) if swapped else (i, j)))) for j in range(layer.q)] for i in range(layer.q)]
      blocks = [[jnp.zeros_like(weights[0]) if tap is None else weights[tap] for tap in line] for line in found]
      matrix = jnp.concatenate([jnp.concatenate(line, 1) for line in blocks], 0)
      matrices[rows - 1 - row if backward else row, group] = matrix


def _product(groups, matrices, size: int, columns: int, contracted: int) -> jax.Array:
  """The sum over rows and groups of [size, lanes] times their matrices, contracted over axis `contracted`."""
  dimensions = (((1,), (contracted,)), ((), ()))
  return functools.reduce(
    jnp.add,
    (
      jax.lax.dot_general(
        groups[group, row * columns : row * columns + size],
        matrices[row, group],
        dimensions,
        preferred_element_type=jnp.float32,
      )
      for row in range(matrices.shape[0])
      for group in range(matrices.shape[1])
    ),
  )


def _forward_kernel(x_ref, w_ref, b_ref, y_ref, groups, matrices, *, layer: _Layer):
  (top, _), (left, _) = layer.pads
  _gather(groups, x_ref[0].astype(jnp.float32), w_ref.shape[1], left, top, layer)
  _widen(matrices, w_ref, left, layer, backward=False)
  y = _product(groups, matrices, x_ref.shape[1], layer.columns, 1 if layer.outputs_first else 0)
  y += jnp.concatenate([b_ref[...].astype(jnp.float32)] * layer.q, 1)
  y_ref[0] = (jnp.maximum(y, 0) if layer.relu else y).astype(y_ref.dtype)


def _backward_kernel(x_ref, w_ref, g_ref, *refs, layer: _Layer):
  *y_ref, dx_ref, dw_ref, db_ref, input_patches, gradient_patches, matrices = refs
  (top, bottom), (left, right) = layer.pads
  rows, taps, m, n = w_ref.shape
  size, columns, q = x_ref.shape[1], layer.columns, layer.q
  g = g_ref[0].astype(jnp.float32)
  if layer.relu:
    g = jnp.where(y_ref[0][0].astype(jnp.float32) > 0, g, 0)
  _gather(gradient_patches, g, taps, right, bottom, layer)
  _widen(matrices, w_ref, right, layer, backward=True)
  dx = _product(gradient_patches, matrices, size, columns, 0 if layer.outputs_first else 1)
  dx_ref[0] = dx.astype(dx_ref.dtype)

  _gather(input_patches, x_ref[0].astype(jnp.float32), taps, left, top, layer)
  turned = g.T.astype(input_patches.dtype)
  dw = {(row, tap): jnp.zeros((m, n), jnp.float32) for row in range(rows) for tap in range(taps)}
  for row in range(rows):
    for group in range(input_patches.shape[0]):
      seen = input_patches[group, row * columns : row * columns + size]
      slopes = jnp.dot(turned, seen, preferred_element_type=jnp.float32)  # [q * k, q * c]
      slopes = slopes if layer.outputs_first else slopes.T
      for other, place, output, tap in _taps(taps, left, q):
        if other == group:
          i, j = (output, place) if layer.outputs_first else (place, output)
          dw[row, tap] += slopes[i * m : (i + 1) * m, j * n : (j + 1) * n]
  db = functools.reduce(jnp.add, jnp.split(g.sum(0, keepdims=True), q, 1))
  # Images with a common kernel are consecutive; the first one initialises the sum.
  before = lambda array: jnp.where(pl.program_id(0) == 0, 0, array.astype(jnp.float32))
  for where, part in dw.items():
    dw_ref[where] = (before(dw_ref[where]) + part).astype(dw_ref.dtype)
  db_ref[...] = before(db_ref[...]) + db


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _conv(x: jax.Array, w: jax.Array, bias: jax.Array, layer: _Layer) -> jax.Array:
  """[n, h * columns, q * c] to [n, h * columns, q * k]."""
  return _call(
    functools.partial(_forward_kernel, layer=layer),
    (x, w, bias),
    [jax.ShapeDtypeStruct((*x.shape[:2], layer.q * bias.shape[1]), x.dtype)],
    [(x, layer.pads[1][0])],
    layer,
  )[0]


def _conv_forward(x, w, bias, layer):
  y = _conv(x, w, bias, layer)
  return y, (x, w, bias, [y] * layer.relu)


def _conv_backward(layer, saved, g):
  x, w, bias, y = saved
  sums = w.dtype if len(x) == 1 else jnp.float32  # one image has one write
  dx, dw, db = _call(
    functools.partial(_backward_kernel, layer=layer),
    (x, w, g, *y),
    [x, jax.ShapeDtypeStruct(w.shape, sums), jax.ShapeDtypeStruct(bias.shape, jnp.float32)],
    [(x, layer.pads[1][0]), (g, layer.pads[1][1])],
    layer,
  )
  return dx, dw.astype(w.dtype), db.astype(bias.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _call(kernel, inputs, outputs, gathered: Sequence[tuple[jax.Array, int]], layer: _Layer):
  """Runs a kernel, a function of references to inputs, outputs, and scratch memory, on each image.

  Args:
    inputs: arrays [n, size, lanes], of which the kernel sees one image; x is the first, the weights the second.
    outputs: likewise, arrays or their shapes.
    gathered: images whose groups the kernel uses, and the number of zero columns to the left of each.
  """
  (n, size, _), (rows, taps, *blocks) = inputs[0].shape, inputs[1].shape
  groups = [len(_groups(taps, left, layer.q)) for _, left in gathered]
  matrix = [layer.q * block for block in blocks]
  scratch = [
    (count, size + (rows - 1) * layer.columns, image.shape[2])
    for count, (image, _) in zip(groups, gathered, strict=True)
  ] + [(rows, groups[-1], *matrix)]

  def block(array) -> pl.BlockSpec:
    if array.ndim == 3:
      return pl.BlockSpec((1, *array.shape[1:]), lambda i: (i, 0, 0))
    return pl.BlockSpec(array.shape, lambda i: (0,) * len(array.shape))

  # FLOP of the matrix units, including empty lanes.
  flop = 2 * n * size * rows * sum(groups) * math.prod(map(_full, matrix))
  moved = sum(math.prod(array.shape) * array.dtype.itemsize for array in (*inputs, *outputs))
  return pl.pallas_call(
    kernel,
    out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs],
    grid=(n,),
    in_specs=[block(array) for array in inputs],
    out_specs=[block(array) for array in outputs],
    scratch_shapes=[pltpu.VMEM(shape, jnp.bfloat16) for shape in scratch],
    cost_estimate=pl.CostEstimate(flops=flop, bytes_accessed=moved, transcendentals=0),
    interpret=platforms.current() == 'cpu',
  )(*inputs)
