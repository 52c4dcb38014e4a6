"""Kernels in PyTorch's order, in which DeepAugment is defined, and random draws for them."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

Params = dict[str, dict[str, np.ndarray]]


def copy_of(params: Mapping[str, Mapping[str, np.ndarray]]) -> Params:
  """Copies the dicts but not the arrays, which may be replaced but must not be modified."""
  return {module: dict(layer) for module, layer in params.items()}


def to_published(kernel: np.ndarray) -> np.ndarray:
  """[height, width, in, out] -> [out, in, height, width]"""
  return kernel.transpose(3, 2, 0, 1)


def from_published(kernel: np.ndarray) -> np.ndarray:
  """[out, in, height, width] -> [height, width, in, out]"""
  return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0), np.float32)


def scaled(count: int, channels: int, published_channels: int) -> int:
  """Scales a number of channels of the published network to a network of another width; at least 1."""
  return max(1, count * channels // published_channels)


def pick(rng: np.random.Generator, values: Sequence[int]) -> int:
  """Draws one of the given integers."""
  return values[int(rng.integers(len(values)))]


def gelu(x: np.ndarray) -> np.ndarray:
  """x Phi(x), with the error function."""
  return x * np.float32(0.5) * (1 + scipy.special.erf(x / np.float32(np.sqrt(2))))


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Draws -1 and 1 with equal probability."""
  return bits(rng, shape) * 2 - 1


def bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Draws 0 and 1 with equal probability."""
  return rng.integers(2, size=shape).astype(np.float32)


def uniform(rng: np.random.Generator, shape: tuple[int, ...] = ()) -> np.ndarray:
  """Draws numbers in [0, 1), float32."""
  return np.asarray(rng.random(shape, np.float32))


def largest_tap(kernel: np.ndarray) -> np.ndarray:
  """Keeps only the largest value (in magnitude, with sign) of each plane of [out, in, height, width]."""
  flat = kernel.reshape(*kernel.shape[:2], -1)
  taps = np.arange(flat.shape[2]) == flat.argmax(2)[..., None]
  return np.where(taps, flat, np.float32(0)).reshape(kernel.shape)
