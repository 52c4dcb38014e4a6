"""CIFAR-10-C-bar against the published algorithms, written pixel by pixel, with the same draws."""

import math

import numpy as np
import pytest
from scipy import fftpack, ndimage
from skimage import draw

from adversarial_augment.corruptions import BAR_NAMES, corrupt
from adversarial_augment.corruptions.bar import BAR


def _per_pixel(size, kernel):
  return np.array([[kernel(y, x) for x in range(size[1])] for y in range(size[0])])


def _bilinear(image, y, x):
  top, left = math.floor(y), math.floor(x)
  inside = lambda i, j: 0 <= i < image.shape[0] and 0 <= j < image.shape[1]
  at = lambda i, j: image[i, j].astype(float) if inside(i, j) else np.zeros(3)
  upper = at(top, left) * (1 - x + left) + at(top, left + 1) * (x - left)
  lower = at(top + 1, left) * (1 - x + left) + at(top + 1, left + 1) * (x - left)
  return upper * (1 - y + top) + lower * (y - top)


def _noise(phases, power):
  h, w = phases.shape
  amplitude = _per_pixel((h, w), lambda y, x: power(math.hypot(x - w / 2, y - h / 2)))
  spectrum = amplitude * (np.cos(phases) + 1j * np.sin(phases))
  spectrum = np.roll(np.roll(spectrum, h // 2, axis=0), w // 2, axis=1)
  noise = np.real(fftpack.ifft2(spectrum))
  return noise / np.std(noise)


def blue_noise_sample(image, phases, threshold):
  noise = _noise(phases, lambda distance: distance)
  return _per_pixel(noise.shape, lambda y, x: image[y, x] if noise[y, x] > threshold else np.zeros(3))


def brownish_noise(image, phases, intensity):
  noise = [_noise(channel, lambda distance: 1 / (distance**2 + 1)) for channel in phases]
  return image + intensity * np.stack(noise, axis=2)


def checkerboard_cutout(image, angle, side, grid):
  def pixel(y, x):
    u = (math.cos(angle) * y + math.sin(angle) * x) / side
    v = (-math.sin(angle) * y + math.cos(angle) * x) / side
    return image[y, x] if int(u % 2) != int(v % 2) or not grid[int(u), int(v)] else np.full(3, 128)

  return _per_pixel(image.shape, pixel)


def circular_motion_blur(image, degrees):
  total, weights = np.zeros(image.shape), 0.0
  for i in range(21):
    share = 2 * i / 20 - 1
    weight = math.exp(-2 * share**2)
    total += weight * ndimage.rotate(image.astype(np.float32) / 255, share * degrees, reshape=False)
    weights += weight
  return total / weights * 255


def _sparkle(y, x, center, rays, exponent):
  down, right = y - center[0], x - center[1]
  place = (math.atan2(right, down) + math.pi) / (2 * math.pi) * len(rays)
  i = int(place)
  f = place - i
  length = rays[i % len(rays)] + f * (rays[(i + 1) % len(rays)] - rays[i % len(rays)])
  g = (length**2 / (math.hypot(down, right) ** 2 + 1e-4)) ** exponent
  return min(max((1 - (f - 0.5) ** 2) * g, 0), 1)


def inverse_sparkles(image, center, rays, falloff):
  return _per_pixel(
    image.shape, lambda y, x: 255 + _sparkle(y, x, center, rays, falloff) * (image[y, x].astype(float) - 255)
  )


def sparkles(image, centers, rays):
  for center, lengths in zip(centers, rays, strict=True):
    lit = lambda y, x: image[y, x] + _sparkle(y, x, center, lengths, 1) * (255.0 - image[y, x])  # noqa: B023
    image = _per_pixel(image.shape, lit)
  return image


def lines(image, starts, angles):
  out = image.copy()
  for (x, y), angle in zip(starts, angles, strict=True):
    s, c = math.sin(angle) * min(image.shape[:2]), math.cos(angle) * min(image.shape[:2])
    before = out.copy()
    for i, j, value in zip(*draw.line_aa(int(x - c), int(y - s), int(x + c), int(y + s)), strict=True):
      if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
        out[i, j] = ((1 - value) * before[i, j] + value * 128).astype(np.uint8)
  return out


def pinch_and_twirl(image, angles, amount):
  out, side = image.astype(np.float32), min(image.shape[:2]) // 3
  for i in range(image.shape[1] // side):
    for j in range(image.shape[0] // side):
      center = np.array([j * side + side / 2, i * side + side / 2])

      def warp(y, x, center=center, angle=angles[i, j]):
        dy, dx = np.array([y, x]) - center
        distance = math.hypot(dy, dx)
        if distance > side / 2 or round(distance, 3) == 0:
          return y, x
        d = distance / (side / 2)
        t = math.sin(math.pi * 0.5 * d) ** -amount
        a = angle * (1 - d) ** 2
        dy, dx = dy * t, dx * t
        return center[0] + dy * math.cos(a) - dx * math.sin(a), center[1] + dy * math.sin(a) + dx * math.cos(a)

      rows, columns = range(j * side, (j + 1) * side), range(i * side, (i + 1) * side)
      block = np.array([[_bilinear(out, *warp(y, x)) for x in columns] for y in rows])
      out[j * side : (j + 1) * side, i * side : (i + 1) * side] = block
  return out


def ripple(image, amplitude, wavelengths, phases):
  moved = lambda at, k: at + amplitude * math.sin(2 * math.pi * at / wavelengths[k] + phases[k])
  return _per_pixel(image.shape, lambda y, x: _bilinear(image, moved(y, 0), moved(x, 1)))


def transverse_chromatic_abberation(image, zooms):
  out = image.copy()
  for c in range(3):
    zoomed = ndimage.zoom(image[:, :, c], zooms[c], prefilter=False)
    top, left = (zoomed.shape[0] - image.shape[0]) // 2, (zoomed.shape[1] - image.shape[1]) // 2
    out[:, :, c] = zoomed[top : top + image.shape[0], left : left + image.shape[1]]
  return out


def _check(name, images, severity, seed):
  """Holds `corrupt` against the published algorithm, with draws from (seed, number, severity, index)."""
  corruption, size = BAR[name], images.shape[1:3]
  mine = corrupt(images, name, severity, seed, indices=range(5, 5 + len(images)))
  for number, image in enumerate(images):
    rng = np.random.default_rng([seed, list(BAR).index(name), severity, 5 + number])
    draws = corruption.draw(rng, size, corruption.severities[severity - 1])
    published = np.clip(globals()[name](image, **draws), 0, 255).astype(np.uint8)
    np.testing.assert_allclose(mine[number].astype(int), published.astype(int), atol=1)
    # The published rotations run in float32: they end on a whole level, or just below it and thus one level lower.
    assert (mine[number] != published).mean() < (0.05 if name == 'circular_motion_blur' else 0.01)


@pytest.mark.parametrize('severity', [1, 5])
@pytest.mark.parametrize('name', list(BAR))
def test_equals_the_published_algorithm_within_a_grey_level(name, severity):
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
  images[1] = np.linspace(0, 255, 32).astype(np.uint8)[:, None]
  _check(name, images, severity, 0)


@pytest.mark.slow
@pytest.mark.parametrize('size', [(32, 32), (64, 64), (33, 47), (48, 32), (32, 96)])
@pytest.mark.parametrize('severity', [1, 2, 3, 4, 5])
@pytest.mark.parametrize('name', list(BAR))
def test_equals_the_published_algorithm_at_all_sizes_and_severities(name, severity, size):
  images = np.random.default_rng(1).integers(0, 256, (4, *size, 3), dtype=np.uint8)
  images[0], images[1] = 0, np.linspace(0, 255, size[1]).astype(np.uint8)[None, :, None]
  _check(name, images, severity, 7)


@pytest.mark.parametrize('level', [1, 37, 127, 255])
def test_circular_motion_blur_keeps_equal_pixels(level):
  for severity in (1, 5):
    found = corrupt(np.full((1, 32, 40, 3), level, np.uint8), 'circular_motion_blur', severity)
    assert (found[0, 8:24, 12:28] == level).all()


def test_the_names_are_those_of_the_table():
  assert tuple(BAR) == BAR_NAMES


@pytest.mark.parametrize('name', list(BAR))
def test_corrupts_more_at_higher_severities(name):
  images = np.random.default_rng(1).integers(40, 216, (8, 8, 8, 3), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
  corruption = BAR[name]
  changes = [
    np.mean(
      [
        np.abs(
          np.clip(corruption.apply(image, **corruption.draw(np.random.default_rng(i), (32, 32), level)), 0, 255) - image
        ).mean()
        for i, image in enumerate(images)
      ]
    )
    for level in corruption.severities
  ]
  assert changes[0] > 0
  assert changes == sorted(changes)


@pytest.mark.parametrize('size', [(32, 32), (64, 64), (33, 47), (40, 33)])
def test_takes_images_of_any_size(size):
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
  for name, corruption in BAR.items():
    out = corruption.apply(image, **corruption.draw(np.random.default_rng(0), size, corruption.severities[4]))
    assert out.shape == image.shape, name
    assert np.isfinite(out).all(), name
