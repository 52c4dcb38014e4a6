"""Networks of post-activation blocks for 32x32 images (He et al., arXiv 1512.03385), with a 3x3 stem and no pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.classifiers.layers import Body, Layers, classifier
from adversarial_augment.classifiers.preact_resnet import DEPTHS
from adversarial_augment.errors import UserError
from adversarial_augment.per_example_conv import Conv


def resnet(
  num_classes: int,
  *,
  depth: int = 50,
  width: int = 64,
  stem_stride: int | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  batch_norm_decay: float = 0.99,
  padding: str = 'torch',
  axis_name: str | None = None,
  conv: Conv = per_example_conv.conv,
  dtype: Any = jnp.float32,
) -> hk.TransformedWithState:
  """Builds a ResNet with ReLU after the sum; perceptual adversarial training has depth 50 (arXiv 2006.12655).

  Args:
    num_classes: number of logits.
    depth: 10, 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
    width: channels of the stem; the stages are 1, 2, 4 and 8 times as wide (bottlenecks: 4 times that).
    stem_stride: of the first convolution; None: 1. 2 suits images of 64 pixels.
    mean, std, batch_norm_decay, padding, axis_name, conv, dtype: see `layers.classifier`, also for what is returned.
  """
  if depth not in DEPTHS:
    raise UserError(f'depth={depth} of resnet must be one of {", ".join(map(str, DEPTHS))}.')
  if width < 1:
    raise UserError(f'width={width} of resnet must be at least 1.')
  counts, bottleneck = DEPTHS[depth]
  stages = [
    (width * 2**stage, width * 2**stage * (4 if bottleneck else 1), count) for stage, count in enumerate(counts)
  ]
  return classifier(
      'resnet', residual_body(width, stages, bottleneck=bottleneck, stem_stride=stem_stride or 1), num_classes,
      mean=mean, std=std, batch_norm_decay=batch_norm_decay, padding=padding, axis_name=axis_name, conv=conv,
      dtype=dtype,
  )  # fmt: skip


def residual_body(
  stem: int, stages: Sequence[tuple[int, int, int]], *, bottleneck: bool, stem_stride: int, groups: int = 1
) -> Body:
  """Returns stem, norm, ReLU and stages; all stages but the first halve the size.

  Args:
    stem: channels of the first convolution.
    stages: of each, the channels inside its blocks, those of their outputs, and the number of blocks.
    bottleneck: whether blocks are of 1x1, 3x3 and 1x1 convolutions, or of two 3x3.
    stem_stride: of the first convolution.
    groups: of the 3x3 convolutions.
  """

  def block(layers: Layers, x: jax.Array, inner: int, outputs: int, stride: int) -> jax.Array:
    if bottleneck:
      y = layers.norm(layers.convolve(x, inner, 1, 1, 'conv_0'), 'norm_0')
      y = layers.norm(layers.convolve(y, inner, 3, stride, 'conv_1', groups), 'norm_1')
      y = layers.norm(layers.convolve(y, outputs, 1, 1, 'conv_2'), 'norm_2', relu=False)
    else:
      y = layers.norm(layers.convolve(x, inner, 3, stride, 'conv_0', groups), 'norm_0')
      y = layers.norm(layers.convolve(y, outputs, 3, 1, 'conv_1', groups), 'norm_1', relu=False)
    if stride != 1 or x.shape[-1] != outputs:
      x = layers.norm(layers.convolve(x, outputs, 1, stride, 'shortcut'), 'shortcut_norm', relu=False)
    return jax.nn.relu(x + y)

  def body(layers: Layers, x: jax.Array) -> jax.Array:
    x = layers.tap('stem', layers.norm(layers.convolve(x, stem, 3, stem_stride, 'stem'), 'norm'))
    for stage, (inner, outputs, count) in enumerate(stages):
      for index in range(count):
        with hk.name_scope(f'stage_{stage}_block_{index}'):
          x = block(layers, x, inner, outputs, stride=2 if stage > 0 and index == 0 else 1)
      x = layers.tap(f'stage{stage + 1}', x)
    return x

  return body
