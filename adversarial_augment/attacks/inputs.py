"""What callers give to attacks, checked before anything is compiled; of tracers, shapes and dtypes alone."""

import jax
import numpy as np

from adversarial_augment import checks
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Key, LogitsFn


def check(keys: Key, logits_fn: LogitsFn, images: Array | np.ndarray, labels: Array | np.ndarray) -> int:
  """Checks all that an attack is given, or raises UserError; returns the number of classes."""
  images, labels = (x if isinstance(x, jax.core.Tracer) else np.asarray(x) for x in (images, labels))
  check_images(images)
  dtype, shape = getattr(keys, 'dtype', None), getattr(keys, 'shape', None)
  if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or shape != (len(images),):
    raise UserError(
      f'keys have shape {shape} and dtype {dtype}; they must be one typed key for each image: '
      f'jax.random.split(jax.random.key(0), {len(images)}).'
    )
  num_classes = count_classes(logits_fn, images)
  check_labels(labels, len(images), num_classes)
  return num_classes


def check_images(images: Array | np.ndarray) -> None:
  """Checks a batch of images [n, h, w, c] in [0, 1], of dtypes that can keep to a small ball."""
  checks.check_images(images, ('float32', 'float64'), values=not isinstance(images, jax.core.Tracer))


def check_labels(labels: Array | np.ndarray, num_images: int, num_classes: int) -> None:
  """Raises UserError for anything but one class for each image."""
  if labels.shape != (num_images,) or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f'labels are {labels.dtype} of shape {list(labels.shape)}; they must be integers [{num_images}], '
      'one for each image.'
    )
  if isinstance(labels, jax.core.Tracer):
    return
  wrong = labels[(labels < 0) | (labels >= num_classes)]
  if wrong.size:
    raise UserError(f'labels hold {wrong[0]}; with {num_classes} logits they must be from 0 to {num_classes - 1}.')


def count_classes(logits_fn: LogitsFn, images: Array | np.ndarray) -> int:
  """Returns the number of logits, from shapes alone; raises UserError where it is no classifier."""
  try:
    # A function of its own: JAX remembers what it traced of one that it knows.
    found = jax.eval_shape(lambda images: logits_fn(images), jax.ShapeDtypeStruct(images.shape, images.dtype))
  except jax.errors.JAXTypeError as error:
    raise UserError(
      f'logits_fn cannot be traced by JAX ({type(error).__name__}); it must be made of jax.numpy, without NumPy and '
      'without branches on values. Of `classify = load_classifier(...)` that is `classify.logits_fn`.'
    ) from error
  is_array = isinstance(found, jax.ShapeDtypeStruct) and jax.dtypes.issubdtype(found.dtype, np.floating)
  shape: tuple[int, ...] = found.shape if is_array else ()
  if len(shape) != 2 or shape[0] != len(images) or shape[1] < 2:
    what = f'{found.dtype} of shape {list(found.shape)}' if hasattr(found, 'shape') else f'a {type(found).__name__}'
    raise UserError(
      f'logits_fn gives {what} for {len(images)} images; it must give floats [{len(images)}, classes], '
      'of at least 2 classes.'
    )
  return shape[1]
