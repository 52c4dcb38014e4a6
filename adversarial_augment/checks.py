"""Checks of arguments that several functions of the library take. No JAX: configs use them, too."""

from collections.abc import Sequence
import math
from typing import Any

from adversarial_augment.errors import UserError


def check_images(
  images: Any,
  dtypes: Sequence[str],
  *,
  channels: int | None = None,
  min_images: int = 1,
  min_side: int = 1,
  values: bool = True,
) -> None:
  """Checks images [n, h, w, c] of NumPy or JAX.

  Args:
    images: floats must lie in [0, 1].
    dtypes: names of the dtypes they may have; 'floats' stands for all floats.
    channels: what c must be; None: any.
    min_images: the least n.
    min_side: the least h and w.
    values: whether to check the range; a traced array has no values.

  Raises:
    UserError: another shape or dtype, a value beyond [0, 1], or NaN.
  """
  name, shape = str(images.dtype), tuple(images.shape)
  is_float = name.startswith(('float', 'bfloat'))
  has_dtype = name in dtypes or (is_float and 'floats' in dtypes)
  has_shape = len(shape) == 4 and shape[0] >= min_images and min(shape[1:3]) >= min_side
  if not (has_dtype and has_shape and shape[3] and channels in (None, shape[3])):
    least = f', n at least {min_images}' if min_images else ''
    sides = f', h and w at least {min_side}' if min_side > 1 else ''
    raise UserError(
      f'images are {name} of shape {list(shape)}; they must be {" or ".join(dtypes)} [n, h, w, {channels or "c"}]'
      f'{least}{sides}.'
    )
  if values and is_float and shape[0] and not (images.min() >= 0 and images.max() <= 1):  # NaN too
    raise UserError(
      f'images run from {images.min():g} to {images.max():g}; they must lie in [0, 1]; normalise inside '
      'logits_fn, as the classifiers of this package do.'
    )


def too_large_radius(norm: str, epsilon: float, num_values: int | None = None) -> str:
  """Returns why an l_p ball is too large, and the radius that may have been meant; '' if it is not too large.

  `num_values` of an image, pixels times channels, bounds the radius of l_2 balls.
  """
  largest = 1.0 if norm == 'linf' else math.sqrt(num_values) if num_values else math.inf
  if epsilon <= largest:
    return ''
  return f'must be at most {largest:.4g}, because images are in [0, 1]; did you mean {epsilon:g}/255?'
