"""Interpreters that strip assertions, in which Haiku does work, are refused."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize('flag, module', [
  ('-O', 'adversarial_augment.train'), ('-OO', 'adversarial_augment.evaluate'), ('', 'adversarial_augment.export'),
  ('-O', 'adversarial_augment.report'), ('', 'adversarial_augment.prepare'), ('-O', 'adversarial_augment.pretrain'),
  ('-O', 'adversarial_augment.convert'), ('-OO', 'experiments.table1_corruptions'),
  ('-O', 'experiments.figure3_reconstruction'),
])  # fmt: skip
def test_commands_refuse_an_interpreter_without_assertions(flag, module):
  """`''` stands for PYTHONOPTIMIZE."""
  flags, environment = ([flag], {}) if flag else ([], {'PYTHONOPTIMIZE': '1'})
  ended = subprocess.run(
    [sys.executable, *flags, '-m', module, '--help'],
    env=os.environ | environment, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert (ended.returncode, ended.stdout) == (2, '')
  assert ended.stderr.startswith(f'{module.partition(".")[2]}: Python runs without assertions (-O or PYTHONOPTIMIZE)')
  assert ended.stderr.count('\n') == 1


@pytest.mark.parametrize('flag', ['-O', '-OO'])
def test_what_uses_haiku_refuses_an_interpreter_without_assertions(flag):
  modules = ('classifiers', 'corruption_nets.weights', 'training.recipe', 'training.train_step')
  code = 'from adversarial_augment import attacks, datasets, errors\n'
  for module in modules:
    code += f'try:\n  import adversarial_augment.{module}\nexcept errors.UserError as error:\n  print(error)\n'
  ended = subprocess.run([sys.executable, flag, '-c', code], capture_output=True, text=True, check=False)
  lines = ended.stdout.splitlines()
  assert len(lines) == len(modules), ended.stderr
  assert all(line.startswith('Python runs without assertions') for line in lines)
