"""Charts and colours: readable without colour vision, on light and dark pages."""

import re

import numpy as np
import pytest

from adversarial_augment.reporting import charts


def draw(*series: charts.Series, alt: str = 'alt', **options) -> str:
  return charts.chart('key', 'caption', series, alt, x='x', **options).svg


def rgb(colour: str) -> np.ndarray:
  """Of '#rrggbb' or '#rgb'."""
  digits = colour[1:] if len(colour) == 7 else ''.join(2 * digit for digit in colour[1:])
  return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)])


def contrast(one: str, other: str) -> float:
  """WCAG 2's."""

  def luminance(colour: str) -> float:
    parts = rgb(colour) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


def test_curves_are_visible_on_light_and_dark_pages():
  assert all(contrast(colour, page) > 3 for colour in charts.COLOURS for page in ('#ffffff', '#14171c'))


def test_runs_differ_in_line_and_marker_and_not_only_in_colour():
  svg = draw(*(charts.Series(str(run), [0, 1, 2], [run, 1, 2], run) for run in range(3)))
  colours = [colour for colour in charts.COLOURS if colour in svg]
  assert len(colours) == 3
  dashes = {
    re.search(rf'fill: none; (stroke-dasharray: [\d.,]+; )?[^"]*stroke: {colour}', svg)[1] for colour in colours
  }
  assert len(dashes) == 3
  markers = {re.search(rf'<path id="key-\w+" d="([^"]*)" style="[^"]*{colour}', svg)[1] for colour in colours}
  assert len(markers) == 3


def test_long_curves_are_thinned_to_their_means():
  x, y = charts._thinned(np.arange(10_000), np.arange(10_000) % 20)
  assert len(x) == len(y) == 500
  np.testing.assert_array_equal(y, 9.5)
  assert x.mean() == pytest.approx(4999.5)


def test_nothing_to_draw_is_no_chart():
  assert charts.chart('key', 'caption', [charts.Series('empty', [], [], 0)], 'alt', x='x') is None


def test_any_label_can_be_in_a_legend():
  svg = draw(charts.Series('_a <b> & $x^$ \u65e5\u672c', [0, 1], [0, 1], 0), alt='"alt"')
  assert '_a &lt;b&gt; &amp; $x^$ \u65e5\u672c' in svg
  assert 'aria-label="&quot;alt&quot;"' in svg


@pytest.mark.parametrize('y', [[0, 0, 0], [95, 95, 95], [1, 2, 3]])
def test_curves_lie_within_the_axes(y):
  svg = draw(charts.Series('a', [0, 1, 2], y, 0), from_zero=True)
  box = re.search(r'<clipPath[^>]*>\s*<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
  left, top, width, height = map(float, box.groups())
  (path,) = re.findall(rf'<path d="([^"]*)" clip-path[^>]*stroke: {charts.COLOURS[0]}', svg)
  points = np.array([pair.split() for pair in re.findall(r'[ML] ([\d. ]+)', path)], float)
  assert len(points) in (2, 3)  # straight pieces are joined
  assert (points[:, 1] > top + 2).all()
  assert (points[:, 1] <= top + height + 1e-3).all()
  assert ((points[:, 0] > left) & (points[:, 0] < left + width)).all()


# Heat maps.


def levels(*values: float) -> list[float]:
  shade = charts.Shade(values)
  return [shade.level(value) for value in values]


def test_numbers_are_readable_on_every_colour_and_colours_darken():
  shade = charts.Shade([0.01, 1])
  cells = [shade.cell(value) for value in np.geomspace(0.01, 1, 101)]
  assert min(contrast(cell.background, cell.ink) for cell in cells) > 4.5
  assert all(np.diff([contrast(cell.background, '#ffffff') for cell in cells]) > 0)


@pytest.mark.parametrize('outlier', [0.3, 0.6, 0.9, 1.0])
def test_colours_tell_4_from_9_percent_and_both_from_an_outlier(outlier):
  values = (0.04, 0.06, 0.09, outlier)
  low, middle, high, far = levels(*values)
  colours = [rgb(charts.Shade(values).cell(value).background) for value in values]
  assert low < middle < high < far == 1
  assert high - low > 0.2
  assert np.abs(colours[2] - colours[0]).sum() > 90
  assert np.abs(colours[1] - colours[0]).sum() > 40
  assert far - high > 0.3


def test_neither_a_cell_near_zero_nor_noise_takes_the_scale_for_itself():
  zero, tiny, low, high, _ = levels(0.0, 0.0001, 0.04, 0.09, 0.5)
  assert zero == tiny == 0
  assert high - low > 0.15
  one, other = levels(0.040, 0.042)
  assert other - one < 0.05
  assert levels(0.0, 0.0) == [0, 0]
  assert levels(0.2) == [1]


def test_the_key_of_the_colours_is_that_of_the_cells():
  boxes = charts.Shade([0.02, 0.04, 0.5]).scale('Errors').boxes
  assert [box.text for box in boxes] == ['2.0', '3.8', '7.2', '13.8', '26.3', '50.0']  # 2 * 25^(k / 5)
  shade = charts.Shade([0.02, 0.04, 0.5])
  expected = [shade.cell(0.02 * 25 ** (k / 5)).background for k in range(6)]
  assert [box.background for box in boxes] == expected
  assert {box.text for box in charts.Shade([0.0]).scale('Errors').boxes} == {'0.0'}
