"""The border of the attacks: what a caller gives is checked before anything is compiled; of tracers, the form."""

import jax
import numpy as np

from adversarial_augment import checks
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, Key, LogitsFn


def check(keys: Key, logits_fn: LogitsFn, images: Array | np.ndarray, labels: Array | np.ndarray) -> int:
  """Checks all that an attack is given; returns the number of classes.

  Raises:
    UserError: see the functions below.
  """
  check_images(images)
  check_keys(keys, len(images))
  num_classes = count_classes(logits_fn, images)
  check_labels(labels, len(images), num_classes)
  return num_classes


def check_images(images: Array | np.ndarray) -> None:
  """Checks a batch of images [n, h, w, c] in [0, 1], of dtypes that can keep to a small ball; of a tracer, the form.

  Raises:
    UserError: another shape or dtype, no image, a value beyond [0, 1], or NaN.
  """
  checks.check_images(images, ('float32', 'float64'), values=not isinstance(images, jax.core.Tracer))


def check_labels(labels: Array | np.ndarray, num_images: int, num_classes: int) -> None:
  """Refuses what is not one class for each image; of a tracer, what has not the shape and dtype of that.

  Raises:
    UserError: another shape, no integers, or a class that there is not.
  """
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


def check_keys(keys: Key, num_images: int) -> None:
  """Refuses what is not one key for each image.

  Raises:
    UserError: another shape, or no typed keys.
  """
  dtype, shape = getattr(keys, 'dtype', None), getattr(keys, 'shape', None)
  if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or shape != (num_images,):
    raise UserError(
      f'keys have shape {shape} and dtype {dtype}; they must be one typed key for each image: '
      f'jax.random.split(jax.random.key(0), {num_images}).'
    )


def count_classes(logits_fn: LogitsFn, images: Array | np.ndarray) -> int:
  """Returns the number of logits, from shapes alone.

  Raises:
    UserError: not one row of at least two floats for each image, or a function that JAX cannot trace.
  """
  try:
    # A function of its own: JAX remembers what it traced of one that it knows.
    found = jax.eval_shape(lambda images: logits_fn(images), jax.ShapeDtypeStruct(images.shape, images.dtype))
  except jax.errors.JAXTypeError as error:
    raise UserError(
      f'logits_fn cannot be traced by JAX ({type(error).__name__}); it must be made of jax.numpy, without NumPy and '
      'without branches on values. Of `classify = load_classifier(...)` that is `classify.logits_fn`.'
    ) from error
  is_array = isinstance(found, jax.ShapeDtypeStruct)
  shape: tuple[int, ...] = found.shape if is_array else ()
  floats = is_array and jax.dtypes.issubdtype(found.dtype, np.floating)
  if not floats or len(shape) != 2 or shape[0] != len(images) or shape[1] < 2:
    what = f'{found.dtype} of shape {list(shape)}' if is_array else f'a {type(found).__name__}'
    raise UserError(
      f'logits_fn gives {what} for {len(images)} images; it must give floats [{len(images)}, classes], '
      'of at least 2 classes.'
    )
  return shape[1]
