"""What a page is made of, as data; templates/parts.html says how each part is drawn, and escapes all text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

Part = Any  # one of the classes below, or tables.Table or tables.Scale


class Section(NamedTuple):
  """A part of a page with an anchor; one without parts is left out."""

  key: str  # of its anchor
  title: str
  parts: Sequence[Part]


class Paragraph(NamedTuple):
  text: str
  style: str = 'quiet'  # or 'note', which stands out
  command: str = ''  # follows the text


class Heading(NamedTuple):
  text: str


class Preformatted(NamedTuple):
  text: str


class Folded(NamedTuple):
  """Parts that a click shows."""

  summary: str
  parts: Sequence[Part]


class Grid(NamedTuple):
  """Parts beside each other, as many as the page is wide."""

  parts: Sequence[Part]
  style: str = 'charts'


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


def section(key: str, title: str, *parts: Part | None) -> Section:
  """Returns the section of those parts that there are."""
  return Section(key, title, present(parts))


def grid(*parts: Part | None, style: str = 'charts') -> Grid | None:
  """Returns a grid of those parts that there are; None without any."""
  found = present(parts)
  return Grid(found, style) if found else None


def present(parts: Sequence[Part | None]) -> list[Part]:
  return [part for part in parts if part is not None]
