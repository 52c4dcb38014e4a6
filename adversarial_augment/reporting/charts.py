"""Line charts as SVG inside the page. Colours of text and axes are those of the page around them.

Matplotlib, of the extra 'plots', is imported when a chart is drawn; without it there are none.
"""

from collections.abc import Sequence
from html import escape
import importlib.util
import io
import re
from typing import Any, NamedTuple
import warnings

import numpy as np

from adversarial_augment.reporting.parts import Chart

# Each at least 3 to 1 against white and against the dark page; look and marker differ with the colour.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#8c6bb1', '#a6761d', '#cc79a7')
LINES = ('-', '--', '-.', (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_INK = '#010203'  # stands for the page's colour of text until the SVG is written
_POINTS = 500  # a longer curve is shown by the means of that many parts
_LONGEST = 48  # letters in a legend


class Series(NamedTuple):
  """A curve: of the run number `look`, or, without one, a published one or a guide."""

  label: str
  x: Sequence[float] | np.ndarray
  y: Sequence[float] | np.ndarray
  look: int | None
  second: bool = False  # another quantity of the same run: dotted, with hollow markers


class Axes(NamedTuple):
  x: str
  y: str
  from_zero: bool = False  # whether y begins at 0
  square: bool = False
  whole: bool = False  # whether x are whole numbers


def available() -> bool:
  """Whether Matplotlib is installed."""
  return importlib.util.find_spec('matplotlib') is not None


def chart(
  key: str, caption: str, series: Sequence[Series], axes: Axes, alt: str, *, counts: Sequence[Series] = ()
) -> Chart | None:
  """Returns a chart; None where there is nothing to draw, or no Matplotlib to draw it with.

  Args:
    key: letters and digits, another one for every chart of a page.
    caption: above the chart.
    series: the curves.
    axes: their names.
    alt: what the chart shows, in words.
    counts: outlines of histograms, drawn below over the same x.
  """
  series = [one for one in series if len(one.x)]
  if not series or not available():
    return None
  import matplotlib as mpl
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  style: dict[Any, Any] = {'svg.fonttype': 'none', 'svg.hashsalt': key, 'font.size': 9}
  style |= dict.fromkeys(('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), _INK)
  drawn = io.StringIO()
  with mpl.rc_context(), warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph')  # the browser draws the letters
    mpl.rcdefaults()  # the same page whatever the user's matplotlibrc says
    mpl.rcParams.update(style)
    columns = 1 if max(len(one.label) for one in series) > 22 else 2
    rows = -(-len(series) // columns)
    height = (4 if axes.square else 3) + 0.17 * rows + (1 if counts else 0)
    figure = Figure(figsize=(4.4, height), layout='constrained')
    plot, *below = figure.subplots(
      2 if counts else 1, sharex=True, squeeze=False, height_ratios=(4, 1) if counts else None
    )[:, 0]
    handles = [plot.plot(*_thinned(one.x, one.y), **_look(index, one, series))[0] for index, one in enumerate(series)]
    plot.set(xlabel='' if counts else axes.x, ylabel=axes.y)
    top = max(np.max(one.y) for one in series)
    if axes.from_zero or not any(np.any(one.y) for one in series):  # nothing but zeros would float amid the axis
      plot.set_ylim(0, 1.05 * top or 1)
    if axes.whole:
      plot.xaxis.set_major_locator(MaxNLocator('auto', integer=True))
    for lower in below:
      for one in counts:
        look = {name: _look(0, one, counts)[name] for name in ('color', 'linestyle', 'linewidth')}
        lower.plot(one.x, one.y, **look)
      lower.set(xlabel=axes.x, ylabel='images')
      lower.set_ylim(0, 1.05 * max(np.max(one.y) for one in counts))
      lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for each in (plot, *below):
      each.grid(color=_INK, alpha=0.15, linewidth=0.6)
      each.spines[['top', 'right']].set_visible(False)
    legend = figure.legend(handles, [str(i) for i in range(len(series))], loc='outside lower center', ncols=columns,
                           frameon=False, fontsize=8, handlelength=3.5)  # fmt: skip
    for line, one in zip(legend.get_texts(), series, strict=True):
      line.set_parse_math(False)
      line.set_text(_short(one.label))
    figure.savefig(drawn, format='svg', transparent=True)
  return Chart(caption, _inside_html(drawn.getvalue(), key, alt))


def _look(index: int, one: Series, series: Sequence[Series]) -> dict:
  """Arguments of a curve's drawing."""
  points = min(len(one.x), _POINTS)
  marks = {'markevery': max(1, points // 8), 'markersize': 4}
  if one.look is None:
    guide = points == 2  # a straight line
    rank = sum(other.look is None for other in series[:index])
    plain = {'marker': None} if guide else {'marker': ('1', '2', '+', 'x', '3')[rank % 5]}
    return {'color': _INK, 'alpha': 0.65, 'linewidth': 0.9, 'linestyle': ':', **marks, **plain}
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
  svg = re.sub(r'(url\(#|href="#)', rf'\1{key}-', svg)
  svg = svg.replace(_INK, 'currentColor')
  box = re.search(r'viewBox="[^"]*"', svg)
  assert box is not None
  body = svg[svg.index('>') + 1 :]
  xlink = ' xmlns:xlink="http://www.w3.org/1999/xlink"'
  return f'<svg role="img" aria-label="{escape(alt)}" {box[0]}{xlink}>{body}'
