"""Weather, colour, digital and spatter corruptions once more, with OpenCV, scikit-image, SciPy and Pillow.

Every function takes a uint8 image [h, w, 3], a severity, and the draws of the package for that image as NumPy arrays,
and returns uint8 [h, w, 3]. The tables are those of CIFAR-10-C's public generator, and so is the truncation of every
result.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import color
from skimage.filters import gaussian


def levels(x: np.ndarray) -> np.ndarray:
  """[0, 1] -> uint8, rounded down."""
  return np.uint8(np.clip(x, 0, 1) * 255)


def brightness(image, severity, draws):
  del draws
  hsv = color.rgb2hsv(image / 255)
  hsv[:, :, 2] = np.clip(hsv[:, :, 2] + [0.05, 0.1, 0.15, 0.2, 0.3][severity - 1], 0, 1)
  return levels(color.hsv2rgb(hsv))


def saturate(image, severity, draws):
  del draws
  factor, addend = [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)][severity - 1]
  hsv = color.rgb2hsv(image / 255)
  hsv[:, :, 1] = np.clip(hsv[:, :, 1] * factor + addend, 0, 1)
  return levels(color.hsv2rgb(hsv))


def contrast(image, severity, draws):
  del draws
  x = image / 255
  mean = x.mean(axis=(0, 1))
  return levels((x - mean) * [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1] + mean)


def pixelate(image, severity, draws):
  del draws
  h, w = image.shape[:2]
  kept = [0.95, 0.9, 0.85, 0.75, 0.65][severity - 1]
  small = Image.fromarray(image).resize((int(w * kept), int(h * kept)), Image.Resampling.BOX)
  return np.asarray(small.resize((w, h), Image.Resampling.BOX))


def jpeg_compression(image, severity, draws):
  del draws
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
    of_image, of_frost = [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)][severity - 1]
    photograph = frost_photograph(folder, number)
    piece = photograph[row : row + image.shape[0], column : column + image.shape[1]]
    return np.uint8(np.clip(of_image * image + of_frost * piece, 0, 255))

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
