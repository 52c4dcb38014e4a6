"""Kernels in the order of the published networks, in whose terms DeepAugment is defined, and what is drawn for them."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

Params = dict[str, dict[str, np.ndarray]]


def copy_of(params: Mapping[str, Mapping[str, np.ndarray]]) -> Params:
  """Returns dicts of their own over the same arrays, which may be replaced there and must not be written to."""
  return {module: dict(layer) for module, layer in params.items()}


def to_published(kernel: np.ndarray) -> np.ndarray:
  """[height, width, in, out] -> [out, in, height, width]"""
  return kernel.transpose(3, 2, 0, 1)


def from_published(kernel: np.ndarray) -> np.ndarray:
  """[out, in, height, width] -> [height, width, in, out]"""
  return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0), np.float32)


def scaled(count: int, channels: int, published_channels: int) -> int:
  """Returns a number of channels of the published network in proportion to a network of another width; at least 1."""
  return max(1, count * channels // published_channels)


def pick(rng: np.random.Generator, values: Sequence[int]) -> int:
  """Returns one of some integers."""
  return values[int(rng.integers(len(values)))]


def gelu(x: np.ndarray) -> np.ndarray:
  """x Phi(x), with the error function."""
  return x * np.float32(0.5) * (1 + scipy.special.erf(x / np.float32(np.sqrt(2))))


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Returns -1 and 1, equally often."""
  return bits(rng, shape) * 2 - 1


def bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Returns 0 and 1, equally often."""
  return rng.integers(2, size=shape).astype(np.float32)


def uniform(rng: np.random.Generator, shape: tuple[int, ...] = ()) -> np.ndarray:
  """Returns numbers in [0, 1), float32."""
  return np.asarray(rng.random(shape, np.float32))


def largest_tap(kernel: np.ndarray) -> np.ndarray:
  """Keeps of each plane of [out, in, height, width] the largest value (with its sign) alone."""
  flat = kernel.reshape(*kernel.shape[:2], -1)
  taps = np.arange(flat.shape[2]) == flat.argmax(2)[..., None]
  return np.where(taps, flat, np.float32(0)).reshape(kernel.shape)
