"""A corruption: random numbers for one image, and a deterministic function of the image and these numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment.types import Array, Key, PyTree

Size = tuple[int, int]  # height, width


class Corruption(NamedTuple):
  """A corruption at all five severities, compiled once: severities differ only in the numbers in `constants`."""

  severities: tuple[Any, ...]  # the published numbers of each severity, explained in the module
  constants: Callable[[int, Size], PyTree]  # severity 1..5 -> NumPy arrays, of the same shapes for every severity
  draw: Callable[[Key, Size, PyTree], PyTree]  # key of one image, its size, constants -> its random numbers
  # Grey levels 0..255, float32 [h, w, 3], draws, constants -> grey levels, to be clipped and truncated.
  apply: Callable[[Array, PyTree, PyTree], Array]


class HostCorruption(NamedTuple):
  """A deterministic corruption by a library, outside JAX."""

  severities: tuple[Any, ...]
  apply: Callable[[np.ndarray, int], np.ndarray]  # uint8 [h, w, 3], severity -> uint8 [h, w, 3]


def no_draw(key: Key, size: Size, constants: PyTree) -> tuple[()]:
  """The `draw` of a deterministic corruption."""
  del key, size, constants
  return ()
