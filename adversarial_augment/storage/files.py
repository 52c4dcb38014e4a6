"""Names of files and folders that a user gave: whether they can be what they are to be."""

from contextlib import suppress
import os
from pathlib import Path
import tempfile

from adversarial_augment.errors import UserError


def is_url(text: str) -> bool:
  return '://' in text


def user_path(text: str | os.PathLike, what: str) -> Path:
  """Returns a path that a user gave, with `~` expanded; it need not exist.

  Raises:
    UserError: it cannot be a path, is a URL, or has an unknown user's home; `what` names the flag or field.
  """
  if isinstance(text, str) and is_url(text):
    raise UserError(f"{what}='{text}' is a URL, but must be a path of this machine; name one.")
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
  """Returns the path of a file to write; raises UserError unless it is a regular file or a new one in a folder."""
  path = user_path(text, flag)
  if (os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path))) or not os.path.isdir(path.parent):
    raise UserError(f"{flag}='{path}' must be a regular file, or a new one, in a folder that exists; name another one.")
  return path


def check_folder(path: Path, flag: str) -> None:
  """Raises UserError where a folder neither exists nor can be made: a file is in its way, or its name is not UTF-8."""
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
  """Returns the files of a folder that match a pattern, sorted, without hidden ones: editors leave '.#NAME' there."""
  return sorted(path for path in folder.glob(pattern) if not path.name.startswith('.'))


def try_to_write(folder: Path) -> None:
  """Writes a file in an existing folder, and removes it; raises OSError if that is not possible."""
  with tempfile.TemporaryFile(dir=folder) as probe:
    probe.write(b'\0' * 4096)
    probe.flush()
