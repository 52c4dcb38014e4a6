"""Corruptions without their oracles: the laws of their draws, and what is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adversarial_augment.corruptions import CORRUPTIONS, filters
from tests.corruption_images import corrupted as corrupted_by
from tests.corruption_images import of_another_size, real_images

pytestmark = pytest.mark.usefixtures('quick_compile')

SEVERITIES = (1, 2, 3, 4, 5)
GREY = 128


def corrupted(name: str, images: np.ndarray, severity: int) -> np.ndarray:
  return corrupted_by(CORRUPTIONS[name], images, severity)[1]


def draws_of(name: str, n: int, severity: int = 1, size: tuple[int, int] = (32, 32)):
  return corrupted_by(CORRUPTIONS[name], flat(GREY, n, size), severity)[0]


def flat(level: int, n: int = 20, size: tuple[int, int] = (32, 32)) -> np.ndarray:
  return np.full((n, *size, 3), level, np.uint8)


# ---- Draws.


LAWS = [  # name, its draws, their shape per image, images, law
  ('gaussian_noise', lambda draws: draws, (32, 32, 3), 20, stats.norm),
  ('speckle_noise', lambda draws: draws, (32, 32, 3), 20, stats.norm),
  ('impulse_noise', lambda draws: draws, (32, 32, 3), 20, stats.uniform),
  ('shot_noise', lambda draws: (draws + 0.5) / 2**24, (32, 32, 3), 20, stats.uniform),
  ('motion_blur', lambda draws: draws, (), 2000, stats.uniform(-45, 90)),
  ('snow', lambda draws: draws.normal, (32, 32), 50, stats.norm),
  ('snow', lambda draws: draws.degrees, (), 2000, stats.uniform(-135, 90)),
  ('fog', lambda draws: draws, (1023,), 50, stats.uniform(-1, 2)),
  ('elastic_transform', lambda draws: draws.points, (3, 2), 500, stats.uniform(-1, 2)),
  ('elastic_transform', lambda draws: draws.pixels, (2, 32, 32), 50, stats.uniform(-1, 2)),
  ('spatter', lambda draws: draws, (32, 32), 50, stats.norm),
]


@pytest.mark.parametrize('name, part, shape, n, law', LAWS)
def test_law_of_the_draws(name, part, shape, n, law):
  draws = part(draws_of(name, n))
  assert draws.shape == (n, *shape)
  assert stats.kstest(draws.ravel(), law.cdf).pvalue > 0.01


def test_draws_are_independent():
  def largest(*columns):
    return abs(np.corrcoef(columns) - np.eye(len(columns))).max()

  noise = draws_of('gaussian_noise', 2).reshape(2, -1, 3)
  assert largest(*noise[0].T, *noise[1].T) < 0.12  # four standard deviations of 1,024 pixels
  snow = draws_of('snow', 2000)
  assert largest(snow.normal[:, 0, 0], snow.degrees) < 0.1
  elastic = draws_of('elastic_transform', 500)
  assert largest(*elastic.points.reshape(500, 6).T, elastic.pixels[:, 0, 0, 0]) < 0.2
  spatter = draws_of('spatter', 100)
  assert largest(spatter[:, 0, 0], spatter[:, 0, 1]) < 0.35


def test_shot_noise_draws_24_bits():
  draws = draws_of('shot_noise', 20)
  for place in range(24):
    assert (draws >> place & 1).mean() == pytest.approx(0.5, abs=0.01)


def test_glass_displaces_evenly():
  draws = draws_of('glass_blur', 50)
  assert draws.shape == (50, 2, 2, 32, 32)  # images, rounds, up and left
  patterns = np.einsum('nrdhw,rd->nhw', draws, [[1, 2], [4, 8]])
  assert stats.chisquare(np.bincount(patterns.ravel(), minlength=16)).pvalue > 0.01


def test_fog_draws_as_many_numbers_as_its_map_has_points():
  assert draws_of('fog', 1, size=(48, 40)).shape == (1, 4095)


# ---- Noise.


@pytest.mark.parametrize('severity, photons', [(1, 500), (3, 100), (5, 50)])
@pytest.mark.parametrize('level', [3, 70, 255])
def test_shot_noise_is_poisson(level, severity, photons):
  found = np.bincount(corrupted('shot_noise', flat(level), severity).ravel(), minlength=256)
  counts = np.arange(2 * photons + 1)
  probability = stats.poisson.pmf(counts, level / 255 * photons)
  expected = np.bincount(np.minimum(255 * counts // photons, 255), probability, minlength=256) * found.sum()
  common = expected >= 5
  found, expected = (np.append(a[common], a[~common].sum()) for a in (found, expected))
  assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 0.01


@pytest.mark.parametrize('name', ['shot_noise', 'speckle_noise', 'fog'])
def test_black_stays_black(name):
  for severity in SEVERITIES:
    assert not corrupted(name, flat(0), severity).any()


# ---- Blurs.


@pytest.mark.parametrize(
  'name', ['gaussian_blur', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'contrast']
)
def test_flat_images_stay(name):
  for size in ((32, 32), (48, 40)):
    images = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, *size, 3))
    for severity in SEVERITIES:
      np.testing.assert_array_equal(corrupted(name, images, severity), images)


@pytest.mark.parametrize('radius, sigma', [(6, 1.0), (9, 2.5), (14, 12.0)])
def test_motion_kernel_is_half_a_gaussian(radius, sigma):
  kernel = filters.motion_kernel(radius, sigma, taps=29)
  assert kernel.sum() == pytest.approx(1, abs=1e-6)
  assert not kernel[2 * radius + 1 :].any()
  expected = stats.norm.pdf(np.arange(4) / sigma) / stats.norm.pdf(0)
  np.testing.assert_allclose(kernel[:4] / kernel[0], expected, rtol=1e-5)


MOVE = jax.jit(filters.motion_blur)


@pytest.mark.parametrize(
  'degrees, trail', [(0, (16, slice(12, 17))), (90, (slice(12, 17), 16)), (-90, (slice(16, 21), 16))]
)
def test_motion_has_a_direction(degrees, trail):
  image = np.zeros((32, 32, 1), np.float32)
  image[16, 16] = 255
  blurred = np.asarray(MOVE(image, degrees, filters.motion_kernel(2, 3.0, taps=9)))
  assert (blurred[trail] > 0).all()
  assert np.count_nonzero(blurred) == 5
  assert blurred[16, 16] == blurred.max()


@pytest.mark.parametrize('share, level', [(0.0, 100), (0.5, 100), (0.997, 100), (0.999, 101), (1.0, 101)])
def test_motion_keeps_the_high_part_of_16_bits(share, level):
  """100.999 is 25,957 of 65,535, which is level 101 exactly; 100.997 is 25,956, and levels are not rounded."""
  image = np.float32([[[100], [101]]])
  np.testing.assert_array_equal(MOVE(image, 0.0, np.float32([1 - share, share]))[0, :, 0], [level, 101])


def test_motion_of_no_width_changes_nothing():
  image = real_images(1)[0].astype(np.float32)
  np.testing.assert_array_equal(MOVE(image, 30.0, filters.motion_kernel(6, 1e-3, taps=19)), image)


@pytest.mark.parametrize('size', [32, 45])
def test_zoom_matrix(size):
  np.testing.assert_array_equal(filters.zoom_matrix(size, 1), np.eye(size))
  for factor in (1.01, 1.2, 2.25):
    matrix = filters.zoom_matrix(size, factor)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    assert (matrix >= 0).all()


# ---- Spatter.


SPLASH = jax.jit(CORRUPTIONS['spatter'].apply)


def splashed(image: np.ndarray, severity: int, noise: float) -> np.ndarray:
  """Returns float levels for the same draw at every pixel."""
  constants = CORRUPTIONS['spatter'].constants(severity, image.shape[:2])
  levels = SPLASH(jnp.asarray(image, jnp.float32), jnp.full(image.shape[:2], noise, jnp.float32), constants)
  return np.clip(np.asarray(levels), 0, 255)


def test_dry_images_stay():
  for image in (real_images(1)[0], of_another_size(real_images(2))[0]):
    for severity in SEVERITIES:
      np.testing.assert_array_equal(splashed(image, severity, -1), image)


@pytest.mark.parametrize('severity', SEVERITIES)
def test_water_brightens_and_mud_only_darkens_what_is_brighter(severity):
  images = real_images(100)
  spattered = corrupted('spatter', images, severity)
  if severity >= 4:
    assert (spattered <= np.maximum(images, [63, 42, 20])).all()
    np.testing.assert_array_equal(splashed(images[0], severity, 2), np.broadcast_to([63, 42, 20], (32, 32, 3)))
  else:  # a flood without edges is equally bright everywhere
    assert (spattered >= images).all()
    flood = np.minimum(images[0] + 0.5 * np.array([175, 238, 238]), 255)
    np.testing.assert_allclose(splashed(images[0], severity, 1.0), flood, atol=1e-3)


# ---- Elastic deformation.


DEFORM = jax.jit(CORRUPTIONS['elastic_transform'].apply)


def moved(image: np.ndarray, severity: int, points: np.ndarray) -> np.ndarray:
  """Returns the image under an affine map alone."""
  elastic = CORRUPTIONS['elastic_transform']
  constants = elastic.constants(severity, image.shape[:2])
  draws = elastic.draw(jax.random.key(0), image.shape[:2], constants)
  draws = draws._replace(points=jnp.asarray(points, jnp.float32), pixels=jnp.zeros_like(draws.pixels))
  return np.asarray(DEFORM(jnp.asarray(image, jnp.float32), draws, constants))


def test_elastic_without_draws_is_the_identity_and_equal_draws_shift():
  for image in (real_images(1)[0], of_another_size(real_images(2))[0]):
    for severity in SEVERITIES:
      np.testing.assert_array_equal(moved(image, severity, np.zeros((3, 2))), image)
    pixel = 1 / (0.08 * min(image.shape[:2]))  # in units of the range of severity 1
    right, down = (moved(image, 1, pixel * np.tile(step, (3, 1))) for step in ([1, 0], [0, 1]))
    np.testing.assert_allclose(right[:, 1:], image[:, :-1], atol=0.01)
    np.testing.assert_allclose(right[:, 0], image[:, 1], atol=0.01)  # mirrored
    np.testing.assert_allclose(down[1:], image[:-1], atol=0.01)
