"""Blurs against oracles that have the same draws; the law of the draws; and what ImageMagick's motion blur is."""

import jax
import numpy as np
import pytest
from scipy import stats

from adversarial_augment.corruptions import blur, filters
from adversarial_augment.corruptions.motion import motion_blur, motion_kernel
from tests import corruption_oracles_a as oracles
from tests.corruption_images import assert_equals_oracle, assert_one_shape, corrupted, of_another_size, real_images

# Number of images, largest difference in grey levels, share of pixels that may differ. A filter's result is often a
# whole level, or 1e-6 off one; there the official code's own rounding errors decide, of float64 or (zoom) of float32.
BARS = {
  'gaussian_blur': (500, 1, 0.015),
  'defocus_blur': (500, 1, 0.02),
  'glass_blur': (100, 1, 0.03),
  'motion_blur': (100, 1, 1e-4),
  'zoom_blur': (100, 1, 0.01),
}
SEVERITIES = (1, 2, 3, 4, 5)


def corruption(name: str):
  return getattr(blur, name.upper())


def check(name: str, images: np.ndarray, severity: int) -> None:
  _, levels, share = BARS[name]
  assert_equals_oracle(corruption(name), getattr(oracles, name), images, severity, levels, share)


@pytest.mark.parametrize('severity', SEVERITIES)
@pytest.mark.parametrize('name', BARS)
def test_equals_the_oracle_on_real_images(name, severity):
  check(name, real_images(BARS[name][0]), severity)


@pytest.mark.parametrize('name', BARS)
def test_equals_the_oracle_at_another_size(name):
  for severity in (2, 5):
    check(name, of_another_size(real_images(20)), severity)


@pytest.mark.parametrize('name', BARS)
def test_every_severity_has_constants_of_the_same_shapes(name):
  assert_one_shape(corruption(name))


@pytest.mark.parametrize('name', BARS)
def test_flat_images_stay(name):
  images = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3))
  for severity in SEVERITIES:
    np.testing.assert_array_equal(corrupted(corruption(name), images, severity)[1], images)


def test_glass_keeps_the_first_rows_and_columns():
  images = real_images(20)
  changed = (corrupted(blur.GLASS_BLUR, images, 1)[1] != images).any((0, 3))  # the blur of severity 1 changes nothing
  assert not changed[:2].any()
  assert not changed[:, :2].any()
  assert changed[2:, 2:].all()


def test_glass_displaces_evenly():
  draws = corrupted(blur.GLASS_BLUR, np.zeros((50, 32, 32, 3), np.uint8), 1)[0]
  assert draws.shape == (50, 2, 2, 32, 32)  # images, rounds, up and left
  patterns = np.einsum('nrdhw,rd->nhw', draws, [[1, 2], [4, 8]])
  assert stats.chisquare(np.bincount(patterns.ravel(), minlength=16)).pvalue > 0.01


def test_law_of_the_angles():
  degrees = corrupted(blur.MOTION_BLUR, np.zeros((2000, 32, 32, 3), np.uint8), 1)[0]
  assert stats.kstest(degrees, stats.uniform(-45, 90).cdf).pvalue > 0.01


@pytest.mark.parametrize('radius, sigma', [(6, 1.0), (9, 2.5), (14, 12.0)])
def test_motion_kernel_is_half_a_gaussian(radius, sigma):
  kernel = motion_kernel(radius, sigma, taps=29)
  assert kernel.sum() == pytest.approx(1, abs=1e-6)
  assert np.count_nonzero(kernel > 0) <= 2 * radius + 1
  assert not kernel[2 * radius + 1 :].any()
  np.testing.assert_allclose(
    kernel[:4] / kernel[0], stats.norm.pdf(np.arange(4) / sigma) / stats.norm.pdf(0), rtol=1e-5
  )


@pytest.mark.parametrize(
  'degrees, trail', [(0, (16, slice(12, 17))), (90, (slice(12, 17), 16)), (-90, (slice(16, 21), 16))]
)
def test_motion_has_a_direction(degrees, trail):
  image = np.zeros((32, 32, 1), np.float32)
  image[16, 16] = 255
  blurred = np.asarray(jax.jit(motion_blur)(image, degrees, motion_kernel(2, 3.0, taps=9)))
  assert (blurred[trail] > 0).all()
  assert np.count_nonzero(blurred) == 5
  assert blurred[16, 16] == blurred.max()


@pytest.mark.parametrize('share, level', [(0.0, 100), (0.5, 100), (0.997, 100), (0.999, 101), (1.0, 101)])
def test_motion_keeps_the_high_part_of_16_bits(share, level):
  """100.999 is 25,957 of 65,535, which is level 101 exactly; 100.997 is 25,956, and levels are not rounded."""
  image = np.full((1, 2, 1), 100, np.float32)
  image[0, 1] = 101
  blurred = np.asarray(jax.jit(motion_blur)(image, 0.0, np.float32([1 - share, share])))
  np.testing.assert_array_equal(blurred[0, :, 0], [level, 101])


def test_motion_of_no_width_changes_nothing():
  image = real_images(1)[0].astype(np.float32)
  np.testing.assert_array_equal(jax.jit(motion_blur)(image, 30.0, motion_kernel(6, 1e-3, taps=19)), image)


@pytest.mark.parametrize('size', [32, 45])
def test_zoom_matrix(size):
  np.testing.assert_array_equal(filters.zoom_matrix(size, 1), np.eye(size))
  for factor in (1.01, 1.2, 2.25):
    matrix = filters.zoom_matrix(size, factor)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    assert (matrix >= 0).all()


def test_zoom_blur_averages_as_many_zooms_as_cifar10_c():
  counts = [np.count_nonzero(blur.ZOOM_BLUR.constants(s, (32, 32)).rows.any((1, 2))) - 1 for s in SEVERITIES]
  assert counts == [7, 12, 16, 21, 26]
