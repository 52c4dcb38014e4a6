"""Stopping from outside. Ctrl-C, SIGTERM and SIGHUP (the terminal has gone) become a question, asked between steps.

One process owns its signals itself: while nothing is unsaved, as in the first compilation, in `evaluate` and in
`prepare`, it ends at once; else the loop saves first. Several processes leave SIGTERM to JAX's preemption service,
whose sync point makes all of them stop after the same step; a handler of our own would switch that service off.

Launchers and schedulers send a signal to a process and to its group, so that it arrives twice. What follows within a
second of the first one is taken for the same; a later one ends the process without saving (with several processes a
Ctrl-C does; JAX's service ignores a second SIGTERM).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from adversarial_augment.errors import Interrupted, Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME = 1.0  # seconds within which a second signal is taken for the first one


class Stop:
  """Whether the run was asked to stop."""

  def __init__(self, several_processes: bool, kept: str, again: str):
    self.unsaved = False  # whether steps have been made that no checkpoint holds; the loop keeps it up to date
    self.kept = kept  # what a stop leaves; likewise
    self._several_processes, self._again = several_processes, again
    self._polls = 0
    self._asked: float | None = None  # when
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
    """Takes a signal: notes the first one, or ends where nothing is unsaved; a later one ends without saving."""
    name = signal.Signals(number).name
    if self._asked is not None:
      if time.monotonic() - self._asked >= _SAME:
        _exit(f'second signal ({name}): ending at once without saving; {self.kept}, {self._again}.', 128 + number)
      return
    if not self.unsaved and not self._several_processes:
      _exit(f'stopped by {name}: {self.kept}, {self._again}.', 75)
    self._asked = time.monotonic()
    if self._several_processes:
      os.kill(os.getpid(), signal.SIGTERM)  # which JAX's preemption service takes
      _say(f'{name}: saving after a step of all processes; another Ctrl-C, a second or more from now, does not save.')
    else:
      self._name = name
      _say(f'{name}: saving after this step; another signal, a second or more from now, ends at once without saving.')

  def settle(self) -> None:
    """Waits, where a signal came, until its twin must have come, too."""
    if self._asked is not None:
      time.sleep(max(0.0, self._asked + _SAME - time.monotonic()))


@contextmanager
def listen(several_processes: bool, kept: str, again: str = 'and the same command goes on') -> Iterator[Stop]:
  """Takes these signals for the block. Outside the main thread (notebooks' workers) it leaves them alone.

  Args:
    several_processes: whether the run has others.
    kept: what a stop leaves, for the message: 'no step has been made'.
    again: how to go on after a stop, likewise.
  """
  stop = Stop(several_processes, kept, again)
  numbers = [number for number in _SIGNALS if not (several_processes and number == signal.SIGTERM)]
  with watched(numbers, stop.receive):
    try:
      yield stop
    finally:
      stop.settle()


@contextmanager
def watched(
  numbers: Sequence[signal.Signals], receive: Callable[[int], None], restored: Sequence[signal.Signals] = _SIGNALS
) -> Iterator[None]:
  """Has a thread call `receive` with each of these signals: Python's own handlers would wait for a compilation to end.

  Args:
    numbers: the signals; SIGHUP is left alone where it is ignored, as under nohup.
    receive: called on the thread.
    restored: those that get their former handlers back; the others have been taken by somebody else meanwhile.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  numbers = [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
  previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

  def watch() -> None:
    while number := reader.recv(1):
      if number[0] in numbers:
        receive(number[0])

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(previous_fd)
    for number, handler in previous.items():
      if number in restored:
        signal.signal(number, handler)
    writer.close()  # ends the thread
    thread.join()
    reader.close()


def raise_once() -> None:
  """Makes SIGTERM and SIGHUP raise Interrupted, and SIGINT KeyboardInterrupt, where nobody listens; once only."""

  def first(number: int, _: object) -> None:
    began = time.monotonic()

    def again(number: int, _: object) -> None:
      if time.monotonic() - began >= _SAME:
        _exit(f'second signal ({signal.Signals(number).name}): ending at once.', 128 + number)

    _handle(again)
    if number == signal.SIGINT:
      raise KeyboardInterrupt
    raise Interrupted(f'stopped by {signal.Signals(number).name}')

  _handle(first)


def ignore() -> None:
  """Lets nothing that comes from here on change how the process ends; at its exit, Python gives handlers back."""
  _handle(signal.SIG_IGN)


def _handle(handler: Any) -> None:
  for number in _SIGNALS:
    if signal.getsignal(number) != signal.SIG_IGN:  # as of jobs in the background of a script
      signal.signal(number, handler)


@contextmanager
def keeping(kept: str) -> Iterator[None]:
  """Says what stays and what goes on where a signal ends the block, in which nobody listens; a decorator, too."""
  try:
    yield
  except Interrupted as error:
    raise Stopped(f'{error}: {kept}.') from None
  except KeyboardInterrupt as error:
    raise KeyboardInterrupt(str(error) or kept) from None


@contextmanager
def at_once() -> Iterator[None]:
  """Lets signals end the process while the block runs, which looks at none, as a compiler; nothing may be unsaved."""
  before = {number: signal.signal(number, signal.SIG_DFL) for number in _SIGNALS}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _say(message: str) -> None:
  # Past Python's buffers, which a signal may have found locked; the progress bar leaves the cursor in its line.
  with suppress(OSError):
    start = '\n' if os.isatty(2) else ''
    os.write(2, f'{start}{message}\n'.encode(errors='backslashreplace'))


def _exit(message: str, code: int) -> None:
  _say(message)
  with suppress(OSError):
    sys.stdout.flush()
  os._exit(code)
