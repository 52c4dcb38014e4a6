"""Which images a classifier gets right, one bit each, as text for results files; for paired comparisons."""

import base64
import binascii
from collections.abc import Sequence

import numpy as np


def pack(correct: np.ndarray | Sequence[bool]) -> str:
  """Returns booleans [n] as text: eight to a byte, the first one in the highest bit, in base64."""
  return base64.b64encode(np.packbits(np.asarray(correct, bool)).tobytes()).decode()


def unpack(text: str, n: int) -> np.ndarray:
  """Returns the booleans [n] that `pack` was given; raises ValueError where the text does not hold n of them."""
  try:
    content = base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:  # the latter of letters beyond ASCII
    raise ValueError(f'it is not base64: {error}') from error
  bits = np.unpackbits(np.frombuffer(content, np.uint8)).astype(bool)
  if len(content) != -(-n // 8) or bits[n:].any():
    raise ValueError(f'it holds {len(content)} bytes, which are not the bits of {n} images')
  return bits[:n]


def count(text: str) -> int:
  """Returns how many of the booleans are true."""
  return int(np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8)).sum())
