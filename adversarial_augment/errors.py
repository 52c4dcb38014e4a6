"""What can go wrong in a way the user can mend; each kind has its exit code.

A command line prints the message as one line on standard error and ends with `exit_code` (see cli.run). The message
names the argument or file, its value, the rule, and the way out; flags are named by the commands alone.
"""

from collections.abc import Mapping
from typing import Any


class AdversarialAugmentError(Exception):
  """The base of every error that a command line reports as one line.

  Args:
    message: the facts, and the way out where it is the same for every caller.
    remedy: what offers one more way out, such as 'workdir'; a command knows the flag, and adds it (`cli.describe`).
  """

  exit_code = 1

  def __init__(self, message: str = '', *, remedy: str = ''):
    super().__init__(message)
    self.remedy = remedy


class UserError(AdversarialAugmentError, ValueError):
  """The input is wrong: a config value, a flag, a data set, a weight file, or a checkpoint of another run."""

  exit_code = 2


class ArtifactError(UserError):
  """Something on disk cannot be used as it is: the facts, to which the command that runs adds the way out.

  Attributes:
    facts: one sentence, without its full stop.
    path: the file or folder.
    kind: what it is to be: 'data set', 'cifar10_c', 'deepaugment', 'sweep', or '' for anything.
    remedy: what would help, in one word, which the command puts into its own words.
    about: what is known of it, such as its manifest.
    hint: a sentence to end with.
    way_out: '', until a command says it.
  """

  def __init__(
    self, facts: str, path: Any = '', kind: str = '', remedy: str = '', about: Mapping[str, Any] = {}, hint: str = ''
  ):
    super().__init__(facts)
    self.facts, self.path, self.kind, self.remedy = facts.removesuffix('.'), path, kind, remedy
    self.about, self.hint = about, hint
    self.way_out = ''

  def __str__(self) -> str:
    return f'{self.facts}{"; " if self.way_out else ""}{self.way_out}.{self.hint}'


def show(value: Any, limit: int = 80) -> str:
  """Returns `value` as Python writes it, on one line and not longer than `limit`."""
  line = ' '.join(repr(value).split())
  return line if len(line) <= limit else f'{line[: limit - 3]}...'


def require_assertions() -> None:
  """Refuses an interpreter that strips `assert`: Haiku does work in assertions, without which names and results change.

  Raises:
    UserError: Python runs with -O, -OO or PYTHONOPTIMIZE.
  """
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
  """A signal stopped the run after its state was saved; the same command goes on (EX_TEMPFAIL)."""

  exit_code = 75


class Interrupted(Stopped):
  """A signal came where nobody listens to it; the message is 'stopped by NAME', without what is kept."""


def to_json(error: Exception) -> list[str]:
  """Returns an error for another process of the run: its class, message and remedy."""
  return [type(error).__name__, str(error), getattr(error, 'remedy', '')]


def from_json(content: list[str], prefix: str = '') -> Exception:
  """Returns the error that `to_json` wrote, its message after `prefix`; a RuntimeError for classes not of here."""
  name, message, remedy = content
  known = globals().get(name)
  if isinstance(known, type) and issubclass(known, AdversarialAugmentError):
    return known(f'{prefix}{message}', remedy=remedy)
  return RuntimeError(f'{prefix}{message}')
