"""What a page is made of, as data; templates/parts.html draws each class, and escapes all text."""

from collections.abc import Sequence
import csv
import io
from typing import Any, NamedTuple

NONE = '–'  # a cell without a number
Part = Any  # one of the classes below


class Section(NamedTuple):
  """A part of a page with an anchor; one without parts is left out."""

  key: str  # of its anchor
  title: str
  parts: Sequence[Part]


class Paragraph(NamedTuple):
  text: str
  style: str = 'quiet'  # or 'note', which stands out
  command: str = ''  # follows the text


class Folded(NamedTuple):
  """Parts, or a plain text, that a click shows."""

  summary: str
  parts: Sequence[Part] | str


class Grid(NamedTuple):
  """Parts beside each other, as many as the page is wide."""

  parts: Sequence[Part]
  style: str = 'charts'
  title: str = ''


class Card(NamedTuple):
  title: str
  number: str
  lines: Sequence[str]


class Chart(NamedTuple):
  caption: str
  svg: str  # escaped already


class Pictures(NamedTuple):
  """A picture, in pieces where a narrow page shows them below each other."""

  caption: str
  alt: str
  pieces: Sequence[str]  # PNG in base64


class Shaded(NamedTuple):
  """A cell of a heat map, with its colours in CSS."""

  text: str
  background: str
  ink: str


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
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator='\n')
    writer.writerow(self.columns)
    writer.writerows([cell.text if isinstance(cell, Shaded) else cell for cell in row.cells] for row in self.rows)
    return lines.getvalue()


def section(key: str, title: str, *parts: Part | None) -> Section:
  """Returns the section of those parts that have content."""
  return Section(key, title, _with_content(parts))


def grid(*parts: Part | None, style: str = 'charts', title: str = '') -> Grid:
  """Returns a grid of those parts that have content."""
  return Grid(_with_content(parts), style, title)


def folded(summary: str, *parts: Part | None) -> Folded:
  """Returns those parts that have content, folded."""
  return Folded(summary, _with_content(parts))


def _with_content(parts: Sequence[Part | None]) -> list[Part]:
  return [part for part in parts if part and getattr(part, 'rows', True) and getattr(part, 'parts', True)]


def percent(fraction: float, digits: int = 2) -> str:
  """0.1249 -> '12.49'."""
  return f'{100 * fraction:.{digits}f}'
