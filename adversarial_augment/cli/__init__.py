"""What the command lines share: the parser, one-line errors, exit codes, and the flags of several processes.

JAX is imported inside the functions that need it, so that wrong input is reported before JAX starts.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
import errno
import os
from pathlib import Path
import re
import signal
import sys
import traceback
from typing import Any, NoReturn, Protocol

from adversarial_augment import errors
from adversarial_augment.cli import environment, jax_errors, signals, streams
from adversarial_augment.cli.ways_out import describe
from adversarial_augment.errors import UserError, show

WAIT, WATCHDOG = 600, 1200  # seconds
_LEAST = {'wait': 1, 'watchdog': 10}  # of these
_INTERRUPTED = 130  # what a shell reports for Ctrl-C
_SIGNALS = (errors.Interrupted, KeyboardInterrupt)
_LESS_MEMORY = 'close other programs that use the device, or use fewer images or a smaller batch'
_KEPT = 'what was written before is kept; run the same command again to resume'


class Watch(Protocol):
  """What watches the other processes of a run; see parallel/peers.py."""

  def settle(self) -> None:
    """Waits until the loss of another process, if that has caused an unexpected error, ends this one."""

  def leave(self, code: int) -> None:
    """Tells the others with which exit code this process ends."""


watches: list[Watch] = []


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that raises UserError and takes no abbreviated flags; `run` reads `--debug`."""

  def __init__(self, **options: Any):
    super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
    self.add_argument('--debug', action='store_true', help='show tracebacks')

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message} (see {self.prog} --help).')


def run(
  main: Callable[[list[str]], int | None],
  argv: Sequence[str] | None = None,
  *,
  less_memory: str = _LESS_MEMORY,
  kept: str = _KEPT,
) -> NoReturn:
  """Calls `main` and ends the process: known errors as one line on standard error, others with their traceback.

  Args:
    main: takes the arguments, returns the exit code (None is 0).
    argv: defaults to those of the process; with `--debug` among them, known errors show their traceback too.
    less_memory: what to do if memory runs out.
    kept: what remains after a signal, and what to do next.
  """
  arguments = list(sys.argv[1:] if argv is None else argv)
  streams.secure()
  signals.raise_once()
  try:
    errors.require_assertions()
    environment.pin()
    code = main(arguments) or 0
    sys.stdout.flush()
  except BrokenPipeError:  # the reader of the output, such as `head`, has gone
    streams.discard_output()
    code = 128 + signal.SIGPIPE
  except (Exception, *_SIGNALS) as error:
    if not isinstance(error, (errors.AdversarialAugmentError, *_SIGNALS)):
      for watch in watches:
        watch.settle()
    known = _known(error, kept) or jax_errors.explain(error, less_memory)
    if known is None and watches:
      traceback.print_exc()
      _leave(1)
    if known is None:
      raise
    if '--debug' in arguments:
      traceback.print_exc()
    message, code = known
    streams.say(f'{Path(sys.argv[0]).stem}: {streams.printable(message)}')
  _leave(code)
  if argv is None:  # this is the end of the process
    signals.ignore()
  sys.exit(code)


def _leave(code: int) -> None:
  """Ends a process of several: JAX's own way waits for the others, which may be gone."""
  for watch in watches:
    watch.leave(code)
    with suppress(OSError, ValueError):
      sys.stdout.flush()
    os._exit(code)


def _known(error: BaseException, kept: str) -> tuple[str, int] | None:
  """Returns the message and the exit code of an error that is not a bug; None for others."""
  if isinstance(error, KeyboardInterrupt):
    return f'interrupted: {kept}.', _INTERRUPTED
  if isinstance(error, errors.Interrupted):
    return f'{error}: {kept}.', error.exit_code
  if isinstance(error, errors.AdversarialAugmentError):
    return describe(error), error.exit_code
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of standard output
    streams.discard_output()
    return f'Cannot write: {error.strerror}; free space, or send the output elsewhere.', errors.StorageError.exit_code
  return None


def add_process_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a program that runs as several processes."""
  group = parser.add_argument_group('several processes (detected on TPU pods and under SLURM)')
  group.add_argument('--coordinator_address', metavar='HOST:PORT', help='address of process 0')
  group.add_argument('--num_processes', type=int, metavar='N', help='number of processes')
  group.add_argument('--process_id', type=int, metavar='I', help='index of this process, from 0')
  group.add_argument(
    '--wait',
    type=float,
    default=WAIT,
    metavar='SECONDS',
    help='for the others to come, then exit 75; default: %(default)s',
  )
  group.add_argument(
    '--watchdog',
    type=float,
    default=WATCHDOG,
    metavar='SECONDS',
    help='without a word of a process, or progress of any, after which all exit 75; default: %(default)s',
  )


def check_processes(arguments: argparse.Namespace) -> None:
  """Checks those flags; raises UserError if some are missing or out of range."""
  for name, least in _LEAST.items():
    if not getattr(arguments, name) >= least:
      raise UserError(f'--{name}={getattr(arguments, name):g} must be at least {least} seconds.')
  given = address, count, index = arguments.coordinator_address, arguments.num_processes, arguments.process_id
  if given == (None, None, None):
    return
  if None in given:
    raise UserError('--coordinator_address, --num_processes and --process_id go together; give all three, or none.')
  port = re.fullmatch(r'.+:([0-9]{1,5})', address)
  if not port or not 0 < int(port[1]) < 65536:
    raise UserError(f'--coordinator_address={show(address)} must be HOST:PORT, for example localhost:12321.')
  check_process_id(count, index)


def check_process_id(count: int, index: int) -> None:
  """Raises UserError if --num_processes or --process_id is out of range."""
  if count < 1:
    raise UserError(f'--num_processes={count} must be at least 1.')
  if not 0 <= index < count:
    raise UserError(f'--process_id={index} must be from 0 to {count - 1} (--num_processes={count}).')
