"""Noise, blurs and snow once more, with OpenCV, scikit-image and SciPy in float64: one image and its draws at a time.

Every function takes a uint8 image [h, w, 3], a severity, and the draws of the package, and returns uint8. The tables
are those of CIFAR-10-C's public generator, and so is the truncation of every result.
"""

import math

import cv2
import numpy as np
from scipy import ndimage, stats
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
  del draws
  return levels(blurred(image / 255, [0.4, 0.6, 0.7, 0.8, 1][severity - 1]))


def defocus_blur(image, severity, draws):
  del draws
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
  del draws
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
