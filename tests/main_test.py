"""The list of commands, and that it runs them."""

from pathlib import Path
import subprocess
import sys

import pytest

import adversarial_augment
from adversarial_augment.__main__ import COMMANDS


def start(*words: str, module: str = 'adversarial_augment') -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, '-m', module, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize('words', [(), ('--help',), ('-h',)])
def test_the_commands_are_listed(words):
  ended = start(*words)
  assert (ended.returncode, ended.stderr) == (0, '')
  assert [line.split()[0] for line in ended.stdout.splitlines() if line.startswith('  ')] == list(COMMANDS)


def test_every_command_line_is_listed():
  folder = Path(adversarial_augment.__file__).parent
  runnable = {path.stem for path in folder.glob('*.py') if "__name__ == '__main__'" in path.read_text()}
  assert runnable == COMMANDS.keys() | {'__main__'}


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_runs_as_its_module_does(name):
  ended, expected = start(name, '--no_such_flag'), start('--no_such_flag', module=f'adversarial_augment.{name}')
  assert (ended.returncode, ended.stdout, ended.stderr) == (2, expected.stdout, expected.stderr)
  assert ended.stderr.startswith(f'{name}: ')


def test_an_unknown_command_is_one_line():
  ended = start('trian', '--help')
  assert ended.returncode == 2
  assert ended.stderr.count('\n') == 1
  assert "Unknown command 'trian'" in ended.stderr
  assert 'train' in ended.stderr
  assert start('--version').stdout == f'{adversarial_augment.__version__}\n'
