"""Runs beside each other: the same images or not, as much training or not, and what differs image by image."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from adversarial_augment.report import report
from adversarial_augment.reporting import tables
from adversarial_augment.storage import outcomes
from tests import reporting_fixtures as fixtures
from tests.report_test import Page

FROST = 'photographs of imagecorruptions 1.1.2'  # as in the other run
SECTIONS = 12  # of a page that has everything


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict:
  return fixtures.record_charts(monkeypatch)


@pytest.fixture
def pair(tmp_path) -> list[Path]:
  return [fixtures.write_run(tmp_path / 'one'), fixtures.write_run(tmp_path / 'two', factor=0.5)]


def page(runs) -> Page:
  return Page(report(runs, runs[0].parent / 'page.html').read_text())


def differences(found: Page, what: str) -> dict[str, list[str]]:
  caption = {'headline': 'headline numbers in %', 'corruption': 'errors in %, by corruption'}[what]
  return {row[0]: row[1:] for row in found.table(f'two minus one: {caption}')[1:]}


def bonett_price(only_one: int, only_other: int, n: int) -> tuple[float, float]:
  """The closed form of two proportions, from the four counts of McNemar's table."""
  p, q = (only_one + 1) / (n + 2), (only_other + 1) / (n + 2)
  half = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
  return p - q - half, p - q + half


def number(cell: str) -> float:
  return float(cell.replace('\N{MINUS SIGN}', '-'))


def test_difference_of_accuracies_has_the_interval_of_its_discordant_images(pair):
  """Where which images are right decides: equal counts, other images."""
  n = fixtures.N
  for shift in (0, 30, 900):
    fixtures.change(pair[1], 'clean', **(fixtures.counted(1900) | {'correct': fixtures.right_images(1900, n, shift)}))
    one, two = (json.loads((run / 'results' / 'clean.json').read_text()) for run in pair)
    right = [outcomes.unpack(result['correct'], n) for result in (one, two)]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    row = differences(page(pair), 'headline')['Clean accuracy']
    assert number(row[0]) == pytest.approx(100 * (1900 - one['num_correct']) / n)
    assert [number(cell) for cell in row[1:3]] == pytest.approx(
      [100 * bound for bound in bonett_price(gained, lost, n)], abs=0.006
    )
    assert row[3:] == ['96.00', '95.00']


def test_every_evaluation_has_its_row(pair):
  for run in pair:
    fixtures.write_attacks(run)
  rows = differences(page(pair), 'headline')
  assert list(rows) == [
    'Clean accuracy', 'Accuracy under AdA', 'mCE, mean corruption error', 'Extra corruptions, mean error',
    'CIFAR-10.1 v6 accuracy', 'CIFAR-10.1 v4 accuracy', 'Robust accuracy, autoattack, l_inf 2/255',
    'Robust accuracy, autoattack, l_inf 8/255', 'Robust accuracy, pgd, l_2 0.5',
  ]  # fmt: skip
  for title, row in rows.items():
    low, high = number(row[1]), number(row[2])
    assert low < high
    assert low < number(row[0]) < high, title
  assert rows['mCE, mean corruption error'][0] == '\N{MINUS SIGN}8.30'
  assert rows['mCE, mean corruption error'][3:] == ['16.60', '8.30']
  assert len(differences(page(pair), 'corruption')) == 19


def test_forms_of_one_image_count_as_one(pair):
  """If all severities of a corruption are right for the same images, five of them are worth no more than one."""
  n = fixtures.N
  for run, wrong in zip(pair, (400, 300), strict=True):
    found = json.loads((run / 'results' / 'cifar10_c.json').read_text())
    errors = dict.fromkeys(found['error'], (100 * wrong / n,) * 5)
    fixtures.change(run, 'cifar10_c', **fixtures.table(errors, n, 1.0, 'mce'))
  expected = [100 * bound for bound in bonett_price(0, 100, n)]
  found = page(pair)
  for row in (differences(found, 'headline')['mCE, mean corruption error'], differences(found, 'corruption')['Fog']):
    assert [number(cell) for cell in row[1:3]] == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(
  'name, fields, reason',
  [
    ('clean', fixtures.counted(480, 500), 'clean, which used different images: number 2,000 against 500'),
    ('cifar10_c', {'origin': 'generated, in memory'}, None),
    ('cifar10_c', {'subset_of': 10_000}, 'number 2,000 against 2,000 of 10,000, evenly spaced'),
    ('cifar10_c', {'corruptions': {'seed': 8}}, 'seed 7 against 8'),
    ('cifar10_c', {'corruptions': {'seed': None, 'sha256': 'f'}}, 'seed 7 against –'),
    (
      'cifar10_c',
      {'corruptions': {'seed': 7, 'frost': FROST, 'sha256': 'f'}},
      'cifar10_c, which used different images: sha256',
    ),
    ('cifar10_c', {'corruptions': {'seed': 7, 'frost': FROST}}, None),
    ('ada', {'nu': 0.5}, 'ada, which used different images: nu 0.015 against 0.5'),
    ('ada', {'weights': {'sha256': 64 * 'e'}}, 'weights 666666666666 against eeeeeeeeeeee'),
    (
      'clean',
      {'test': {'name': 'embedded:1.0.0', 'origin': 'embedded', 'sha256': 64 * '9'}},
      'test set embedded:1.0.0 8',
    ),
  ],
)
def test_only_what_is_of_the_same_images_is_compared(pair, name, fields, reason):
  found = json.loads((pair[1] / 'results' / f'{name}.json').read_text())
  about = found['provenance']
  if 'nu' in fields:
    about['config']['attack']['nu'] = fields['nu']
  elif 'test' in fields:
    about['data']['test'] = fields['test']
  elif 'corruptions' in fields or 'weights' in fields:
    about |= fields
  else:
    found |= fields
  fixtures.write(pair[1] / 'results' / f'{name}.json', found)
  result = page(pair)
  title = {'clean': 'Clean accuracy', 'ada': 'Accuracy under AdA', 'cifar10_c': 'mCE, mean corruption error'}[name]
  assert (title in differences(result, 'headline')) is (reason is None)
  assert ('No difference in' in result.text) is (reason is not None)
  assert (reason or '') in result.text


@pytest.mark.parametrize('name, source', [('clean', 'test'), ('cifar10_c', 'test'), ('cifar10_c', 'corruptions')])
def test_two_sets_without_a_hash_are_not_taken_for_the_same(pair, name, source):
  for run in pair:
    found = json.loads((run / 'results' / f'{name}.json').read_text())
    about = found['provenance'] if source == 'corruptions' else found['provenance']['data']
    about[source] = {key: value for key, value in about[source].items() if key not in ('sha256', 'seed')}
    fixtures.write(run / 'results' / f'{name}.json', found)
  result = page(pair)
  assert f'No difference in {name}' in result.text
  assert 'test set has no hash' in result.text


def test_a_report_does_without_the_provenance_of_images_and_weights(tmp_path):
  runs = [fixtures.write_run(tmp_path / name, dataset='cifar10') for name in ('one', 'two')]
  for name in ('cifar10_c', 'ada'):
    about = json.loads((runs[1] / 'results' / f'{name}.json').read_text())['provenance']
    del about['data']['test']
    fixtures.change(runs[1], name, provenance=about | {'weights': 'none'})
  text = page(runs).text
  assert 'two is only roughly comparable with published numbers: its CIFAR-10-C is generated from unverified' in text
  assert 'No difference in ada, which used different images: test set' in text


def test_older_results_are_read_and_have_a_difference_without_an_interval(pair):
  for path in (pair[0] / 'results').iterdir():
    found = json.loads(path.read_text())
    found.pop('correct', None)
    fixtures.write(path, found)
  result = page(pair)
  rows = differences(result, 'headline')
  assert rows['Clean accuracy'] == ['+2.00', '–', '–', '96.00', '98.00']
  assert rows['mCE, mean corruption error'][:3] == ['\N{MINUS SIGN}8.30', '–', '–']
  assert number(rows['CIFAR-10.1 v6 accuracy'][1]) < 0  # its versions have theirs still
  assert 'No intervals for clean, ada, cifar10_c, cifar10_c_extra: results of older versions' in result.text


def test_a_third_run_is_compared_with_the_first_and_one_alone_with_none(pair, tmp_path):
  pair.append(fixtures.write_run(tmp_path / 'three'))
  captions = [caption for caption, _, _ in page(pair).tables if ' minus ' in caption]
  assert [caption.partition(':')[0] for caption in captions] == 2 * ['two minus one'] + 2 * ['three minus one']
  assert 'Differences' not in page(pair[:1]).text


# How much training.


def sections_with(text: str, sentence: str) -> int:
  return sum(sentence in part for part in text.split('<section ')[1:])


@pytest.mark.parametrize('what', ['steps', 'batch_size', 'init_from'])
def test_unequal_numbers_of_images_are_said_beside_every_comparison(pair, what):
  for run in pair:
    fixtures.write_attacks(run)
  text = report(pair, pair[0].parent / 'page.html').read_text()
  assert 'Trained on different numbers' not in text
  assert text.count('<section ') == SECTIONS
  config = json.loads((pair[1] / 'config.json').read_text())
  if what == 'steps':
    for path in (pair[1] / 'results').iterdir():
      fixtures.write(path, json.loads(path.read_text()) | {'step': 80, 'num_steps': 80})
  else:
    fixtures.write(pair[1] / 'config.json', config | {what: {'batch_size': 16, 'init_from': '/some/base'}[what]})
  text = report(pair, pair[0].parent / 'page.html').read_text()
  second = {'steps': '640', 'batch_size': '640', 'init_from': '320, after those of base'}[what]
  sentence = (
    f'Trained on different numbers of images, which explains a part of the differences (one: 320; two: {second}).'
  )
  assert sections_with(text, sentence) == SECTIONS - 1  # all but the last one, which compares nothing
  (row,) = [row for row in Page(text).table('Runs') if row[0] == 'images seen in training']
  assert row[1:] == ['320', second]


# Heat maps.


def levels(values) -> list[float]:
  shade = tables.Shade(values)
  return [shade.level(value) for value in values]


@pytest.mark.parametrize('outlier', [0.3, 0.6, 0.9, 1.0])
def test_colours_tell_4_from_9_percent_and_both_from_an_outlier(outlier):
  low, middle, high, far = levels([0.04, 0.06, 0.09, outlier])
  colours = [
    np.array([int(tables.Shaded('', level).colours()[0][i : i + 2], 16) for i in (1, 3, 5)])
    for level in (low, middle, high)
  ]
  assert low < middle < high < far == 1
  assert high - low > 0.2
  assert np.abs(colours[2] - colours[0]).sum() > 90
  assert np.abs(colours[1] - colours[0]).sum() > 40
  assert far - high > 0.3


def test_a_cell_near_zero_does_not_take_the_scale_for_itself():
  zero, tiny, low, high, far = levels([0.0, 0.0001, 0.04, 0.09, 0.5])
  assert zero == tiny == 0
  assert high - low > 0.15


def test_noise_does_not_look_like_a_difference_and_zeros_alone_have_a_colour():
  one, other = levels([0.040, 0.042])
  assert other - one < 0.05
  assert levels([0.0, 0.0]) == [0, 0]
  assert levels([0.2]) == [1]


def test_the_key_of_the_colours_is_that_of_the_cells():
  shade = tables.Shade([0.02, 0.04, 0.5])
  assert [shade.level(shade.value(level)) for level in (0.25, 0.5, 1.0)] == pytest.approx([0.25, 0.5, 1.0])
  key = tables.scale('Errors', shade)
  assert [(box.text, box.level) for box in key.boxes] == [
    (tables.percent(shade.value(level), 1), pytest.approx(level)) for level in (0, 0.2, 0.4, 0.6, 0.8, 1)
  ]
  assert (key.boxes[0].text, key.boxes[-1].text) == ('2.0', '50.0')


# Narrow pages.


def test_whatever_may_be_wider_than_a_phone_scrolls_in_a_box_with_a_cue(pair):
  for run in pair:
    fixtures.write_attacks(run)
  found = page(pair)
  boxes = sum('scroll' in attributes.get('class', '').split() for _, attributes in found.tags)
  wide = sum(tag == 'table' for tag, _ in found.tags) + sum(tag == 'img' for tag, _ in found.tags)
  assert boxes == wide  # these pictures are of one piece
  cue = found.style[found.style.index('.scroll::after') :]
  cue = cue[: cue.index('}')]
  assert 'content:"›"' in cue
  assert 'position:sticky;right:0' in cue


def test_examples_are_cut_for_a_phone(pair):
  from adversarial_augment.reporting import figures

  images = np.random.default_rng(0).random((8, 8, 8, 3))
  path = pair[0] / 'figures' / 'ada_examples.png'
  figures.ada_examples(path, images, images, np.ones(8), list('01234567'), title='edsr <b>')
  text = report(pair[0]).read_text()
  assert text.count('<img ') == 2
  assert '<div class="parts">' in text
  assert 'edsr &lt;b&gt;' in text


@pytest.mark.parametrize('corrected', [0.0, 0.25])
def test_what_never_happened_in_training_is_said_and_not_drawn(pair, drawn, corrected):
  path = pair[0] / 'metrics.jsonl'
  path.write_text(path.read_text().replace('"ssim_corrected": 0.0', f'"ssim_corrected": {corrected}'))
  found = page(pair[:1])
  title = 'Images below the SSIM threshold'
  assert any(alt.startswith(title) for _, alt in drawn.values()) is (corrected > 0)
  assert (f'{title}: none.' in found.text) is (corrected == 0)


def test_reliability_has_counts(pair, drawn):
  rows = page(pair[:1]).table('Confidence bins that contain images, in %')
  clean = json.loads((pair[0] / 'results' / 'clean.json').read_text())['calibration']
  of_clean = [row for row in rows[1:] if row[1] == 'clean images']
  assert [row[3] for row in of_clean] == [f'{count:,}' for count in clean['count'] if count]
  assert (of_clean[-1][0], of_clean[-1][2]) == ('one', '93 to 100')
  assert sum('how many images each bin contains' in alt for _, alt in drawn.values()) == 2
