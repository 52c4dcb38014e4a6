"""Charts and colours: readable without colour vision, on light and dark pages."""

import re

import numpy as np
import pytest

from adversarial_augment.reporting import charts, tables


def contrast(one: str, other: str) -> float:
  """WCAG 2's, of two colours '#rrggbb' or '#rgb'."""

  def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else ''.join(2 * digit for digit in colour[1:])
    parts = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


def test_numbers_are_readable_on_every_colour_and_colours_darken():
  shades = [tables.Shaded('', level).colours() for level in np.linspace(0, 1, 101)]
  assert min(contrast(background, ink) for background, ink in shades) > 4.5
  against_white = [contrast(background, '#ffffff') for background, _ in shades]
  assert all(np.diff(against_white) > 0)


def test_curves_are_visible_on_light_and_dark_pages():
  for colour in charts.COLOURS:
    assert contrast(colour, '#ffffff') > 3
    assert contrast(colour, '#14171c') > 3


def test_runs_differ_in_line_and_marker_and_not_only_in_colour():
  series = [charts.Series(str(run), [0, 1, 2], [run, 1, 2], run) for run in range(3)]
  svg = charts.chart('key', 'caption', series, charts.Axes('x', 'y'), 'alt').svg
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
  assert charts.chart('key', 'caption', [charts.Series('empty', [], [], 0)], charts.Axes('x', 'y'), 'alt') is None


def test_any_label_can_be_in_a_legend():
  label = '_a <b> & $x^$ \u65e5\u672c'
  svg = charts.chart('key', 'caption', [charts.Series(label, [0, 1], [0, 1], 0)], charts.Axes('x', 'y'), '"alt"').svg
  assert '_a &lt;b&gt; &amp; $x^$ \u65e5\u672c' in svg
  assert 'aria-label="&quot;alt&quot;"' in svg


@pytest.mark.parametrize('y', [[0, 0, 0], [95, 95, 95], [1, 2, 3]])
def test_curves_lie_within_the_axes(y):
  svg = charts.chart(
    'key', 'caption', [charts.Series('a', [0, 1, 2], y, 0)], charts.Axes('x', 'y', from_zero=True), 'alt'
  ).svg
  box = re.search(r'<clipPath[^>]*>\s*<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
  left, top, width, height = map(float, box.groups())
  (path,) = re.findall(rf'<path d="([^"]*)" clip-path[^>]*stroke: {charts.COLOURS[0]}', svg)
  points = np.array([pair.split() for pair in re.findall(r'[ML] ([\d. ]+)', path)], float)
  assert len(points) in (2, 3)  # straight pieces are joined
  assert (points[:, 1] > top + 2).all()
  assert (points[:, 1] <= top + height + 1e-3).all()
  assert ((points[:, 0] > left) & (points[:, 0] < left + width)).all()
