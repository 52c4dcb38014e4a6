"""What can go wrong in a way that the user can fix; each kind has its exit code.

A command line prints the message as one line on standard error and ends with `exit_code` (see cli.run). The message
names the argument or file, its value, the rule, and the way out; only commands name flags.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class AdversarialAugmentError(Exception):
  """The base of every error that a command line reports as one line.

  Args:
    message: the facts, and the way out where it is the same for every caller.
    remedy: names one more way out, such as 'workdir'; a command knows its flag, and adds it (cli/ways_out.py).
  """

  exit_code = 1

  def __init__(self, message: str = '', *, remedy: str = ''):
    super().__init__(message)
    self.remedy = remedy


class UserError(AdversarialAugmentError, ValueError):
  """The input is wrong: a config value, a flag, a data set, a weight file, or a checkpoint of another run."""

  exit_code = 2


class ArtifactError(UserError):
  """Something on disk cannot be used as it is.

  Attributes:
    path: the file or folder.
    kind: what it should be: 'data set', 'cifar10_c', 'deepaugment', or '' for anything.
    about: what is known of it, such as its manifest.
  """

  def __init__(
    self, facts: str, path: Any = '', kind: str = '', remedy: str = '', about: Mapping[str, Any] = MappingProxyType({})
  ):
    super().__init__(f'{facts.removesuffix(".")}.', remedy=remedy)
    self.path, self.kind, self.about = path, kind, about


def show(value: Any, limit: int = 80) -> str:
  """Returns `value` as Python writes it, on one line and not longer than `limit`."""
  line = ' '.join(repr(value).split())
  return line if len(line) <= limit else f'{line[: limit - 3]}...'


def require_assertions() -> None:
  """Refuses an interpreter that strips `assert`: Haiku does work in assertions, so names and results would change."""
  if not __debug__:
    raise UserError(
      'Python runs without assertions (-O or PYTHONOPTIMIZE), in which Haiku does work: another network would be '
      'trained under the same config; start it without -O, and unset PYTHONOPTIMIZE.'
    )


class NumericalError(AdversarialAugmentError, ArithmeticError):
  """A loss, gradient or parameter became NaN or infinite."""

  exit_code = 3


class CheckpointError(AdversarialAugmentError, RuntimeError):
  """Checkpoints exist, and none of them is usable."""

  exit_code = 4


class StorageError(AdversarialAugmentError, OSError):
  """A disk is full, missing, or not writable."""

  exit_code = 5


class Stopped(AdversarialAugmentError, RuntimeError):
  """A signal stopped the run after its state was saved; the same command resumes it (EX_TEMPFAIL)."""

  exit_code = 75


class Interrupted(BaseException):
  """A signal arrived outside `signals.listen`; the message is 'stopped by NAME'.

  Like KeyboardInterrupt it is no Exception, so that no reader of files takes it for a damaged one.
  """

  exit_code = Stopped.exit_code


class PeerError(AdversarialAugmentError, RuntimeError):
  """Another process of the run never came, was lost, or is stuck; the same commands resume the run."""

  exit_code = 75


def rebuilt(name: str, message: str) -> AdversarialAugmentError:
  """Returns the error of another process by its class name and message; the base class for classes not of here."""
  known = globals().get(name)
  return (
    known(message)
    if isinstance(known, type) and issubclass(known, AdversarialAugmentError)
    else AdversarialAugmentError(message)
  )
