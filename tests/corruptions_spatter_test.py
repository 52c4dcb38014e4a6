"""Spatter against OpenCV and scikit-image with the same draws; the law of the draws; and in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adversarial_augment.corruptions.spatter import SPATTER
from tests import corruption_oracles_b as oracles
from tests.corruption_images import assert_equals_oracle, assert_one_shape, corrupted, of_another_size, real_images

SEVERITIES = (1, 2, 3, 4, 5)
WATER, MUD = (1, 2, 3), (4, 5)


APPLY = jax.jit(SPATTER.apply)


def splashed(image: np.ndarray, severity: int, normal: np.ndarray) -> np.ndarray:
  """Returns float levels for draws of one's own."""
  constants = SPATTER.constants(severity, image.shape[:2])
  levels = APPLY(jnp.asarray(image, jnp.float32), jnp.asarray(normal, jnp.float32), constants)
  return np.clip(np.asarray(levels), 0, 255)


@pytest.mark.parametrize('severity', SEVERITIES)
def test_equals_the_oracle_at_two_sizes(severity):
  for images in (real_images(100), of_another_size(real_images(20))):
    assert_equals_oracle(SPATTER, oracles.spatter, images, severity, levels=1)


def test_every_severity_has_constants_of_the_same_shapes():
  assert_one_shape(SPATTER)


def test_water_equals_the_oracle_on_puddles_whose_levels_overflow():
  """Large smooth noise makes long edges, and levels beyond 255, which start again at 0."""
  row, column = np.mgrid[:48, :40]
  image = of_another_size(real_images(2))[0]
  for severity in WATER:
    for i in range(1, 6):
      waves = 4 * np.sin(row * i / 11) * np.cos(column * i / 17) + np.sin(row * column * i / 300)
      expected = oracles.spatter(image, severity, np.float32(waves))
      assert abs(np.floor(splashed(image, severity, waves)) - expected).max() <= 1


def test_dry_images_stay():
  for image in (real_images(1)[0], of_another_size(real_images(2))[0]):
    for severity in SEVERITIES:
      dry = np.full(image.shape[:2], -1)
      np.testing.assert_array_equal(splashed(image, severity, dry), image)


def test_a_flood():
  image = real_images(1)[0]
  for severity in MUD:
    mud = splashed(image, severity, np.full((32, 32), 2))
    np.testing.assert_array_equal(mud, np.broadcast_to([63, 42, 20], image.shape))
  for severity in WATER:  # without edges it is equally bright everywhere
    water = splashed(image, severity, np.full((32, 32), 1.0))
    np.testing.assert_allclose(water, np.minimum(image + 0.5 * np.array([175, 238, 238]), 255), atol=1e-3)


def test_water_brightens_and_mud_only_darkens_what_is_brighter():
  images = real_images(100)
  for severity in WATER:
    assert (corrupted(SPATTER, images, severity)[1] >= images).all()
  for severity in MUD:
    assert (corrupted(SPATTER, images, severity)[1] <= np.maximum(images, [63, 42, 20])).all()


def test_law_of_the_draws():
  normal = corrupted(SPATTER, np.zeros((100, 32, 32, 3), np.uint8), 1)[0]
  assert normal.shape == (100, 32, 32)
  assert stats.kstest(normal[::2].ravel(), 'norm').pvalue > 0.01
  assert abs(np.corrcoef(normal[:, 0, 0], normal[:, 0, 1])[0, 1]) < 0.35
