"""What a corruption is: random numbers of one image, and a deterministic function of the image and those numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment.types import Array, Key, PyTree

Size = tuple[int, int]  # height, width


class Corruption(NamedTuple):
  """A corruption at all five severities, compiled once: what a severity changes are numbers in `constants`."""

  severities: tuple[Any, ...]  # the published numbers of each, which the module explains
  constants: Callable[[int, Size], PyTree]  # severity 1..5 -> NumPy arrays, of the same shapes for every severity
  draw: Callable[[Key, Size, PyTree], PyTree]  # key of one image, its size, constants -> its random numbers
  # Grey levels 0..255, float32 [h, w, 3], the draws, constants -> grey levels, which are then clipped and truncated.
  apply: Callable[[Array, PyTree, PyTree], Array]


class HostCorruption(NamedTuple):
  """A corruption by a library that runs outside JAX, without chance."""

  severities: tuple[Any, ...]
  apply: Callable[[np.ndarray, int], np.ndarray]  # uint8 [h, w, 3], severity -> uint8 [h, w, 3]


def no_draw(key: Key, size: Size, constants: PyTree) -> tuple[()]:
  """The `draw` of a corruption without chance."""
  del key, size, constants
  return ()
