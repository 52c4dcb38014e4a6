"""A model that was made elsewhere, tried on a few images before anything long: what is wrong, and the likely reason."""

from collections.abc import Callable, Iterator
import functools
from pathlib import Path
import sys
import traceback
from typing import Any

import jax
import numpy as np
from scipy import optimize, stats

from adversarial_augment.cli import progress
from adversarial_augment.errors import AdversarialAugmentError, UserError
from adversarial_augment.evaluation.foreign import OF_JAX, Input, Model
from adversarial_augment.types import Dataset

FLAGS = {
  'chance': 'accuracy is not above that of guessing',
  'input': 'another usual input, or order of classes, gives a clearly higher accuracy',
  'probabilities': 'outputs are probabilities instead of logits: calibration and attacks mean little',
  'stochastic_logits': 'the same images get other logits at the next call, as with dropout left on',
  'batch_dependence': 'logits of an image change with the others of its batch, as under batch statistics',
}

_IMAGES, _CHUNK = 200, 50
_LEVEL = 1e-3  # of the test against guessing; comparisons share it
_TRIES = 20
_ROUNDING, _DIGITS = 1e-3, 1e-5  # of the spread of the logits, and of a logit itself: what another order of sums does
_SIDES = (28, 32, 64, 96, 128, 160, 192, 224, 240, 256, 299, 336, 384, 448, 512)
_LONGEST = 200  # characters of an exception's own words

Logits = np.ndarray  # float64 [n, k]
_OTHERWISE: dict[str, dict[str, tuple[float, ...]]] = {  # usual inputs, by the flags that ask for them
  '--std=1/255 (images in 0..255)': {'mean': (0.0,), 'std': (1 / 255,)},
  '--mean=0 --std=1 (images in [0, 1])': {'mean': (0.0,), 'std': (1.0,)},
  '--mean=0.4914,0.4822,0.4465 --std=0.2470,0.2435,0.2616 (of CIFAR-10)': {
    'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2470, 0.2435, 0.2616),
  },
  '--mean=0.5071,0.4865,0.4409 --std=0.2673,0.2564,0.2762 (of CIFAR-100)': {
    'mean': (0.5071, 0.4865, 0.4409), 'std': (0.2673, 0.2564, 0.2762),
  },
  '--mean=0.485,0.456,0.406 --std=0.229,0.224,0.225 (of ImageNet)': {
    'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225),
  },
  '--mean=0.5 --std=0.5 (images in [-1, 1])': {'mean': (0.5,), 'std': (0.5,)},
}  # fmt: skip


def examine(model: Model, dataset: Dataset) -> dict[str, str]:
  """Tries a model on up to 200 images, evenly spaced in the data set.

  Returns:
    {name of `FLAGS`: sentence without its end} of doubts that a user may know to be groundless, with the likely reason.

  Raises:
    UserError: the model fails, gives no logits of the data set's classes, or NaN.
  """
  images, labels = _examples(dataset)
  with progress.stage(f'trying {model.name} on {len(images)} images'):
    logits = _checked(model, dataset, images)
    # Calls in a row, because they are of two programs of a function of JAX.
    once, again = (_logits(model, model.takes, images[:_CHUNK]) for _ in range(2))
    in_halves = _logits(model, model.takes, images, _CHUNK // 2)
    better = _better(model, images, labels, logits, dataset)
  allowed = _ROUNDING * np.ptp(logits) + _DIGITS * np.abs(logits)
  right = logits.argmax(-1) == labels
  facts = f'{model.name} classifies {right.mean():.0%} of {len(images)} images correctly'
  by_itself = 'make it a function of each image alone'
  doubts = {}
  if _at_chance(right, labels):
    reason = f'but {better}' if better else 'check --mean, --std, --layout, --classes and the weights'
    doubts['chance'] = f'{facts}, which is not above guessing; {reason}'
  elif better:
    doubts['input'] = f'{facts}, but {better}'
  if logits.min() >= 0 and np.abs(logits.sum(-1) - 1).max() < 1e-3:
    doubts['probabilities'] = f'{model.name} gives probabilities, not logits; return what it has before its softmax'
  if (np.abs(once - again) > allowed[: len(once)]).any():
    doubts['stochastic_logits'] = f'{model.name}: {FLAGS["stochastic_logits"]}; {by_itself}'
  elif (np.abs(in_halves - logits) > allowed).any():
    doubts['batch_dependence'] = f'{model.name}: {FLAGS["batch_dependence"]}; {by_itself}'
  return doubts


def _better(model: Model, images: np.ndarray, labels: np.ndarray, logits: Logits, dataset: Dataset) -> str:
  """Returns which other usual input, or order of classes, gives the highest accuracy, if clearly above the given."""
  right = logits.argmax(-1) == labels
  best, found = 0.0, ''
  for flags, takes in _inputs_beside(model.takes):
    try:
      others = _logits(model, takes, images).argmax(-1) == labels
    except Exception:  # then this is not what it takes
      continue
    if others.mean() > best and _is_above(others, right) and not _at_chance(others, labels):
      best, found = others.mean(), f'{others.mean():.0%} with {flags}; give that'
  half = np.arange(len(labels)) % 2 == 0
  others = _matched(logits, labels, half)[~half]
  if others.mean() > best and _is_above(others, right[~half]) and not _at_chance(others, labels[~half]):
    way_out = 'name them in its order with --classes'
    if not dataset.class_names:
      way_out = f'{dataset.name} has no names to match them by; put the outputs in the order of its labels'
    found = f'{others.mean():.0%} if its classes had another order; {way_out}'
  return found


def _is_above(others: np.ndarray, right: np.ndarray) -> bool:
  """Whether the images that only one of two gets right are clearly more often those of the first."""
  gained, lost = int((others & ~right).sum()), int((right & ~others).sum())
  return bool(stats.binom.sf(gained - 1, gained + lost, 0.5) < _LEVEL / _TRIES)


def _examples(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
  """Returns images, float32 [n, h, w, 3] in [0, 1], and labels [n]."""
  count = min(_IMAGES, dataset.num_examples)
  count -= count % _CHUNK if count > _CHUNK else 0
  images, labels = dataset.read(np.arange(count) * dataset.num_examples // count)
  return images.astype(np.float32) / 255, labels


@functools.lru_cache(64)
def _prepare(takes: Input) -> Callable:
  return jax.jit(takes.prepare)


def _logits(model: Model, takes: Input, images: np.ndarray, size: int = _CHUNK) -> Logits:
  parts = [images[start : start + size] for start in range(0, len(images), size)]
  return np.concatenate([np.asarray(model.call(_prepare(takes)(part)), np.float64) for part in parts])


def num_outputs(model: Model, images: np.ndarray) -> int:
  """Returns how many logits a model gives for images, float32 [n, h, w, 3]; raises UserError where it gives none."""
  try:
    found = model.call(_prepare(model.takes)(images))
  except AdversarialAugmentError:
    raise
  except Exception as error:  # whatever a model makes of images that it does not take
    size = _times(_prepare(model.takes)(images[:1]).shape[1:])
    works = next((flags for flags, takes in _shapes_beside(model.takes, images) if _runs(model, takes, images[:2])), '')
    way_out = f'it runs with {works}' if works else 'check --layout and --size'
    if not works and model.kind == OF_JAX and 'torch' in sys.modules:
      way_out += ', and make a function of PyTorch a torch.nn.Module'
    raise UserError(f'{model.name} fails on images of {size}: {_reason(error)}; {way_out}.') from error
  shape, kind = getattr(found, 'shape', None), str(getattr(found, 'dtype', type(found).__name__))
  if shape is None or len(shape) != 2 or shape[0] != len(images) or 'float' not in kind:
    what = f'{kind} of shape {list(shape)}' if shape is not None else f'a {kind}'
    raise UserError(
      f'{model.name} gives {what} for {len(images)} images; it must give logits, floats [{len(images)}, classes].'
    )
  return shape[1]


def _checked(model: Model, dataset: Dataset, images: np.ndarray) -> Logits:
  """Returns the logits of images; raises UserError where they cannot be those of the data set's classes."""
  outputs = num_outputs(model, images[:_CHUNK])
  if outputs != dataset.num_classes:
    raise UserError(
      f'{model.name} has {outputs} outputs, but {dataset.name} has {dataset.num_classes} classes; name a data set of '
      'its classes, or a model of these.'
    )
  if model.class_names and len(model.class_names) != outputs:  # a data set without names has not been compared
    raise UserError(
      f'{model.name} has {outputs} outputs, but --classes, or its attribute class_names, names '
      f'{len(model.class_names)} classes; name each output, in order.'
    )
  logits = _logits(model, model.takes, images)
  if not np.isfinite(logits).all():
    bad = (~np.isfinite(logits).all(-1)).sum()
    raise UserError(f'{model.name} gives NaN or infinite logits for {bad} of {len(images)} images; mend its weights.')
  return logits


def _runs(model: Model, takes: Input, images: np.ndarray) -> bool:
  try:
    like = jax.eval_shape(takes.prepare, jax.ShapeDtypeStruct(images.shape, images.dtype))
    return np.ndim(model.call(np.zeros(like.shape, like.dtype))) == 2
  except Exception:
    return False


def _shapes_beside(takes: Input, images: np.ndarray) -> Iterator[tuple[str, Input]]:
  """Yields other layouts and sizes, with their flags."""
  other = 'nhwc' if takes.layout == 'nchw' else 'nchw'
  yield f'--layout={other}', takes._replace(layout=other)
  for side in _SIDES:
    if (side, side) != (takes.size or images.shape[1:3]):
      yield f'--size={side}', takes._replace(size=(side, side))


def _inputs_beside(takes: Input) -> Iterator[tuple[str, Input]]:
  """Yields other usual inputs, with their flags."""
  for flags, values in _OTHERWISE.items():
    other_input = takes._replace(mean=values['mean'], std=values['std'])
    if other_input != takes:
      yield flags, other_input
  other = 'nhwc' if takes.layout == 'nchw' else 'nchw'
  yield f'--layout={other}', takes._replace(layout=other)


def _at_chance(right: np.ndarray, labels: np.ndarray) -> bool:
  """Whether accuracy is not above that of naming the most frequent class; False for too few images to tell."""
  count, guess = len(labels), np.bincount(labels).max() / len(labels)
  unlikely = lambda correct: stats.binom.sf(correct - 1, count, guess) < _LEVEL
  return bool(unlikely(count) and not unlikely(right.sum()))


def _matched(logits: Logits, labels: np.ndarray, given: np.ndarray) -> np.ndarray:
  """Returns which images are right if the outputs stand for the classes that fit best on the images `given`."""
  seen, number = logits.argmax(-1), logits.shape[1]
  counts = np.zeros((number, number), int)
  np.add.at(counts, (seen[given], labels[given]), 1)
  _, of_output = optimize.linear_sum_assignment(-counts)
  return of_output[seen] == labels


def _reason(error: BaseException) -> str:
  """Returns an exception in a line, with the place in the user's own file, if it is known."""
  here = Path(__file__).parents[1]
  frames = [frame for frame in traceback.extract_tb(error.__traceback__) if 'site-packages' not in frame.filename]
  own = [frame for frame in frames if here not in Path(frame.filename).parents and Path(frame.filename).is_file()]
  where = f' ({Path(own[-1].filename).name}:{own[-1].lineno})' if own else ''
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text[:_LONGEST]}{"..." if len(text) > _LONGEST else ""}{where}'


def _times(shape: Any) -> str:
  return 'x'.join(map(str, shape))
