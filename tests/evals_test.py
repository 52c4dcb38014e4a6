"""Evaluations are entries: what a file in evaluation/evals/ declares is all that there is to add."""

import json
import subprocess
import sys

import pytest

from adversarial_augment import config as configs
from adversarial_augment import registry
from adversarial_augment.storage import results
from tests import classifier_cases
from tests.test_architecture import ROOT, package_files

# The entry, the data set, and the subcommand of prepare that imports it.
ALLOWED = {'evaluation/evals/cifar10_1.py', 'datasets/cifar10_1.py', 'preparation/cifar10_1.py', 'prepare.py'}


def test_an_evaluation_is_named_in_its_entry_alone():
  naming = {path for path in package_files() if 'cifar10_1' in path.read_text()}
  assert {str(path.relative_to(ROOT / 'adversarial_augment')) for path in naming} == ALLOWED


def test_entries_have_the_names_of_their_files_and_all_readers_know_them():
  names = list(registry.evaluations())
  assert names == ['clean', 'ada', 'cifar10_c', 'cifar10_c_extra', 'cifar10_1']
  assert names == list(configs.TRAIN['evals'].kind.choices) == list(results.EVALUATIONS)
  for name, entry in registry.evaluations().items():
    assert type(entry).__module__ == f'adversarial_augment.evaluation.evals.{name}'


UPSIDE_DOWN = """
from adversarial_augment.evaluation.evals import Evaluation


class UpsideDown(Evaluation):
  name, order = 'upside_down', 5
  title, meaning = 'upside-down accuracy', 'images upside down'
  headline = 9, 'Accuracy upside down', 'accuracy'

  def fields(self):
    from adversarial_augment.config import fields

    return {'num_upside_down': fields.Field(5, fields.integer(1, 100), 'how many images are turned')}

  def check(self, flat):
    if flat['num_upside_down'] > flat['batch_size']:
      yield f'config.num_upside_down={flat["num_upside_down"]} must be at most config.batch_size.'

  def num_images(self, bench):
    return bench.config.num_upside_down

  def conditions(self, bench):
    return {'turned': bench.config.num_upside_down}

  def measure(self, bench, state, poll, known, keep):
    def read(index):
      images, labels = bench.images.read(index)
      return type(bench.images.read(index))(images[:, ::-1], labels)

    return bench.accuracy(state, bench.images._replace(num_examples=self.num_images(bench), read=read), poll)

  def sections(self, runs):
    from adversarial_augment.reporting.parts import Paragraph, section

    return [section(self.name, 'Upside down', Paragraph('turned by the toy'))]


ENTRY = UpsideDown()
"""

# A file in another folder, as if it lay among the entries.
PROGRAM = """
import importlib, sys
from adversarial_augment.evaluation import evals

evals.__path__.append(sys.argv[1])
from adversarial_augment import cli

cli.run(importlib.import_module(f'adversarial_augment.{sys.argv[2]}').main, sys.argv[3:])
"""


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
  """Runs a command that knows one more evaluation."""
  folder = tmp_path_factory.mktemp('entries')
  (folder / 'upside_down.py').write_text(UPSIDE_DOWN)

  def run(command: str, *flags: str) -> subprocess.CompletedProcess:
    program = [sys.executable, '-c', PROGRAM, str(folder), command, *flags]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)

  return run


def test_a_file_adds_an_evaluation_with_its_fields_rules_lines_and_section(toy, tmp_path):
  workdir = tmp_path / 'w'
  classifier_cases.save_run(workdir)  # by a version that did not know the evaluation
  evaluate = lambda *flags: toy('evaluate', f'--workdir={workdir}', '--evals=upside_down', *flags)
  found = evaluate('--config.num_upside_down=7', '--config.batch_size=8')
  assert found.returncode == 0, found.stderr
  assert 'fields; they are taken as num_upside_down=5' in found.stderr
  result = json.loads((workdir / 'results' / 'upside_down.json').read_text())
  assert (result['eval'], result['num_images'], result['origin']) == ('upside_down', 7, 'embedded')
  line = f'upside-down accuracy {result["accuracy"]:.4f}  ({result["num_correct"]} of 7 test images)'
  assert line in found.stdout
  assert (workdir / 'results' / 'upside_down.csv').read_text().splitlines()[1].startswith('upside_down,,,')

  for flags, said in (
    (['--config.num_upside_down=0'], 'config.num_upside_down=0 must be an integer from 1 to 100'),
    (['--config.num_upside_down=9', '--config.batch_size=8'], 'config.num_upside_down=9 must be at most'),
    (['--config.num_upside_down=6', '--config.batch_size=8'], "upside_down.json' holds a result of this checkpoint"),
  ):
    refused = evaluate(*flags)
    assert refused.returncode == 2
    assert said in refused.stderr

  assert 'upside_down (images upside down)' in toy('evaluate', '--help').stdout
  reported = toy('report', str(workdir))
  assert reported.returncode == 0, reported.stderr
  page = (workdir / 'report.html').read_text()
  for said in ('Accuracy upside down', 'turned by the toy', '<h2>Upside down</h2>'):
    assert said in page
