"""Standard streams that are closed, full, or cannot encode a name: the work is done and the exit code is right."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests import trainer

PRINT = """
  import subprocess, sys
  from adversarial_augment import cli, errors
  from adversarial_augment.cli import streams
  def main(argv):
    print(argv[0])
    streams.say(argv[0])
    files = [open(f'{argv[1]}/{i}', 'w') for i in range(3)]
    if argv[2:]:
      raise errors.UserError(f'{argv[0]} is wrong.')
    if argv[0] == 'x':
      subprocess.run('echo a warning of a library 1>&2', shell=True)
  cli.run(main)
"""


def run(redirections: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
  command = ['bash', '-c', f'"$@" {redirections}', 'bash', sys.executable, '-c', textwrap.dedent(PRINT), *arguments]
  return subprocess.run(command, capture_output=True, env=os.environ | env, timeout=60, check=False)


@pytest.mark.parametrize('redirections', ['>&-', '2>&-', '<&-', '>&- 2>&-', '<&- >&- 2>&-'])
def test_closed_streams_change_no_exit_code_and_get_into_no_file(redirections, tmp_path):
  done = run(redirections, 'x', str(tmp_path))
  assert done.returncode == 0, done.stderr
  assert b'Error' not in done.stderr
  assert {(tmp_path / str(i)).read_bytes() for i in range(3)} == {b''}
  assert run(redirections, 'x', str(tmp_path), 'wrong').returncode == 2


@pytest.mark.parametrize('encoding', ['ascii:strict', 'latin-1:strict', 'utf-8:strict', 'cp1252:strict'])
def test_names_that_the_encoding_has_not_are_spelled_out(encoding, tmp_path):
  done = run('', 'кот\udcff', str(tmp_path), PYTHONIOENCODING=encoding)
  assert done.returncode == 0, done.stderr
  assert b'\\udcff' in done.stdout
  assert b'\\udcff' in done.stderr
  assert run('', 'кот\udcff', str(tmp_path), 'wrong', PYTHONIOENCODING=encoding).returncode == 2


def test_a_full_disk_behind_standard_output_is_one_line_and_behind_standard_error_no_loss(tmp_path):
  done = run('>/dev/full', 'x', str(tmp_path))
  assert done.returncode == 5
  assert (
    done.stderr.decode()
    .splitlines()[-1]
    .endswith('Cannot write: No space left on device; free space, or send the output elsewhere.')
  )
  assert run('2>/dev/full', 'x', str(tmp_path)).returncode == 0
  assert run('2>/dev/full', 'x', str(tmp_path), 'wrong').returncode == 2


@pytest.mark.parametrize('redirections', ['>&- 2>&-', '2>/dev/full'])
def test_a_run_that_nobody_can_hear_is_made_and_evaluated(redirections, tmp_path_factory, tmp_path):
  rig = trainer.Rig(tmp_path_factory.getbasetemp())
  run = rig.start(tmp_path / 'w', wrapper=['bash', '-c', f'exec "$@" {redirections}', 'bash'])
  assert run.wait() == 0, run.err
  assert [line['step'] for line in trainer.lines(tmp_path / 'w')] == list(range(1, trainer.NUM_STEPS + 1))
  assert json.loads((tmp_path / 'w' / 'results' / 'train.json').read_text())['step'] == trainer.NUM_STEPS
