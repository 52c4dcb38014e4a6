"""What the command lines share: the parser, one-line errors, exit codes, and the flags of several processes.

JAX is imported inside the functions that need it, so that wrong input is reported before that costs time.
"""

import argparse
from collections.abc import Callable, Sequence
import errno
from pathlib import Path
import re
import signal
import sys
import traceback
from typing import Any, NoReturn

from adversarial_augment.cli import environment, jax_errors, signals, streams
from adversarial_augment.errors import (
  AdversarialAugmentError,
  Interrupted,
  StorageError,
  UserError,
  require_assertions,
  show,
)

_INTERRUPTED = 130  # what a shell reports for Ctrl-C
_LESS_MEMORY = 'end other programs that use the device, or do less at once: fewer images, or a smaller batch'
_WAYS_OUT = {  # by the remedy of an error
  'from': 'give a file or folder that you have with --from',
  'process_id': 'give each process its own --process_id',
  'url': 'give another --url, or a file that you have with --from',
  'workdir': 'name another --workdir',
}
_KEPT = 'what was written before is kept, and the same command goes on'


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that raises UserError and takes no abbreviated flags."""

  def __init__(self, **options: Any):
    super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message} (see {self.prog} --help).')


def run(
  main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None, *, less_memory: str = _LESS_MEMORY
) -> NoReturn:
  """Calls `main` and ends the process: known errors as one line on standard error, others with their traceback.

  Args:
    main: takes the arguments, returns the exit code (None is 0).
    argv: defaults to those of the process; with `--debug` among them, known errors show their traceback too.
    less_memory: what lowers the memory that the program needs, for the message where it was too much.
  """
  arguments = list(sys.argv[1:] if argv is None else argv)
  program = Path(sys.argv[0]).stem
  streams.secure()
  signals.raise_once()
  try:
    require_assertions()
    environment.pin()
    code = main(arguments) or 0
    sys.stdout.flush()
  except BrokenPipeError:  # whoever read what was printed, such as `head`, has gone
    streams.discard_output()
    code = 128 + signal.SIGPIPE
  except (Exception, KeyboardInterrupt) as error:
    known = _known(error) or jax_errors.explain(error, less_memory)
    if known is None:
      raise
    if '--debug' in arguments:
      traceback.print_exc()
    line = ' '.join(known[0].split())
    # Text of a file that somebody else has written must not steer the terminal.
    printable = ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in line)
    streams.say(f'{program}: {printable}')
    code = known[1]
  if argv is None:  # this is the end of the process
    signals.ignore()
  sys.exit(code)


def describe(error: AdversarialAugmentError) -> str:
  """Returns the message of an error, with the flag that is one more way out."""
  way_out = _WAYS_OUT.get(error.remedy)
  return f'{str(error).removesuffix(".")}, or {way_out}.' if way_out else str(error)


def _known(error: BaseException) -> tuple[str, int] | None:
  """Returns the message and the exit code of an error that is no defect of the program; None of another one."""
  if isinstance(error, KeyboardInterrupt):
    return f'interrupted: {str(error) or _KEPT}.', _INTERRUPTED
  if isinstance(error, Interrupted):
    return f'{error}: {_KEPT}.', error.exit_code
  if isinstance(error, AdversarialAugmentError):
    return describe(error), error.exit_code
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of standard output
    streams.discard_output()
    return f'Cannot write: {error.strerror}; free space, or send the output elsewhere.', StorageError.exit_code
  return None


def add_process_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a program that runs as several processes."""
  group = parser.add_argument_group('several processes (found by themselves on TPU pods and under SLURM)')
  group.add_argument('--coordinator_address', metavar='HOST:PORT', help='of process 0')
  group.add_argument('--num_processes', type=int, metavar='N', help='how many')
  group.add_argument('--process_id', type=int, metavar='I', help='which one this is, from 0')


def check_processes(arguments: argparse.Namespace) -> None:
  """Checks those flags.

  Raises:
    UserError: some are missing, or out of range.
  """
  address, count, index = arguments.coordinator_address, arguments.num_processes, arguments.process_id
  if address is None and count is None and index is None:
    return
  if address is None or count is None or index is None:
    raise UserError('--coordinator_address, --num_processes and --process_id go together; give all three, or none.')
  port = re.fullmatch(r'.+:([0-9]{1,5})', address)
  if not port or not 0 < int(port[1]) < 65536:
    raise UserError(f'--coordinator_address={show(address)} must be HOST:PORT, for example localhost:12321.')
  if count < 1:
    raise UserError(f'--num_processes={count} must be at least 1.')
  if not 0 <= index < count:
    raise UserError(f'--process_id={index} must be from 0 to {count - 1} (--num_processes={count}).')
