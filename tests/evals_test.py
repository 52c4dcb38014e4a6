"""Evaluations are entries: what one declares is all that there is to add."""

import json
import subprocess
import sys

from adversarial_augment import config as configs
from adversarial_augment.config.evaluations import EVALUATIONS
from tests import classifier_cases
from tests.test_architecture import ROOT, package_files

# The entry, the data set, and the subcommand of prepare that imports it.
ALLOWED = {'config/evaluations.py', 'datasets/cifar10_1.py', 'preparation/cifar10_1.py', 'prepare.py'}


def test_an_evaluation_is_named_in_its_entry_alone():
  naming = {path for path in package_files() if 'cifar10_1' in path.read_text()}
  assert {str(path.relative_to(ROOT / 'adversarial_augment')) for path in naming} == ALLOWED


def test_evaluations_keep_their_names_and_order():
  names = ['clean', 'ada', 'cifar10_c', 'cifar10_c_extra', 'cifar10_1', 'cifar10_c_bar']
  assert list(EVALUATIONS) == list(configs.TRAIN['evals'].kind.choices) == names


# Registers one more evaluation, and runs a command.
PROGRAM = """
import importlib, sys
from adversarial_augment import cli
from adversarial_augment.config import fields, tables
from adversarial_augment.config.evaluations import Evaluation


def broken_rules(flat):
  if flat['num_upside_down'] > flat['batch_size']:
    yield f'config.num_upside_down={flat["num_upside_down"]} must be at most config.batch_size.'


def images(config, dataset):
  def read(index):
    images, labels = dataset.read(index)
    return type(dataset.read(index))(images[:, ::-1], labels)

  return dataset._replace(num_examples=config.num_upside_down, read=read)


tables.register('upside_down', Evaluation(
  title='upside-down accuracy',
  meaning='images upside down',
  headline=(9, 'Accuracy upside down'),
  section='Upside down',
  published={'Toy': 12.34},
  datasets=('embedded',),
  fields={'num_upside_down': fields.Field(5, fields.integer(1, 100), 'how many images are turned')},
  broken_rules=broken_rules,
  images=images,
  conditions=('num_upside_down',),
))
cli.run(importlib.import_module(f'adversarial_augment.{sys.argv[1]}').main, sys.argv[2:])
"""


def toy(command: str, *flags: str) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, '-c', PROGRAM, command, *flags], cwd=ROOT, capture_output=True, text=True)


def test_an_entry_adds_an_evaluation_with_its_fields_rules_lines_and_section(tmp_path):
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
    (['--config.num_upside_down=6', '--config.batch_size=8'], "upside_down.json' has a result of this checkpoint"),
  ):
    refused = evaluate(*flags)
    assert refused.returncode == 2
    assert said in refused.stderr

  assert 'upside_down (images upside down)' in toy('evaluate', '--help').stdout
  reported = toy('report', str(workdir))
  assert reported.returncode == 0, reported.stderr
  page = (workdir / 'report.html').read_text()
  for said in ('Accuracy upside down', 'Toy (paper)', '<h2>Upside down</h2>'):
    assert said in page
