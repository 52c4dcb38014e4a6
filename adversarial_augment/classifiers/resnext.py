"""ResNeXt (Xie et al., arXiv 1611.05431) for 32x32 images, as trained by AugMix (arXiv 1912.02781)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import haiku as hk
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.classifiers.layers import classifier
from adversarial_augment.classifiers.resnet import residual_body
from adversarial_augment.errors import UserError
from adversarial_augment.per_example_conv import Conv

GROUPS = 4  # of the 3x3 convolutions


def resnext(
  num_classes: int,
  *,
  depth: int = 29,
  width: int = 32,
  stem_stride: int | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  batch_norm_decay: float = 0.99,
  padding: str = 'torch',
  axis_name: str | None = None,
  conv: Conv = per_example_conv.conv,
  dtype: Any = jnp.float32,
) -> hk.TransformedWithState:
  """Builds a ResNeXt: three stages of bottlenecks with ReLU after the sum; AugMix uses depth 29, width 32 (4x32d).

  Args:
    num_classes: number of logits.
    depth: 9 * blocks of a stage + 2.
    width: channels of each of the 4 groups in the first stage. The stem has twice as many, a block of the first stage
      outputs 8 times as many, and each stage is twice as wide as the previous one.
    stem_stride: of the first convolution; None: 1. 2 suits images of 64 pixels.
    mean, std, batch_norm_decay, padding, axis_name, conv, dtype: see `layers.classifier`, also for what is returned.
  """
  if depth < 11 or depth % 9 != 2:
    raise UserError(f'depth={depth} of resnext must be 9 n + 2 and at least 11.')
  if width < 1:
    raise UserError(f'width={width} of resnext must be at least 1.')
  stages = [(GROUPS * width * 2**stage, 8 * width * 2**stage, (depth - 2) // 9) for stage in range(3)]
  body = residual_body(2 * width, stages, bottleneck=True, stem_stride=stem_stride or 1, groups=GROUPS)
  return classifier(
      'resnext', body, num_classes,
      mean=mean, std=std, batch_norm_decay=batch_norm_decay, padding=padding, axis_name=axis_name, conv=conv,
      dtype=dtype,
  )  # fmt: skip
