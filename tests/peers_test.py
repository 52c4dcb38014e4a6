"""Processes meet, and end with a line that names the one that is missing, lost, stuck, or was started otherwise."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from adversarial_augment import errors
from adversarial_augment.parallel import peers
from tests import trainer

ALIKE = {'facts': 1}


def judge(index: int, theirs: Mapping) -> errors.AdversarialAugmentError | None:
  if 'error' in theirs:
    name, message = theirs['error']
    return errors.rebuilt(name, f'process {index}: {message}')
  return None if theirs['facts'] == ALIKE['facts'] else errors.UserError(f'process {index} says {theirs["facts"]}')


class Meeting:
  """Processes that meet, each in a thread."""

  def __init__(self, number: int, wait: float = 30):
    self.address, self.number, self.wait = f'127.0.0.1:{trainer.free_port()}', number, wait
    self._threads = ThreadPoolExecutor(32)
    self._futures: list[Future] = []
    self.streams: list[socket.socket] = []
    self.began = time.monotonic()

  def start(self, *indices: int, says: Mapping = ALIKE, number: int | None = None) -> list[Future]:
    meet = functools.partial(peers.meet, self.address, number or self.number, wait=self.wait, judge=judge)
    started = [self._threads.submit(meet, index=index, own=says) for index in indices]
    self._futures += started
    return started

  def connect(self, content: bytes) -> socket.socket:
    """Sends something to process 0."""
    host, port = self.address.split(':')
    while True:
      try:
        self.streams.append(socket.create_connection((host, int(port)), timeout=10))
        break
      except OSError:
        assert time.monotonic() - self.began < 10
        time.sleep(0.05)
    with suppress(OSError):  # process 0 may have enough of it
      self.streams[-1].sendall(content)
    return self.streams[-1]

  def close(self) -> None:
    for stream in self.streams:
      stream.close()
    for future in self._futures:
      with suppress(errors.AdversarialAugmentError):
        for link in future.result(40).values():
          link.close()


@pytest.fixture
def meeting():
  with ExitStack() as stack:

    def begin(number: int, wait: float = 30) -> Meeting:
      return stack.enter_context(closing(Meeting(number, wait)))

    yield begin


def outcomes(futures: list[Future]) -> list[str]:
  """What each of them raises, as 'CODE: message'; 'met' for those that do not."""
  found = []
  for future in futures:
    error = future.exception(timeout=40)
    assert error is None or isinstance(error, errors.AdversarialAugmentError), error
    found.append(f'{error.exit_code}: {error}' if error else 'met')
  return found


def test_four_processes_meet_and_leave_the_port_while_they_stay_connected(meeting):
  group = meeting(4)
  links = [future.result(40) for future in group.start(3, 1, 0, 2)]
  assert sorted(map(sorted, links)) == [[0], [0], [0], [1, 2, 3]]
  assert time.monotonic() - group.began < 10
  with socket.socket() as later:  # as JAX's service opens it
    later.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    later.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    later.bind(('0.0.0.0', int(group.address.split(':')[1])))
    later.listen()
  links[2][2].send({'count': 7})
  while not (messages := links[3][0].receive()):
    time.sleep(0.01)
  assert messages == [{'count': 7}]


@pytest.mark.parametrize('missing', [2, 0])
def test_a_process_that_never_comes_is_named(meeting, missing, monkeypatch, capfd):
  monkeypatch.setattr(peers, '_FIRST', 1)
  monkeypatch.setattr(peers, '_EVERY', 1)
  group = meeting(4, wait=4)  # two seconds after the last line that is looked for
  there = [index for index in range(4) if index != missing]
  found = outcomes(group.start(*there))
  assert 3.9 < time.monotonic() - group.began < 10
  lines = capfd.readouterr().err.splitlines()
  if missing:
    assert found == ['75: Cannot begin: no word from process 2 of 4 for 4 s; start all processes of the run.'] * 3
    assert lines.count('waiting for 1 of 4 processes: no word from process 2 for 1 s') == 3
    assert lines.count('waiting for 1 of 4 processes: no word from process 2 for 2 s') == 3
  else:
    assert [text[:60] for text in found] == [f'75: Cannot begin: no word from process 0 at {group.address} '[:60]] * 3
    assert 6 <= sum(line.startswith('waiting for process 0: no word from process 0 at') for line in lines) <= 9


def test_numbers_of_processes_are_words():
  assert peers.named([2]) == 'process 2'
  assert peers.named([2, 3]) == 'processes 2 and 3'
  assert peers.named(range(20, 40)) == 'processes 20, 21, 22, 23, 24, 25, 26, 27, 28 and 11 others'


def test_a_process_that_differs_ends_all_with_one_line_also_those_that_come_later(meeting):
  group = meeting(4)
  first = group.start(0, 1) + group.start(2, says={'facts': 5})
  time.sleep(1)
  assert outcomes(first[1:] + group.start(3) + first[:1]) == ['2: process 2 says 5'] * 4
  assert time.monotonic() - group.began < 10


@pytest.mark.parametrize('index', [0, 3])
def test_an_error_of_one_process_is_told_to_all(meeting, index):
  group = meeting(4)
  others = [other for other in range(4) if other != index]
  futures = group.start(index, says={'error': ['StorageError', 'No disk.']}) + group.start(*others)
  assert outcomes(futures) == [f'5: process {index}: No disk.'] * 4
  assert time.monotonic() - group.began < 10


def test_strangers_change_nothing(meeting):
  group = meeting(3)
  hello = {'adversarial_augment': 1, 'index': 1, 'number': 3, 'host': 'x', 'says': ALIKE}
  garbage = [
    b'GET / HTTP/1.1\r\n\r\n',
    b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    os.urandom(1000) + b'\n',
    b'[' * 100_000 + b'\n',
    b'9' * 10_000 + b'\n',
    b'{}\n',
    b'[]\n',
    b'',
    b'{"adversarial_augment": 1',
    *(json.dumps(hello | change).encode() + b'\n' for change in [
      {'adversarial_augment': 2}, {'index': -1}, {'index': 3}, {'index': '1'}, {'index': True}, {'index': None},
      {'number': 1e9}, {'host': 5}, {'says': 5}, {'says': {}}, {'says': {'error': 5}}, {'says': {'error': ['a']}},
    ]),
  ]  # fmt: skip
  futures = group.start(0, 1)
  streams = [group.connect(content) for content in garbage]
  threading.Thread(target=group.connect, args=[b'x' * (4 << 20)], daemon=True).start()  # no line at all
  time.sleep(0.5)
  assert outcomes(futures + group.start(2)) == ['met'] * 3
  assert all(stream.recv(100) == b'' for stream in streams[:7])


def test_a_flood_of_silent_connections_changes_nothing(meeting):
  group = meeting(2)
  futures = group.start(0)
  streams = [group.connect(b'') for _ in range(200)]
  assert outcomes(futures + group.start(1)) == ['met'] * 2
  assert len(streams) == 200


def test_an_index_that_is_there_already_ends_the_second_process_alone(meeting):
  group = meeting(3)
  first = group.start(0, 1)
  time.sleep(0.5)
  twice = [f'2: Process 1 of the run has been started already, on {peers.host_name()}; wait until it ends, or give']
  assert [text[: len(twice[0])] for text in outcomes(group.start(1))] == twice
  ((text,), rest) = outcomes(group.start(0)), first + group.start(2)
  assert 'cannot be opened (Address already in use' in text
  assert outcomes(rest) == ['met'] * 3


def test_a_process_that_ends_before_all_have_come_may_come_again(meeting):
  group = meeting(3)
  futures = group.start(0)
  hello = {'adversarial_augment': 1, 'index': 1, 'number': 3, 'host': 'x', 'says': ALIKE}
  group.connect(json.dumps(hello).encode() + b'\n').close()
  time.sleep(0.5)
  assert outcomes(futures + group.start(1, 2)) == ['met'] * 3


RUN = """
  import ctypes, os, sys, threading, time
  from adversarial_augment import cli
  from adversarial_augment.cli import progress
  from adversarial_augment.parallel import peers
  peers._GRACE, peers._SETTLE = 2, 1.0
  port, index, number, watchdog = sys.argv[1], int(sys.argv[2]), 3, float(sys.argv[3])
  links = peers.meet(f'127.0.0.1:{port}', number, index, {}, wait=30, judge=lambda *_: None)
  watch = peers.Watch(index, links, watchdog)
  watch.start()
  cli.watches.append(watch)
  def keep_on():
    while not os.path.exists(f'{port}.stuck'):
      progress.made()
      time.sleep(0.1)
  threading.Thread(target=keep_on, daemon=True).start()
  def main(argv):
    print('met', flush=True)
    order = sys.stdin.readline().strip()
    return eval(order) if order else time.sleep(100)
  cli.run(main)
"""


class Trio:
  """Three processes that watch each other, without JAX; what is written to one is evaluated in it."""

  def __init__(self, folder, watchdog: float = 30):
    self.port, self.folder = trainer.free_port(), folder
    env = os.environ | {'PYTHONPATH': str(trainer.ROOT)}
    self.processes = [
      subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(RUN), str(self.port), str(index), str(watchdog)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=env,
      )
      for index in range(3)
    ]  # fmt: skip
    for process in self.processes:
      assert process.stdout.readline() == 'met\n', process.stderr.read()

  def order(self, index: int, text: str) -> None:
    self.processes[index].stdin.write(f'{text}\n')
    self.processes[index].stdin.flush()

  def end(self, *indices: int, patience: float = 20) -> tuple[list[int], list[str]]:
    """Returns the exit codes and what was printed."""
    began, ended = time.monotonic(), [self.processes[index] for index in indices]
    codes = [process.wait(max(0.1, began + patience - time.monotonic())) for process in ended]
    return codes, [process.stderr.read() for process in ended]

  def kill(self) -> None:
    for process in self.processes:
      process.kill()
      process.wait()
      for stream in (process.stdin, process.stdout, process.stderr):
        with suppress(BrokenPipeError):
          stream.close()


@pytest.fixture
def trio(tmp_path):
  started: list[Trio] = []

  def start(**options) -> Trio:
    started.append(Trio(tmp_path, **options))
    return started[-1]

  yield start
  for one in started:
    one.kill()


def lost(index: int) -> str:
  about = (
    f'Process {index} of the run, on {peers.host_name()}, was lost: its connection is closed. What is saved is kept'
  )
  return f'{about}; run the same command again to resume.\n'


@pytest.mark.parametrize('victim', range(3))
def test_a_killed_process_ends_the_others_at_once_with_its_name(trio: Callable[..., Trio], victim):
  group = trio()
  group.processes[victim].kill()
  others = [index for index in range(3) if index != victim]
  assert group.end(*others, patience=5) == ([75, 75], [lost(victim)] * 2)


@pytest.mark.slow
def test_an_error_that_the_loss_has_caused_is_not_shown(trio: Callable[..., Trio]):
  group = trio()
  group.order(1, '1 / 0')
  time.sleep(0.3)
  group.processes[2].kill()
  assert group.end(0, 1) == ([75, 75], [lost(2)] * 2)


def test_a_process_that_aborts_as_process_0_is_lost_ends_with_the_line(trio: Callable[..., Trio]):
  group = trio()
  group.order(1, 'ctypes.CDLL(None).abort()')
  time.sleep(0.3)
  group.processes[0].kill()
  assert group.end(1, 2) == ([75, 75], [lost(0)] * 2)


@pytest.mark.slow
def test_an_abort_for_another_reason_ends_all(trio: Callable[..., Trio]):
  group = trio()
  group.order(1, 'ctypes.CDLL(None).abort()')
  assert group.end(0, 1, 2) == ([75, -signal.SIGABRT, 75], [lost(1), '', lost(1)])


@pytest.mark.parametrize('code', [0, 2])
def test_processes_that_end_together_end_with_their_own_codes(trio: Callable[..., Trio], code):
  group = trio()
  for index in (1, 2, 0):
    group.order(index, str(code))
    time.sleep(0.3)
  assert group.end(0, 1, 2) == ([code] * 3, [''] * 3)


@pytest.mark.parametrize('first', [0, 1])
@pytest.mark.parametrize('order, code, others', [('3', 3, 3), ('1 / 0', 1, 75)])
def test_a_process_that_fails_alone_ends_the_others_soon(trio: Callable[..., Trio], first, order, code, others):
  group = trio()
  group.order(first, order)
  codes, texts = group.end(0, 1, 2)
  assert codes == [code if index == first else others for index in range(3)]
  for index in range(3):
    if index == first:
      assert ('ZeroDivisionError' in texts[index]) == (code == 1)
    else:
      assert texts[index].startswith(
        f'Process {first} of the run, on {peers.host_name()}, has ended with exit code {code}.'
      )


@pytest.mark.parametrize('victim', [0, 2])
def test_a_stopped_process_is_named_and_ends_when_it_wakes_up(trio: Callable[..., Trio], victim):
  group = trio(watchdog=3)
  time.sleep(1)
  group.processes[victim].send_signal(signal.SIGSTOP)
  codes, texts = group.end(*(index for index in range(3) if index != victim), patience=10)
  assert codes == [75, 75]
  for text in texts:
    assert text.startswith(
      f'Process {victim} of the run, on {peers.host_name()}, is stopped or lost: no word from it for 3 s'
    )
  group.processes[victim].send_signal(signal.SIGCONT)
  assert group.end(victim, patience=5)[0] == [75]


@pytest.mark.slow
def test_a_job_that_was_suspended_as_a_whole_goes_on(trio: Callable[..., Trio]):
  group = trio(watchdog=2)
  for number in (signal.SIGSTOP, signal.SIGCONT):
    for process in group.processes:
      process.send_signal(number)
    time.sleep(4)
  for index in range(3):
    group.order(index, '0')
  assert group.end(0, 1, 2) == ([0] * 3, [''] * 3)


def test_a_run_that_is_stuck_ends_with_all_stacks(trio: Callable[..., Trio], tmp_path):
  group = trio(watchdog=2)
  (tmp_path / f'{group.port}.stuck').touch()
  codes, texts = group.end(0, 1, 2, patience=10)
  assert codes == [75] * 3
  for text in texts:
    assert text.startswith('The run is stuck: no process has made progress for 2 s. What is saved is kept; ')
    assert 'in main\n' in text
    assert 'most recent call first' in text
