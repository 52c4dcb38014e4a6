"""The interval of a difference of two classifiers on the same images, against published examples and exact tests."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from adversarial_augment import metrics
from adversarial_augment.errors import UserError
from adversarial_augment.storage import outcomes


def differences(only_one: int, only_other: int, n: int) -> np.ndarray:
  return np.repeat([1, -1, 0], [only_one, only_other, n - only_one - only_other])


@pytest.mark.parametrize(
  'only_one, only_other, n, low, high',
  [
    (26, 4, 48, 0.2548067, 0.6251933),  # the example of ci.prop.ps in the R package statpsych, by Bonett
    (4, 26, 48, -0.6251933, -0.2548067),
    (1, 7, 21, -0.508, -0.013),  # Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014), airways
  ],
)
def test_paired_interval_of_published_examples(only_one, only_other, n, low, high):
  assert metrics.paired_interval(differences(only_one, only_other, n)) == pytest.approx((low, high), abs=5e-4)


def test_paired_interval_excludes_zero_where_mcnemars_test_does():
  """The test of the discordant images alone: (b - c)^2 / (b + c) against 3.84, and the exact binomial one."""
  n, tried, clear = 10_000, 0, 0
  for b, c in itertools.product(range(20, 400, 20), range(0, 400, 7)):
    low, high = metrics.paired_interval(differences(b, c, n))
    statistic = abs(b - c) / math.sqrt(b + c)
    if abs(statistic - 1.96) > 0.15:  # the added images, and n, shift the border a little
      assert (low > 0 or high < 0) is (statistic > 1.96), (b, c)
      clear += 1
    if stats.binomtest(b, b + c).pvalue < 0.03:
      assert low > 0 or high < 0, (b, c)
    tried += 1
  assert clear > 0.9 * tried


@pytest.mark.parametrize('n, one, other', [(30, 0.1, 0.1), (50, 0.2, 0.05), (100, 0.03, 0.03), (40, 0.0, 0.1)])
def test_paired_interval_covers(n, one, other):
  """Of all tables that n images can give, weighted by their exact probability, about 95 % hold the true difference."""
  inside = sum(
    stats.multinomial.pmf([b, c, n - b - c], n, [one, other, 1 - one - other])
    for b in range(n + 1)
    for c in range(n + 1 - b)
    if metrics.paired_interval(differences(b, c, n))[0]
    <= one - other
    <= metrics.paired_interval(differences(b, c, n))[1]
  )
  assert 0.94 < inside <= 1


def test_paired_interval_of_several_forms_of_an_image_takes_images_as_units():
  """The closed form for means of clusters; forms that all agree are worth no more than one."""
  outcomes = np.random.default_rng(0).choice([-1, 0, 1], (4000, 1), p=[0.1, 0.7, 0.2]) * np.ones((1, 75))
  low, high = metrics.paired_interval(outcomes.mean(1))
  assert (low, high) == pytest.approx(metrics.paired_interval(outcomes[:, 0]))
  mixed = np.random.default_rng(1).choice([-1, 0, 1], (4000, 75), p=[0.1, 0.7, 0.2]).mean(1)
  low, high = metrics.paired_interval(mixed)
  assert (low + high) / 2 == pytest.approx(mixed.mean(), abs=1e-3)
  plain = 1.96 * mixed.std(ddof=1) / math.sqrt(4000)
  assert plain < (high - low) / 2 < 1.1 * plain  # the added images differ more than these do


def test_paired_interval_of_equal_outcomes_has_a_width():
  low, high = metrics.paired_interval(differences(0, 0, 40))
  assert low == -high < -0.05


@pytest.mark.parametrize('values', [[], [math.nan], [1.5], [[0, 1]]])
def test_paired_interval_refuses(values):
  with pytest.raises(UserError, match='numbers from -1 to 1'):
    metrics.paired_interval(values)


@pytest.mark.parametrize('n', [1, 7, 8, 9, 2000])
def test_bits_come_back_as_they_were(n):
  correct = np.random.default_rng(n).random(n) < 0.7
  text = outcomes.pack(correct)
  assert len(text) <= n / 6 + 8
  np.testing.assert_array_equal(outcomes.unpack(text, n), correct)
  assert outcomes.count(text) == correct.sum()


@pytest.mark.parametrize('text, n', [('', 1), ('gA==', 9), ('gIA=', 8), ('/w==', 7), ('?', 1), ('gA', 1), ('\xe9', 1)])
def test_text_that_holds_other_bits_is_refused(text, n):
  with pytest.raises(ValueError, match='it (holds|is not base64)'):
    outcomes.unpack(text, n)
