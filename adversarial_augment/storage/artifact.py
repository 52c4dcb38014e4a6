"""The one store: whatever lasts on disk is written, committed, verified, compared and locked here.

A file or a folder is made beside its place and put there by one rename, after its bytes are on the disk. So a kill, a
full disk or an error leaves what was there, or what is new, whole; and beside it at most something whose name ends in
`.tmp`, which the next writer removes. What a manifest lists is verified by size and SHA-256; what it does not, such as
the files of a file manager or an editor, is nobody's business.

The kinds of things are adapters: checkpoints, corrupted and DeepAugment sets, data sets, sweeps, weights. Their errors
say what is wrong with which file (`ArtifactError`, `Damaged`); the command that runs adds the way out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
import socket
from typing import Any, BinaryIO

from adversarial_augment import registry
from adversarial_augment.errors import ArtifactError, NumericalError, StorageError
from adversarial_augment.storage import kills, untrusted

MANIFEST = 'MANIFEST.json'

Entry = dict[str, Any]  # of a file in a manifest: bytes, sha256, and what an adapter adds


class Damaged(Exception):
  """A file is not as its manifest says; the message is `<reason> in <file>`.

  Attributes:
    detail: the same with numbers, to follow the file's name.
  """

  def __init__(self, reason: str, name: str, detail: str = ''):
    super().__init__(f'{reason} in {name}')
    self.name, self.detail = name, detail or f'cannot be used ({reason})'


# Errors of the disk.


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


def one_line(error: BaseException) -> str:
  """Returns the kind and the text of any exception in one line, at most 200 characters of it."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


# Writing. Every commit is one of `_commit`.


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
  """Gives a new file to write to, which takes the place of `path` at the end of the block.

  Args:
    path: in an existing folder.

  Raises:
    OSError: it cannot be written; `path` is as it was.
  """
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.unlink(missing_ok=True)  # of a kill; what is a link or a pipe is not written to
  try:
    with open(temporary, 'xb') as file:
      yield file
    put(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def put(source: Path, path: Path) -> None:
  """Puts a file of the same folder at `path` when all of it is on the disk. Raises as `writing`."""
  fsync(source)
  _commit(source, path, os.replace)
  fsync(path.parent)


def replace(path: Path, content: bytes | Iterable[bytes]) -> Entry:
  """Puts a whole file at `path` in one instant; returns its entry for a manifest. Raises as `writing`."""
  digest, size = hashlib.sha256(), 0
  with writing(path) as file:
    for block in [content] if isinstance(content, bytes) else content:
      file.write(block)
      digest.update(block)
      size += len(block)
  return {'bytes': size, 'sha256': digest.hexdigest()}


def write_json(path: Path, value: Any) -> None:
  """Replaces a file by `value` as JSON with sorted keys.

  Raises:
    NumericalError: a number is NaN or infinite, which JSON has not.
    StorageError: the file cannot be written.
  """
  content = f'{to_json(path, value, indent=2, sort_keys=True)}\n'.encode()
  with storage_errors(f"write '{path}'"):
    replace(path, content)


def to_json(path: Path, value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
  """Returns the JSON text that is to be written to `path`; raises NumericalError as `write_json`."""
  try:
    return json.dumps(value, allow_nan=False, indent=indent, sort_keys=sort_keys)
  except ValueError as error:
    raise NumericalError(f"'{path}' would hold a number that JSON has not: {error}.") from error


def commit_folder(fresh: Path, path: Path, aside: Path) -> None:
  """Puts the folder `fresh` at `path` when all of it is on the disk.

  Args:
    fresh: a folder on the same disk.
    path: its place.
    aside: where what is at `path` goes before it is deleted.

  Raises:
    OSError: `path` is as it was.
  """
  for root, _, names in os.walk(fresh, topdown=False):
    for name in names:
      fsync(Path(root, name))
    fsync(Path(root))
  try:
    if os.path.lexists(path):
      os.rename(path, aside)
    _commit(fresh, path, os.rename)
  except BaseException:
    if os.path.lexists(aside) and not os.path.lexists(path):
      os.rename(aside, path)
    raise
  fsync(path.parent)
  delete(aside)


def retire(path: Path, aside: Path) -> None:
  """Deletes a folder; a kill does not leave half of it under its name, but at `aside`."""
  _commit(path, aside, os.rename)
  delete(aside)


def delete(path: Path) -> None:
  """Deletes a file, or a folder with what is in it, which need not exist."""
  if not path.is_dir() or path.is_symlink():
    path.unlink(missing_ok=True)
    return
  try:
    shutil.rmtree(path)
  except OSError as error:
    # NFS keeps a file that is deleted while somebody reads it; the next writer tries again.
    if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
      raise


def sync(file: BinaryIO) -> None:
  """Waits until what was written to a file is on the disk."""
  file.flush()
  os.fsync(file.fileno())


def fsync(path: Path) -> None:
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


def check_space(place: Path, needed: int) -> None:
  """Looks whether so many bytes can be written under a folder, which need not exist.

  Raises:
    StorageError: the disk has no room, or cannot be looked at.
  """
  with storage_errors(f"write under '{place}'"):
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
  if free < needed:
    raise StorageError(
      f"'{place}' has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB may be needed; free some space, or use "
      'another disk.'
    )


def _commit(source: Path, target: Path, rename: Callable[[Path, Path], None]) -> None:
  kills.crash_point('before_rename', target.name)
  rename(source, target)
  kills.crash_point('after_rename', target.name)


# Verifying.


def sha256_of(path: Path) -> str:
  """Returns the SHA-256 of a regular file, which may be larger than the memory."""
  with untrusted.open_file(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()  # type: ignore[arg-type]


def entry(path: Path) -> Entry:
  """Returns what a manifest says of a file."""
  return {'bytes': path.stat().st_size, 'sha256': sha256_of(path)}


def entries(folder: Path) -> dict[str, Entry]:
  """Returns the entries of every file below `folder` but the manifest, by relative path."""
  paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
  named = {path.relative_to(folder).as_posix(): path for path in paths}
  return {name: entry(path) for name, path in named.items() if name != MANIFEST}


def size_of(path: Path) -> int | None:
  """Returns the bytes of a file, or None where there is none."""
  return path.stat().st_size if path.is_file() else None


def check_entry(name: str, expected: Entry, size: int | None, sha256: str | None = None) -> None:
  """Compares a file with its entry in a manifest.

  Args:
    name: of the file.
    expected: the entry.
    size: None where there is no file.
    sha256: None: it is not compared.

  Raises:
    Damaged: it is missing, or another one.
  """
  if size is None:
    raise Damaged('missing file', name, 'is missing')
  if size != expected['bytes']:
    raise Damaged('wrong size', name, f'has {size:,} bytes, but {expected["bytes"]:,} in {MANIFEST}')
  if sha256 not in (None, expected['sha256']):
    detail = f'has SHA-256 {sha256}, but {expected["sha256"]} in {MANIFEST}: it was changed or damaged'
    raise Damaged('sha256 mismatch', name, detail)


def verify(folder: Path, files: Mapping[str, Entry], *, hashed: bool = True) -> None:
  """Compares files with their entries in a manifest, by size and, if `hashed`, by SHA-256; others are not looked at.

  Raises:
    Damaged: a file is missing, another one, or cannot be read; names the first.
  """
  for name in sorted(files):
    path = folder / name
    try:
      check_entry(name, files[name], size_of(path))
      if hashed:
        check_entry(name, files[name], size_of(path), sha256_of(path))
    except untrusted.Unusable as error:
      raise Damaged(str(error), name) from error
    except OSError as error:
      raise Damaged(str(error.strerror or error), name) from error


def parse(
  content: bytes,
  label: object,
  check: Callable[[dict[str, Any]], object],
  *,
  path: Any = '',
  kind: str = '',
  remedy: str = '',
  about: Mapping[str, Any] = {},
) -> dict[str, Any]:
  """Returns the JSON object in a manifest.

  Args:
    content: of the file.
    label: its name, for messages.
    check: raises ValueError, KeyError, TypeError or AttributeError where a field is not as this program writes it.
    path: of the error, as the next three: what is damaged.
    kind: what it is to be.
    remedy: what would help.
    about: what is known of it.

  Raises:
    ArtifactError: it is damaged, or of another format.
  """
  try:
    value = untrusted.parse_json(content)
    check(value)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ArtifactError(
      f"'{label}' is damaged or not of this program ({one_line(error)})", path, kind, remedy, about
    ) from error
  return value


def read(
  file: Path,
  check: Callable[[dict[str, Any]], object],
  *,
  path: Any = '',
  kind: str = '',
  remedy: str = '',
  about: Mapping[str, Any] = {},
) -> dict[str, Any]:
  """Returns the JSON object in a file; see `parse`."""
  try:
    content = untrusted.read_bytes(file, untrusted.MAX_JSON)
  except (OSError, untrusted.Unusable) as error:
    raise ArtifactError(
      f"'{file}' is damaged or not of this program ({one_line(error)})", path, kind, remedy, about
    ) from error
  return parse(content, file, check, path=path, kind=kind, remedy=remedy, about=about)


# Comparing.


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Returns {dotted field: (was, now)} where two things were made otherwise; a field that one lacks is None there."""
  was, now = registry.flatten(found), registry.flatten(wanted)
  return {key: (was.get(key), now.get(key)) for key in {**now, **was} if was.get(key) != now.get(key)}


def check_same(
  path: Path,
  found: Mapping[str, Any],
  wanted: Mapping[str, Any],
  *,
  kind: str = '',
  remedy: str = 'use or replace',
  about: Mapping[str, Any] = {},
) -> None:
  """Refuses to go on with what was made otherwise.

  Args:
    path: of what exists.
    found: how it was made.
    wanted: how it would be made now.
    kind: what it is to be, for the error.
    remedy: what would help.
    about: what is known of it.

  Raises:
    ArtifactError: names the first field that differs, with both values.
  """
  for field, (was, now) in differences(found, wanted).items():
    raise ArtifactError(
      f"'{path}' exists already, with {field} = {_short(was)}, and now it would be {_short(now)}",
      path,
      kind,
      remedy,
      about,
    )


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 80 else f'{text[:60]}...'


# Locks.


@contextmanager
def lock(folder: Path, name: str = '', *, wait: bool = False) -> Iterator[None]:
  """Holds a folder or one thing in it against a second writer; however the process ends, the kernel drops the lock.

  Args:
    folder: an existing folder; `.lock` in it carries the holder's process id and host.
    name: of what alone is held, by `.NAME.lock`; '': all of it.
    wait: whether to wait for the other writer's end, who holds it for an instant.

  Raises:
    ArtifactError: another process holds it.
    StorageError: the lock file cannot be written, or the file system knows no locks.
  """
  path = folder / (f'.{name}.lock' if name else '.lock')
  action = f"lock '{folder / name}'"
  with storage_errors(action):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  try:
    with storage_errors(action):
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        holder = os.pread(descriptor, 1000, 0).decode(errors='replace').split()
        # The holder writes its name just after it takes the lock, so the file may be empty for an instant.
        who = f'process {holder[0]} on {holder[1]}' if len(holder) == 2 else 'another process'
        raise ArtifactError(f"'{folder / name}' is in use by {who}", folder, remedy='elsewhere') from error
      if not wait:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f'{os.getpid()} {socket.gethostname()}\n'.encode(), 0)
    yield
  finally:
    os.close(descriptor)
