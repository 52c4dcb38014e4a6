"""The ten corruptions of CIFAR-10-C-bar (Mintun et al. 2021, arXiv 2102.11273), unlike those of CIFAR-10-C.

They run in NumPy and SciPy, in float64 as the published ones. Positions are (row, column) in pixels, and lengths follow
from the shorter side of the image. `level` is the published severity, which differs between corruptions.
"""

import functools
from typing import Any

import numpy as np
import scipy  # whose parts are imported where they are first used

from adversarial_augment.corruptions.corruption import DrawnCorruption, Size

Draws = dict[str, Any]
_WHITE, _GREY = 255, 128
_SPREAD = 0.25  # standard deviation of the rays of a sparkle, in units of its radius
_BLOCKS = 3  # of 'pinch_and_twirl', along the shorter side
_ROTATIONS = 21
_OFFSET = 1e-6  # levels: the mean of equal pixels is their level, not one below where it is rounded down


def _phases(rng: np.random.Generator, size: Size) -> np.ndarray:
  """Draws the phases of a spectrum, which are equal at opposite frequencies."""
  h, w = size
  phases = rng.uniform(0, 2 * np.pi, size)
  row, column = np.indices(size)
  drawn = (column < w // 2) | ((2 * column == w - 1) & (row < h // 2))
  phases = np.where(drawn, phases, phases[::-1, ::-1])
  if h % 2 and w % 2:
    phases[h // 2, w // 2] = 0
  return phases


def _colored_noise(phases: np.ndarray, power: int) -> np.ndarray:
  """Returns noise of variance 1 whose amplitude is the frequency (power 1), or falls with its square (-2)."""
  h, w = phases.shape
  row, column = np.indices(phases.shape)
  frequency = np.hypot(row - h / 2, column - w / 2)
  amplitude = frequency if power == 1 else 1 / (frequency**2 + 1)
  noise = scipy.fft.ifft2(np.roll(amplitude * np.exp(1j * phases), (h // 2, w // 2), axis=(0, 1))).real
  return noise / noise.std()


def _draw_blue(rng: np.random.Generator, size: Size, level: float) -> Draws:
  return {'phases': _phases(rng, size), 'threshold': 0.3 * level - 2.5}


def _blue_noise_sample(image: np.ndarray, phases: np.ndarray, threshold: float) -> np.ndarray:
  """Blackens the pixels at which blue noise is low."""
  return image * (_colored_noise(phases, 1) > threshold)[..., None]


def _draw_brownish(rng: np.random.Generator, size: Size, level: float) -> Draws:
  return {'phases': [_phases(rng, size) for _ in range(3)], 'intensity': 6.4 * level}


def _brownish_noise(image: np.ndarray, phases: list[np.ndarray], intensity: float) -> np.ndarray:
  return image + intensity * np.stack([_colored_noise(channel, -2) for channel in phases], axis=-1)


def _draw_checkerboard(rng: np.random.Generator, size: Size, level: float) -> Draws:
  angle, side = rng.uniform(0, 2 * np.pi), max(rng.uniform(0.1, 0.25) * min(size), 1)
  cells = int(4 * max(size) // side)
  return {'angle': angle, 'side': side, 'grid': rng.uniform(size=(cells, cells)) < level / 10}


def _checkerboard_cutout(image: np.ndarray, angle: float, side: float, grid: np.ndarray) -> np.ndarray:
  """Greys out some of the dark squares of a rotated checkerboard."""
  row, column = np.indices(image.shape[:2])
  u = (np.cos(angle) * row + np.sin(angle) * column) / side
  v = (np.cos(angle) * column - np.sin(angle) * row) / side
  is_dark = (u % 2).astype(int) == (v % 2).astype(int)
  cut = is_dark & grid[u.astype(int), v.astype(int)]  # towards zero, and negative ones from the end
  return np.where(cut[..., None], _GREY, image)


def _draw_lines(rng: np.random.Generator, size: Size, level: float) -> Draws:
  count, angle, spread = int(level / 10 * min(size)), rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1)
  starts = rng.uniform(size=(count, 2)) * size
  return {'starts': starts, 'angles': angle + 2 * np.pi * spread * (rng.uniform(size=count) - 0.5)}


def _lines(image: np.ndarray, starts: np.ndarray, angles: np.ndarray) -> np.ndarray:
  """Draws grey lines through the image, antialiased, each on the truncated levels of the one before."""
  from skimage import draw

  out = image.copy()
  length = min(image.shape[:2])
  for (x, y), angle in zip(starts, angles, strict=True):
    along, across = np.cos(angle) * length, np.sin(angle) * length
    row, column, share = draw.line_aa(int(x - along), int(y - across), int(x + along), int(y + across))
    inside = (row >= 0) & (column >= 0) & (row < image.shape[0]) & (column < image.shape[1])
    row, column, share = row[inside], column[inside], share[inside, None]
    out[row, column] = (1 - share) * out[row, column] + share * _GREY
  return out


def _draw_pinch(rng: np.random.Generator, size: Size, level: float) -> Draws:
  side = min(size) // _BLOCKS
  signs = rng.choice([1, -1], size=(size[1] // side, size[0] // side))
  return {'angles': signs * level * np.pi / 20, 'amount': 0.04 * level + 0.1}


def _pinch_and_twirl(image: np.ndarray, angles: np.ndarray, amount: float) -> np.ndarray:
  """Pinches and twirls a disk in each of 3 x 3 blocks, or more if the image is not square, one after the other."""
  side = min(image.shape[:2]) // _BLOCKS
  out = image.astype(np.float32)
  for (i, j), angle in np.ndenumerate(angles):
    points = np.moveaxis(np.indices((side, side)), 0, -1) + np.array([j * side, i * side])
    offset = points - side / 2 - np.array([j * side, i * side])
    distance = np.linalg.norm(offset, axis=-1, keepdims=True) / (side / 2)
    is_moved = (distance <= 1) & (np.round(distance * side / 2, 3) > 0)
    distance = np.where(is_moved, distance, 1)
    offset = offset * np.sin(np.pi / 2 * distance) ** -amount
    turn = angle * (1 - distance[..., 0]) ** 2
    down = offset[..., 0] * np.cos(turn) - offset[..., 1] * np.sin(turn)
    right = offset[..., 0] * np.sin(turn) + offset[..., 1] * np.cos(turn)
    warped = np.stack([down, right], axis=-1) + side / 2 + np.array([j * side, i * side])
    out[j * side : (j + 1) * side, i * side : (i + 1) * side] = _sample(out, np.where(is_moved, warped, points))
  return out


def _draw_ripple(rng: np.random.Generator, size: Size, level: float) -> Draws:
  return {
    'amplitude': 0.0025 * level * min(size),
    'wavelengths': rng.uniform(0.1, 0.3, size=2) * min(size),
    'phases': rng.uniform(0, 2 * np.pi, size=2),
  }


def _ripple(image: np.ndarray, amplitude: float, wavelengths: np.ndarray, phases: np.ndarray) -> np.ndarray:
  points = np.moveaxis(np.indices(image.shape[:2]), 0, -1)
  return _sample(image, points + amplitude * np.sin(2 * np.pi * points / wavelengths + phases))


def _draw_sparkles(rng: np.random.Generator, size: Size, level: float) -> Draws:
  radius = 0.01 * level * min(size)
  centers = rng.uniform(size=(5, 2)) * size
  lengths = lambda count: np.maximum(radius * (1 + _SPREAD * rng.standard_normal(count)), 1)
  return {'centers': centers, 'rays': [lengths(count) for count in rng.integers(50, 200, size=5)]}


def _sparkles(image: np.ndarray, centers: np.ndarray, rays: list[np.ndarray]) -> np.ndarray:
  """Lights five sparkles, one over the other."""
  out = image.astype(np.float64)
  for center, lengths in zip(centers, rays, strict=True):
    out += _light(image.shape, center, lengths, 1) * (_WHITE - out)
  return out


def _draw_inverse(rng: np.random.Generator, size: Size, level: float) -> Draws:
  center, radius = rng.uniform(0.25, 0.75, size=2) * size, 0.25 * min(size)
  rays = radius * (1 + _SPREAD * rng.standard_normal(rng.integers(50, 200)))
  return {'center': center, 'rays': rays, 'falloff': 0.13 * level}


def _inverse_sparkles(image: np.ndarray, center: np.ndarray, rays: np.ndarray, falloff: float) -> np.ndarray:
  """Whitens the image around a sparkle, which stays as it is."""
  return _WHITE + _light(image.shape, center, rays, falloff) * (image.astype(np.float64) - _WHITE)


def _light(shape: tuple[int, ...], center: np.ndarray, rays: np.ndarray, falloff: float) -> np.ndarray:
  """Returns the light of a sparkle at each pixel, in [0, 1], [h, w, 1].

  Args:
    shape: of the image.
    center: of the sparkle.
    rays: their lengths, at equal angles.
    falloff: exponent of (length / distance)^2.
  """
  row, column = np.indices(shape[:2])
  down, right = row - center[0], column - center[1]
  direction = (np.arctan2(right, down) + np.pi) / (2 * np.pi) * len(rays)
  first = direction.astype(int)
  between = direction - first
  length = (1 - between) * rays[first % len(rays)] + between * rays[(first + 1) % len(rays)]
  strength = (length**2 / (down**2 + right**2 + 1e-4)) ** falloff
  return np.clip((1 - (between - 0.5) ** 2) * strength, 0, 1)[..., None]


def _draw_chromatic(rng: np.random.Generator, size: Size, level: float) -> Draws:
  return {'zooms': rng.permutation([1, 1 + 0.025 * level, 1 + 0.05 * level])}


def _transverse_chromatic_abberation(image: np.ndarray, zooms: np.ndarray) -> np.ndarray:
  """Enlarges the channels by different factors. A cubic spline without its prefilter also blurs them."""
  h, w = image.shape[:2]
  out = np.empty_like(image)
  for channel, factor in enumerate(zooms):
    zoomed = scipy.ndimage.zoom(image[..., channel], factor, prefilter=False)
    top, left = (zoomed.shape[0] - h) // 2, (zoomed.shape[1] - w) // 2
    out[..., channel] = zoomed[top : top + h, left : left + w]
  return out


def _draw_circular(rng: np.random.Generator, size: Size, level: float) -> Draws:
  del rng, size
  return {'degrees': 1.5 * level}


def _circular_motion_blur(image: np.ndarray, degrees: float) -> np.ndarray:
  """The weighted mean of 21 rotations by up to so many degrees, by cubic splines."""
  coefficients = np.stack([scipy.ndimage.spline_filter(image[..., c], 3, np.float64) for c in range(3)], axis=-1)
  mean = (_rotations(image.shape[:2], degrees) @ coefficients.reshape(-1, 3)).reshape(image.shape)
  return mean + _OFFSET


@functools.lru_cache(1)
def _rotations(size: Size, degrees: float) -> 'scipy.sparse.csr_array':
  """Returns the weights of all spline coefficients in each pixel of the mean, a matrix [h w, h w]."""
  h, w = size
  shares = np.linspace(-1, 1, _ROTATIONS)
  shares_of = np.exp(-2 * shares**2)
  total = scipy.sparse.csr_array((h * w, h * w))
  center = np.array([(h - 1) / 2, (w - 1) / 2])[:, None, None]
  down, right = np.indices(size) - center
  for share, weight in zip(shares, shares_of / shares_of.sum(), strict=True):
    c, s = np.cos(np.deg2rad(share * degrees)), np.sin(np.deg2rad(share * degrees))
    points = np.stack([c * down + s * right, c * right - s * down]) + center
    inside = ((points >= 0) & (points <= np.array([h - 1, w - 1])[:, None, None])).all(axis=0).ravel()
    (rows, by_row), (columns, by_column) = (
      _cubic(at.ravel()[inside], side) for at, side in zip(points, size, strict=True)
    )
    values = weight * by_row[:, None] * by_column  # [4, 4, pixels]
    source = rows[:, None] * w + columns
    pixels = np.broadcast_to(np.flatnonzero(inside), values.shape)
    total += scipy.sparse.csr_array((values.ravel(), (pixels.ravel(), source.ravel())), shape=total.shape)
  return total


def _cubic(at: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns which four coefficients of a cubic spline each position [n] uses, mirrored at the ends, and how much."""
  first = np.floor(at).astype(int) - 1
  index = first + np.arange(4)[:, None]
  distance = np.abs(at - index)
  weights = np.where(distance < 1, 2 / 3 - distance**2 * (1 - distance / 2), np.clip(2 - distance, 0, 1) ** 3 / 6)
  index = np.abs(index)
  return np.where(index >= side, 2 * (side - 1) - index, index), weights


def _sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Interpolates linearly at points [h, w, 2]; the image continues with zeros."""
  channels = [
    scipy.ndimage.map_coordinates(image[..., c], np.moveaxis(points, -1, 0), np.float64, order=1, mode='grid-constant')
    for c in range(image.shape[-1])
  ]
  return np.stack(channels, axis=-1)


BAR = {
  'blue_noise_sample': DrawnCorruption((0.7, 1.4, 2.1, 3.5, 4.2), _draw_blue, _blue_noise_sample),
  'brownish_noise': DrawnCorruption((2.5, 4, 5.5, 6.5, 7), _draw_brownish, _brownish_noise),
  'checkerboard_cutout': DrawnCorruption((1, 2, 3, 4, 5), _draw_checkerboard, _checkerboard_cutout),
  'circular_motion_blur': DrawnCorruption((2.8, 3.6, 4.4, 5.2, 6), _draw_circular, _circular_motion_blur),
  'inverse_sparkles': DrawnCorruption((1, 1.5, 2.5, 4.5, 5), _draw_inverse, _inverse_sparkles),
  'lines': DrawnCorruption((0.5, 1, 1.5, 2, 2.5), _draw_lines, _lines),
  'pinch_and_twirl': DrawnCorruption((5.5, 6, 6.5, 8.5, 10), _draw_pinch, _pinch_and_twirl),
  'ripple': DrawnCorruption((5.5, 6, 6.5, 7.5, 8), _draw_ripple, _ripple),
  'sparkles': DrawnCorruption((0.7, 3.5, 5.6, 6.3, 7), _draw_sparkles, _sparkles),
  'transverse_chromatic_abberation': DrawnCorruption(
    (1, 2, 5, 9, 10), _draw_chromatic, _transverse_chromatic_abberation
  ),
}
