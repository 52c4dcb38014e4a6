"""Elastic deformation, pixelation and JPEG against oracles; the law of the draws; and in closed form."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adversarial_augment.corruptions.digital import ELASTIC_TRANSFORM, JPEG_COMPRESSION, PIXELATE
from tests import corruption_oracles_b as oracles
from tests.corruption_images import (
  assert_equals_oracle,
  assert_one_shape,
  corrupted,
  differences,
  of_another_size,
  real_images,
)

SEVERITIES = (1, 2, 3, 4, 5)


check_elastic = functools.partial(assert_equals_oracle, ELASTIC_TRANSFORM, oracles.elastic_transform, levels=2)


@pytest.mark.parametrize('severity', SEVERITIES)
def test_elastic_equals_the_oracle_at_two_sizes(severity):
  for images in (real_images(100), of_another_size(real_images(20))):
    check_elastic(images, severity)


def test_elastic_equals_the_oracle_where_the_map_leads_far_outside():
  wide = np.concatenate(real_images(60).reshape(10, 6, 32, 32, 3).transpose(1, 0, 2, 3, 4), axis=2)
  check_elastic(wide, 1)
  check_elastic(np.ascontiguousarray(wide.transpose(0, 2, 1, 3)), 3)


def test_the_affine_map_is_that_of_opencv():
  """Older OpenCV rounds places to 1/32 pixel: half a level on average."""
  images = real_images(100)
  draws, levels = corrupted(ELASTIC_TRANSFORM, images, 1)
  for i, image in enumerate(images):
    points = oracles.elastic_points((32, 32), 1, draws.points[i])
    matrix = cv2.getAffineTransform(*points)
    expected = cv2.warpAffine(np.float32(image), matrix, (32, 32), borderMode=cv2.BORDER_REFLECT_101)
    assert abs(levels[i] - np.floor(expected)).mean() < 1


APPLY_ELASTIC = jax.jit(ELASTIC_TRANSFORM.apply)


def moved(image: np.ndarray, severity: int, points: np.ndarray) -> np.ndarray:
  """Returns the image under an affine map alone."""
  constants = ELASTIC_TRANSFORM.constants(severity, image.shape[:2])
  draws = ELASTIC_TRANSFORM.draw(jax.random.key(0), image.shape[:2], constants)
  draws = draws._replace(points=jnp.asarray(points, jnp.float32), pixels=jnp.zeros_like(draws.pixels))
  return np.asarray(APPLY_ELASTIC(jnp.asarray(image, jnp.float32), draws, constants))


def test_elastic_without_draws_is_the_identity_and_equal_draws_shift():
  for image in (real_images(1)[0], of_another_size(real_images(2))[0]):
    for severity in SEVERITIES:
      np.testing.assert_array_equal(moved(image, severity, np.zeros((3, 2))), image)
    pixel = 1 / (0.08 * min(image.shape[:2]))  # in units of the range of severity 1
    right, down = (moved(image, 1, pixel * np.tile(step, (3, 1))) for step in ([1, 0], [0, 1]))
    np.testing.assert_allclose(right[:, 1:], image[:, :-1], atol=0.01)
    np.testing.assert_allclose(right[:, 0], image[:, 1], atol=0.01)  # mirrored
    np.testing.assert_allclose(down[1:], image[:-1], atol=0.01)


def test_law_of_the_draws_of_elastic():
  draws = corrupted(ELASTIC_TRANSFORM, np.zeros((500, 32, 32, 3), np.uint8), 3)[0]
  assert (draws.points.shape, draws.pixels.shape) == ((500, 3, 2), (500, 2, 32, 32))
  between = stats.uniform(-1, 2).cdf
  assert stats.kstest(draws.points.ravel(), between).pvalue > 0.01
  assert stats.kstest(draws.pixels[:50].ravel(), between).pvalue > 0.01
  assert abs(np.corrcoef(draws.points.reshape(500, 6), rowvar=False)[np.triu_indices(6, 1)]).max() < 0.2
  assert abs(np.corrcoef(draws.points[:, 0, 0], draws.pixels[:, 0, 0, 0])[0, 1]) < 0.2


@pytest.mark.parametrize('severity', SEVERITIES)
def test_pixelate_equals_pillow_exactly(severity):
  assert not differences(PIXELATE, oracles.pixelate, real_images(500), severity).any()
  assert not differences(PIXELATE, oracles.pixelate, of_another_size(real_images(20)), severity).any()


@pytest.mark.parametrize('size', [(33, 32), (47, 101), (120, 65)])
def test_pixelate_equals_pillow_exactly_on_noise_of_odd_sizes(size):
  noise = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  for severity in SEVERITIES:
    assert not differences(PIXELATE, oracles.pixelate, noise, severity).any()


@pytest.mark.parametrize('corruption', [ELASTIC_TRANSFORM, PIXELATE])
def test_every_severity_has_constants_of_the_same_shapes(corruption):
  assert_one_shape(corruption)


@pytest.mark.parametrize('severity', SEVERITIES)
def test_jpeg_equals_pillow_exactly(severity):
  for image in (*real_images(500), *of_another_size(real_images(20))):
    np.testing.assert_array_equal(
      JPEG_COMPRESSION.apply(image, severity), oracles.jpeg_compression(image, severity, ())
    )


def test_pixelate_and_jpeg_change_more_with_severity():
  images = real_images(100)
  pixelated = [abs(corrupted(PIXELATE, images, severity)[1] - images.astype(int)).mean() for severity in SEVERITIES]
  compressed = [
    np.mean([abs(JPEG_COMPRESSION.apply(image, severity) - image.astype(int)) for image in images])
    for severity in SEVERITIES
  ]
  assert pixelated == sorted(pixelated)
  assert compressed == sorted(compressed)
