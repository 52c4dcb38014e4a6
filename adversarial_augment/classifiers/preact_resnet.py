"""Networks of pre-activation blocks for 32x32 images, with a 3x3 stem and no pooling.

`preact_resnet` is that of He et al. (arXiv 1603.05027); `wide_resnet` that of Zagoruyko and Komodakis (arXiv
1605.07146), as trained by AugMix (arXiv 1912.02781): without dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.classifiers.layers import Body, Layers, classifier
from adversarial_augment.errors import UserError
from adversarial_augment.per_example_conv import Conv

# Blocks of each of the four stages, and whether they are bottlenecks (1x1, 3x3, 1x1) or basic (3x3, 3x3).
DEPTHS = {
  10: ((1, 1, 1, 1), False),
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
}
_STEM = 16  # channels of wide ResNets


def preact_resnet(
  num_classes: int,
  *,
  depth: int = 50,
  width: int = 64,
  shortcut: str = 'preact',
  stem_stride: int | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  batch_norm_decay: float = 0.99,
  padding: str = 'torch',
  axis_name: str | None = None,
  conv: Conv = per_example_conv.conv,
  dtype: Any = jnp.float32,
) -> hk.TransformedWithState:
  """Builds a pre-activation ResNet; the paper's classifier has depth 50 and width 64 (arXiv 2104.01086, section 3).

  Args:
    num_classes: number of logits.
    depth: 10, 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
    width: channels of the stem; the stages are 1, 2, 4 and 8 times as wide (bottlenecks: 4 times that).
    shortcut: what the 1x1 projections see: the activated input of the block ('preact', as He et al.) or the raw one
      ('input').
    stem_stride: of the first convolution; None: 1. 2 suits images of 64 pixels.
    mean, std, batch_norm_decay, padding, axis_name, conv, dtype: see `layers.classifier`, also for what is returned.
  """
  if depth not in DEPTHS:
    raise UserError(f'depth={depth} of preact_resnet must be one of {", ".join(map(str, DEPTHS))}.')
  counts, bottleneck = DEPTHS[depth]
  stages = [(width * 2**stage, count) for stage, count in enumerate(counts)]
  body = _body('preact_resnet', width, stages, bottleneck=bottleneck, shortcut=shortcut, stem_stride=stem_stride or 1)
  return classifier(
      'preact_resnet', body, num_classes,
      mean=mean, std=std, batch_norm_decay=batch_norm_decay, padding=padding, axis_name=axis_name, conv=conv,
      dtype=dtype,
  )  # fmt: skip


def wide_resnet(
  num_classes: int,
  *,
  depth: int = 40,
  width: int = 2,
  shortcut: str = 'preact',
  stem_stride: int | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  batch_norm_decay: float = 0.99,
  padding: str = 'torch',
  axis_name: str | None = None,
  conv: Conv = per_example_conv.conv,
  dtype: Any = jnp.float32,
) -> hk.TransformedWithState:
  """Builds WRN-depth-width: three stages of basic blocks; AugMix uses WRN-40-2.

  Args:
    num_classes: number of logits.
    depth: 6 * blocks of a stage + 4.
    width: the widening factor; the stages have 16, 32 and 64 times as many channels.
    shortcut, stem_stride: as in `preact_resnet`; 'preact' is as published.
    mean, std, batch_norm_decay, padding, axis_name, conv, dtype: see `layers.classifier`, also for what is returned.
  """
  if depth < 10 or depth % 6 != 4:
    raise UserError(f'depth={depth} of wide_resnet must be 6 n + 4 and at least 10.')
  stages = [(_STEM * width * 2**stage, (depth - 4) // 6) for stage in range(3)]
  body = _body('wide_resnet', _STEM, stages, bottleneck=False, shortcut=shortcut, stem_stride=stem_stride or 1)
  return classifier(
      'wide_resnet', body, num_classes,
      mean=mean, std=std, batch_norm_decay=batch_norm_decay, padding=padding, axis_name=axis_name, conv=conv,
      dtype=dtype,
  )  # fmt: skip


def _body(
  name: str, stem: int, stages: Sequence[tuple[int, int]], *, bottleneck: bool, shortcut: str, stem_stride: int
) -> Body:
  """Returns stem, stages, norm and ReLU; a stage is (channels, blocks), and all but the first halve the size."""
  if stem < 1 or stages[0][0] < 1:
    raise UserError(f'width={stages[0][0]} of {name} must be at least 1.')
  if shortcut not in ('preact', 'input'):
    raise UserError(f"shortcut='{shortcut}' of {name} must be 'preact' or 'input'.")

  def block(layers: Layers, x: jax.Array, channels: int, stride: int) -> jax.Array:
    """One residual block, whose output has `channels` channels, or four times as many if it is a bottleneck."""
    out_channels = 4 * channels if bottleneck else channels
    y = layers.norm(x, 'norm_0')
    residual = x
    if stride != 1 or x.shape[-1] != out_channels:
      residual = layers.convolve(y if shortcut == 'preact' else x, out_channels, 1, stride, 'shortcut')
    if bottleneck:
      y = layers.convolve(y, channels, 1, 1, 'conv_0')
      y = layers.convolve(layers.norm(y, 'norm_1'), channels, 3, stride, 'conv_1')
      y = layers.convolve(layers.norm(y, 'norm_2'), out_channels, 1, 1, 'conv_2')
    else:
      y = layers.convolve(y, channels, 3, stride, 'conv_0')
      y = layers.convolve(layers.norm(y, 'norm_1'), channels, 3, 1, 'conv_1')
    return y + residual

  def body(layers: Layers, x: jax.Array) -> jax.Array:
    x = layers.tap('stem', layers.convolve(x, stem, 3, stem_stride, 'stem'))
    for stage, (channels, count) in enumerate(stages):
      for index in range(count):
        with hk.name_scope(f'stage_{stage}_block_{index}'):
          x = block(layers, x, channels, stride=2 if stage > 0 and index == 0 else 1)
      x = layers.tap(f'stage{stage + 1}', x)
    return layers.norm(x, 'norm')

  return body
