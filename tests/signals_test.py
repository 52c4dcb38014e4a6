"""Signals as launchers send them, twice within milliseconds, and as a person does, who means a second one."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

# A run whose step is under way: it says so, waits until it is asked to stop, takes a while to save, and says that, too.
UNDER_WAY = """
  import sys, time
  from adversarial_augment import cli
  from adversarial_augment.cli import signals
  from adversarial_augment.errors import Stopped
  def main(argv):
    with signals.listen(False, 'step 3 is saved') as stop:
      stop.unsaved = argv[0] == 'unsaved'
      print('under way', flush=True)
      while not stop.requested():
        time.sleep(0.01)
      time.sleep(float(argv[1]))
      print('saved', flush=True)
      raise Stopped('stopped.')
  cli.run(main)
"""
IDLE = """
  import time
  from adversarial_augment import cli
  def main(argv):
    try:
      print('under way', flush=True)
      time.sleep(60)
    finally:
      time.sleep(float(argv[0]))
  cli.run(main, kept='nothing was written; run the same command again')
"""
NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]  # the last one: the terminal has gone


def start(code: str, *arguments: str) -> subprocess.Popen:
  process = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'under way\n'
  return process


def send(process: subprocess.Popen, *numbers: signal.Signals, apart: float = 0.005) -> None:
  for number in numbers:
    process.send_signal(number)
    time.sleep(apart)


@pytest.mark.parametrize('second', NUMBERS)
@pytest.mark.parametrize('first', NUMBERS)
@pytest.mark.parametrize('saving', ['0', '0.5'])  # the second one comes after the save, and while it goes on
def test_a_signal_that_arrives_twice_saves(first, second, saving):
  process = start(UNDER_WAY, 'unsaved', saving)
  send(process, first, second, first)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out) == (75, 'saved\n'), err
  said = f'{first.name}: saving after this step; send another signal after a second to exit without saving.'
  assert err.splitlines() == [said, '-c: stopped.']


@pytest.mark.parametrize('second', NUMBERS)
def test_a_second_signal_after_a_second_ends_at_once_and_says_so(second):
  process = start(UNDER_WAY, 'unsaved', '60')
  send(process, signal.SIGTERM, signal.SIGTERM)
  time.sleep(1.2)
  send(process, second)
  out, err = process.communicate(timeout=10)
  assert (process.returncode, out) == (128 + second, '')
  end = f'second signal ({second.name}): exiting without saving; step 3 is saved; run the same command again to resume.'
  assert err.splitlines()[-1] == end


def test_where_nothing_is_unsaved_the_first_one_says_what_is_kept():
  process = start(UNDER_WAY, 'saved', '60')
  send(process, signal.SIGTERM, signal.SIGTERM)
  _, err = process.communicate(timeout=10)
  assert process.returncode == 75
  assert err == 'stopped by SIGTERM: step 3 is saved; run the same command again to resume.\n'


@pytest.mark.parametrize(
  'number, code, word',
  [
    (signal.SIGTERM, 75, 'stopped by SIGTERM'),
    (signal.SIGHUP, 75, 'stopped by SIGHUP'),
    (signal.SIGINT, 130, 'interrupted'),
  ],
)
def test_outside_of_runs_too(number, code, word):
  process = start(IDLE, '0.3')
  send(process, number, number, number)
  _, err = process.communicate(timeout=10)
  assert process.returncode == code
  assert err == f'-c: {word}: nothing was written; run the same command again.\n'
  process = start(IDLE, '60')
  send(process, number)
  time.sleep(1.2)
  send(process, number)
  _, err = process.communicate(timeout=10)
  assert process.returncode == 128 + number
  assert err == f'second signal ({number.name}): exiting at once.\n'


@pytest.mark.parametrize('state', ['unsaved', 'saved'])
def test_under_nohup_the_end_of_the_terminal_changes_nothing(state):
  process = start(
    f'import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{textwrap.dedent(UNDER_WAY)}', state, '0'
  )
  send(process, signal.SIGHUP, signal.SIGHUP)
  time.sleep(0.3)
  assert process.poll() is None
  send(process, signal.SIGTERM)
  _, err = process.communicate(timeout=10)
  assert process.returncode == 75
  assert 'SIGHUP' not in err


def test_a_signal_at_the_very_end_changes_nothing():
  code = """
    import atexit, time
    from adversarial_augment import cli
    atexit.register(lambda: (print('under way', flush=True), time.sleep(1)))
    cli.run(lambda argv: None)
  """
  for number in NUMBERS:
    process = start(code)
    send(process, number, number)
    assert process.communicate(timeout=10) == ('', '')
    assert process.returncode == 0
