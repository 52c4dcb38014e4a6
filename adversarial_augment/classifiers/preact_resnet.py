"""Pre-activation ResNet (He et al., arXiv 1603.05027) for 32x32 images: a 3x3 stem, no pooling."""

from __future__ import annotations

from collections.abc import Sequence
import functools
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


def preact_resnet(
  num_classes: int,
  *,
  depth: int = 50,
  width: int = 64,
  shortcut: str = 'preact',
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
    batch_norm_decay: of the running statistics, per update, in [0, 1).
    padding: of strided 3x3 convolutions: 'torch' or 'same'; see `layers.classifier`, also for the next three.
    axis_name: the mapped axis over which batch statistics are averaged; None: those of the images alone.
    conv: the convolution.
    dtype: of convolutions and activations, float32 or bfloat16.

  Returns:
    The transformed function, images [n, h, w, 3] in [0, 1] -> logits [n, num_classes]; see `layers.classifier`.

  Raises:
    UserError: an argument out of range.
  """
  if depth not in DEPTHS:
    raise UserError(f'depth={depth} of preact_resnet must be one of {", ".join(map(str, DEPTHS))}.')
  counts, bottleneck = DEPTHS[depth]
  stages = [(width * 2**stage, count) for stage, count in enumerate(counts)]
  body = preact_body('preact_resnet', width, stages, bottleneck=bottleneck, shortcut=shortcut)
  return classifier(
      'preact_resnet', body, num_classes,
      batch_norm_decay=batch_norm_decay, padding=padding, axis_name=axis_name, conv=conv, dtype=dtype,
  )  # fmt: skip


def preact_body(name: str, stem: int, stages: Sequence[tuple[int, int]], *, bottleneck: bool, shortcut: str) -> Body:
  """Returns the body of a network of pre-activation blocks: a 3x3 stem, stages, norm and ReLU.

  Args:
    name: of the network, for errors.
    stem: channels.
    stages: channels (bottlenecks: a quarter of them) and number of blocks; all stages but the first halve the size.
    bottleneck: whether a block is 1x1, 3x3, 1x1 or 3x3, 3x3.
    shortcut: as in `preact_resnet`.

  Raises:
    UserError: an argument out of range.
  """
  if stem < 1 or stages[0][0] < 1:
    raise UserError(f'width={stages[0][0]} of {name} must be at least 1.')
  if shortcut not in ('preact', 'input'):
    raise UserError(f"shortcut='{shortcut}' of {name} must be 'preact' or 'input'.")
  return functools.partial(_body, stem=stem, stages=stages, bottleneck=bottleneck, shortcut=shortcut)


def _body(
  layers: Layers, x: jax.Array, *, stem: int, stages: Sequence[tuple[int, int]], bottleneck: bool, shortcut: str
) -> jax.Array:
  def block(x: jax.Array, channels: int, stride: int) -> jax.Array:
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

  x = layers.convolve(x, stem, 3, 1, 'stem')
  for stage, (channels, count) in enumerate(stages):
    for index in range(count):
      with hk.name_scope(f'stage_{stage}_block_{index}'):
        x = block(x, channels, stride=2 if stage > 0 and index == 0 else 1)
  return layers.norm(x, 'norm')
