"""Runs beside each other: the same images or not, as much training or not, and what differs image by image."""

import json
import math
from pathlib import Path

import pytest

from adversarial_augment.report import report
from adversarial_augment.storage import outcomes
from tests import reporting_fixtures as fixtures
from tests.reporting_fixtures import Page, edit, page

FROST = 'photographs of imagecorruptions 1.1.2'  # as in the other run
SECTIONS = 12  # of a page that has everything


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict:
  return fixtures.record_charts(monkeypatch)


@pytest.fixture
def pair(tmp_path) -> list[Path]:
  return [fixtures.write_run(tmp_path / 'one'), fixtures.write_run(tmp_path / 'two', factor=0.5)]


def results(run: Path, name: str) -> Path:
  return run / 'results' / f'{name}.json'


def differences(found: Page, what: str) -> dict[str, list[str]]:
  caption = {'headline': 'headline numbers in %', 'corruption': 'errors in %, by corruption'}[what]
  return {row[0]: row[1:] for row in found.table(f'two minus one: {caption}')[1:]}


def bonett_price(only_one: int, only_other: int, n: int) -> list[float]:
  """The closed form of two proportions in percent, from the four counts of McNemar's table."""
  p, q = (only_one + 1) / (n + 2), (only_other + 1) / (n + 2)
  half = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
  return pytest.approx([100 * (p - q - half), 100 * (p - q + half)], abs=0.006)


def numbers(cells: list[str]) -> list[float]:
  return [float(cell.replace('\N{MINUS SIGN}', '-')) for cell in cells]


def test_difference_of_accuracies_has_the_interval_of_its_discordant_images(pair):
  """Where which images are right decides: equal counts, other images."""
  n = fixtures.N
  for shift in (0, 30, 900):
    edit(results(pair[1], 'clean'), fixtures.counted(1900) | {'correct': fixtures.right_images(1900, n, shift)})
    one, two = (json.loads(results(run, 'clean').read_text()) for run in pair)
    right = [outcomes.unpack(result['correct'], n) for result in (one, two)]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    row = differences(page(*pair), 'headline')['Clean accuracy']
    assert numbers(row[:1]) == pytest.approx([100 * (1900 - one['num_correct']) / n])
    assert numbers(row[1:3]) == bonett_price(gained, lost, n)
    assert row[3:] == ['96.00', '95.00']


def test_every_evaluation_has_its_row(pair):
  for run in pair:
    fixtures.write_attacks(run)
  found = page(*pair)
  rows = differences(found, 'headline')
  assert list(rows) == [
    'Clean accuracy', 'Accuracy under AdA', 'mCE, mean corruption error', 'Extra corruptions, mean error',
    'CIFAR-10.1 v6 accuracy', 'CIFAR-10.1 v4 accuracy', 'Robust accuracy, autoattack, l_inf 2/255',
    'Robust accuracy, autoattack, l_inf 8/255', 'Robust accuracy, pgd, l_2 0.5',
  ]  # fmt: skip
  for title, row in rows.items():
    difference, low, high = numbers(row[:3])
    assert low < difference < high, title
  assert rows['mCE, mean corruption error'][0] == '\N{MINUS SIGN}8.30'
  assert rows['mCE, mean corruption error'][3:] == ['16.60', '8.30']
  assert len(differences(found, 'corruption')) == 19


def test_forms_of_one_image_count_as_one(pair):
  """If all severities of a corruption are right for the same images, five of them are worth no more than one."""
  n = fixtures.N
  for run, wrong in zip(pair, (400, 300), strict=True):
    errors = dict.fromkeys(fixtures.ERRORS, (100 * wrong / n,) * 5)
    edit(results(run, 'cifar10_c'), fixtures.table(errors, n, 1.0, 'mce'))
  found = page(*pair)
  for row in (differences(found, 'headline')['mCE, mean corruption error'], differences(found, 'corruption')['Fog']):
    assert numbers(row[1:3]) == bonett_price(0, 100, n)


@pytest.mark.parametrize(
  'name, change, reason',
  [
    ('clean', fixtures.counted(480, 500), 'clean, which used different images: number 2,000 against 500'),
    ('cifar10_c', {'origin': 'generated, in memory'}, None),
    ('cifar10_c', {'subset_of': 10_000}, 'number 2,000 against 2,000 of 10,000, evenly spaced'),
    ('cifar10_c', {'provenance.corruptions': {'seed': 8}}, 'seed 7 against 8'),
    ('cifar10_c', {'provenance.corruptions': {'seed': None, 'sha256': 'f'}}, 'seed 7 against –'),
    (
      'cifar10_c',
      {'provenance.corruptions': {'seed': 7, 'frost': FROST, 'sha256': 'f'}},
      'cifar10_c, which used different images: sha256',
    ),
    ('cifar10_c', {'provenance.corruptions': {'seed': 7, 'frost': FROST}}, None),
    ('ada', {'provenance.config.attack.nu': 0.5}, 'ada, which used different images: nu 0.015 against 0.5'),
    ('ada', {'provenance.config.attack.moved': 'tail'}, 'ada, which used different images: moved all against tail'),
    ('ada', {'provenance.weights': {'sha256': 64 * 'e'}}, 'weights 666666666666 against eeeeeeeeeeee'),
    ('clean', {'provenance.data.test.sha256': 64 * '9'}, 'test set embedded:1.0.0 8'),
  ],
)
def test_only_what_is_of_the_same_images_is_compared(pair, name, change, reason):
  edit(results(pair[1], name), change)
  found = page(*pair)
  title = {'clean': 'Clean accuracy', 'ada': 'Accuracy under AdA', 'cifar10_c': 'mCE, mean corruption error'}[name]
  assert (title in differences(found, 'headline')) is (reason is None)
  assert ('No difference in' in found.text) is (reason is not None)
  assert (reason or '') in found.text


@pytest.mark.parametrize(
  'name, changes',
  [
    ('clean', {'provenance.data.test.sha256': None}),
    ('cifar10_c', {'provenance.data.test.sha256': None}),
    ('cifar10_c', {'provenance.corruptions.sha256': None, 'provenance.corruptions.seed': None}),
  ],
)
def test_two_sets_without_a_hash_are_not_taken_for_the_same(pair, name, changes):
  for run in pair:
    edit(results(run, name), changes)
  text = page(*pair).text
  assert f'No difference in {name}' in text
  assert 'test set has no hash' in text


def test_a_report_does_without_the_provenance_of_images_and_weights(tmp_path):
  runs = [fixtures.write_run(tmp_path / name, dataset='cifar10') for name in ('one', 'two')]
  for name in ('cifar10_c', 'ada'):
    edit(results(runs[1], name), {'provenance.data.test': None, 'provenance.weights': 'none'})
  text = page(*runs).text
  assert 'two is only roughly comparable with published numbers: its CIFAR-10-C is generated from unverified' in text
  assert 'No difference in ada, which used different images: test set' in text


def test_older_results_are_read_and_have_a_difference_without_an_interval(pair):
  for path in (pair[0] / 'results').iterdir():
    if 'correct' in json.loads(path.read_text()):
      edit(path, {'correct': None})
  found = page(*pair)
  rows = differences(found, 'headline')
  assert rows['Clean accuracy'] == ['+2.00', '–', '–', '96.00', '98.00']
  assert rows['mCE, mean corruption error'][:3] == ['\N{MINUS SIGN}8.30', '–', '–']
  assert numbers(rows['CIFAR-10.1 v6 accuracy'][1:2]) < [0]  # its versions have theirs still
  assert 'No intervals for clean, ada, cifar10_c, cifar10_c_extra: results of older versions' in found.text


def test_a_third_run_is_compared_with_the_first_and_one_alone_with_none(pair, tmp_path):
  pair.append(fixtures.write_run(tmp_path / 'three'))
  captions = [caption for caption, _, _ in page(*pair).tables if ' minus ' in caption]
  assert [caption.partition(':')[0] for caption in captions] == 2 * ['two minus one'] + 2 * ['three minus one']
  assert 'Differences' not in page(pair[0]).text


def sections_with(text: str, sentence: str) -> int:
  return sum(sentence in part for part in text.split('<section ')[1:])


@pytest.mark.parametrize(
  'what, second', [('steps', '640'), ('batch_size', '640'), ('init_from', '320, after those of base')]
)
def test_unequal_numbers_of_images_are_said_beside_every_comparison(pair, what, second):
  for run in pair:
    fixtures.write_attacks(run)
  text = report(pair, pair[0].parent / 'page.html').read_text()
  assert 'Trained on different numbers' not in text
  assert text.count('<section ') == SECTIONS
  if what == 'steps':
    for path in (pair[1] / 'results').iterdir():
      edit(path, {'step': 80, 'num_steps': 80})
  else:
    edit(pair[1] / 'config.json', {what: {'batch_size': 16, 'init_from': '/some/base'}[what]})
  text = report(pair, pair[0].parent / 'page.html').read_text()
  reason = 'Trained on different numbers of images, which explains a part of the differences'
  # All but the last one, which compares nothing.
  assert sections_with(text, f'{reason} (one: 320; two: {second}).') == SECTIONS - 1
  (row,) = [row for row in Page(text).table('Runs') if row[0] == 'images seen in training']
  assert row[1:] == ['320', second]
