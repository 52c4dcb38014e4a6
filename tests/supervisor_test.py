"""train --max_restarts: what is started again, when, how often, and what signals do."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from adversarial_augment import errors
from adversarial_augment.config import command_line
from adversarial_augment.storage import artifact
from tests import trainer

SUPERVISE = """
  import sys
  from pathlib import Path
  from adversarial_augment import cli
  from adversarial_augment.run import supervisor
  workdir, limit, *command = sys.argv[1:]
  cli.run(lambda _: supervisor.run(command, Path(workdir), int(limit)), kept='kept')
"""
# Logs a step at each start, as far as the steps given go, and ends as each of the endings says.
CRASHING = """
  import os, sys, time
  from pathlib import Path
  workdir, starts = Path(sys.argv[1]), Path(sys.argv[1], 'starts')
  begun = starts.stat().st_size if starts.exists() else 0
  starts.open('a').write('x')
  step, _, ending = sys.argv[2 + begun].partition(':')
  if step:
    (workdir / 'metrics.jsonl').write_text(f'{{"step": {step}}}\\n')
  if ending == 'wait':
    print('under way', flush=True)
    time.sleep(60)
  if ending.startswith('-'):
    os.kill(os.getpid(), -int(ending))
  sys.exit(int(ending))
"""


def start(workdir: Path, limit: int, *endings: str) -> subprocess.Popen:
  child = [sys.executable, '-c', textwrap.dedent(CRASHING), str(workdir), *endings]
  command = [sys.executable, '-c', textwrap.dedent(SUPERVISE), str(workdir), str(limit), *child]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def starts(workdir: Path) -> int:
  return (workdir / 'starts').stat().st_size


def test_what_would_end_so_again_is_not_restarted(tmp_path):
  processes = {}
  for code in (0, 2, 3, 4):
    (tmp_path / str(code)).mkdir()
    processes[code] = start(tmp_path / str(code), 5, f'3:{code}', '4:0')
  for code, process in processes.items():
    assert process.communicate(timeout=60) == ('', '')
    assert (process.returncode, starts(tmp_path / str(code))) == (code, 1)


def test_crashes_are_restarted_with_growing_pauses(tmp_path):
  began = time.monotonic()
  process = start(tmp_path, 3, '3:-9', '4:5', '6:0')
  _, err = process.communicate(timeout=60)
  assert err.splitlines() == [
    'restart 1 of 3 in 1 s: ended with SIGKILL after step 3',
    'restart 2 of 3 in 2 s: ended with exit code 5 after step 4',
  ]
  assert process.returncode == 0
  assert time.monotonic() - began >= 3


def test_it_gives_up_with_the_code_of_the_run(tmp_path):
  cases = (
    (1, ('3:1', '4:-6'), 134, 'SIGABRT after step 4, and 1 of 1 are used up.'),
    (5, ('3:-9', '3:1'), 1, 'exit code 1 after step 3, for the second time.'),
    (5, (':1', ':-11'), 139, 'SIGSEGV after step 0, for the second time.'),
    (
      1,
      ('3:75', '3:75'),
      75,
      'exit code 75 after step 3, and 1 of 1 are used up.',
    ),  # a peer is lost
  )
  processes = []
  for index, (limit, endings, _, _) in enumerate(cases):
    (tmp_path / str(index)).mkdir()
    processes.append(start(tmp_path / str(index), limit, *endings, '9:0'))
  for index, (process, (_, _, code, last)) in enumerate(zip(processes, cases, strict=True)):
    _, err = process.communicate(timeout=60)
    assert err.splitlines()[1:] == [f'no restart: ended with {last}']
    assert (process.returncode, starts(tmp_path / str(index))) == (code, 2)


def test_without_a_log_no_step_fails_twice(tmp_path):
  """Of several processes, all but one know no workdir."""
  command = [sys.executable, '-c', textwrap.dedent(SUPERVISE), f'{tmp_path}/not_here', '9', 'false']
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  assert process.stderr.readline() == 'restart 1 of 9 in 1 s: ended with exit code 1\n'
  assert process.stderr.readline() == 'restart 2 of 9 in 2 s: ended with exit code 1\n'
  process.terminate()
  process.communicate(timeout=60)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_ends_the_restarts(number, tmp_path):
  process = start(tmp_path, 5, '3:wait', '4:0')
  assert process.stdout.readline() == 'under way\n'
  process.send_signal(number)
  process.communicate(timeout=60)
  assert (process.returncode, starts(tmp_path)) == (128 + number, 1)


def test_a_signal_between_two_starts_ends_them(tmp_path):
  process = start(tmp_path, 9, *(f'{step}:1' for step in range(9)))
  assert process.stderr.readline().startswith('restart 1 of 9 in 1 s')
  assert process.stderr.readline().startswith('restart 2 of 9 in 2 s')
  process.send_signal(signal.SIGTERM)
  assert process.communicate(timeout=60) == ('', '-c: stopped by SIGTERM: kept.\n')
  assert (process.returncode, starts(tmp_path)) == (75, 2)


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux kills children with their parent')
def test_kill_9_of_the_supervisor_ends_the_run(tmp_path):
  process = start(tmp_path, 5, '3:wait')
  assert process.stdout.readline() == 'under way\n'
  process.kill()
  assert process.communicate(timeout=10) == ('', '')  # the child had the pipe


def test_the_command_of_the_run_lacks_the_flag():
  for flag in (['--max_restarts=3'], ['--max_restarts', '3']):
    command = command_line.unsupervised('train', ['--config=a.py', *flag, '--workdir', 'w'])
    assert command == [sys.executable, '-m', 'adversarial_augment.train', '--config=a.py', '--workdir', 'w']
  assert command_line.parse_train(['--config=a.py', '--max_restarts=3']).max_restarts == 3
  with pytest.raises(errors.UserError, match='--max_restarts=-1 must be at least 0'):
    command_line.parse_train(['--config=a.py', '--max_restarts=-1'])


# ---- With the trainer.


@pytest.fixture(scope='module')
def rig(tmp_path_factory) -> trainer.Rig:
  return trainer.Rig(tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_two_crashes_change_nothing(rig, tmp_path):
  straight, workdir = rig.straight(), tmp_path / 'w'
  run = rig.start(workdir, '--max_restarts=3', ADA_CRASH_AT='after_rename@3')
  run.wait_for_step(7)
  os.kill(int((workdir / '.lock').read_text().split()[0]), signal.SIGKILL)
  assert run.wait() == 0, run.err
  trainer.assert_same_end(workdir, straight)
  said = [line for line in run.err.splitlines() if line.startswith('restart ')]
  assert said[0] == 'restart 1 of 3 in 1 s: ended with SIGKILL after step 3'
  assert said[1].startswith('restart 2 of 3 in 2 s: ended with SIGKILL after step ')
  assert len(said) == 2
  segments = trainer.result(workdir)['segments']
  assert [(one['first_step'], one['last_step']) for one in segments][0] == (1, 3)
  assert len(segments) == 3
  assert 'max_restarts' not in trainer.result(workdir)['command']


@pytest.mark.slow
def test_the_same_step_twice_and_wrong_input_are_not_restarted(rig, tmp_path):
  run = rig.start(tmp_path / 'w', '--max_restarts=5', ADA_CRASH_AT='mid_log_append@5')
  assert run.wait() == 137
  assert run.err.splitlines()[-1] == 'no restart: ended with SIGKILL after step 4, for the second time.'
  assert run.err.count('restart 1 of 5 in 1 s') == 1
  run = rig.start(tmp_path / 'w', '--max_restarts=5', '--config.seed=3')
  assert run.wait() == 2
  assert 'restart' not in run.err


@pytest.mark.slow
@pytest.mark.parametrize('number, both', [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_saves_once_and_ends_with_75(rig, tmp_path, number, both):
  """SIGTERM to the supervisor; Ctrl-C to both, as a terminal sends it."""
  run = rig.start(tmp_path / 'w', '--config.num_steps=100000', '--max_restarts=5')
  run.wait_for_step(4)
  if both:
    os.killpg(run.process.pid, number)
  else:
    run.process.send_signal(number)
  assert run.wait() == 75, run.err
  saved = trainer.newest(tmp_path / 'w')
  assert saved == trainer.last_step(tmp_path / 'w') >= 4
  said = run.err.splitlines()
  assert said[-1].startswith(f'train: stopped by {number.name} after step {saved} of 100000, which is saved')
  assert sum('saving after this step' in line for line in said) == 1
  assert 'second signal' not in run.err
  assert 'restart' not in run.err


@pytest.mark.slow
def test_kill_9_of_the_supervisor_frees_the_workdir(rig, tmp_path):
  run = rig.start(tmp_path / 'w', '--config.num_steps=100000', '--max_restarts=5')
  run.wait_for_step(1)
  run.process.kill()
  run.process.wait()
  with artifact.lock(tmp_path / 'w', wait=True):
    step = trainer.last_step(tmp_path / 'w')
    time.sleep(1)
    assert trainer.last_step(tmp_path / 'w') == step
