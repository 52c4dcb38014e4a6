"""Tables, as CSV too, and the colours of their cells; templates/parts.html draws them."""

from collections.abc import Sequence
import csv
import io
import math
from typing import NamedTuple

import numpy as np

NONE = '–'  # a cell without a number

# ColorBrewer's YlGnBu: its luminance falls steadily, so that it reads the same without colour vision.
_SCALE = (
  (255, 255, 217), (237, 248, 177), (199, 233, 180), (127, 205, 187), (65, 182, 196), (29, 145, 192), (34, 94, 168),
  (37, 52, 148), (8, 29, 88),
)  # fmt: skip


class Shade:
  """Where numbers stand between the smallest and the largest of all, on a logarithmic scale.

  So one large number does not make all the others look alike. The scale spans a factor of 4 at least, lest noise look
  like a difference, and of 100 at most, lest one number near 0 take the scale for itself.
  """

  def __init__(self, values: Sequence[float]):
    """Takes all numbers that are to be shaded; at least 0."""
    self.largest = max(values)
    self.smallest = min(max(min(values), self.largest / 100), self.largest / 4)

  def level(self, value: float) -> float:
    """Returns 0 for the smallest number and what lies below it, 1 for the largest."""
    if value <= self.smallest:
      return 0.0
    return min(math.log(value / self.smallest) / math.log(self.largest / self.smallest), 1.0)

  def value(self, level: float) -> float:
    """Returns the number that has the level."""
    return self.smallest * (self.largest / self.smallest) ** level if self.largest else 0.0


class Shaded(NamedTuple):
  """A cell of a heat map."""

  text: str
  level: float  # in [0, 1]

  def colours(self) -> tuple[str, str]:
    """Returns the background, and black or white for the text, whichever contrasts more (at least 4.5 to 1)."""
    position = self.level * (len(_SCALE) - 1)
    left = min(int(position), len(_SCALE) - 2)
    mixed = tuple(
      round(a + (b - a) * (position - left)) for a, b in zip(_SCALE[left], _SCALE[left + 1], strict=True)
    )  # fmt: skip
    # Contrast with white is 1.05 / (luminance + .05), with black (luminance + .05) / .05 (WCAG 2); equal at .179.
    return '#{:02x}{:02x}{:02x}'.format(*mixed), '#000' if luminance(mixed) > 0.179 else '#fff'


class Scale(NamedTuple):
  """The key of a heat map's colours."""

  caption: str
  boxes: Sequence[Shaded]


class Row(NamedTuple):
  cells: Sequence[str | Shaded]
  style: str = ''  # 'published' or 'mean'


class Table(NamedTuple):
  caption: str
  columns: Sequence[str]
  rows: Sequence[Row]
  words: int = 1  # columns of words, from the left; numbers follow
  groups: Sequence[tuple[str, int]] = ()  # headings above the last columns, with how many each spans

  def csv(self) -> str:
    """Returns the table as CSV."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator='\n')
    writer.writerow(self.columns)
    writer.writerows([cell.text if isinstance(cell, Shaded) else cell for cell in row.cells] for row in self.rows)
    return lines.getvalue()


def percent(fraction: float, digits: int = 2) -> str:
  """0.1249 -> '12.49'."""
  return f'{100 * fraction:.{digits}f}'


def luminance(colour: Sequence[int]) -> float:
  """Relative luminance of an sRGB colour of 0 to 255 (WCAG 2), in [0, 1]."""
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def scale(caption: str, shade: Shade) -> Scale:
  """Returns the key of a heat map's colours: six of them, with the fractions that they stand for in percent."""
  return Scale(caption, [Shaded(percent(shade.value(level), 1), level) for level in map(float, np.linspace(0, 1, 6))])
