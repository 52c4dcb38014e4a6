"""Noise against oracles that have the same draws; and the law of the draws apart."""

import jax
import numpy as np
import pytest
from scipy import stats

from adversarial_augment.corruptions import noise
from tests import corruption_oracles_a as oracles
from tests.corruption_images import assert_equals_oracle, assert_one_shape, corrupted, of_another_size, real_images

NAMES = ('gaussian_noise', 'shot_noise', 'impulse_noise', 'speckle_noise')
EXACT = ('shot_noise', 'impulse_noise')
SEVERITIES = (1, 2, 3, 4, 5)
GREY = 128


def corruption(name: str):
  return getattr(noise, name.upper())


def flat(level: int, n: int = 20) -> np.ndarray:
  return np.full((n, 32, 32, 3), level, np.uint8)


def check(name: str, images: np.ndarray, severity: int) -> None:
  levels = 0 if name in EXACT else 1
  assert_equals_oracle(corruption(name), getattr(oracles, name), images, severity, levels, share=1e-4)


@pytest.mark.parametrize('severity', SEVERITIES)
@pytest.mark.parametrize('name', NAMES)
def test_equals_the_oracle_on_real_images(name, severity):
  check(name, real_images(100), severity)


@pytest.mark.parametrize('name', NAMES)
def test_equals_the_oracle_at_another_size(name):
  check(name, of_another_size(real_images(20)), severity=3)


@pytest.mark.parametrize('name', NAMES)
def test_every_severity_has_constants_of_the_same_shapes(name):
  assert_one_shape(corruption(name))


@pytest.mark.parametrize('name', NAMES)
def test_severities_are_in_order(name):
  images = real_images(50)
  change = [abs(corrupted(corruption(name), images, s)[1].astype(int) - images).mean() for s in SEVERITIES]
  assert all(np.diff(change) > 0), change


@pytest.mark.parametrize('severity', SEVERITIES)
@pytest.mark.parametrize(
  'name, deviation',  # in grey levels, for each severity
  [
    ('gaussian_noise', 255 * np.array([0.04, 0.06, 0.08, 0.09, 0.10])),
    ('speckle_noise', GREY * np.array([0.06, 0.1, 0.12, 0.16, 0.2])),
    ('shot_noise', np.sqrt(GREY * 255 / np.array([500, 250, 100, 75, 50]))),
  ],
)
def test_standard_deviation_on_grey(name, deviation, severity):
  levels = corrupted(corruption(name), flat(GREY), severity)[1]
  assert levels.std() == pytest.approx(deviation[severity - 1], rel=0.02)
  assert levels.mean() == pytest.approx(GREY - 0.5, abs=0.5)  # truncation takes half a level


@pytest.mark.parametrize('name', ['shot_noise', 'speckle_noise'])
def test_black_stays_black(name):
  assert not corrupted(corruption(name), flat(0), 5)[1].any()


@pytest.mark.parametrize(
  'name, law', [('gaussian_noise', 'norm'), ('speckle_noise', 'norm'), ('impulse_noise', 'uniform')]
)
def test_law_of_the_draws(name, law):
  draws = corrupted(corruption(name), flat(GREY), 1)[0]
  assert draws.shape == (20, 32, 32, 3)
  assert stats.kstest(draws.ravel(), law).pvalue > 0.01


def test_shot_noise_draws_24_bits():
  draws = corrupted(noise.SHOT_NOISE, flat(GREY), 1)[0]
  assert stats.kstest((draws.ravel() + 0.5) / 2**24, 'uniform').pvalue > 0.01
  for place in range(24):
    assert (draws >> place & 1).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize('severity, photons', [(1, 500), (3, 100), (5, 50)])
@pytest.mark.parametrize('level', [3, 70, 255])
def test_shot_noise_is_poisson(level, severity, photons):
  found = np.bincount(corrupted(noise.SHOT_NOISE, flat(level), severity)[1].ravel(), minlength=256)
  counts = np.arange(2 * photons + 1)
  probability = stats.poisson.pmf(counts, level / 255 * photons)
  expected = np.bincount(np.minimum(255 * counts // photons, 255), probability, minlength=256) * found.sum()
  common = expected >= 5
  found, expected = (np.append(a[common], a[~common].sum()) for a in (found, expected))
  assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 0.01


@pytest.mark.parametrize('severity, amount', [(1, 0.01), (2, 0.02), (3, 0.03), (4, 0.05), (5, 0.07)])
def test_impulse_noise_is_half_salt_half_pepper(severity, amount):
  levels = corrupted(noise.IMPULSE_NOISE, flat(GREY), severity)[1]
  assert set(np.unique(levels)) == {0, GREY, 255}
  for level in (0, 255):
    assert stats.binomtest(int((levels == level).sum()), levels.size, amount / 2).pvalue > 0.01


def test_channels_and_images_draw_apart():
  draws = corrupted(noise.GAUSSIAN_NOISE, flat(GREY), 1)[0]
  rows = np.concatenate([draws[0].reshape(-1, 3).T, draws[1].reshape(-1, 3).T])
  assert abs(np.corrcoef(rows) - np.eye(6)).max() < 0.12  # four standard deviations of 1,024 pixels


def test_another_key_draws_anew():
  draw = lambda key: np.asarray(noise.GAUSSIAN_NOISE.draw(jax.random.key(key), (32, 32), np.float32(1)))
  np.testing.assert_array_equal(draw(1), draw(1))
  assert (draw(1) != draw(2)).mean() > 0.99
