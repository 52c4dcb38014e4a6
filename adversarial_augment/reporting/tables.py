"""Tables as HTML and as CSV, and the colours of their cells."""

from collections.abc import Sequence
import csv
from html import escape
import io
import math
import re
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


class Row(NamedTuple):
  cells: Sequence[str | Shaded]
  kind: str = ''  # 'published' or 'mean', a class of the style sheet


class Table(NamedTuple):
  caption: str
  columns: Sequence[str]
  rows: Sequence[Row]
  words: int = 1  # columns of words, from the left; numbers follow
  groups: Sequence[tuple[str, int]] = ()  # headings above the last columns, with how many each spans


def percent(fraction: float, digits: int = 2) -> str:
  """0.1249 -> '12.49'."""
  return f'{100 * fraction:.{digits}f}'


def html(table: Table) -> str:
  """Returns the table in a box of its own that scrolls, and the same as CSV to copy."""
  plain = len(table.columns) - sum(span for _, span in table.groups)
  groups = ''.join(f'<th colspan="{span}" scope="colgroup">{escape(name)}</th>' for name, span in table.groups)
  above = f'<tr><td colspan="{plain}"></td>{groups}</tr>' if groups else ''
  heads = ''.join(
    f'<th scope="col"{_word(i, table.words)}>{inline(name, breaks=True)}</th>' for i, name in enumerate(table.columns)
  )
  body = '\n'.join(_row(row, table.words) for row in table.rows)
  return (
    f'<figure class="table"><figcaption>{escape(table.caption)}</figcaption>\n'
    f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption)}"><table>\n'
    f'<thead>{above}<tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
    f'<details class="text"><summary>as text</summary><pre>{escape(text(table))}</pre></details></figure>'
  )


def text(table: Table) -> str:
  """Returns the table as CSV."""
  lines = io.StringIO()
  writer = csv.writer(lines, lineterminator='\n')
  writer.writerow(table.columns)
  writer.writerows([cell.text if isinstance(cell, Shaded) else cell for cell in row.cells] for row in table.rows)
  return lines.getvalue()


def colours(level: float) -> tuple[str, str]:
  """Returns the background of a heat map's cell, and black or white, whichever contrasts more (at least 4.5 to 1).

  Args:
    level: in [0, 1].
  """
  position = level * (len(_SCALE) - 1)
  left = min(int(position), len(_SCALE) - 2)
  mixed = tuple(
    round(a + (b - a) * (position - left)) for a, b in zip(_SCALE[left], _SCALE[left + 1], strict=True)
  )  # fmt: skip
  # Contrast with white is 1.05 / (luminance + .05), with black (luminance + .05) / .05 (WCAG 2); equal at .179.
  return '#{:02x}{:02x}{:02x}'.format(*mixed), '#000' if luminance(mixed) > 0.179 else '#fff'


def luminance(colour: Sequence[int]) -> float:
  """Relative luminance of an sRGB colour of 0 to 255 (WCAG 2), in [0, 1]."""
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def scale(caption: str, shade: Shade) -> str:
  """Returns the key of a heat map's colours: six of them, with the fractions that they stand for in percent."""
  boxes = []
  for level in np.linspace(0, 1, 6):
    background, ink = colours(level)
    boxes.append(f'<span style="background:{background};color:{ink}">{percent(shade.value(level), 1)}</span>')
  return f'<p class="scale">{escape(caption)}: {"".join(boxes)}</p>'


def _word(index: int, words: int) -> str:
  return ' class="word"' if index < words else ''


def inline(cell: str, breaks: bool = False) -> str:
  """Returns text as HTML; "n = 5" stays on one line, and a long name may break after its underscores and dots."""
  kept = escape(cell).replace(' = ', '&nbsp;=&nbsp;')
  return re.sub('([_.])', r'\1<wbr>', kept) if breaks else kept


def _row(row: Row, words: int) -> str:
  first, *others = row.cells
  cells = [f'<th scope="row" class="word">{inline(str(first), breaks=True)}</th>']
  for index, cell in enumerate(others, start=1):
    if isinstance(cell, Shaded):
      background, ink = colours(cell.level)
      cells.append(f'<td style="background:{background};color:{ink}">{escape(cell.text)}</td>')
    else:
      cells.append(f'<td{_word(index, words)}>{inline(cell)}</td>')
  kind = f' class="{row.kind}"' if row.kind else ''
  return f'<tr{kind}>{"".join(cells)}</tr>'
