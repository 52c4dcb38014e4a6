"""Standard input, output and error, however the program was started: closed, on a full disk, of any encoding."""

from contextlib import suppress
import io
import os
import sys


def secure() -> None:
  """Opens closed standard streams, and lets any name be printed.

  The next file that is opened would get the number of a closed one, and what is printed there.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
  for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    elif isinstance(stream, io.TextIOWrapper) and stream.errors == 'strict' and mode == 'w':
      stream.reconfigure(errors='backslashreplace')


def discard_output() -> None:
  """Discards what standard output has not taken, so that the exit does not try again."""
  with suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
  """Prints a line on standard error; if that fails, the line is lost, and the work goes on."""
  with suppress(OSError):
    print(message, file=sys.stderr, flush=True)


def say_at_once(message: str) -> None:
  """Prints a line past Python's buffers, which a signal or another thread may have found locked."""
  with suppress(OSError):
    start = '\n' if os.isatty(2) else ''  # the progress bar leaves the cursor in its line
    os.write(2, f'{start}{message}\n'.encode(errors='backslashreplace'))


def printable(text: str) -> str:
  """Returns a text from elsewhere as one line that cannot control the terminal."""
  return ''.join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in ' '.join(text.split()))
