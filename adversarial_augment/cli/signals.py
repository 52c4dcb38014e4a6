"""Stopping a program. SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal has closed) stop a run between two steps.

A single process handles its signals itself. While nothing is unsaved, as during the first compilation, in `evaluate`
and in `prepare`, it exits at once; otherwise the loop saves first. Several processes leave SIGTERM to the preemption
service of JAX, which stops all of them after the same step; a handler of our own would disable it.

Launchers and schedulers send a signal to a process and to its group, so it arrives twice. Signals within a second of
the first one count as the same; a later one exits without saving. With several processes only a Ctrl-C does, because
JAX's service ignores a second SIGTERM.
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

from adversarial_augment.cli import streams
from adversarial_augment.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME = 1.0  # seconds within which a second signal counts as the first one
RESUME = 'run the same command again to resume'


class Stop:
  """Whether the run was asked to stop. The loop keeps `unsaved` and `kept` up to date."""

  def __init__(self, several_processes: bool, kept: str, resume: str):
    self.unsaved = False  # whether steps have been made that no checkpoint holds
    self.kept = kept  # what a stop leaves, for the message: 'no step has been made'
    self._several_processes, self._resume = several_processes, resume
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
    """Handles a signal: notes the first one, or exits if nothing is unsaved; a later one exits without saving."""
    name = signal.Signals(number).name
    if self._asked is not None:
      if time.monotonic() - self._asked >= _SAME:
        _exit(f'second signal ({name}): exiting without saving; {self.kept}; {self._resume}.', 128 + number)
      return
    if not self.unsaved and not self._several_processes:
      _exit(f'stopped by {name}: {self.kept}; {self._resume}.', 75)
    self._asked = time.monotonic()
    if self._several_processes:
      os.kill(os.getpid(), signal.SIGTERM)  # which JAX's preemption service handles
      streams.say_at_once(
        f'{name}: saving after a step of all processes; press Ctrl-C again after a second to exit without saving.'
      )
    else:
      self._name = name
      streams.say_at_once(f'{name}: saving after this step; send another signal after a second to exit without saving.')


@contextmanager
def listen(several_processes: bool, kept: str, resume: str = RESUME) -> Iterator[Stop]:
  """Handles the signals during the block; see `Stop`. Outside the main thread (notebooks' workers) it does nothing."""
  stop = Stop(several_processes, kept, resume)
  numbers = [number for number in _SIGNALS if not (several_processes and number == signal.SIGTERM)]
  with watched(numbers, stop.receive):
    try:
      yield stop
    finally:
      if stop._asked is not None:  # the signal's twin must have arrived too
        time.sleep(max(0.0, stop._asked + _SAME - time.monotonic()))


@contextmanager
def watched(
  numbers: Sequence[signal.Signals], receive: Callable[[int], None], restored: Sequence[signal.Signals] = _SIGNALS
) -> Iterator[None]:
  """Has a thread call `receive` for each of these signals: Python's own handlers would wait for a compilation to end.

  SIGHUP is left alone if it is ignored, as under nohup. Only those in `restored` get their former handlers back.
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
    _restore({number: handler for number, handler in previous.items() if number in restored})
    writer.close()  # ends the thread
    thread.join()
    reader.close()


def raise_once() -> None:
  """Makes the first signal raise Interrupted, or KeyboardInterrupt for SIGINT, outside `listen`."""

  def first(number: int, _: object) -> None:
    began = time.monotonic()

    def again(number: int, _: object) -> None:
      if time.monotonic() - began >= _SAME:
        _exit(f'second signal ({signal.Signals(number).name}): exiting at once.', 128 + number)

    handle(again)
    if number == signal.SIGINT:
      raise KeyboardInterrupt
    raise Interrupted(f'stopped by {signal.Signals(number).name}')

  handle(first)


def ignore() -> None:
  """Makes signals change nothing from here on; at its exit, Python restores handlers."""
  handle(signal.SIG_IGN)


@contextmanager
def at_once() -> Iterator[None]:
  """Lets signals kill the process during the block, which may be a compiler that looks at none."""
  before = {number: signal.signal(number, signal.SIG_DFL) for number in _SIGNALS}
  try:
    yield
  finally:
    _restore(before)


def handle(handler: Any) -> None:
  """Sets the handler of every signal that is not ignored."""
  # Jobs in the background of a script ignore some signals.
  _restore({number: handler for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN})


def _restore(handlers: dict[signal.Signals, Any]) -> None:
  for number, handler in handlers.items():
    signal.signal(number, handler)


def _exit(message: str, code: int) -> None:
  streams.say_at_once(message)
  with suppress(OSError):
    sys.stdout.flush()
  os._exit(code)
