"""Brightness, saturation and contrast against scikit-image and NumPy, and in closed form."""

import itertools

import numpy as np
import pytest

from adversarial_augment.corruptions import color
from tests import corruption_oracles_b as oracles
from tests.corruption_images import (
  assert_equals_oracle,
  assert_one_shape,
  corrupted,
  differences,
  of_another_size,
  real_images,
)

# The share of levels that may differ, by one. Saturation times 1.5 makes every other level between a pixel's largest
# and smallest a whole one, of which the official code's own rounding errors take one away or do not.
SHARES = {'brightness': 0.002, 'saturate': 0.02, 'contrast': 0.001}
SEVERITIES = (1, 2, 3, 4, 5)
GREYS = np.broadcast_to(np.arange(256, dtype=np.uint8).repeat(4).reshape(1, 32, 32, 1), (1, 32, 32, 3))


def corruption(name: str):
  return getattr(color, name.upper())


def check(name: str, images: np.ndarray, severity: int) -> None:
  share = 0.06 if (name, severity) == ('saturate', 3) else SHARES[name]
  assert_equals_oracle(corruption(name), getattr(oracles, name), images, severity, levels=1, share=share)


@pytest.mark.parametrize('severity', SEVERITIES)
@pytest.mark.parametrize('name', SHARES)
def test_equals_the_oracle_on_real_images(name, severity):
  check(name, real_images(500), severity)


@pytest.mark.parametrize('severity', SEVERITIES)
@pytest.mark.parametrize('name', SHARES)
def test_equals_the_oracle_at_another_size(name, severity):
  check(name, of_another_size(real_images(20)), severity)


@pytest.mark.parametrize('name', ['brightness', 'saturate'])
def test_equals_the_oracle_on_pure_dark_and_random_colours(name):
  pure = np.array(list(itertools.product((0, 1, 2, 127, 254, 255), repeat=3)), np.uint8)
  random = np.random.default_rng(0).integers(0, 256, (1024 - len(pure), 3), np.uint8)
  images = np.concatenate([pure, random]).reshape(1, 32, 32, 3)
  for severity in SEVERITIES:
    assert abs(differences(corruption(name), getattr(oracles, name), images, severity)).max() <= 1


@pytest.mark.parametrize('name', SHARES)
def test_every_severity_has_constants_of_the_same_shapes(name):
  assert_one_shape(corruption(name))


def test_brightness_adds_to_greys():
  for severity, addend in enumerate((12.75, 25.5, 38.25, 51, 76.5), 1):
    result = corrupted(color.BRIGHTNESS, GREYS, severity)[1].astype(int)
    expected = np.floor(np.minimum(GREYS + np.float64(addend), 255))
    if severity == 4:  # 51 more is a whole level, and floating point may fall below it
      assert set(np.unique(expected - result)) <= {0, 1}
    else:
      np.testing.assert_array_equal(result, expected)


def test_saturation_of_greys_makes_them_red():
  for severity, addend in enumerate((0, 0, 0, 0.1, 0.2), 1):
    result = corrupted(color.SATURATE, GREYS, severity)[1].astype(int)
    np.testing.assert_array_equal(result[..., 0], GREYS[..., 0])
    expected = np.floor(GREYS[..., 1:] * np.float64(10 - 10 * addend) / 10)
    assert set(np.unique(expected - result[..., 1:])) <= ({0} if addend == 0 else {0, 1})


def test_contrast_of_two_levels_and_of_none():
  images = np.full((1, 32, 32, 3), 100, np.uint8)
  images[:, :16] = 200
  for severity, factor in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1):
    result = corrupted(color.CONTRAST, images, severity)[1]
    np.testing.assert_array_equal(result[0, 0, 0], np.floor(150 + 50 * factor))
    np.testing.assert_array_equal(result[0, 31, 0], np.floor(150 - 50 * factor))
    for size in ((32, 32), (48, 40)):
      flat = np.broadcast_to(np.arange(0, 256, 5, dtype=np.uint8)[:, None, None, None], (52, *size, 3))
      np.testing.assert_array_equal(corrupted(color.CONTRAST, flat, severity)[1], flat)
