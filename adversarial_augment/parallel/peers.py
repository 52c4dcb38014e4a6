"""How the processes of a run meet, and how they notice that one of them is lost, stuck, or has failed.

Every process has a connection to process 0, over which both send lines of JSON. Process 0 listens at the address of the
run until all have come; then it leaves the port to JAX's service, and the connections stay. A thread in each process
sends a heartbeat each second, and ends the process when another one is gone: JAX would wait in a collective, or abort.

No JAX here. What arrives may come from anybody: it is bounded, and nothing in it is called.
"""

import atexit
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
import ctypes
import faulthandler
import json
from multiprocessing import connection
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from adversarial_augment import cli, errors
from adversarial_augment.cli import progress, signals, streams
from adversarial_augment.errors import AdversarialAugmentError, PeerError, UserError

_PROTOCOL = 1
_LONGEST = 1 << 20  # bytes of a line
_STRANGERS = 64  # connections that have not said who they are
_TURN = 0.2  # seconds, at most, between two looks at the connections
_PULSE = 1.0  # seconds between two heartbeats
_FIRST, _EVERY = 5, 30  # seconds until the first line about who is missing, and between the next ones
_TELL = 30  # seconds for which a process that cannot begin waits for the others, to tell them why
_SETTLE = 3  # seconds within which the loss of a process is noticed
_GRACE = 10  # seconds for which a process may go on after another one has failed: it may be about to fail as well
_LAST = 300  # seconds for which process 0, at its end, waits for the others to end
_GONE = 60  # seconds after which a host that does not answer has left the network
_FINAL = (2, 3, 4, 5)  # exit codes after which a restart does not help


class Link:
  """A connection that carries lines of JSON and never blocks."""

  def __init__(self, stream: socket.socket):
    stream.setblocking(False)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, 'TCP_USER_TIMEOUT'):  # of Linux; heartbeats are what it waits for
      stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE * 1000)
    self.stream, self.closed = stream, False
    self.began = time.monotonic()
    self.quiet = 0.0  # seconds without a word
    self.left: int | None = None  # the exit code with which the process said goodbye
    self.after_end = 0.0  # seconds since then
    self.host = ''
    self._received, self._unsent = bytearray(), bytearray()

  def fileno(self) -> int:
    return self.stream.fileno()

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends as much as the connection takes at once; the rest goes with the next call."""
    self._unsent += json.dumps(message).encode() + b'\n'
    self.flush()

  def flush(self) -> None:
    """Sends what is left to send."""
    try:
      while self._unsent and not self.closed:
        del self._unsent[: self.stream.send(self._unsent)]
    except BlockingIOError:
      if len(self._unsent) > 2 * _LONGEST:  # it has been stopped for days
        self.close()
    except OSError:
      self.close()

  def receive(self) -> list[dict[str, Any]]:
    """Returns the messages that have come; the end of the connection, an error or garbage closes it."""
    try:
      while len(self._received) <= _LONGEST:
        piece = self.stream.recv(1 << 16)
        if not piece:
          self.closed = True
          break
        self._received += piece
    except BlockingIOError:
      pass
    except OSError:
      self.closed = True
    *lines, rest = bytes(self._received).split(b'\n')
    self._received = bytearray(rest)
    messages = []
    try:
      for line in lines:
        message = json.loads(line)
        if not isinstance(message, dict):
          raise ValueError('no JSON object')
        messages.append(message)
    except (ValueError, RecursionError):
      self.closed = True
    self.closed |= len(rest) > _LONGEST
    if self.closed:
      self.close()
    return messages

  def close(self) -> None:
    self.closed = True
    with suppress(OSError):
      self.stream.close()


def meet(
  address: str,
  number: int,
  index: int,
  own: Mapping[str, Any],
  *,
  wait: float,
  judge: Callable[[int, Mapping[str, Any]], AdversarialAugmentError | None],
) -> dict[int, Link]:
  """Waits until all processes have come, and all are told whether the run can begin.

  Args:
    address: of process 0, HOST:PORT.
    number: of processes.
    index: of this one.
    own: what process 0 shall know of this one, as JSON.
    wait: seconds after which a process has not come.
    judge: on process 0, returns why a run cannot begin with a process of that index that says this; also called for
      process 0 itself.

  Returns:
    The connections to the others, by their index: on process 0 to all, on others to process 0.

  Raises:
    AdversarialAugmentError: the run cannot begin; the same on all processes.
  """
  if index == 0:
    with _listen(address) as listener:
      return _Hosting(listener, number, wait, judge).run(own)
  hello = {'adversarial_augment': _PROTOCOL, 'index': index, 'number': number, 'host': host_name(), 'says': own}
  return {0: _join(address, hello, wait)}


def host_name() -> str:
  return socket.gethostname()[:255]


def named(indices: Sequence[int]) -> str:
  """Returns 'process 2', 'processes 2 and 3', or 'processes 1, 2, 3 and 4 others'."""
  words = [str(index) for index in indices]
  if len(words) > 10:
    words = [*words[:9], f'{len(words) - 9} others']
  several = f'{", ".join(words[:-1])} and ' if len(words) > 1 else ''
  return f'process{"es" if several else ""} {several}{words[-1]}'


def _listen(address: str) -> socket.socket:
  host, _, port = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', '').rpartition(':')  # where JAX's service will listen
  host, port = host.strip('[]'), port or address.rpartition(':')[2]
  both = host in ('', '::') and socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both or ':' in host else socket.AF_INET
  try:
    return socket.create_server((host, int(port)), family=family, dualstack_ipv6=both, backlog=1024)
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(
      f'Cannot join the processes of the run: the port of {address} cannot be opened ({reason}); name another one, or '
      'end the program that uses it: it may be a process 0 of this run that was started already.'
    ) from error


class _Hosting:
  """Process 0 until all have come."""

  def __init__(self, listener: socket.socket, number: int, wait: float, judge: Callable):
    self._listener, self._number, self._wait, self._judge = listener, number, wait, judge
    self._strangers: list[Link] = []
    self._links: dict[int, Link] = {}
    self._failure: AdversarialAugmentError | None = None
    self._told: set[int] = set()  # who knows of it

  def run(self, own: Mapping[str, Any]) -> dict[int, Link]:
    began, due, end = time.monotonic(), _FIRST, self._wait
    self._fail(self._judge(0, own))
    while missing := [index for index in range(1, self._number) if index not in (self._told or self._links)]:
      passed = time.monotonic() - began
      if self._failure:
        end = min(end, passed + _TELL)
      elif passed >= due:
        line = (
          f'waiting for {len(missing)} of {self._number} processes: no word from {named(missing)} for {passed:.0f} s'
        )
        streams.say(line)
        for link in self._links.values():
          link.send({'waiting': line})
        due += _EVERY - due % _EVERY
      if passed >= end:
        break
      self._look()
    for stranger in self._strangers:
      stranger.close()
    if missing and not self._failure:
      self._fail(
        PeerError(
          f'Cannot begin: no word from {named(missing)} of {self._number} for {self._wait:.0f} s; start all processes '
          'of the run.'
        )
      )
    if self._failure:
      for link in self._links.values():
        link.close()
      raise self._failure
    for link in self._links.values():
      link.send({'go': host_name()})
    return self._links

  def _look(self) -> None:
    if self._listener in _wait([self._listener, *self._strangers, *self._links.values()]):
      with suppress(OSError):
        self._strangers.append(Link(self._listener.accept()[0]))
    for index, link in list(self._links.items()):
      link.receive()
      link.flush()
      if link.closed:  # it has ended, and may be started again
        del self._links[index]
    for stranger in list(self._strangers):
      messages = stranger.receive()
      if messages or stranger.closed or time.monotonic() - stranger.began > _GRACE:
        self._strangers.remove(stranger)
        if not (messages and self._admit(stranger, messages[0])):
          stranger.close()
    while len(self._strangers) > _STRANGERS:
      self._strangers.pop(0).close()

  def _admit(self, link: Link, hello: Mapping[str, Any]) -> bool:
    """Returns whether a process of the run says this; answers it if the run cannot begin."""
    index, number, host, says = (hello.get(name) for name in ('index', 'number', 'host', 'says'))
    if hello.get('adversarial_augment') != _PROTOCOL or type(index) is not int or type(number) is not int:
      return False
    if not (0 <= index < number and isinstance(host, str) and isinstance(says, dict)):
      return False
    if index == 0 or index in self._links:
      where = self._links[index].host if index else host_name()
      twice = f'Process {index} of the run has been started already, on {where}; wait until it ends.'
      _tell(link, UserError(twice, remedy='process_id'))
      return False
    try:
      failure = self._failure or self._judge(index, says)
    except (KeyError, TypeError, ValueError):  # no process of ours says this
      return False
    link.host = host[:255]
    self._links[index] = link
    self._fail(failure)
    if self._failure:
      _tell(link, self._failure)
      self._told.add(index)
    return True

  def _fail(self, failure: AdversarialAugmentError | None) -> None:
    """Tells all that have come why the run cannot begin; the first reason counts."""
    if failure and not self._failure:
      self._failure = failure
      for index, link in self._links.items():
        _tell(link, failure)
        self._told.add(index)


def _wait(waited: Sequence[Any]) -> Sequence[Any]:
  """Returns those of some sockets from which something has come, after a turn at most."""
  waited = [one for one in waited if one.fileno() >= 0]  # others have been closed
  if not waited:
    time.sleep(_TURN)
  return connection.wait(waited, _TURN) if waited else []


def _tell(link: Link, failure: AdversarialAugmentError) -> None:
  link.send({'error': [type(failure).__name__, cli.describe(failure)]})


def _join(address: str, hello: Mapping[str, Any], wait: float) -> Link:
  """Returns the connection to process 0, once it has said that the run can begin."""
  host, _, port = address.rpartition(':')
  failed = 'error' in hello['says']
  began, due, end = time.monotonic(), _FIRST, min(wait, _TELL) if failed else wait
  while True:
    reason: Any = 'no answer'
    try:
      with ExitStack() as stack:
        stream = stack.enter_context(socket.create_connection((host.strip('[]'), int(port)), timeout=_GRACE))
        if stream.getsockname() != stream.getpeername():  # a free port of this machine can be connected with itself
          stream.sendall(json.dumps(hello).encode() + b'\n')
          link = Link(stream)
          if _accepted(link):
            stack.pop_all()
            return link
    except AdversarialAugmentError:  # some of which are OSErrors
      raise
    except OSError as error:
      reason = error.strerror or error
    passed = time.monotonic() - began
    where = f'process 0 at {address} for {passed:.0f} s ({reason})'
    if passed >= end:
      raise PeerError(f'Cannot begin: no word from {where}; start all processes of the run, with the same address.')
    if passed >= due:
      streams.say(f'waiting for process 0: no word from {where}')
      due += _EVERY - due % _EVERY
    time.sleep(_TURN)


def _accepted(link: Link) -> bool:
  """Returns whether process 0 says that the run can begin; False if it has gone."""
  while not link.closed:
    _wait([link])
    for message in link.receive():
      if 'go' in message:
        link.host = str(message['go'])[:255]
        return True
      if 'error' in message:
        name, text = message['error']
        raise errors.rebuilt(str(name), str(text))
      streams.say(streams.printable(str(message.get('waiting'))))
  return False


class Watch:
  """The thread that ends this process when another one of the run is gone.

  Args:
    index: of this process.
    links: what `meet` returns.
    watchdog: seconds without a heartbeat of a process, or without progress of any, after which all end.
  """

  def __init__(self, index: int, links: dict[int, Link], watchdog: float):
    self._index, self._links, self._watchdog = index, links, watchdog
    self._code: int | None = None  # with which this process ends
    self._failing = False
    self._done = threading.Event()  # the others need this process no more
    self._counts: dict[int, int] = {}  # what each process has done so far
    self._idle = 0.0  # seconds without progress of any process

  def start(self) -> None:
    """Starts the thread."""
    _delay_aborts()
    threading.Thread(target=self._run, daemon=True, name='peers').start()
    atexit.register(lambda: self.leave(1 if hasattr(sys, 'last_value') else 0))

  def settle(self) -> None:
    """Waits until the thread ends this process, if the loss of another one has caused an error that has come up."""
    self._failing = True
    time.sleep(_SETTLE)

  def leave(self, code: int) -> None:
    """Tells the others that this process ends; process 0, without which JAX aborts, lets them end first."""
    if self._code is None:
      self._code = code
    self._done.wait((_LAST if code == 0 else 2 * _GRACE) if self._index == 0 else _GRACE)

  def _run(self) -> None:
    last = beat = time.monotonic()
    told = False
    while not self._done.is_set():
      _wait(self._open())
      now = time.monotonic()
      turn, last = min(now - last, 5 * _TURN), now  # so that a job that was suspended as a whole goes on
      for index, link in self._links.items():
        link.quiet += turn
        for message in [] if link.closed else link.receive():
          link.quiet = 0.0
          self._hear(index, link, message)
      if self._code is not None and not told:
        told = True
        self._send(left=self._code)
      if now >= beat:
        beat = now + _PULSE
        self._send(count=progress.count())
      for link in self._links.values():
        link.flush()
      if self._code is None:
        self._judge(turn)
      elif all(link.closed or (self._index == 0 and link.left is not None) for link in self._links.values()):
        self._done.set()

  def _open(self) -> list[Link]:
    return [link for link in self._links.values() if not link.closed]

  def _send(self, **message: Any) -> None:
    for link in self._open():
      link.send(message)

  def _hear(self, index: int, link: Link, message: Mapping[str, Any]) -> None:
    if 'count' in message:
      self._note(index, message['count'])
    elif isinstance(left := message.get('left'), int):
      link.left = left
      link.send({'heard': left})
    elif 'heard' in message and self._index:
      self._done.set()
    elif 'end' in message and self._index and self._code is None:
      line, code, stuck = message['end']
      self._end(streams.printable(line), code, stuck)

  def _note(self, index: int, count: int) -> None:
    if self._counts.get(index) != count:
      self._counts[index], self._idle = count, 0.0

  def _judge(self, turn: float) -> None:
    """Ends this process if another one is gone, and process 0 all if nothing goes on."""
    for index, link in self._links.items():
      who = f'process {index} of the run, on {link.host},'
      if link.left is not None and (link.left or index == 0):
        link.after_end += turn
        if link.after_end >= (0 if self._failing else _GRACE):
          code = link.left if link.left in _FINAL else PeerError.exit_code
          self._end(f'{who} has ended with exit code {link.left}', code)
      elif link.closed and link.left is None:
        self._end(f'{who} was lost: its connection is closed')
      elif not link.closed and link.quiet >= self._watchdog:
        self._end(f'{who} is stopped or lost: no word from it for {link.quiet:.0f} s')
    self._note(self._index, progress.count())
    self._idle += turn
    if self._index == 0 and self._idle >= self._watchdog and self._open():
      silent = [index for index, link in self._links.items() if not link.closed and link.quiet > 5 * _PULSE]
      and_silent = f', and no word from {named(silent)}' if silent else ''
      self._end(f'the run is stuck: no process has made progress for {self._idle:.0f} s{and_silent}', stuck=True)

  def _end(self, reason: str, code: int = PeerError.exit_code, stuck: bool = False) -> NoReturn:
    """Ends this process, and on process 0 first the others, with the same line."""
    late = threading.Timer(_GRACE, os._exit, [code])  # where nobody takes what is printed
    late.daemon = True
    late.start()
    if self._index == 0:
      self._send(end=[reason, code, stuck])
    again = f' What is saved is kept; {signals.RESUME}.' if code == PeerError.exit_code else ''
    streams.say_at_once(f'{reason[0].upper()}{reason[1:]}.{again}')
    if stuck:
      faulthandler.dump_traceback(all_threads=True)
    deadline = time.monotonic() + _SETTLE  # for the others to read it
    while self._index == 0 and self._open() and time.monotonic() < deadline:
      _wait(self._open())
      for link in self._open():
        link.receive()
    os._exit(code)


def _delay_aborts() -> None:
  """Has an abort of this process wait for some seconds, in which the thread ends it with a line and a code for restart.

  JAX aborts as soon as process 0 is gone, and takes no callback. The handler is C's `sleep`, which is called with the
  number of the signal; after these 6 seconds an abort goes on as ever.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
