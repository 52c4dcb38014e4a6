"""Wide ResNet (Zagoruyko and Komodakis, arXiv 1605.07146), as trained by AugMix (arXiv 1912.02781): without dropout."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.classifiers.layers import classifier
from adversarial_augment.classifiers.preact_resnet import preact_body
from adversarial_augment.errors import UserError
from adversarial_augment.per_example_conv import Conv

STEM = 16  # channels


def wide_resnet(
  num_classes: int,
  *,
  depth: int = 40,
  width: int = 2,
  shortcut: str = 'preact',
  batch_norm_decay: float = 0.99,
  padding: str = 'torch',
  axis_name: str | None = None,
  conv: Conv = per_example_conv.conv,
  dtype: Any = jnp.float32,
) -> hk.TransformedWithState:
  """Builds WRN-depth-width: three stages of pre-activation basic blocks; AugMix uses WRN-40-2.

  Args:
    num_classes: number of logits.
    depth: 6 * blocks of a stage + 4.
    width: the widening factor; the stages have 16, 32 and 64 times as many channels.
    shortcut: what the 1x1 projections see: the activated input of the block ('preact', as published) or the raw one
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
  if depth < 10 or depth % 6 != 4:
    raise UserError(f'depth={depth} of wide_resnet must be 6 n + 4 and at least 10.')
  stages = [(STEM * width * 2**stage, (depth - 4) // 6) for stage in range(3)]
  body = preact_body('wide_resnet', STEM, stages, bottleneck=False, shortcut=shortcut)
  return classifier(
      'wide_resnet', body, num_classes,
      batch_norm_decay=batch_norm_decay, padding=padding, axis_name=axis_name, conv=conv, dtype=dtype,
  )  # fmt: skip
