"""Names of files and folders that a user gave: whether they can be what they are to be."""

from contextlib import suppress
import os
from pathlib import Path
import tempfile

from adversarial_augment.errors import UserError


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
