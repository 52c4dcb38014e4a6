"""Every corruption against an oracle that has the same draws."""

import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment.corruptions import BAR_NAMES, CORRUPTIONS
from tests import corruption_oracles as oracles
from tests.corruption_images import corrupted, differences, of_another_size, real_images

pytestmark = pytest.mark.usefixtures('quick_compile')

SEVERITIES = (1, 2, 3, 4, 5)

# Number of images, largest difference in grey levels, share of levels that may differ. A filter's result is often a
# whole level, or 1e-6 off one; there the official code's own rounding errors decide, of float64 or (zoom) of float32.
BARS = {
  'gaussian_noise': (100, 1, 1e-4),
  'shot_noise': (100, 0, 0),
  'impulse_noise': (100, 0, 0),
  'speckle_noise': (100, 1, 1e-4),
  'gaussian_blur': (500, 1, 0.015),
  'defocus_blur': (500, 1, 0.02),
  'glass_blur': (100, 1, 0.03),
  'motion_blur': (100, 1, 1e-4),
  'zoom_blur': (100, 1, 0.01),
  'snow': (100, 2, 1e-3),
  'fog': (100, 1, 1e-3),
  'brightness': (500, 1, 0.002),
  'saturate': (500, 1, 0.02),
  'contrast': (500, 1, 0.001),
  'elastic_transform': (100, 2, 1e-3),
  'pixelate': (500, 0, 0),
  'jpeg_compression': (500, 0, 0),
  'spatter': (100, 1, 1e-3),
}


def check(name: str, images: np.ndarray, severity: int) -> None:
  _, levels, share = BARS[name]
  if (name, severity) == ('saturate', 3):
    # Saturation times 1.5 makes every other level between a pixel's largest and smallest a whole one, of which the
    # official code's own rounding errors take one away or do not.
    share = 0.06
  difference = differences(CORRUPTIONS[name], getattr(oracles, name), images, severity)
  assert abs(difference).max() <= levels
  assert (difference != 0).mean() <= share


def test_only_frost_has_its_own_test():
  assert BARS.keys() | {'frost', *BAR_NAMES} == CORRUPTIONS.keys()


@pytest.mark.parametrize('severity', SEVERITIES)
@pytest.mark.parametrize('name', BARS)
def test_equals_the_oracle_at_two_sizes(name, severity):
  check(name, real_images(BARS[name][0]), severity)
  check(name, of_another_size(real_images(20)), severity)


@pytest.mark.parametrize('name', sorted(CORRUPTIONS.keys() - {'pixelate', 'jpeg_compression', *BAR_NAMES}))
def test_all_severities_share_a_compilation(name):
  for size in ((32, 32), (48, 40)):
    all_of = [CORRUPTIONS[name].constants(severity, size) for severity in SEVERITIES]
    one, *others = (jax.tree.map(lambda a: (np.shape(a), a.dtype), constants) for constants in all_of)
    assert others == [one] * 4


@pytest.mark.parametrize('name', ['brightness', 'saturate'])
def test_colours_on_pure_dark_and_random_colours(name):
  pure = np.array(list(itertools.product((0, 1, 2, 127, 254, 255), repeat=3)), np.uint8)
  random = np.random.default_rng(0).integers(0, 256, (1024 - len(pure), 3), np.uint8)
  images = np.concatenate([pure, random]).reshape(1, 32, 32, 3)
  for severity in SEVERITIES:
    assert abs(differences(CORRUPTIONS[name], getattr(oracles, name), images, severity)).max() <= 1


@pytest.mark.parametrize('size', [(33, 32), (47, 101), (120, 65)])
def test_pixelate_on_noise_of_odd_sizes(size):
  noise = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  for severity in SEVERITIES:
    check('pixelate', noise, severity)


def test_elastic_where_the_map_leads_far_outside():
  wide = np.concatenate(real_images(60).reshape(10, 6, 32, 32, 3).transpose(1, 0, 2, 3, 4), axis=2)
  check('elastic_transform', wide, 1)
  check('elastic_transform', np.ascontiguousarray(wide.transpose(0, 2, 1, 3)), 3)


def test_the_affine_map_of_elastic_is_that_of_opencv():
  """Older OpenCV rounds places to 1/32 pixel: half a level on average."""
  images = real_images(100)
  draws, levels = corrupted(CORRUPTIONS['elastic_transform'], images, 1)
  for i, image in enumerate(images):
    matrix = cv2.getAffineTransform(*oracles.elastic_points((32, 32), 1, draws.points[i]))
    expected = cv2.warpAffine(np.float32(image), matrix, (32, 32), borderMode=cv2.BORDER_REFLECT_101)
    assert abs(levels[i] - np.floor(expected)).mean() < 1


def test_water_on_puddles_whose_levels_overflow():
  """Large smooth noise makes long edges, and levels beyond 255, which start again at 0."""
  row, column = np.mgrid[:48, :40]
  image, spatter = of_another_size(real_images(2))[0], CORRUPTIONS['spatter']
  apply = jax.jit(spatter.apply)
  for severity, i in itertools.product((1, 2, 3), range(1, 6)):
    waves = 4 * np.sin(row * i / 11) * np.cos(column * i / 17) + np.sin(row * column * i / 300)
    constants = spatter.constants(severity, (48, 40))
    found = np.clip(apply(jnp.asarray(image, jnp.float32), jnp.asarray(waves, jnp.float32), constants), 0, 255)
    assert abs(np.floor(found) - oracles.spatter(image, severity, np.float32(waves))).max() <= 1
