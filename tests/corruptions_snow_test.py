"""Snow against an oracle that has the same draws; and the law of the draws apart."""

import numpy as np
import pytest
from scipy import stats

from adversarial_augment.corruptions.snow import SNOW
from tests import corruption_oracles_a as oracles
from tests.corruption_images import assert_equals_oracle, assert_one_shape, corrupted, of_another_size, real_images

SEVERITIES = (1, 2, 3, 4, 5)


@pytest.mark.parametrize('severity', SEVERITIES)
def test_equals_the_oracle_at_two_sizes(severity):
  for images in (real_images(100), of_another_size(real_images(20))):
    assert_equals_oracle(SNOW, oracles.snow, images, severity, levels=2)


def test_every_severity_has_constants_of_the_same_shapes():
  assert_one_shape(SNOW)


def test_snow_only_brightens():
  images = real_images(50)
  for severity in SEVERITIES:
    assert (corrupted(SNOW, images, severity)[1] >= images.astype(int) - 1).all()  # truncation may take a level


def test_law_of_the_draws():
  draws = corrupted(SNOW, np.zeros((2000, 32, 32, 3), np.uint8), 1)[0]
  assert draws.normal.shape == (2000, 32, 32)
  assert stats.kstest(draws.normal[:50].ravel(), 'norm').pvalue > 0.01
  assert stats.kstest(draws.degrees, stats.uniform(-135, 90).cdf).pvalue > 0.01
  assert abs(np.corrcoef(draws.normal[:, 0, 0], draws.degrees)[0, 1]) < 0.1
