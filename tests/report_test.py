"""The page of a report: what it says, and that it needs nothing but itself."""

import csv
import io
import json
import re
import sys

import matplotlib as mpl
import numpy as np
import pytest

from adversarial_augment.report import report
from adversarial_augment.reporting import figures, published
from tests import reporting_fixtures as fixtures
from tests.reporting_fixtures import Page, page

ORIGINS = ('official', 'generated', 'own', 'embedded', 'unverified')
SOURCES = 'Test images used below'
WITHOUT_NUMBERS = ('Runs', 'Settings that differ', 'Where the numbers come from', SOURCES)  # captions


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Page:
  """The page of a run that has everything."""
  return page(fixtures.write_run(tmp_path_factory.mktemp('runs') / 'first'))


@pytest.fixture(scope='module')
def both(tmp_path_factory) -> Page:
  """Two runs that compare with published numbers."""
  folder = tmp_path_factory.mktemp('runs')
  options = {'dataset': 'cifar10', 'c_origin': 'official', 'n': 10_000}
  first = fixtures.write_run(folder / 'first', origin='official', **options)
  return page(first, fixtures.write_run(folder / 'second', factor=0.5, **options))


@pytest.fixture
def drawn(monkeypatch) -> dict:
  return fixtures.record_charts(monkeypatch)


@pytest.fixture
def folder(tmp_path, drawn):
  return fixtures.write_run(tmp_path / 'run')


def test_page_needs_nothing_but_itself(whole, both):
  for found in (whole, both):
    active = {'script', 'iframe', 'object', 'embed', 'base', 'form', 'image', 'video'}
    assert not {tag for tag, _ in found.tags} & active
    links = found.attributes('href') + found.attributes('xlink:href')
    assert all(link.startswith('#') or link in ('data:,', 'https://arxiv.org/abs/2104.01086') for link in links)
    assert all(source.startswith('data:image/png;base64,') for source in found.attributes('src'))
    style = ' '.join([found.style, *found.attributes('style')])
    assert len(found.style) > 1000
    assert not re.search(r'url\(|http|@import', style)
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith('on')]
    (policy,) = [a['content'] for tag, a in found.tags if a.get('http-equiv') == 'Content-Security-Policy']
    assert policy.startswith("default-src 'none'")
    ids = found.attributes('id')  # unique, and links within the page lead somewhere
    assert len(set(ids)) == len(ids) > 20
    used = links + [value[4:-1] for value in found.attributes('clip-path')]
    assert {value[1:] for value in used if value.startswith('#')} <= set(ids)


def test_pictures_are_described(whole):
  drawings = [attributes for tag, attributes in whole.tags if tag == 'svg']
  assert len(drawings) == 10
  assert all(one['role'] == 'img' and len(one['aria-label']) > 30 for one in drawings)
  assert 'first: 8.1, 11.6, 15.0, 20.0, 28.3' in ' '.join(one['aria-label'] for one in drawings)
  assert all(attributes['alt'] for tag, attributes in whole.tags if tag == 'img')


def test_headline_numbers(whole):
  assert whole.table('Headline numbers')[1:] == [
    ['first', 'Clean accuracy', '96.00', '95.00', '97.00', '40'],
    ['first', 'mCE, mean corruption error', '16.60', '14.60', '18.60', '40'],
    ['first', 'Accuracy under AdA', '90.00', '89.00', '91.00', '40'],
    ['first', 'CIFAR-10.1 v6 accuracy', '89.05', '88.05', '90.05', '40'],
  ]
  assert whole.text.count('96.00 %') == 1  # its card
  assert '14.60 to 18.60 %' in whole.text


def test_images_and_their_origin_are_said_once(whole, tmp_path, drawn):
  assert whole.table(SOURCES)[1:] == [
    ['clean accuracy', 'embedded, n\xa0=\xa02,000'],
    ['accuracy under AdA', 'embedded, n\xa0=\xa02,000; nu 0.015, 2 steps'],
    ['corruption errors', 'generated, seed 7, n\xa0=\xa02,000 per cell'],
    ['extra corruptions', 'generated, seed 7, n\xa0=\xa02,000 per cell'],
    ['CIFAR-10.1', 'v6: official, n\xa0=\xa02,000; v4: official, n\xa0=\xa02,021'],
  ]
  with_numbers = [one for one in whole.tables if one[0] not in WITHOUT_NUMBERS]
  assert len(with_numbers) >= 9
  for caption, rows, _ in with_numbers:
    assert not [cell for row in rows for cell in (caption, *row) if any(origin in cell for origin in ORIGINS)], caption
  first, second = fixtures.write_run(tmp_path / 'first'), fixtures.write_run(tmp_path / 'second', c_origin='official')
  fixtures.write_attacks(second)
  rows = page(first, second).table(SOURCES)
  assert rows[0] == ['evaluation', 'first', 'second']
  expected = ['corruption errors', 'generated, seed 7, n\xa0=\xa02,000 per cell', 'official, n\xa0=\xa02,000 per cell']
  assert rows[3] == expected
  assert rows[-1] == ['l_p attacks', '–', 'embedded, n\xa0=\xa01,000']


def test_tables_are_regular_and_the_same_as_text(both):
  assert len(both.tables) > 10
  for caption, rows, text in both.tables:
    lines = list(csv.reader(io.StringIO(text)))
    body = [row for row in rows if len(row) == len(lines[0])]
    assert len(body) >= len(rows) - 1, caption  # a row of groups may be above
    assert [[cell.replace('\xa0', ' ') for cell in row] for row in body] == lines, caption


def test_columns_of_the_paper(both):
  rows = both.table('Errors in %, mean over five severities')
  expected = '4.00 16.60 30.0 22.0 30.0 7.8 35.2 12.6 11.2 12.8 13.4 9.8 5.0 16.4 12.4 15.2 15.2'
  assert rows[0] == ['', 'Noise', 'Blur', 'Weather', 'Digital']
  assert rows[2] == ['first', *expected.split()]
  assert rows[3][1:4] == ['2.00', '8.30', '15.0']
  by_name = {row[0]: row[1:] for row in rows}
  best = '5.07 7.83 8.8 7.8 11.2 5.9 10.7 7.3 6.5 8.5 6.7 8.7 5.2 6.2 8.5 7.7 7.8'
  assert by_name['AdA + DeepAugment (10×) + AugMix (paper)'] == best.split()
  assert by_name['AdA (paper)'][:2] == ['3.82', '12.49']
  assert by_name['NoisyMix, WRN-28-4 (RobustBench)'][:2] == ['3.27', '7.22']


def test_published_rows_agree_with_themselves():
  assert len(published.MODELS) == 19
  for model in published.MODELS:
    assert len(model.errors) == 15
    assert sum(model.errors) / 15 == pytest.approx(model.mce, abs=0.05), model.name  # rounded to a tenth
    if model.severity:
      assert sum(model.severity) / 5 == pytest.approx(model.mce, abs=0.01), model.name
  assert published.COLUMNS['jpeg_compression'] == 'JPEG'
  assert published.COLUMNS['glass_blur'] == 'Glass'
  assert sum(span for _, span in published.GROUPS) == 15


def test_official_images_stand_beside_published_numbers(both):
  assert any('(published)' in attributes['aria-label'] for tag, attributes in both.tags if tag == 'svg')
  assert 'is comparable with published numbers: its images are the official CIFAR-10-C files' in both.text
  rows = both.table('Errors in % at severities 1 to 5, mean over 15 corruptions')
  assert ['NoisyMix, WRN-28-4 (RobustBench)', '4.44', '12.42'] in [[row[0], row[1], row[-1]] for row in rows]


@pytest.mark.parametrize(
  'options, lines, sentence',
  [
    ({}, False, 'is not comparable with published numbers: its data set is embedded, not CIFAR-10'),
    ({'dataset': 'cifar10', 'frost': 'procedural'}, False, 'its frost is made of procedural textures'),
    ({'dataset': 'cifar10'}, True, 'its CIFAR-10-C is generated from embedded test images, 2,000 images'),
    ({'dataset': 'cifar10', 'c_origin': 'official'}, True, 'its CIFAR-10-C is official, 2,000 images per cell'),
  ],
)
def test_what_does_not_compare_is_kept_apart(tmp_path, drawn, options, lines, sentence):
  found = page(fixtures.write_run(tmp_path / 'run', **options))
  assert ('(published)' in drawn['severity'][1]) is lines
  assert sentence in found.text
  apart = [caption for caption, _, _ in found.tables if caption.startswith('Published.')]
  assert apart == ([] if lines else ['Published. Errors in %, mean over five severities'])
  assert ('frost of procedural textures' in found.text) is ('frost' in options)


def test_one_run_that_does_not_compare_keeps_the_page_free_of_published_lines(tmp_path, drawn):
  first = fixtures.write_run(tmp_path / 'first', dataset='cifar10', c_origin='official')
  found = page(first, fixtures.write_run(tmp_path / 'second'))
  assert '(published)' not in drawn['severity'][1]
  assert 'use different data sets, so their numbers are not comparable (first: cifar10, second: emb' in found.text


def test_heat_map(whole):
  rows = whole.table('first: errors in % under 15 corruptions')
  assert [row[0] for row in rows[1:17]] == [*published.COLUMNS.values(), 'mCE']
  assert rows[1] == ['Gauss', '10.0', '20.0', '30.0', '40.0', '50.0', '30.0']
  assert rows[16] == ['mCE', '8.1', '11.6', '15.0', '20.0', '28.3', '16.6']


def test_charts_show_the_numbers_of_the_run(tmp_path, drawn):
  page(*(fixtures.write_run(tmp_path / name) for name in ('first', 'second')))
  series = {key: series for key, (series, _) in drawn.items()}
  lines = [json.loads(line) for line in fixtures.metrics_lines(40)]
  (loss, other) = series['curve0']
  assert (list(loss.x), list(loss.y)) == ([line['step'] for line in lines], [line['loss'] for line in lines])
  assert (loss.look, other.look, other.label) == (0, 1, 'second')
  training_accuracy, between, *_ = series['curve1']
  assert (between.x, between.y, between.label) == ([20, 40], [0.4, 0.8], 'first, clean, validation')
  assert between.look == training_accuracy.look
  assert [line.second for line in series['curve2']] == [False, True, False, True]
  np.testing.assert_allclose(series['severity'][0].y, [8.0667, 11.6, 15.0, 20.0, 28.3333], atol=1e-3)
  # The density of SSIM has area 1.
  x, y = np.asarray(series['ssim'][0].x), np.asarray(series['ssim'][0].y)
  assert np.trapezoid(y, x) == pytest.approx(1)
  assert (x[0], y[0], x[-1], y[-1]) == (pytest.approx(0.9), 0, 1, 0)
  assert y.max() == pytest.approx(50)  # half of the images in a bin of 0.01
  # The reliability diagram shows bins that contain images.
  one = series['calibrationclean'][0]
  ratio = np.asarray(one.y[4:]) / np.asarray(one.x[4:])  # earlier bins hold few images
  np.testing.assert_allclose(ratio, 1 / 1.2, atol=0.03)
  assert series['calibrationclean'][-1][1:3] == ((0, 100), (0, 100))


def test_reliability_has_counts(folder, drawn):
  rows = page(folder).table('Confidence bins that contain images, in %')
  clean = json.loads((folder / 'results' / 'clean.json').read_text())['calibration']
  of_clean = [row for row in rows[1:] if row[1] == 'clean images']
  assert [row[3] for row in of_clean] == [f'{count:,}' for count in clean['count'] if count]
  assert (of_clean[-1][0], of_clean[-1][2]) == ('run', '93 to 100')
  assert sum('how many images each bin contains' in alt for _, alt in drawn.values()) == 2


@pytest.mark.parametrize('corrected', [0.0, 0.25])
def test_what_never_happened_in_training_is_said_and_not_drawn(folder, drawn, corrected):
  path = folder / 'metrics.jsonl'
  path.write_text(path.read_text().replace('"ssim_corrected": 0.0', f'"ssim_corrected": {corrected}'))
  title = 'Images below the SSIM threshold'
  assert (f'{title}: none.' in page(folder).text) is (corrected == 0)
  assert any(alt.startswith(title) for _, alt in drawn.values()) is (corrected > 0)


def test_text_of_a_run_cannot_become_markup(tmp_path, drawn):
  name = '<b onclick="x">&amp; $x^$'
  folder = fixtures.write_run(tmp_path / name, dataset='<script>alert(1)</script>')
  command = '</pre></table><script src="http://example.org"></script>'
  fixtures.edit(folder / 'results' / 'train.json', {'command': command})
  found = page(folder)
  assert not {'b', 'script'} & {tag for tag, _ in found.tags}
  assert all(text in found.text for text in (name, command, '<script>alert(1)</script>'))
  assert 'a\ufffdb\ufffdc' in page(fixtures.write_run(tmp_path / 'a\x07b\udc80c')).text  # no text can hold these


def test_same_runs_give_the_same_bytes(tmp_path):
  folder = fixtures.write_run(tmp_path / 'run')
  first = report([folder]).read_bytes()
  with mpl.rc_context({'axes.linewidth': 9, 'xtick.major.size': 20}):
    assert report([folder], output=tmp_path / 'other.html').read_bytes() == first


def test_without_matplotlib_there_are_tables_and_no_charts(tmp_path, monkeypatch, whole):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  found = page(fixtures.write_run(tmp_path / 'first'))
  assert 'svg' not in {tag for tag, _ in found.tags}
  assert "install the extra 'plots'" in found.text
  assert [caption for caption, _, _ in found.tables] == [caption for caption, _, _ in whole.tables]


def test_settings_that_differ_and_shared_names(tmp_path, drawn):
  first = fixtures.write_run(tmp_path / 'a' / 'run')
  found = page(first, fixtures.write_run(tmp_path / 'b' / 'run', variant='laptop'))
  differing = {row[0]: row[1:] for row in found.table('Settings that differ')}
  assert differing['classifier.width'] == ['4', '16']
  assert 'attack.nu' not in differing
  assert differing['config'] == ['a/run', 'b/run']


@pytest.mark.parametrize(
  'change, reason, caution',
  [
    ({'step': 30}, 'step 30 against 40', 'was trained to step 40, but these results are from other steps: clean from'),
    ({'checkpoint_sha256': 'f' * 64}, 'checkpoint ffffffffffff against c5ebe1435b1a', 'from different checkpoints'),
    (fixtures.counted(480, 500), 'images 500 against 2,000', ''),
    (
      {'provenance.data.test.sha256': '9' * 64},
      'test set embedded:1.0.0 999999999999 against embedded:1.0.0 888888888888',
      'from different test sets (clean: embedded:1.0.0 999999999999, ada: embedded:1.0.0 888888888888',
    ),
  ],
)
def test_row_of_the_paper_has_no_number_of_other_images_or_another_state(folder, change, reason, caution):
  fixtures.edit(folder / 'results' / 'clean.json', change)
  found = page(folder)
  assert found.table('Errors in %, mean over five severities')[2][1:3] == ['–', '16.60']
  why = 'run has no clean error in this row, because it is from another checkpoint or other images'
  assert f'{why}: {reason}' in found.text
  assert caution in found.text
  assert [row[2] for row in found.table('Headline numbers')[1:3]] == ['96.00', '16.60']


def test_provenance_has_hashes_and_commands(whole):
  rows = dict(row[:2] for row in whole.table('Where the numbers come from'))
  assert rows['evaluation: checkpoint_sha256'] == fixtures.STATE
  assert rows['evaluation: data.test.origin'] == 'embedded'
  assert rows['cifar10_c: corruptions.seed'] == '7'
  assert rows['training: command'].endswith('--config=configs/ada_edsr.py:smoke --workdir=first')
  assert whole.table('Runs')[1] == ['config', 'configs/ada_edsr.py:smoke']


# l_p attacks.


def test_every_attack_has_its_row_its_stages_and_its_curve(folder, drawn):
  assert 'Robust accuracy' not in page(folder).text
  fixtures.write_attacks(folder)
  found = page(folder)
  rows = found.table('Accuracy under attacks in %')
  assert {(row[1], row[2]): row[4:] for row in rows[1:]} == {
    ('autoattack, l_inf', '2/255'): ['96.00', '64.00', '60.98', '66.92', '65.00'],
    ('autoattack, l_inf', '8/255'): ['96.00', '7.50', '6.03', '9.30', '8.50'],
    ('pgd, l_2', '0.5'): ['96.00', '31.00', '28.21', '33.93', '32.00'],
  }
  assert {row[3] for row in rows[1:]} == {'yes'}
  rows = found.table('run: accuracy in % after each stage of autoattack, l_inf')
  assert rows[0][1:] == ['before', 'after apgd-ce', 'after apgd-t', 'after fab-t', 'after square', 'seconds']
  assert [row[0] for row in rows[1:]] == ['2/255', '8/255']
  assert rows[2][1:] == ['96.00', '12.00', '8.00', '8.00', '7.50', '14']
  assert 'Accuracy in % over epsilon. run, autoattack: 96.0, 64.0, 7.5.' in drawn['robustlinf'][1]


def test_attacks_of_one_run_look_different_and_the_first_as_the_run(tmp_path, drawn):
  runs = [fixtures.write_run(tmp_path / name) for name in ('one', 'two')]
  for run in runs:
    fixtures.write_attacks(run)
    path = run / 'results' / 'robustness_autoattack_linf_2-255.json'
    other = json.loads(path.read_text()) | {'attack': 'paper', 'eval': 'robustness_paper_linf_2-255'}
    fixtures.write(path.with_name('robustness_paper_linf_2-255.json'), other)
  page(*runs)
  looks = {series.label: series.look for series in drawn['robustlinf'][0]}
  assert looks.keys() == {f'{run}, {attack}' for run in ('one', 'two') for attack in ('autoattack', 'paper')}
  assert len(set(looks.values())) == 4
  assert (looks['one, autoattack'], looks['two, autoattack']) == (0, 1)


def test_a_run_that_changed_its_devices_names_all_of_them(folder):
  about = {'device_kind': 'cpu', 'processes': 1, 'versions': {}, 'host': 'h'}
  steps = ((1, 10, 4), (11, 12, 4), (13, 30, 8), (31, 40, 4))
  made = [about | {'first_step': first, 'last_step': last, 'devices': count} for first, last, count in steps]
  fixtures.edit(folder / 'results' / 'train.json', {'segments': made})
  rows = dict(page(folder).table('Runs')[1:])
  assert rows['devices'] == '4 × cpu to step 12, 8 × cpu to step 30, 4 × cpu to step 40'


def test_a_suspect_number_is_marked(folder):
  fixtures.write_attacks(folder, flags=('zero_gradients',))
  found = page(folder)
  assert {row[3] for row in found.table('Accuracy under attacks in %')[1:]} == {'UNRELIABLE: zero_gradients'}
  assert 'Unreliable: run (zero_gradients)' in found.text


# Narrow pages.


def test_whatever_may_be_wider_than_a_phone_scrolls_in_a_box_with_a_cue(folder):
  fixtures.write_attacks(folder)
  found = page(folder)
  boxes = sum('scroll' in attributes.get('class', '').split() for _, attributes in found.tags)
  assert boxes == sum(tag in ('table', 'img') for tag, _ in found.tags)  # these pictures are of one piece
  cue = found.style[found.style.index('.scroll::after') :].partition('}')[0]
  assert 'content:"›"' in cue
  assert 'position:sticky;right:0' in cue


def test_examples_are_cut_for_a_phone(folder):
  images, names = np.random.default_rng(0).random((8, 8, 8, 3)), list('01234567')
  path = folder / 'figures' / 'ada_examples.png'
  figures.ada_examples(path, images, images, np.ones(8), names, (names, names), 'edsr <b>')
  text = report(folder).read_text()
  assert text.count('<img ') == 2
  assert '<div class="parts">' in text
  assert 'edsr &lt;b&gt;' in text
