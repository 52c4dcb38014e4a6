"""Writing a run's directory so that a kill at any instant, a full disk, or a second trainer does not spoil it.

Files are replaced whole; `metrics.jsonl` is only ever appended to, one line per call, and cut back to the restored step
on a resume.
"""

from collections.abc import Iterator, Mapping
import os
from pathlib import Path
import sys
from typing import Any

from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, files, kills, untrusted


def create(workdir: Path) -> None:
  """Makes the run's directory and proves that a file can be written in it.

  Raises:
    UserError: `workdir` names a file, or something in one.
    StorageError: it cannot be made or written.
  """
  files.check_folder(workdir, 'workdir')
  with artifact.storage_errors(f"write in the workdir '{workdir}'"):
    workdir.mkdir(parents=True, exist_ok=True)
    files.try_to_write(workdir)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
  """Appends `record` as one line of JSON; a reader sees it when this returns.

  The folder must exist. A line that could not be written whole is taken back, so that a later one starts clean.

  Raises:
    NumericalError: a value is NaN or infinite, which JSON has not.
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
        _write_all(descriptor, line)
      except OSError:
        if os.fstat(descriptor).st_size > size:
          os.ftruncate(descriptor, size)
        raise
    finally:
      os.close(descriptor)


def truncate_log(path: Path, step: int) -> tuple[list[int], list[int]]:
  """Keeps the lines of steps up to `step`, in one atomic replacement; a half-written last line goes, and a second one.

  Args:
    path: a log of `append_line`, records with an int `step`, in rising order; a missing file is an empty log.
    step: the step that a resume goes on from; 0 for a run that starts.

  Returns:
    The steps of the lines that stay, and of those that went because their step had a line before.

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


def steps_of_log(path: Path) -> list[int]:
  """Returns the steps of the lines of such a log; raises as `truncate_log`."""
  return truncate_log(path, sys.maxsize)[0]


def _write_all(descriptor: int, data: bytes) -> None:
  """Writes all of `data`; one `write` may take a part only."""
  while data:
    data = data[os.write(descriptor, data) :]


def _lines_until(lines: Iterator[bytes], step: int, path: Path) -> Iterator[tuple[int, bytes]]:
  """The whole lines, and their steps, up to the first whose step is larger than `step`."""
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
