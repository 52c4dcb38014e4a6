"""How results, reports, exports and cards, which are made to be shared, name files of the machine that made them.

By their path within the run's folder, or else by their last part alone.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import re
import shlex
from typing import Any

_WITHIN = re.compile(r"""(?<=[\s=,'"(])/[^\s,:'")]*""")  # a path in a longer text, such as XLA_FLAGS


def relative(value: Any, workdir: Path) -> Any:
  """Returns a value of JSON with every path that is absolute, or leads out by '..', made relative to the run."""
  if isinstance(value, dict):
    return {name: relative(inner, workdir) for name, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(relative(inner, workdir) for inner in value)
  if not isinstance(value, str):
    return value
  if value.startswith('/') or '..' in Path(value).parts:
    return _relative(value, workdir)
  return _WITHIN.sub(lambda match: _relative(match[0], workdir), value)


def command(program: str, arguments: Sequence[str], workdir: Path) -> str:
  """Returns the command line of a module with these arguments, each made `relative`."""

  def word(argument: str) -> str:
    name, equals, value = argument.rpartition('=')
    return f'{name}{equals}{relative(value, workdir)}'

  return f'python -m {program} {shlex.join(map(word, arguments))}'.rstrip()


def _relative(path: str, workdir: Path) -> str:
  whole, top = (os.path.normpath(os.path.abspath(place)) for place in (path, workdir))
  if whole == top or whole.startswith(f'{top}{os.sep}'):
    return os.path.relpath(whole, top)
  return os.path.basename(whole) or '/'
