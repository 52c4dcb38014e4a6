"""Files that are wholly there or not at all, errors of the disk in one line, and crashes where tests ask for them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import errno
import fcntl
import os
from pathlib import Path
import signal
import tempfile
from typing import NoReturn

from adversarial_augment.errors import StorageError, UserError

CRASH_VARIABLE = 'ADA_CRASH_AT'


def user_path(text: str | os.PathLike, what: str) -> Path:
  """Returns a path that a user gave, with `~` expanded; it need not exist.

  Args:
    text: the path.
    what: the flag or field that holds it, for the message.

  Raises:
    UserError: the home folder of no user, a name that no file system takes, or no path at all.
  """
  try:
    path = Path(text).expanduser()
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
      os.lstat(path)
  except (OSError, ValueError, RuntimeError, TypeError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    shown = str(text) if len(str(text)) < 80 else f'{str(text)[:60]}...'
    raise UserError(f"{what}='{shown}' cannot be the name of a file or folder ({reason}); name another one.") from error
  return path


def output_file(text: str | os.PathLike, flag: str) -> Path:
  """Returns the path of a file to write, or to write anew.

  Raises:
    UserError: a link, a folder or a pipe is there, or no folder to hold it.
  """
  path = user_path(text, flag)
  if (os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path))) or not os.path.isdir(path.parent):
    raise UserError(f"{flag}='{path}' must be a regular file, or a new one, in a folder that exists; name another one.")
  return path


def check_folder(path: Path, flag: str) -> None:
  """Refuses a folder that cannot be there or be made, because a file is in its place or above it, or for its name.

  Args:
    path: the folder, which need not exist.
    flag: what holds it, for the message.

  Raises:
    UserError: names the file; or the folder's name is no UTF-8.
  """
  try:
    os.fspath(path.absolute()).encode()
  except UnicodeEncodeError as error:  # JSON, HTML and Orbax know no other names
    raise UserError(
      f"{flag}='{path}' cannot be used: its whole name, '{path.absolute()}', is no UTF-8; name another folder."
    ) from error
  place = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
  if os.path.lexists(place) and not os.path.isdir(place):
    what = 'is a file' if os.path.exists(place) else 'is a link to nothing'
    if place == path:
      raise UserError(f"{flag}='{path}' {what}; name a folder, which is made where it does not exist.")
    raise UserError(f"{flag}='{path}' cannot be a folder, because '{place}' {what}; name a folder in another one.")


def named(folder: Path, pattern: str) -> list[Path]:
  """Returns the files of a folder whose names match a pattern, sorted, without hidden ones.

  A file manager or an editor leaves '._NAME' and '.#NAME' beside a file, which is not one of ours.
  """
  return sorted(path for path in folder.glob(pattern) if not path.name.startswith('.'))


def try_to_write(folder: Path) -> None:
  """Writes a file in an existing folder, and removes it.

  Raises:
    OSError: that is not possible.
  """
  with tempfile.TemporaryFile(dir=folder) as probe:
    probe.write(b'\0' * 4096)
    probe.flush()


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
  """Turns an OSError of the block into `Cannot <action>: <reason>`.

  Raises:
    StorageError: the block raised an OSError.
  """
  try:
    yield
  except StorageError:
    raise
  except OSError as error:
    place = f" ('{error.filename}')" if error.filename else ''
    reason = error.strerror or str(error)
    raise StorageError(
      f'Cannot {action}: {reason}{place}; free space, mend the folder, or name another one.'
    ) from error


def replace(path: Path, content: bytes, crash: str = '', step: int | None = None) -> None:
  """Puts `content` at `path` in one instant: write beside, fsync, rename, fsync of the folder.

  Args:
    path: in an existing folder.
    content: of the whole file.
    crash: name of the crash point before the rename.
    step: of that crash point.

  Raises:
    OSError: `path` is as it was.
  """
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.unlink(missing_ok=True)  # of a kill; what is a link or a pipe is not written to
  try:
    with open(temporary, 'xb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    crash_point(crash, step)
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise
  fsync_path(path.parent)


def fsync_path(path: Path) -> None:
  """Waits until a file's bytes, or a folder's entries, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  try:
    os.fsync(descriptor)
  except OSError as error:
    # Some network file systems have no fsync of folders, and say so; a rename there is as durable as it gets.
    if error.errno != errno.EINVAL or not path.is_dir():
      raise
  finally:
    os.close(descriptor)


@contextmanager
def in_use(folder: Path, *, exclusive: bool = False) -> Iterator[bool]:
  """Holds a folder against programs that would delete it (shared), or would read it (exclusive), for the block.

  Yields:
    False where others hold it otherwise. True also where the file system has no such locks.
  """
  descriptor = -1
  try:
    free = True
    try:
      descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
      fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
      free = False
    except OSError:  # not there, or no locks
      pass
    yield free
  finally:
    if descriptor >= 0:
      os.close(descriptor)


def crash_wanted(name: str, step: int | None = None) -> bool:
  """Whether a test asks for a kill here: `ADA_CRASH_AT=name`, or `name@step` for that step only."""
  return os.environ.get(CRASH_VARIABLE) in (name, f'{name}@{step}')


def crash_point(name: str, step: int | None = None) -> None:
  """Dies as by `kill -9` where a test asks for it: a place whose crash the run must survive."""
  if crash_wanted(name, step):
    die()


def die() -> NoReturn:
  """Ends the process as `kill -9` does."""
  os.kill(os.getpid(), signal.SIGKILL)
  raise SystemExit('SIGKILL did not end the process')
