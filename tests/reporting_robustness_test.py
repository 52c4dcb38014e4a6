"""The section on l_p attacks: every number with its images, stage by stage, and no suspect one without a warning."""

import json

import pytest

from adversarial_augment.report import report
from tests import reporting_fixtures as fixtures
from tests.report_test import Page


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict:
  return fixtures.record_charts(monkeypatch)


def page_of(tmp_path, **options) -> Page:
  run = fixtures.write_run(tmp_path / 'run')
  fixtures.write_attacks(run, **options)
  return Page(report([run]).read_text())


def test_every_attack_has_its_row(tmp_path):
  rows = page_of(tmp_path).table('Accuracy under l_p attacks in %')
  cells = {(row[1], row[2]): row[4:] for row in rows[1:]}
  assert cells == {
    ('autoattack, l_inf', '2/255'): ['96.00', '64.00', '60.98', '66.92', '65.00'],
    ('autoattack, l_inf', '8/255'): ['96.00', '7.50', '6.03', '9.30', '8.50'],
    ('pgd, l_2', '0.5'): ['96.00', '31.00', '28.21', '33.93', '32.00'],
  }
  assert {row[3] for row in rows[1:]} == {'yes'}


def test_what_each_stage_has_left_is_in_the_order_of_the_stages(tmp_path):
  rows = page_of(tmp_path).table('run: accuracy in % after each stage of autoattack, l_inf')
  assert rows[0][1:] == ['before', 'after apgd-ce', 'after apgd-t', 'after fab-t', 'after square', 'seconds']
  assert [row[0] for row in rows[1:]] == ['2/255', '8/255']
  assert rows[2][1:] == ['96.00', '12.00', '8.00', '8.00', '7.50', '14']


def test_accuracies_are_drawn_over_the_radius(tmp_path, drawn):
  page_of(tmp_path)
  assert 'Accuracy in % over epsilon. run, autoattack: 96.0, 64.0, 7.5.' in drawn['robustlinf'][1]


def test_attacks_of_one_run_look_different_and_the_first_as_the_run(tmp_path, drawn):
  runs = [fixtures.write_run(tmp_path / name) for name in ('one', 'two')]
  for run in runs:
    fixtures.write_attacks(run)
    path = run / 'results' / 'robustness_autoattack_linf_2-255.json'
    other = json.loads(path.read_text()) | {'attack': 'paper', 'eval': 'robustness_paper_linf_2-255'}
    fixtures.write(path.with_name('robustness_paper_linf_2-255.json'), other)
  report(runs, tmp_path / 'page.html')
  looks = {series.label: series.look for series in drawn['robustlinf'][0]}
  assert looks.keys() == {f'{run}, {attack}' for run in ('one', 'two') for attack in ('autoattack', 'paper')}
  assert len(set(looks.values())) == 4
  assert (looks['one, autoattack'], looks['two, autoattack']) == (0, 1)


def test_a_suspect_number_is_marked(tmp_path):
  page = page_of(tmp_path, flags=('zero_gradients',))
  rows = page.table('Accuracy under l_p attacks in %')
  assert {row[3] for row in rows[1:]} == {'UNRELIABLE: zero_gradients'}
  assert 'Unreliable: run (zero_gradients)' in page.text


def test_a_run_that_was_not_attacked_has_no_such_section(tmp_path):
  run = fixtures.write_run(tmp_path / 'run')
  assert 'Robust accuracy' not in report([run]).read_text()
