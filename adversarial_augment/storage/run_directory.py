"""A run's directory, which neither a kill at any instant nor a full disk spoils.

Files are replaced whole; `metrics.jsonl` is only ever appended to, one line per call, and cut back to the restored step
on a resume. Checkpoints say which steps it has lines of, as a few runs of equal distance: [first, last, distance].
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import os
from pathlib import Path
import sys
from typing import Any

from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, files, kills, untrusted

Runs = list[list[int]]


def create(workdir: Path) -> None:
  """Makes the directory and writes a file in it for a test; raises UserError if it is a file, or StorageError."""
  files.check_folder(workdir, 'workdir')
  with artifact.storage_errors(f"write in the workdir '{workdir}'"):
    workdir.mkdir(parents=True, exist_ok=True)
    files.try_to_write(workdir)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
  """Appends `record` as one line of JSON, or nothing at all; a reader sees it when this returns.

  Raises:
    NumericalError: a value is NaN or infinite.
    StorageError: the line cannot be written.
  """
  line = f'{artifact.to_json(path, record)}\n'.encode()
  with artifact.storage_errors(f"append to '{path}'"):
    # Without O_NONBLOCK, a named pipe in its place would wait for a reader.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    try:
      size = os.fstat(descriptor).st_size
      if kills.crash_wanted('mid_log_append', record.get('step')):
        os.write(descriptor, line[: len(line) // 2])
        kills.die()
      try:
        while line:  # one `write` may take a part only
          line = line[os.write(descriptor, line) :]
      except OSError:
        if os.fstat(descriptor).st_size > size:
          os.ftruncate(descriptor, size)
        raise
    finally:
      os.close(descriptor)


def truncate_log(path: Path, step: int = sys.maxsize) -> tuple[list[int], list[int]]:
  """Drops the lines after `step`, a half-written last line, and second lines of a step, in one atomic replacement.

  Args:
    path: a log of `append_line`, whose records have an int `step`; a missing file is an empty log.
    step: the last step to keep; 0 for a run that starts.

  Returns:
    The steps of the lines that stay, and of the second lines that went.

  Raises:
    UserError: a line that is to stay is no record.
    StorageError: the file cannot be read or replaced.
  """
  with artifact.storage_errors(f"cut '{path}' back to step {step}"):
    try:
      found = list(_lines_until(untrusted.lines(path), step, path))
    except FileNotFoundError:
      return [], []
    except untrusted.Unusable as error:
      raise UserError(f"'{path}' cannot be used ({error}); remove it, or use another folder.") from error
    kept: dict[int, bytes] = {}
    doubled: list[int] = []
    last = 0
    for line_step, line in found:
      if line_step > last:
        kept[line_step], last = line, line_step
      else:
        doubled.append(line_step)
    content = b''.join(kept.values())
    if len(content) < path.stat().st_size:
      artifact.replace(path, content)
    return list(kept), doubled


def _lines_until(lines: Iterator[bytes], step: int, path: Path) -> Iterator[tuple[int, bytes]]:
  """Yields the whole lines, and their steps, up to the first whose step is larger than `step`."""
  for number, line in enumerate(lines, start=1):
    try:
      line_step = untrusted.parse_json(line)['step'] if line.endswith(b'\n') else None
    except (ValueError, KeyError, TypeError):
      line_step = None
    if not isinstance(line_step, int):
      if next(lines, None) is None:  # the last one
        return
      raise UserError(f"'{path}' line {number} is no record with a step; remove the line, or use another folder.")
    if line_step > step:
      return
    yield line_step, line


# The steps of a log.


def append_step(runs: Runs, step: int) -> None:
  """Adds a step that is larger than those of `runs`, in place."""
  if runs:
    first, last, distance = runs[-1]
    if first == last or last + distance == step:
      runs[-1] = [first, step, step - last]
      return
  runs.append([step, step, 1])


def to_runs(steps: Iterable[int]) -> Runs:
  """Returns the runs of rising steps."""
  runs: Runs = []
  for step in steps:
    append_step(runs, step)
  return runs


def steps_of(runs: Iterable[Sequence[int]]) -> Iterator[int]:
  """Yields every step."""
  for first, last, distance in runs:
    yield from range(first, last + 1, distance)


def in_words(steps: Sequence[int]) -> str:
  """Returns rising steps in words: 'step 3', 'steps 10, 40', 'steps 10 to 90 (9 lines) and 7 more'."""
  if len(steps) <= 5:
    return f'step{"s" if len(steps) > 1 else ""} {", ".join(map(str, steps))}'
  parts = [(first, last, (last - first) // distance + 1) for first, last, distance in to_runs(steps)]
  shown = ', '.join(
    f'{first} to {last} ({count} lines)' if count > 1 else f'{first}' for first, last, count in parts[:5]
  )
  left = sum(count for _, _, count in parts[5:])
  return f'steps {shown}' + (f' and {left} more' if left else '')
