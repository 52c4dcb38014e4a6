"""A corruption: random numbers for one image, and a deterministic function of the image and these numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment.types import Array, Key, PyTree

Size = tuple[int, int]  # height, width


class Corruption(NamedTuple):
  """A corruption at all five severities, compiled once: severities differ only in the numbers in `constants`."""

  severities: tuple[Any, ...]  # the published numbers of each severity, explained in the module
  prepare: Callable[[Any, Size], PyTree]  # numbers of a severity -> NumPy arrays, of the same shapes for all severities
  draw: Callable[[Key, Size, PyTree], PyTree]  # key of one image, its size, constants -> its random numbers
  # Grey levels 0..255, float32 [h, w, 3], draws, constants -> grey levels, to be clipped and truncated.
  apply: Callable[[Array, PyTree, PyTree], Array]

  def constants(self, severity: int, size: Size) -> PyTree:
    return self.prepare(self.severities[severity - 1], size)


class HostCorruption(NamedTuple):
  """A deterministic corruption by a library, outside JAX."""

  severities: tuple[Any, ...]
  apply: Callable[[np.ndarray, Any], np.ndarray]  # uint8 [h, w, 3], numbers of a severity -> uint8 [h, w, 3]


def one_number(value: float, size: Size) -> np.float32:
  """The `prepare` of a corruption whose severities differ in one number."""
  return np.float32(value)


def no_draw(key: Key, size: Size, constants: PyTree) -> tuple[()]:
  """The `draw` of a deterministic corruption."""
  return ()


class DrawnCorruption(NamedTuple):
  """A corruption in NumPy, outside JAX; severities are the published levels, which differ between corruptions."""

  severities: tuple[float, ...]
  draw: Callable[[np.random.Generator, Size, float], dict[str, Any]]  # generator of one image, its size, level
  apply: Callable[..., np.ndarray]  # uint8 [h, w, 3], draws by name -> grey levels, to be clipped and truncated

  def corrupt(self, image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    draws = self.draw(rng, (image.shape[0], image.shape[1]), self.severities[severity - 1])
    return np.clip(self.apply(image, **draws), 0, 255).astype(np.uint8)
