"""Pre-activation ResNet (He et al., arXiv 1603.05027) in the variant for 32x32 images: a 3x3 stem, and no pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import per_example_conv
from adversarial_augment.errors import UserError

# Blocks of each of the four stages, and whether they are bottlenecks (1x1, 3x3, 1x1) or basic (3x3, 3x3).
DEPTHS = {
  10: ((1, 1, 1, 1), False),
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
}
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, per channel
STD = (0.2471, 0.2435, 0.2616)
EPSILON = 1e-5  # of batch normalisation


def preact_resnet(
  num_classes: int,
  *,
  depth: int = 50,
  width: int = 64,
  batch_norm_decay: float = 0.99,
  shortcut: str = 'preact',
  padding: str = 'torch',
  axis_name: str | None = None,
  conv: Callable[..., jax.Array] = per_example_conv.conv,
  dtype: Any = jnp.float32,
) -> hk.TransformedWithState:
  """Makes a pre-activation ResNet; the paper's classifier is depth 50, width 64 (arXiv 2104.01086, section 3).

  `apply(params, state, None, images, is_training=..., test_local_stats=False)` takes images [n, h, w, 3] in [0, 1],
  normalises them itself, and returns (logits [n, num_classes], new state). `is_training=True` normalises by batch
  statistics and updates the running ones. `is_training=False` normalises by the running statistics, or, with
  `test_local_stats=True`, by those of the batch; the state stays as it is. Float64 images give float64 logits.

  Args:
    num_classes: number of logits.
    depth: 10, 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
    width: channels of the stem; the stages are 1, 2, 4 and 8 times as wide (bottlenecks: 4 times that).
    batch_norm_decay: of the running statistics, per update, in [0, 1).
    shortcut: what the 1x1 projections see: the activated input of the block ('preact', as He et al.) or the raw one
      ('input').
    padding: of strided 3x3 convolutions: 'torch' pads one pixel on each side, 'same' is TensorFlow's.
    axis_name: the mapped axis (of shard_map or vmap) over which batch statistics are averaged; None: those of `images`.
    conv: `conv(x, w, *, stride, padding)` with padding 'SAME' or [(before, after), (before, after)].
    dtype: of convolutions and activations, float32 or bfloat16. Parameters, statistics and logits stay float32.

  Returns:
    The transformed function; `init(key, images, is_training=True)` needs no mapped axis.

  Raises:
    UserError: an argument out of range.
  """
  dtype = jnp.dtype(dtype)
  _check(num_classes, depth, width, batch_norm_decay, shortcut, padding, dtype)
  num_blocks, bottleneck = DEPTHS[depth]

  def conv_layer(x: jax.Array, channels: int, size: int, stride: int, name: str) -> jax.Array:
    shape = (size, size, x.shape[-1], channels)
    with hk.name_scope(name):
      w = hk.get_parameter('w', shape, jnp.float32, _he_normal)
    explicit = padding == 'torch' and size == 3 and stride > 1  # elsewhere the two rules agree
    return conv(x, w.astype(x.dtype), stride=stride, padding=[(1, 1), (1, 1)] if explicit else 'SAME')

  def network(images: jax.Array, *, is_training: bool, test_local_stats: bool = False) -> jax.Array:
    def norm_relu(x: jax.Array, name: str) -> jax.Array:
      wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      with hk.name_scope(name):
        wide = _batch_norm(wide, batch_norm_decay, axis_name, is_training, test_local_stats)
      return jax.nn.relu(wide).astype(x.dtype)

    def block(x: jax.Array, channels: int, stride: int) -> jax.Array:
      """One residual block, whose output has `channels` channels, or four times as many if it is a bottleneck."""
      out_channels = 4 * channels if bottleneck else channels
      y = norm_relu(x, 'norm_0')
      residual = x
      if stride != 1 or x.shape[-1] != out_channels:
        residual = conv_layer(y if shortcut == 'preact' else x, out_channels, 1, stride, 'shortcut')
      if bottleneck:
        y = conv_layer(y, channels, 1, 1, 'conv_0')
        y = conv_layer(norm_relu(y, 'norm_1'), channels, 3, stride, 'conv_1')
        y = conv_layer(norm_relu(y, 'norm_2'), out_channels, 1, 1, 'conv_2')
      else:
        y = conv_layer(y, channels, 3, stride, 'conv_0')
        y = conv_layer(norm_relu(y, 'norm_1'), channels, 3, 1, 'conv_1')
      return y + residual

    if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
      shape = list(images.shape)
      raise UserError(f'preact_resnet takes floats [n, h, w, 3] in [0, 1], not {images.dtype} of shape {shape}.')
    with hk.name_scope('preact_resnet'):
      mean, std = (jnp.array(value, images.dtype).reshape(1, 1, 1, 3) for value in (MEAN, STD))
      x = ((images - mean) / std).astype(dtype if dtype == jnp.bfloat16 else jnp.promote_types(images.dtype, dtype))
      x = conv_layer(x, width, 3, 1, 'stem')
      for stage, count in enumerate(num_blocks):
        for index in range(count):
          with hk.name_scope(f'stage_{stage}_block_{index}'):
            x = block(x, width * 2**stage, stride=2 if stage > 0 and index == 0 else 1)
      x = norm_relu(x, 'norm')
      x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
      return _head(x, num_classes)

  return hk.transform_with_state(network)


def _batch_norm(
  x: jax.Array, decay: float, axis_name: str | None, is_training: bool, test_local_stats: bool
) -> jax.Array:
  """Normalises [n, h, w, c] over all but the channels.

  Not `hk.BatchNorm`: its running variance is 0 before the first update, and the adversary of the first step, if it uses
  running statistics, would see activations multiplied by 1 / sqrt(epsilon) in every layer, hence NaN.
  """
  channels = (x.shape[-1],)
  scale = hk.get_parameter('scale', channels, jnp.float32, jnp.ones)
  offset = hk.get_parameter('offset', channels, jnp.float32, jnp.zeros)
  running_mean = hk.get_state('mean', channels, jnp.float32, jnp.zeros)
  running_var = hk.get_state('var', channels, jnp.float32, jnp.ones)
  count = hk.get_state('count', (), jnp.int32, jnp.zeros)

  mean, var = running_mean, running_var
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # bfloat16 would leave nothing of the variance
  if is_training or test_local_stats:
    moments = jnp.stack([jnp.mean(wide, axis=(0, 1, 2)), jnp.mean(jnp.square(wide), axis=(0, 1, 2))])
    if axis_name is not None and not hk.running_init():
      moments = jax.lax.pmean(moments, axis_name)  # of one array: on a CPU devices wait for each other at each
    mean, mean_square = moments
    var = jnp.maximum(mean_square - jnp.square(mean), 0.0)
  if is_training:
    # The zero-debiased moving average, written for the debiased value: weight 1 at first, then down to 1 - decay.
    weight = (1.0 - decay) / (1.0 - decay ** (count + 1).astype(wide.dtype))
    hk.set_state('mean', (running_mean + weight * (mean - running_mean)).astype(running_mean.dtype))
    hk.set_state('var', (running_var + weight * (var - running_var)).astype(running_var.dtype))
    hk.set_state('count', count + 1)

  factor = scale * jax.lax.rsqrt(var + EPSILON)
  factor, shift = (value.astype(wide.dtype).reshape(1, 1, 1, -1) for value in (factor, offset - mean * factor))
  return (wide * factor + shift).astype(x.dtype)  # one pass over the activations, forward and backward


def _head(x: jax.Array, num_classes: int) -> jax.Array:
  """The linear layer. It starts small but not at zero, which would give the adversary no gradient."""
  with hk.name_scope('head'):
    shape = (x.shape[-1], num_classes)
    w = hk.get_parameter('w', shape, jnp.float32, _small_normal)
    b = hk.get_parameter('b', (num_classes,), jnp.float32, jnp.zeros)
  return x @ w.astype(x.dtype) + b.astype(x.dtype).reshape(1, -1)


def _he_normal(shape: Sequence[int], dtype: Any) -> jax.Array:
  """He's initialisation by the fan-out, for ReLU (arXiv 1502.01852), of a kernel [kh, kw, c, k]."""
  # Drawn flat: the numbers are the same, and XLA compiles the random bits of a vector five times faster.
  draw = jax.random.normal(hk.next_rng_key(), (math.prod(shape),), dtype)
  return draw.reshape(shape) * math.sqrt(2.0 / (shape[0] * shape[1] * shape[3]))


def _small_normal(shape: Sequence[int], dtype: Any) -> jax.Array:
  """A normal of standard deviation 0.01, cut at two of them."""
  return 0.01 * jax.random.truncated_normal(hk.next_rng_key(), -2.0, 2.0, (math.prod(shape),), dtype).reshape(shape)


def _check(
  num_classes: int, depth: int, width: int, batch_norm_decay: float, shortcut: str, padding: str, dtype: np.dtype
) -> None:
  """Raises UserError where an argument of `preact_resnet` is out of range."""
  if depth not in DEPTHS:
    raise UserError(f'Depth {depth} of preact_resnet must be one of {", ".join(map(str, DEPTHS))}.')
  if num_classes < 1 or width < 1:
    raise UserError(f'num_classes={num_classes} and width={width} of preact_resnet must be at least 1.')
  if not 0.0 <= batch_norm_decay < 1.0:
    raise UserError(f'batch_norm_decay={batch_norm_decay} of preact_resnet must be in [0, 1).')
  if shortcut not in ('preact', 'input'):
    raise UserError(f"shortcut='{shortcut}' of preact_resnet must be 'preact' or 'input'.")
  if padding not in ('torch', 'same'):
    raise UserError(f"padding='{padding}' of preact_resnet must be 'torch' or 'same'.")
  if dtype not in (jnp.float32, jnp.bfloat16):
    raise UserError(f"dtype='{dtype}' of preact_resnet must be float32 or bfloat16.")
