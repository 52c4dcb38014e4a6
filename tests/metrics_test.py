"""Tests of the numbers that sum up an evaluation, against published ones."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from adversarial_augment import metrics
from adversarial_augment.errors import UserError

# Accuracies in percent at severities 1 to 5, from RobustBench, model_info/cifar10/corruptions/unaggregated_results.csv.
CALIAN = {  # the best model of arXiv 2104.01086
  'gaussian_noise': (93.60, 92.76, 90.64, 90.01, 88.99), 'shot_noise': (94.21, 93.83, 92.17, 91.37, 89.59),
  'impulse_noise': (93.18, 91.51, 89.98, 86.46, 82.80), 'defocus_blur': (94.90, 94.70, 94.39, 93.85, 92.53),
  'glass_blur': (90.99, 90.97, 91.18, 86.55, 86.85), 'motion_blur': (94.43, 93.56, 92.32, 92.34, 90.81),
  'zoom_blur': (93.95, 93.95, 93.66, 93.44, 92.54), 'snow': (93.90, 92.80, 91.30, 89.17, 90.36),
  'frost': (94.47, 93.92, 93.09, 92.88, 92.09), 'fog': (94.98, 94.13, 93.02, 91.13, 83.44),
  'brightness': (94.93, 94.93, 94.89, 94.85, 94.40), 'contrast': (94.97, 94.57, 94.32, 93.85, 91.43),
  'elastic_transform': (92.86, 93.24, 92.65, 90.68, 87.81), 'pixelate': (94.43, 94.18, 93.86, 92.58, 86.82),
  'jpeg_compression': (93.65, 92.81, 92.22, 91.66, 90.52),
}  # fmt: skip
# Of the paper's table 1: errors of the same model, in percent.
TABLE_1 = {
  'gaussian_noise': 8.8, 'shot_noise': 7.8, 'impulse_noise': 11.2, 'defocus_blur': 5.9, 'glass_blur': 10.7,
  'motion_blur': 7.3, 'zoom_blur': 6.5, 'snow': 8.5, 'frost': 6.7, 'fog': 8.7, 'brightness': 5.2, 'contrast': 6.2,
  'elastic_transform': 8.6, 'pixelate': 7.6, 'jpeg_compression': 7.8,
}  # fmt: skip
# 'corruptions_acc' of RobustBench's model_info/cifar10/corruptions/*.json, in percent, rounded or cut to two decimals.
PUBLISHED = {
  'Calian2021Defending': 92.17,
  'Gowal2020Uncovering_70_16_extra_L2': 87.68,
  'Rebuffi2021Fixing_70_16_cutmix_extra_L2': 88.23,
  'Diffenderfer2021Winning_LRR': 90.94,
  'Diffenderfer2021Winning_LRR_CARD_Deck': 92.78,
  'Diffenderfer2021Winning_Binary_CARD_Deck': 90.15,
  'Kireev2021Effectiveness_AugMixNoJSD': 86.60,
  'Kireev2021Effectiveness_RLATAugMixNoJSD': 88.53,
  'Addepalli2021Towards_WRN34': 76.78,
}
# The whole table, where it lies beside the repository: two header rows (corruption, severity), then one row a model.
TABLE = Path(__file__).parents[2] / 'shared' / 'data' / 'robustbench_cifar10c.csv'


def test_mean_corruption_error_of_the_papers_best_model():
  errors = {name: [1 - accuracy / 100 for accuracy in row] for name, row in CALIAN.items()}
  mce = 100 * metrics.mean_corruption_error(errors)
  assert mce == pytest.approx(7.829, abs=5e-4)
  assert 100 - mce == pytest.approx(PUBLISHED['Calian2021Defending'], abs=0.01)
  for name, row in errors.items():
    assert 100 * metrics.mean_corruption_error({name: row}) == pytest.approx(TABLE_1[name], abs=0.0501)


@pytest.mark.skipif(not TABLE.exists(), reason='the table of RobustBench is not beside the repository')
def test_mean_corruption_error_of_other_published_models():
  names, severities, *models = csv.reader(TABLE.read_text().splitlines())
  assert severities[1:6] == ['1', '2', '3', '4', '5']
  found = {}
  for model in models:
    errors: dict[str, list[float]] = {}
    for name, accuracy in zip(names[1:], model[1:], strict=True):
      errors.setdefault(name, []).append(1 - float(accuracy))
    found[model[0]] = 100 - 100 * metrics.mean_corruption_error(errors)
  assert {name: found[name] for name in PUBLISHED} == pytest.approx(PUBLISHED, abs=0.01)


def test_mean_corruption_error_closed_form():
  counts = np.random.default_rng(0).integers(0, 10_001, (15, 5))
  errors = {f'c{i}': [1 - count / 10_000 for count in row] for i, row in enumerate(counts.tolist())}
  assert metrics.mean_corruption_error(errors) == pytest.approx(1 - int(counts.sum()) / 750_000, abs=1e-12)
  assert metrics.mean_corruption_error({'a': [0, 0, 0, 0, 1], 'b': [1, 1, 1, 1, 1]}) == pytest.approx(0.6)


@pytest.mark.parametrize(
  'count, n, low, high',
  [
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, the score method without continuity correction
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
    (20, 20, 0.8389, 1.0000),  # as that of 0 of 20, mirrored
  ],
)
def test_binomial_interval(count, n, low, high):
  assert metrics.binomial_interval(count, n) == pytest.approx((low, high), abs=5e-5)


def test_binomial_interval_covers():
  """Of experiments with a known probability, about 95 % of the intervals hold it."""
  for p, n in ((0.9, 2000), (0.5, 40)):
    counts = np.random.default_rng(0).binomial(n, p, 4000)
    inside = [low <= p <= high for low, high in (metrics.binomial_interval(int(count), n) for count in counts)]
    assert 0.93 < np.mean(inside) < 0.97


def test_calibration():
  # 60 images of confidence .7, of which 45 (.75) are right, and 40 of confidence .95, of which 30 (.75) are right.
  assert metrics.calibration([0, 60, 40], [0, 45, 30], [0.0, 42.0, 38.0]) == pytest.approx(0.6 * 0.05 + 0.4 * 0.2)
  assert metrics.calibration([10], [9], [9.0]) == 0.0


@pytest.mark.parametrize('number, arguments, said', [
  (metrics.mean_corruption_error, [{}], 'at least one'),
  (metrics.mean_corruption_error, [{'fog': [0.1] * 4}], "'fog' has 4 errors"),
  (metrics.mean_corruption_error, [{'fog': [0.1] * 6}], "'fog' has 6 errors"),
  (metrics.mean_corruption_error, [{'fog': [0.1] * 5, 'snow': [0.1, 0.1, math.nan, 0.1, 0.1]}],
   "'snow' has the error nan at severity 3"),
  (metrics.mean_corruption_error, [{'fog': [7.8] * 5}], "'fog' has the error 7.8 at severity 1"),
  (metrics.mean_corruption_error, [{'fog': [0.1, -0.1, 0.1, 0.1, 0.1]}], 'error -0.1 at severity 2'),
  (metrics.mean_corruption_error, [{'fog': [0.1, 0.1, 0.1, 0.1, math.inf]}], 'error inf'),
  *((metrics.binomial_interval, pair, '0 <= count <= n') for pair in ((-1, 10), (11, 10), (0, 0), (math.nan, 10))),
  (metrics.calibration, ([1, 2], [1], [0.5, 0.5]), 'bins'),
  (metrics.calibration, ([0], [0], [0.0]), 'Bins'),
  (metrics.calibration, ([1], [2], [0.5]), 'Bins'),
  (metrics.calibration, ([1], [-1], [0.5]), 'Bins'),
  (metrics.calibration, ([1], [1], [math.nan]), 'Bins'),
  (metrics.calibration, (1, 1, 1.0), 'bins'),
])  # fmt: skip
def test_what_is_no_count_or_error_is_refused(number, arguments, said):
  with pytest.raises(UserError, match=said):
    number(*arguments)
