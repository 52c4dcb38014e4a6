"""AlexNet for 32x32 images, whose features are a perceptual distance (Laidlaw et al., arXiv 2006.12655)."""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import per_example_conv
from adversarial_augment.classifiers.layers import Layers, classifier
from adversarial_augment.errors import UserError
from adversarial_augment.per_example_conv import Conv

DEPTH = 8  # five convolutions, three linear layers
STEM_STRIDE = 2
POOLED = (1, 2, 5)  # the convolutions, counted from 1, that max-pooling follows


def channels(width: int) -> list[int]:
  """Returns the outputs of the five convolutions, and those of the two hidden linear layers."""
  return [width, 3 * width, 6 * width, 4 * width, 4 * width, 64 * width, 64 * width]


def alexnet(
  num_classes: int,
  *,
  depth: int = DEPTH,
  width: int = 64,
  stem_stride: int | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  padding: str = 'torch',
  axis_name: str | None = None,
  conv: Conv = per_example_conv.conv,
  dtype: Any = jnp.float32,
) -> hk.TransformedWithState:
  """Builds an AlexNet with 3x3 convolutions, without norms. In training, it drops half of the inputs of two layers.

  So `apply` needs a key in training, its third argument. As a distance, it has the width 64.

  Args:
    num_classes: number of logits.
    depth: 8.
    width: channels of the first convolution, to which the others are in proportion.
    stem_stride: of the first convolution; None: 2.
    mean, std, padding, axis_name, conv, dtype: see `layers.classifier`, also for what is returned.
  """
  if depth != DEPTH:
    raise UserError(f'depth={depth} of alexnet must be {DEPTH}.')
  if width < 1:
    raise UserError(f'width={width} of alexnet must be at least 1.')
  body = functools.partial(_body, width=width, stem_stride=stem_stride or STEM_STRIDE)
  return classifier(
    'alexnet', body, num_classes, mean=mean, std=std, padding=padding, axis_name=axis_name, conv=conv, dtype=dtype
  )


def _body(layers: Layers, x: jax.Array, *, width: int, stem_stride: int) -> jax.Array:
  *convolutions, first, second = channels(width)
  least = 7 * stem_stride + 1
  if any(isinstance(side, int) and side < least for side in x.shape[1:3]):  # they are symbols in an export
    raise UserError(f'alexnet takes images of at least {least} pixels a side, not {x.shape[1]}x{x.shape[2]}.')
  for index, outputs in enumerate(convolutions, 1):
    name = f'conv{index}'
    x = layers.convolve(x, outputs, 3, stem_stride if index == 1 else 1, name, bias=True)
    x = layers.tap(name, jax.nn.relu(x))
    x = _max_pool(x) if index in POOLED else x
  x = _quarters(x).transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # flat in the order of PyTorch
  for name, outputs in (('fc1', first), ('fc2', second)):
    x = jax.nn.relu(layers.linear(layers.dropout(x), outputs, name))
  return x.reshape(x.shape[0], 1, 1, -1)


def _max_pool(x: jax.Array) -> jax.Array:
  """Returns the maxima of squares of 2x2 positions; on CPUs, XLA's windows take five times as long with gradients."""
  n, height, width, c = x.shape
  x = x[:, : height // 2 * 2, : width // 2 * 2]
  return x.reshape(n, height // 2, 2, width // 2, 2, c).max((2, 4))


def _quarters(x: jax.Array) -> jax.Array:
  """Returns the means of the quarters of [n, h, w, c], which share the middle of odd sides: [n, 2, 2, c]."""
  for axis in (1, 2):
    side = x.shape[axis]
    halves = [jax.lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, (side + 1) // 2), (side // 2, side))]
    x = jnp.concatenate([jnp.mean(half, axis, keepdims=True) for half in halves], axis)
  return x
