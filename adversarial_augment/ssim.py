"""SSIM, and the line search that corrects images that became too severe (appendix G, arXiv 2104.01086).

SSIM is that of Wang et al. 2004: an 11 x 11 Gaussian window of sigma 1.5 at valid positions only, K1 = .01, K2 = .03,
data range 1, population moments, averaged over pixels and channels. Images are [n, h, w, c] in [0, 1], h and w at
least 11.

The appendix calls its threshold a maximum SSIM *distance*, but its sentences only agree for a minimum *similarity* (.3
in section 2), so here it is `min_ssim`. Along the ray x_gamma = (1 - gamma) x + gamma x_hat, the local moments are
polynomials in gamma, so one set of filtered images serves every gamma.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from adversarial_augment import checks
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, counts_images

WINDOW, _SIGMA = 11, 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2
_GAMMAS = np.linspace(0.0, 1.0, 9)
_QUADRATIC = np.linalg.pinv(np.vander(_GAMMAS, 3))  # [3, 9]: nine values -> least-squares a, b, c
_FALSI_STEPS = 8


class _Moments(NamedTuple):
  """Local moments of x and of d = other - x, [n, h', w', c]."""

  mean_x: Array
  mean_d: Array
  var_x: Array
  var_d: Array
  cov: Array


@counts_images
class Corrected(NamedTuple):
  """What the line search did, per image."""

  images: Array  # [n, h, w, c]
  ssim: Array  # [n], before
  gamma: Array  # [n] in [0, 1]; 1 is untouched
  ssim_after: Array  # [n]

  def __len__(self) -> int:
    return len(self.images)


def ssim(images: Array, other: Array) -> Array:
  """Returns the SSIM of each pair of images of two batches, [n] in [-1, 1]; refuses other shapes with a UserError."""
  return _ssim_at(_moments(images, other), jnp.ones(images.shape[0], images.dtype))


def line_search(images: Array, corrupted: Array, *, min_ssim: float, root: str) -> Array:
  """Moves `corrupted` towards `images` where its SSIM is below `min_ssim`; returns the others unchanged."""
  return correct(images, corrupted, min_ssim=min_ssim, root=root).images


def correct(images: Array, corrupted: Array, *, min_ssim: float, root: str) -> Corrected:
  """Returns `line_search` with its measurements.

  Args:
    images: the clean images.
    corrupted: of the same shape.
    min_ssim: the smallest similarity that is accepted.
    root: how gamma is found:
      'literal' is the appendix as written: of the roots of a quadratic fitted to nine SSIMs, clipped to [0, 1], the
        one closest to 1. Where the curve is convex the larger root lies beyond 1 and nothing is corrected.
      'first_crossing' takes the smallest root in [0, 1], or else the first crossing of the nine SSIMs.
      'strict' refines the last crossing of the nine by regula falsi, measures the SSIM of the result, and falls back to
        the largest of the nine that passes, or to the clean image: no image ends below `min_ssim`.

  Raises:
    UserError: an unknown root, other shapes, or images smaller than the window.
  """
  search = checks.lookup(ROOTS, root, 'root')
  moments = _moments(images, corrupted)
  grid = jnp.stack([_ssim_at(moments, jnp.full(images.shape[0], gamma, images.dtype)) for gamma in _GAMMAS], axis=-1)
  mild = grid[:, -1] >= min_ssim
  gamma, coarse = search(moments, grid, min_ssim)

  def at(gamma):
    blend = images + gamma[:, None, None, None] * (corrupted - images)
    return jnp.where((gamma == 1)[:, None, None, None], corrupted, jnp.clip(blend, 0, 1))

  if root == 'strict':  # the closed form and the blend round differently: measure the returned image
    for fallback in (coarse, jnp.zeros_like(gamma)):
      passes = ssim(images, at(gamma)) >= min_ssim
      gamma = jnp.where(passes, gamma, fallback)
  gamma = jnp.where(mild, 1, gamma)
  result = at(gamma)
  return Corrected(result, grid[:, -1], gamma, ssim(images, result))


def _literal(moments, grid, min_ssim):
  low, high = _quadratic_roots(grid - min_ssim)
  return jnp.maximum(jnp.clip(low, 0, 1), jnp.clip(high, 0, 1)), None


def _first_crossing(moments, grid, min_ssim):
  h = grid - min_ssim
  low, high = _quadratic_roots(h)
  inside = lambda x: (x >= 0) & (x <= 1)
  fitted = jnp.where(inside(low), low, high)
  # If the data cross but the fit does not: between the first grid point below and the one before it.
  first_below = jnp.argmax(h < 0, axis=-1)
  index = jnp.maximum(first_below - 1, 0)
  here, after = _take(h, index), _take(h, index + 1)
  step = here / jnp.where(here > after, here - after, 1)
  crossing = jnp.clip((index + step) / 8, 0, 1).astype(grid.dtype)
  has_real_root = jnp.isfinite(low)
  return jnp.where(has_real_root & inside(fitted), fitted, crossing), None


def _strict(moments, grid, min_ssim):
  h = grid - min_ssim
  last = jnp.where(h >= 0, jnp.arange(9), -1).max(-1)  # the largest of the nine that passes; -1: none does
  index = jnp.clip(last, 0, 7)
  low = coarse = index.astype(grid.dtype) / 8
  high = low + 1 / 8
  h_low, h_high = _take(h, index), _take(h, index + 1)
  for _ in range(_FALSI_STEPS):  # Illinois variant; h_low >= 0 > h_high throughout
    share = h_low / jnp.where(h_low > h_high, h_low - h_high, 1)
    middle = low + jnp.clip(share, 0, 1) * (high - low)
    h_middle = _ssim_at(moments, middle) - min_ssim
    up = h_middle >= 0
    low, high = jnp.where(up, middle, low), jnp.where(up, high, middle)
    h_low, h_high = jnp.where(up, h_middle, h_low / 2), jnp.where(up, h_high / 2, h_middle)
  none = last < 0
  return jnp.where(none, 0, low), jnp.where(none, 0, coarse)


ROOTS = {'literal': _literal, 'first_crossing': _first_crossing, 'strict': _strict}


def _take(h: Array, index: Array) -> Array:
  return jnp.take_along_axis(h, index[:, None], axis=-1)[:, 0]


def _quadratic_roots(h: Array) -> tuple[Array, Array]:
  """Fits a quadratic to nine values over [0, 1]; returns its roots in ascending order, [n] each.

  A linear fit has one root, returned twice; a fit that does not cross has none: infinity, twice.
  """
  a, b, c = jnp.moveaxis(jnp.matmul(h, _QUADRATIC.T.astype(h.dtype), precision='highest'), -1, 0)
  straight = jnp.abs(a) < 1e-6
  discriminant = b**2 - 4 * a * c
  q = -(b + jnp.where(b < 0, -1, 1) * jnp.sqrt(jnp.maximum(discriminant, 0))) / 2
  safe = lambda x: jnp.where(jnp.abs(x) < 1e-12, 1e-12, x)
  first = jnp.where(straight, -c / safe(b), q / safe(jnp.where(straight, 1, a)))
  second = jnp.where(straight, first, c / safe(q))
  none = jnp.where(straight, jnp.abs(b) < 1e-6, discriminant < 0)
  first, second = (jnp.where(none, jnp.inf, root) for root in (first, second))
  return jnp.minimum(first, second), jnp.maximum(first, second)


def _moments(images: Array, other: Array) -> _Moments:
  if images.shape != other.shape or images.ndim != 4:
    raise UserError(f'ssim compares images of one shape [n, h, w, c]; got {images.shape} and {other.shape}.')
  if min(images.shape[1:3]) < WINDOW:
    raise UserError(f'ssim needs images of at least {WINDOW} x {WINDOW} pixels; got {images.shape[1:3]}.')
  difference = other - images
  # Without the channel means, E[x^2] - E[x]^2 does not cancel: float32 stays within 1e-5 of float64.
  offset_x, offset_d = (a.mean((1, 2), keepdims=True) for a in (images, difference))
  x, d = images - offset_x, difference - offset_d
  mean_x, mean_d, xx, dd, xd = jnp.split(_filter(jnp.concatenate([x, d, x * x, d * d, x * d], -1)), 5, axis=-1)
  return _Moments(
    mean_x + offset_x, mean_d + offset_d, xx - mean_x * mean_x, dd - mean_d * mean_d, xd - mean_x * mean_d
  )


def _filter(x: Array) -> Array:
  """Gaussian window at valid positions, as two products with banded matrices: faster than a depthwise convolution."""
  rows, columns = (jnp.asarray(_band(size), x.dtype) for size in x.shape[1:3])
  x = jnp.einsum('ih,nhwc->niwc', rows, x, precision='highest')
  return jnp.einsum('jw,niwc->nijc', columns, x, precision='highest')


def _band(size: int) -> np.ndarray:
  """[size - 10, size]: row i holds the window at offset i."""
  window = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * _SIGMA**2))
  band = np.zeros((size - WINDOW + 1, size))
  for i in range(len(band)):
    band[i, i : i + WINDOW] = window / window.sum()
  return band


def _ssim_at(moments: _Moments, gamma: Array) -> Array:
  """SSIM(x, x + gamma d) for one gamma per image, [n]."""
  g = gamma[:, None, None, None]
  mean_x, mean_y = moments.mean_x, moments.mean_x + g * moments.mean_d
  cov = moments.var_x + g * moments.cov
  var_sum = 2 * cov + g**2 * moments.var_d  # var_x + var_y
  luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
  return (luminance * (2 * cov + _C2) / (var_sum + _C2)).mean((1, 2, 3))
