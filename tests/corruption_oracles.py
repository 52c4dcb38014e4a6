"""The corruptions once more, with OpenCV, scikit-image, SciPy and Pillow in float64: one image at a time.

Every function takes a uint8 image [h, w, 3], a severity, and the draws of the package for that image as NumPy arrays,
and returns uint8 [h, w, 3]. The tables are those of CIFAR-10-C's public generator, and so is the truncation of every
result.
"""

import io
import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage, stats
from skimage import color
from skimage.filters import gaussian


def levels(x: np.ndarray, slack: float = 0) -> np.ndarray:
  """[0, 1] -> uint8, rounded down."""
  return np.uint8(np.clip(x, 0, 1) * 255 + slack)


def gaussian_noise(image, severity, normal):
  return levels(image / 255 + normal.astype(np.float64) * [0.04, 0.06, 0.08, 0.09, 0.10][severity - 1])


def speckle_noise(image, severity, normal):
  x = image / 255
  return levels(x + x * normal.astype(np.float64) * [0.06, 0.1, 0.12, 0.16, 0.2][severity - 1])


def shot_noise(image, severity, bits):
  photons = [500, 250, 100, 75, 50][severity - 1]
  return levels(stats.poisson.ppf((bits + 0.5) / 2**24, image / 255 * photons) / photons)


def impulse_noise(image, severity, uniform):
  amount = [0.01, 0.02, 0.03, 0.05, 0.07][severity - 1]
  result = image.copy()
  result[uniform < amount] = 0
  result[uniform < amount / 2] = 255
  return result


def blurred(x, sigma):
  return gaussian(x, sigma=sigma, channel_axis=-1, mode='nearest', truncate=4.0)


def gaussian_blur(image, severity, draws):
  return levels(blurred(image / 255, [0.4, 0.6, 0.7, 0.8, 1][severity - 1]))


def defocus_blur(image, severity, draws):
  radius, sigma = [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)][severity - 1]
  x, y = np.meshgrid(np.arange(-8, 9), np.arange(-8, 9))
  disk = np.float32(x * x + y * y <= radius**2)
  kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=(3, 3), sigmaX=sigma)
  return levels(np.dstack([cv2.filter2D(image[:, :, channel] / 255, -1, kernel) for channel in range(3)]))


def glass_blur(image, severity, displacements):
  """Literally: pixel after pixel, from the last to the first, with the swap of views that copies.

  But for float64's rounding errors: a flat patch loses a level under sigma 0.4 where its level is one of 56, and may
  lose another one in the second blur. The slack gives them back.
  """
  sigma, rounds = [(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)][severity - 1]
  x = levels(blurred(image / 255, sigma), slack=1e-9)
  for up, left in displacements[:rounds].tolist():
    for h in range(image.shape[0] - 1, 1, -1):
      for w in range(image.shape[1] - 1, 1, -1):
        there = h - up[h][w], w - left[h][w]
        x[h, w], x[there] = x[there], x[h, w]
  return levels(blurred(x / 255, sigma), slack=1e-9)


def motion(image, radius, sigma, degrees):
  """ImageMagick's, uint8 in and out, as one two-dimensional kernel, whose high byte of 16 bits a PNG file gets."""
  width = 2 * radius + 1
  weights = np.exp(-np.square(np.arange(width) / sigma) / 2)
  kernel = np.zeros((2 * width + 1, 2 * width + 1))
  for i, weight in enumerate(weights / weights.sum()):
    down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
    right = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
    kernel[width + down, width + right] += weight
  quantum = np.rint(cv2.filter2D(257 * np.float64(image), -1, kernel, borderType=cv2.BORDER_REPLICATE))
  return np.uint8(quantum // 257)


def motion_blur(image, severity, degrees):
  return motion(image, *[(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)][severity - 1], float(degrees))


def clipped_zoom(x, factor):
  h, w = x.shape[:2]
  crop_h, crop_w = math.ceil(h / factor), math.ceil(w / factor)
  top, left = (h - crop_h) // 2, (w - crop_w) // 2
  zoomed = ndimage.zoom(x[top : top + crop_h, left : left + crop_w], (factor, factor, 1), order=1)
  top, left = (zoomed.shape[0] - h) // 2, (zoomed.shape[1] - w) // 2
  return zoomed[top : top + h, left : left + w]


def zoom_blur(image, severity, draws):
  factors = np.arange(1, [1.06, 1.11, 1.16, 1.21, 1.26][severity - 1], 0.01)
  x = (image / 255).astype(np.float32)
  out = np.zeros_like(x)
  for factor in factors:
    out += clipped_zoom(x, factor)
  return levels((x + out) / (len(factors) + 1))


def snow(image, severity, draws):
  mean, deviation, zoom, threshold, radius, sigma, kept = [
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
  ][severity - 1]
  layer = clipped_zoom((mean + deviation * draws.normal.astype(np.float64))[:, :, None], zoom)[:, :, 0]
  layer[layer < threshold] = 0
  layer = motion(levels(layer), radius, sigma, float(draws.degrees))[:, :, None] / 255
  x = np.float32(image) / 255
  grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[:, :, None]
  x = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
  return levels(x + layer + np.rot90(layer, k=2))


def brightness(image, severity, draws):
  hsv = color.rgb2hsv(image / 255)
  hsv[:, :, 2] = np.clip(hsv[:, :, 2] + [0.05, 0.1, 0.15, 0.2, 0.3][severity - 1], 0, 1)
  return levels(color.hsv2rgb(hsv))


def saturate(image, severity, draws):
  factor, addend = [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)][severity - 1]
  hsv = color.rgb2hsv(image / 255)
  hsv[:, :, 1] = np.clip(hsv[:, :, 1] * factor + addend, 0, 1)
  return levels(color.hsv2rgb(hsv))


def contrast(image, severity, draws):
  x = image / 255
  mean = x.mean(axis=(0, 1))
  return levels((x - mean) * [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1] + mean)


def pixelate(image, severity, draws):
  h, w = image.shape[:2]
  kept = [0.95, 0.9, 0.85, 0.75, 0.65][severity - 1]
  small = Image.fromarray(image).resize((int(w * kept), int(h * kept)), Image.Resampling.BOX)
  return np.asarray(small.resize((w, h), Image.Resampling.BOX))


def jpeg_compression(image, severity, draws):
  file = io.BytesIO()
  Image.fromarray(image).save(file, format='JPEG', quality=[80, 65, 58, 50, 40][severity - 1])
  return np.asarray(Image.open(io.BytesIO(file.getvalue())).convert('RGB'))


def frost_photograph(folder: Path, number: int) -> np.ndarray:
  """Returns one of the photographs in `folder`, shrunk to a fifth, uint8 RGB."""
  name = ['frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg'][number]
  return cv2.resize(cv2.imread(str(folder / name)), (0, 0), fx=0.2, fy=0.2)[:, :, ::-1]


def frost(folder: Path):
  """Returns the oracle for the photographs in a folder."""

  def apply(image, severity, draws):
    number, (row, column) = draws
    image_share, frost_share = [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)][severity - 1]
    photograph = frost_photograph(folder, number)
    piece = photograph[row : row + image.shape[0], column : column + image.shape[1]]
    return np.uint8(np.clip(image_share * image + frost_share * piece, 0, 255))

  return apply


def plasma(uniform, decay):
  """Diamond-square on a torus, point after point, float64 [2**k, 2**k] for 4**k - 1 draws; 0 to 1."""
  side = round((len(uniform) + 1) ** 0.5)
  height = np.zeros((side, side))
  numbers = iter(uniform.astype(np.float64))
  step, wibble = side, 100.0
  while step >= 2:
    half = step // 2
    square = [(-half, -half), (-half, half), (half, -half), (half, half)]
    diamond = [(-half, 0), (half, 0), (0, -half), (0, half)]
    for down, right, neighbours in ((half, half, square), (0, half, diamond), (half, 0, diamond)):
      for y in range(down, side, step):
        for x in range(right, side, step):
          around = [height[(y + a) % side, (x + b) % side] for a, b in neighbours]
          height[y, x] = sum(around) / 4 + wibble * wibble * next(numbers)
    step, wibble = half, wibble / decay
  height -= height.min()
  return height / height.max()


def fog(image, severity, uniform):
  thickness, decay = [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)][severity - 1]
  x = image / 255
  high = x.max()
  x = x + thickness * plasma(uniform, decay)[: image.shape[0], : image.shape[1], None]
  return levels(x * high / (high + thickness))


def affine(image, before, after):
  """Moves three points `before` to `after`, [3, 2] with x first; float64, mirrored at the centres of edge pixels."""
  matrix = np.linalg.solve(np.column_stack([before, np.ones(3)]), after).T
  row, column = np.mgrid[: image.shape[0], : image.shape[1]]
  x, y = np.linalg.solve(matrix[:, :2], np.stack([column.ravel(), row.ravel()]) - matrix[:, 2:])
  return interpolated(image, y.reshape(row.shape), x.reshape(row.shape), 'mirror')


def interpolated(image, row, column, mode):
  channels = [ndimage.map_coordinates(image[:, :, i], (row, column), order=1, mode=mode) for i in range(3)]
  return np.stack(channels, axis=-1)


def elastic_points(size, severity, points):
  """Returns the points of the affine map before and after, float32 as for OpenCV."""
  h, w = size
  centre, reach = np.float32([w // 2, h // 2]), min(size) // 3
  before = np.float32([centre + reach, centre + [reach, -reach], centre - reach])
  shift = [0.08, 0.07, 0.06, 0.05, 0.03][severity - 1] * min(size)
  return before, before + np.float32(shift * points.astype(np.float64))


def elastic_transform(image, severity, draws):
  alpha, sigma = np.multiply(
    min(image.shape[:2]), [(0, 0), (0.05, 0.2), (0.08, 0.06), (0.1, 0.04), (0.1, 0.03)][severity - 1]
  )
  right, down = (
    np.float32(gaussian(pixels, sigma, mode='reflect', truncate=3) * alpha)
    for pixels in draws.pixels.astype(np.float64)
  )
  x = affine(np.float32(image) / 255, *elastic_points(image.shape[:2], severity, draws.points))
  row, column = np.mgrid[: image.shape[0], : image.shape[1]]
  return levels(interpolated(x, row + down, column + right, 'reflect'))


def spatter(image, severity, normal):
  mean, deviation, sigma, threshold, last = [
    (0.62, 0.1, 0.7, 0.7, 0.5),
    (0.65, 0.1, 0.8, 0.7, 0.5),
    (0.65, 0.3, 1, 0.69, 0.5),
    (0.65, 0.1, 0.7, 0.69, 0.6),
    (0.65, 0.1, 0.5, 0.68, 0.6),
  ][severity - 1]
  x = np.float32(image) / 255
  liquid = gaussian(mean + deviation * normal.astype(np.float64), sigma=sigma, mode='nearest', truncate=4)
  liquid[liquid < threshold] = 0
  if severity >= 4:
    mud = gaussian(np.float32(liquid > threshold), sigma=last, mode='nearest', truncate=4)[:, :, None]
    mud[mud < 0.8] = 0
    return levels(x * (1 - mud) + np.float32([63, 42, 20]) / 255 * mud)
  liquid = (liquid * 255).astype(np.int64).astype(np.uint8)
  distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
  distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
  light = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
  light = liquid * cv2.blur(light, (3, 3)).astype(np.float32)
  water = light[:, :, None] / light.max() * np.float32(last)
  return levels(x + water * np.float32([175, 238, 238]) / 255)
