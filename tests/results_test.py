"""Files of results: what is read without question, and what is held to its rules."""

import itertools
import json
from pathlib import Path

import pytest

from adversarial_augment import results
from adversarial_augment.errors import UserError
from tests import reporting_fixtures as fixtures


@pytest.fixture
def run(tmp_path) -> Path:
  return fixtures.write_run(tmp_path / 'my run', c_origin='official')


def test_whole_files_are_returned_as_they_are(run):
  for path in sorted((run / 'results').iterdir()):
    assert results.load(run, path.stem) == results.read(path) == json.loads(path.read_text())
  assert results.load(run, 'cifar10_c')['seed'] is None  # official images say none


def test_what_is_not_there_is_empty(tmp_path):
  assert results.read(tmp_path / 'clean.json') == results.load(tmp_path, 'clean') == results.load_data(tmp_path) == {}
  assert results.read_json(tmp_path / 'clean.json', '') is None
  assert results.read_log(tmp_path / 'metrics.jsonl', ()) == []


@pytest.mark.parametrize('content', ['{"eval": "cle', '[]', '{"evals": 3}', '[' * 100_000, '\0'])
def test_what_is_no_result_is_read_as_nothing_and_refused_by_load(run, content):
  path = run / 'results' / 'clean.json'
  path.write_text(content)
  assert results.read(path) == {}
  with pytest.raises(UserError, match='clean.json') as error:
    results.load(run, 'clean')
  assert str(error.value).endswith('; remove it, and evaluate again.')
  assert '\n' not in str(error.value)


def test_file_of_several_holds_each_to_its_rules(run):
  path = run / 'results' / 'train.json'
  content = json.loads(path.read_text())
  del content['evals']['clean']['calibration']  # stands in clean.json alone
  path.write_text(json.dumps(content))
  assert results.load(run, 'train') == content
  content['evals']['clean']['num_correct'] = 5
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match="train.json': evals.clean.accuracy is 0.96, but must be 0.0025 .*remove it, and"):
    results.load(run, 'train')


def places(value, within=()):
  """Yields where each field is, and of each list the first item."""
  for key in value if isinstance(value, dict) else [0] if isinstance(value, list) and value else []:
    yield (*within, key)
    yield from places(value[key], (*within, key))


OTHERS = (None, True, -1, 0.5, 10**400, 'x\n', [], [1], {}, {'a': 1}, 'x')
NAMES = ('clean', 'ada', 'cifar10_c', 'cifar10_1', 'train', 'eval_20', 'robustness_pgd_l2_0.5')


@pytest.mark.parametrize('name', NAMES)
def test_whatever_a_field_holds_is_refused_in_one_line_or_does_no_harm(run, name):
  fixtures.write_attacks(run)
  path = run / 'results' / f'{name}.json'
  whole, said = path.read_text(), []
  for place, value in zip(places(json.loads(whole)), itertools.cycle(OTHERS), strict=False):
    content = inside = json.loads(whole)
    for key in place[:-1]:
      inside = inside[key]
    inside[place[-1]] = value
    path.write_text(json.dumps(content))
    try:
      results.load(run, name)
    except UserError as error:
      said.append(str(error))
  assert len(said) > 10
  assert not [text for text in said if '\n' in text]


def test_data_of_older_runs_is_hashes_alone(tmp_path):
  path = tmp_path / 'data.json'
  for content in ({'train': 'abc'}, {'train': 'abc', 'image_shape': [32, 32, 3], 'class_names': ['cat', 'dog']}):
    path.write_text(json.dumps(content))
    assert results.load_data(tmp_path) == content
  path.write_text('{"class_names": [1]}')
  with pytest.raises(UserError, match="data.json': class_names.0.=1 must be a text"):
    results.load_data(tmp_path)
