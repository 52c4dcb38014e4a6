"""Standard input, output and error, however the program was started: closed, on a full disk, of any encoding."""

from contextlib import suppress
import io
import os
import sys


def secure() -> None:
  """Opens what is closed of the standard streams, and lets any name be printed.

  The next file that is opened would take the place of a closed one, and get what is printed there.
  """
  for number in range(3):
    with suppress(OSError):
      os.fstat(number)
      continue
    os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
  for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    elif isinstance(stream, io.TextIOWrapper) and stream.errors == 'strict' and mode == 'w':
      stream.reconfigure(errors='backslashreplace')


def discard_output() -> None:
  """Lets what standard output has not taken go, so that the end of the process does not try again."""
  with suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
  """Prints a line on standard error; one that nobody can take is lost, and no work with it."""
  with suppress(OSError):
    print(message, file=sys.stderr, flush=True)
