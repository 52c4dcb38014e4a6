"""Stopping a run from outside: Ctrl-C and SIGTERM become a question that the host loop asks between steps.

One process owns its signals itself: while nothing is unsaved, as in the first compilation, in `evaluate` and in
`prepare`, it ends at once; else the loop saves first. Several processes leave SIGTERM to JAX's preemption service,
whose sync point makes all of them stop after the same step; a handler of our own would switch that service off. A
second SIGTERM does nothing there; a second Ctrl-C ends the process, and with it the run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
import os
import signal
import socket
import sys
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
  """Whether the run was asked to stop."""

  def __init__(self, several_processes: bool, again: str):
    self.unsaved = False  # whether steps have been made that no checkpoint holds; the loop keeps it up to date
    self._several_processes, self._again = several_processes, again
    self._polls = 0
    self._name = ''

  def requested(self) -> str:
    """Returns the signal's name, or ''; with several processes all call it together and get the same answer."""
    if self._several_processes and not self._name:
      from jax.experimental import multihost_utils

      self._polls += 1
      if multihost_utils.reached_preemption_sync_point(self._polls):
        self._name = 'SIGTERM'
    return self._name

  def receive(self, number: int) -> None:
    """Notes a signal of a run of one process; ends it at once where nothing is lost by that, or on the second one."""
    name = signal.Signals(number).name
    if self._name:
      _exit(f'second signal ({name}): ending at once; the last checkpoint stays.', 128 + number)
    if not self.unsaved:
      _exit(f'stopped by {name} with nothing to save; {self._again}.', 75)
    self._name = name
    _say(f'{name}: saving after this step; a second signal ends at once.')


@contextmanager
def listen(several_processes: bool, again: str = 'the same command goes on') -> Iterator[Stop]:
  """Takes SIGINT and SIGTERM for the block. Outside the main thread (notebooks' workers) it leaves them alone.

  Args:
    several_processes: whether the run has others.
    again: how to go on after a stop, for the message.
  """
  stop = Stop(several_processes, again)
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  if several_processes:
    previous = {signal.SIGINT: signal.signal(signal.SIGINT, _pass_on)}
    try:
      yield stop
    finally:
      _restore(previous)
    return
  # A thread reads the signals from a socket: Python's own handlers would wait for the end of a compilation.
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  previous = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
  previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

  def watch() -> None:
    while number := reader.recv(1):
      if number[0] in _SIGNALS:
        stop.receive(number[0])

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield stop
  finally:
    signal.set_wakeup_fd(previous_fd)
    _restore(previous)
    writer.close()  # ends the thread
    thread.join()
    reader.close()


def _pass_on(number: int, frame: object) -> None:
  """Lets JAX's preemption service see a Ctrl-C; another one ends the process."""
  signal.signal(number, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGTERM)
  _say('SIGINT: saving after a step of all processes; a second Ctrl-C ends at once.')


def _restore(previous: dict) -> None:
  for number, handler in previous.items():
    signal.signal(number, handler)


def _say(message: str) -> None:
  # Past Python's buffers, which a signal may have found locked; the progress bar leaves the cursor in its line.
  start = '\n' if os.isatty(2) else ''
  os.write(2, f'{start}{message}\n'.encode())


def _exit(message: str, code: int) -> None:
  _say(message)
  sys.stdout.flush()
  os._exit(code)
