"""When a robust accuracy means nothing: what hides a classifier's weakness from attacks, each by its name.

After Carlini et al. 2019 (arXiv 1902.06705) and Croce et al. 2022 (arXiv 2202.13711), section 4.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.attacks import inputs, losses
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, LogitsFn

FLAGS = {
  'nan': 'logits or gradients are NaN or infinite',
  'stochastic_logits': 'the same images get other logits at the next call; attacks would have to average over them',
  'batch_dependence': 'logits of an image change with the others of its batch, as under batch statistics',
  'probabilities': 'the classifier gives probabilities instead of logits, whose losses are flat',
  'zero_gradients': 'gradients of the margin are exactly 0 for many images, as behind rounding or stop_gradient',
  'vanishing_gradients': 'logits are so large that gradients of the cross-entropy are exactly 0 for many images',
  'square_beats_white_box': 'Square, which sees no gradients, breaks images that the attacks with gradients left',
  'transfer_beats_white_box': 'images that fool another classifier break more than the attacks on this one did',
  'more_effort_helps': 'more steps break further images: the attacks had not converged',
  'large_epsilon': 'attacks do not break all images even where nothing of them needs to remain',
  'robust_above_clean': 'accuracy under attack is above that on clean images',
}

_SHARE = 0.05  # of the images whose gradients may be 0: a dead unit is no defence
_ROUNDING = 1e-3  # of the spread of the logits over images, above all that another order of sums does
_REPEATS = 1e-5  # of it, above what a nondeterministic device does
_DIGITS = 1e-5  # of a logit itself: six digits of float32
_CALLS = 4  # besides the first: of a draw of few values, two may be equal
_BLACK_BOX_SHARE, _EFFORT_SHARE, _LARGE_SHARE = 0.002, 0.005, 0.01
_IMAGES = 2  # that a share must be of, at least: one image proves nothing


def of_classifier(
  logits_fn: LogitsFn,
  images: Array | np.ndarray,
  labels: Array | np.ndarray,
  attacked: Array | np.ndarray | None = None,
) -> tuple[str, ...]:
  """Returns the flags that a few clean images show, in the order of `FLAGS`; none for an honest classifier.

  Calls `logits_fn` outside of jit, so that state which it keeps in Python is seen; what is jitted inside stays so.

  Args:
    logits_fn: images [n, h, w, c] in [0, 1] -> logits [n, k].
    images: of the kind that is attacked; 32 are enough.
    labels: their classes [n].
    attacked: [n, h, w, c], what attacks have made of them: gradients must be finite there, too.

  Raises:
    UserError: images, labels or logits of other shapes or values.
  """
  images, labels = np.asarray(images), np.asarray(labels)
  if attacked is not None and attacked.shape != images.shape:
    raise UserError(f'attacked has shape {list(attacked.shape)}; it must be that of images, {list(images.shape)}.')
  inputs.check_images(images)
  inputs.check_labels(labels, len(images), inputs.count_classes(logits_fn, images))
  labels = labels.astype(np.int32)
  call = lambda x: np.asarray(logits_fn(jnp.asarray(x)), np.float64)
  twice, n = np.concatenate([images, images]), len(images)
  logits = call(twice)
  rounding = float(jnp.finfo(jax.eval_shape(logits_fn, twice).dtype).eps)

  def slopes_at(images: np.ndarray) -> dict[str, np.ndarray]:
    gradient_of = lambda loss: jax.grad(lambda x: loss(logits_fn(x), jnp.asarray(labels)).sum())
    return {loss.__name__: np.asarray(gradient_of(loss)(images)) for loss in (losses.margin, losses.cross_entropy)}

  slopes = slopes_at(images)
  ends = {} if attacked is None else slopes_at(np.asarray(attacked))
  if not all(np.isfinite(values).all() for values in (logits, *slopes.values(), *ends.values())):
    return ('nan',)
  mixed = call(np.concatenate([images, images / 4]))
  darker = mixed[:n]  # in the company of others
  # Over images, because the logits of classes that are masked may be far from all others.
  spread = max(np.ptp(logits, axis=0).max(), np.ptp(mixed, axis=0).max())

  def differ(others: np.ndarray, share: float) -> bool:
    allowed = share * spread + _DIGITS * np.abs(logits[: len(others)])
    return bool((np.abs(others - logits[: len(others)]) > allowed).any())

  backwards = call(twice[::-1])[::-1]
  is_zero = {name: (slope == 0).all((1, 2, 3)) for name, slope in slopes.items()}
  stochastic = any(differ(call(twice), _REPEATS) for _ in range(_CALLS))  # then two calls tell nothing of the batch
  return _flags(
    stochastic_logits=stochastic,
    batch_dependence=not stochastic and (differ(darker, _ROUNDING) or differ(backwards, _ROUNDING)),
    probabilities=logits.min() >= 0 and np.abs(logits.sum(-1) - 1).max() < max(1e-3, rounding),
    zero_gradients=is_zero['margin'].mean() > _SHARE,
    vanishing_gradients=(is_zero['cross_entropy'] & ~is_zero['margin']).mean() > _SHARE,
  )


def of_outcome(
  *,
  num_images: int,
  num_correct: int,
  num_robust: int,
  recomputed: tuple[int, int],
  survivors: Mapping[str, int],
  num_nan: int = 0,
) -> tuple[str, ...]:
  """Returns the flags that the counts of a suite show.

  Args:
    num_images: all of them.
    num_correct: classified correctly before any attack.
    num_robust: and after all.
    recomputed: both counts, computed again of the clean and of the final images.
    survivors: after each stage, in order.
    num_nan: images whose logits were NaN.
  """
  before = dict(zip(survivors, [num_correct, *survivors.values()], strict=False))
  by_square = before['square'] - survivors['square'] if 'square' in survivors and len(survivors) > 1 else 0
  return _flags(
    nan=num_nan > 0,
    stochastic_logits=recomputed != (num_correct, num_robust),
    square_beats_white_box=too_many(by_square, num_images, _BLACK_BOX_SHARE),
    robust_above_clean=max(num_robust, recomputed[1]) > min(num_correct, recomputed[0]),
  )


def of_probes(
  *, num_images: int, more_effort: int, num_far: int, far_left: int, transferred: int = 0, by_square: int = 0
) -> tuple[str, ...]:
  """Returns the flags of further attacks.

  Args:
    num_images: that the suite attacked, and from whose survivors those of more steps and of another classifier went on.
    more_effort: of them, those that more steps also broke.
    num_far: attacked within a ball so large that nothing of an image needs to remain.
    far_left: of those, not broken.
    transferred: of `num_images`, those that attacks on another classifier also broke.
    by_square: of `num_images`, those that Square also broke, where it is no part of the suite.
  """
  return _flags(
    square_beats_white_box=too_many(by_square, num_images, _BLACK_BOX_SHARE),
    transfer_beats_white_box=too_many(transferred, num_images, _BLACK_BOX_SHARE),
    more_effort_helps=too_many(more_effort, num_images, _EFFORT_SHARE),
    large_epsilon=far_left > _LARGE_SHARE * num_far,
  )


def too_many(count: int, of: int, share: float) -> bool:
  """Whether `count` is more than that share, and more than chance makes of few images."""
  return count >= _IMAGES and count > share * of


def _flags(**found: bool) -> tuple[str, ...]:
  return tuple(name for name in FLAGS if found.get(name))
