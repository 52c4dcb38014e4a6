"""Line charts as SVG inside the page, in its colours of text and axes; and the colours of heat maps.

Matplotlib, of the extra 'plots', is imported when a chart is drawn; without it there are none.
"""

from collections.abc import Sequence
from html import escape
import importlib.util
import io
import math
from pathlib import Path
import re
from typing import Any, NamedTuple
import warnings

import numpy as np

from adversarial_augment.reporting.parts import Chart, Scale, Shaded, percent

# Each at least 3 to 1 against white and against the dark page; look and marker differ with the colour.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#8c6bb1', '#a6761d', '#cc79a7')
LINES = ('-', '--', '-.', (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_STYLE = Path(__file__).parent / 'templates' / 'chart.mplstyle'
_INK = '#010203'  # stands for the page's colour of text until the SVG is written
_POINTS = 500  # a longer curve is shown by the means of that many parts
_LONGEST = 48  # letters in a legend
# ColorBrewer's YlGnBu: its luminance falls steadily, so that it reads the same without colour vision.
_SCALE = (
  (255, 255, 217), (237, 248, 177), (199, 233, 180), (127, 205, 187), (65, 182, 196), (29, 145, 192), (34, 94, 168),
  (37, 52, 148), (8, 29, 88),
)  # fmt: skip


class Series(NamedTuple):
  """A curve: of the run number `look`, or, without one, a published one or a guide."""

  label: str
  x: Sequence[float] | np.ndarray
  y: Sequence[float] | np.ndarray
  look: int | None
  second: bool = False  # another quantity of the same run: dotted, with hollow markers


def available() -> bool:
  """Whether Matplotlib is installed."""
  return importlib.util.find_spec('matplotlib') is not None


def in_words(series: Sequence[Series]) -> str:
  """Returns the numbers of curves, for those who do not see them."""
  return '; '.join(f'{line.label}: {", ".join(f"{y:.1f}" for y in line.y)}' for line in series)


def chart(
  key: str,
  caption: str,
  series: Sequence[Series],
  alt: str,
  *,
  x: str,
  y: str = '',
  from_zero: bool = False,
  square: bool = False,
  counts: Sequence[Series] = (),
) -> Chart | None:
  """Returns a chart; None where there is nothing to draw, or no Matplotlib to draw it with.

  `key` is unique on the page. `alt` says in words what the chart shows, `x` and `y` name the axes ('step' and
  'severity' are whole numbers), and `counts` are outlines of histograms, drawn below over the same x.
  """
  series = [one for one in series if len(one.x)]
  if not series or not available():
    return None
  import matplotlib as mpl
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  drawn = io.StringIO()
  with mpl.rc_context(), warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph')  # the browser draws the letters
    mpl.rc_file(_STYLE)  # the same page whatever the user's matplotlibrc says
    mpl.rcParams['svg.hashsalt'] = key
    columns = 1 if max(len(one.label) for one in series) > 22 else 2
    height = (4 if square else 3) + 0.17 * -(-len(series) // columns) + (1 if counts else 0)
    figure = Figure(figsize=(4.4, height), layout='constrained')
    rows = figure.subplots(1 + bool(counts), sharex=True, squeeze=False, height_ratios=(4, 1) if counts else None)
    plot, *below = rows[:, 0]
    handles = [plot.plot(*_thinned(one.x, one.y), **_look(index, one, series))[0] for index, one in enumerate(series)]
    plot.set(xlabel='' if counts else x, ylabel=y)
    if from_zero or not any(np.any(one.y) for one in series):  # nothing but zeros would float amid the axis
      plot.set_ylim(0, 1.05 * max(np.max(one.y) for one in series) or 1)
    if x in ('step', 'severity'):
      plot.xaxis.set_major_locator(MaxNLocator('auto', integer=True))
    for lower in below:
      for one in counts:
        look = _look(0, one, counts) | {'marker': None}
        lower.plot(one.x, one.y, **look)
      lower.set(xlabel=x, ylabel='images')
      lower.set_ylim(0, 1.05 * max(np.max(one.y) for one in counts))
      lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    numbers = [str(i) for i in range(len(series))]
    legend = figure.legend(handles, numbers, loc='outside lower center', ncols=columns)
    for line, one in zip(legend.get_texts(), series, strict=True):
      line.set_parse_math(False)
      line.set_text(_short(one.label))
    figure.savefig(drawn, format='svg', transparent=True)
  return Chart(caption, _inside_html(drawn.getvalue(), key, alt))


def _look(index: int, one: Series, series: Sequence[Series]) -> dict[str, Any]:
  """Arguments of a curve's drawing."""
  points = min(len(one.x), _POINTS)
  marks = {'markevery': max(1, points // 8)}
  if one.look is None:
    rank = sum(other.look is None for other in series[:index])
    marker = None if points == 2 else ('1', '2', '+', 'x', '3')[rank % 5]  # two points: a straight line, a guide
    return {'color': _INK, 'alpha': 0.65, 'linewidth': 0.9, 'linestyle': ':', 'marker': marker, **marks}
  colour = COLOURS[one.look % len(COLOURS)]
  line = ':' if one.second else LINES[one.look % len(LINES)]
  face = 'none' if one.second else colour
  marker = MARKERS[one.look % len(MARKERS)]
  return {'color': colour, 'linestyle': line, 'linewidth': 1.5, 'marker': marker, 'markerfacecolor': face, **marks}


def _thinned(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  parts = min(len(x), _POINTS)
  mean = lambda values: np.asarray([part.mean() for part in np.array_split(np.asarray(values, np.float64), parts)])
  return mean(x), mean(y)


def _short(label: str) -> str:
  return label if len(label) <= _LONGEST else f'{label[: _LONGEST // 2]}…{label[-_LONGEST // 2 + 1 :]}'


def _inside_html(svg: str, key: str, alt: str) -> str:
  """Makes a file of Matplotlib a part of a page: no header, ids of its own, the page's colours and size."""
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->', '', svg, flags=re.DOTALL)
  used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))
  svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{key}-{match[1]}"' if match[1] in used else '', svg)
  svg = re.sub(r'(url\(#|href="#)', rf'\1{key}-', svg).replace(_INK, 'currentColor')
  (box,) = re.findall(r'viewBox="[^"]*"', svg)
  head = f'<svg role="img" aria-label="{escape(alt)}" {box} xmlns:xlink="http://www.w3.org/1999/xlink"'
  return f'{head}>{svg[svg.index(">") + 1 :]}'


class Shade:
  """The colours of numbers, from the smallest to the largest of all, on a logarithmic scale.

  So one large number does not make all the others look alike. The scale spans a factor of 4 at least, lest noise look
  like a difference, and of 100 at most, lest one number near 0 take the scale for itself.
  """

  def __init__(self, values: Sequence[float]):
    """Takes all numbers that are to be shaded, in [0, 1]."""
    self._largest = max(values)
    self._smallest = min(max(min(values), self._largest / 100), self._largest / 4)

  def level(self, value: float) -> float:
    """Returns 0 for the smallest number and what lies below it, 1 for the largest."""
    if value <= self._smallest:
      return 0.0
    return min(math.log(value / self._smallest) / math.log(self._largest / self._smallest), 1.0)

  def cell(self, value: float) -> Shaded:
    """Returns a cell with the number in percent, in black or white, whichever contrasts more (at least 4.5 to 1)."""
    position = self.level(value) * (len(_SCALE) - 1)
    colour = [round(np.interp(position, range(len(_SCALE)), channel)) for channel in zip(*_SCALE, strict=True)]
    parts = np.array(colour) / 255  # relative luminance of sRGB, of WCAG 2
    luminance = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    # Contrast with white is 1.05 / (luminance + .05), with black (luminance + .05) / .05; equal at .179.
    ink = '#000' if luminance > 0.179 else '#fff'
    return Shaded(percent(value, 1), '#{:02x}{:02x}{:02x}'.format(*colour), ink)

  def scale(self, caption: str) -> Scale:
    """Returns the key of the colours: six of them, at equal distances."""
    ratio = self._largest / self._smallest if self._largest else 1.0
    return Scale(caption, [self.cell(self._smallest * ratio**level) for level in np.linspace(0, 1, 6)])
