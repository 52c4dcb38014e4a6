"""Summary statistics of an evaluation, from counts. Accuracies and errors are fractions, percent only where printed."""

from collections.abc import Collection, Mapping, Sequence
import math

import numpy as np

from adversarial_augment.errors import UserError

# In the order of the tables of arXiv 2104.01086, with RobustBench's spelling.
NAMES = (
  'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'snow',
  'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
)  # fmt: skip
EXTRA_NAMES = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')
ALL_NAMES = (*NAMES, *EXTRA_NAMES)  # of CIFAR-10-C
BAR_NAMES = (  # of CIFAR-10-C-bar (arXiv 2102.11273), with its spelling
  'blue_noise_sample', 'brownish_noise', 'checkerboard_cutout', 'circular_motion_blur', 'inverse_sparkles', 'lines',
  'pinch_and_twirl', 'ripple', 'sparkles', 'transverse_chromatic_abberation',
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
# Of generated corruptions: raise it when a seed gives other bytes. Sets without a version are of version 1, which
# rounds two that the original truncates.
CORRUPTIONS_VERSION = '2'
CHANGED_SINCE_VERSION_1 = ('motion_blur', 'snow')
GENERATED_OLDER = 'generated, version 1'  # their origin
GENERATED_IN_MEMORY = 'generated, in memory'  # the origin of corruptions that `prepare` has not written
MIN_SIZE = 32  # pixels per side of an image to corrupt
_Z = 1.959963984540054  # the normal distribution has 95 % of its mass within this many standard deviations


def generated_origin(made_with: object, names: Collection[str]) -> str:
  """Returns the origin of generated corruptions, which names an older version if its bytes differ.

  Args:
    made_with: the versions that generated them, as in `corruptions.made_with`.
    names: of the corruptions.
  """
  version = made_with.get('corruptions', '1') if isinstance(made_with, Mapping) else '1'
  older = version != CORRUPTIONS_VERSION and set(CHANGED_SINCE_VERSION_1) & set(names)
  return GENERATED_OLDER if older else 'generated'


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
  """Returns the mCE: the mean over corruptions of the mean over severities, in [0, 1].

  As in arXiv 2104.01086, it is not divided by the errors of AlexNet, unlike ImageNet-C's (Hendrycks and Dietterich
  2019). RobustBench's corruption accuracy is 1 - mCE.

  Args:
    errors: by corruption, the top-1 errors at the five severities, in [0, 1].

  Raises:
    UserError: no corruption, not five errors, or an error that is NaN or outside [0, 1], such as a percentage.
  """
  if not errors:
    raise UserError('The mean corruption error needs at least one corruption.')
  for name, row in errors.items():
    if len(row) != len(SEVERITIES):
      raise UserError(f"'{name}' has {len(row)} errors, but must have {len(SEVERITIES)}: one for each severity.")
    for severity, error in enumerate(row, start=1):
      if not 0 <= error <= 1:  # not true of NaN either
        raise UserError(f"'{name}' has the error {error} at severity {severity}; errors are fractions from 0 to 1.")
  return float(np.mean([np.mean(row) for row in errors.values()]))


def binomial_interval(count: float, n: int) -> tuple[float, float]:
  """Returns the 95 % confidence interval of a proportion, by Wilson's score (E. B. Wilson, JASA 22, 1927).

  Args:
    count: how many of the n, such as correctly classified images; 0 to n. It need not be an integer: it may be n
      times a mean over several cells of n images each.
    n: at least 1.

  Returns:
    The lower and the upper bound of count / n, in [0, 1].

  Raises:
    UserError: not 0 <= count <= n, or n < 1.
  """
  if n < 1 or not 0 <= count <= n:
    raise UserError(f'A proportion of count={count} in n={n} must have 0 <= count <= n, and n at least 1.')
  p, spread = count / n, _Z**2 / n
  middle = (p + spread / 2) / (1 + spread)
  half = math.sqrt(spread * (p * (1 - p) + spread / 4)) / (1 + spread)
  return max(middle - half, 0.0), min(middle + half, 1.0)


def paired_interval(differences: Sequence[float] | np.ndarray) -> tuple[float, float]:
  """Returns the 95 % confidence interval of the mean difference of two classifiers that saw the same images.

  This is the adjusted Wald interval of Bonett and Price (J. Educ. Behav. Stat. 37, 2012). It adds one image that only
  the first classifier gets right and one that only the second does, so that equal outcomes on few images do not look
  certain. Images are independent of each other, but corrupted versions of one image are not, so their outcomes enter as
  a mean.

  Args:
    differences: [n], one number in [-1, 1] per image: 1 if only the first classifier is right, -1 if only the second
      is, 0 if both agree; or the mean of such numbers over several versions of the image.

  Returns:
    The lower and the upper bound, in [-1, 1].

  Raises:
    UserError: there is no image, or a number is NaN or outside [-1, 1].
  """
  values = np.asarray(differences, np.float64)
  if values.ndim != 1 or not len(values) or not (np.abs(values) <= 1).all():  # not true of NaN either
    raise UserError(f'Differences of shape {values.shape} must be numbers from -1 to 1, one for each image.')
  n = len(values) + 2
  mean = values.sum() / n
  half = _Z * math.sqrt(max((values**2).sum() + 2 - n * mean**2, 0.0)) / n
  return max(float(mean - half), -1.0), min(float(mean + half), 1.0)


def calibration(count: Sequence[int], num_correct: Sequence[int], confidence: Sequence[float]) -> float:
  """Returns the expected calibration error, in [0, 1] (Guo et al. 2017, arXiv 1706.04599, equation 5).

  This is the mean over bins of |accuracy - mean confidence|, each bin weighted by its share of the images.

  Args:
    count: images in each bin.
    num_correct: how many of those are classified correctly.
    confidence: sum of the top-1 probabilities of those.

  Raises:
    UserError: lengths differ, there is no image, more images are correct than there are, or a number is not finite.
  """
  images, right, sums = (np.asarray(values, np.float64) for values in (count, num_correct, confidence))
  if images.ndim != 1 or images.shape != right.shape or images.shape != sums.shape:
    raise UserError(
      f'count, num_correct and confidence of the bins have shapes {images.shape}, {right.shape} and {sums.shape}; '
      'they must have one number for each bin.'
    )
  if not images.sum() > 0 or not np.isfinite(sums).all() or not ((right >= 0) & (right <= images)).all():
    raise UserError(
      f'Bins of {images.tolist()} images, {right.tolist()} of them right, with confidences {sums.tolist()}: there must '
      'be images, no more right than there are, and finite confidences.'
    )
  return float(np.abs(right - sums).sum() / images.sum())
