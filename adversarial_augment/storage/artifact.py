"""The one store: whatever lasts on disk is written, committed, verified, compared and locked here.

A file or folder is written beside its place and put there by one rename, after its bytes are on the disk. So a kill, a
full disk or an error leaves either what was there or what is new, whole, and at most something beside it whose name
ends in `.tmp`, which the next writer removes. Files that a manifest lists are verified by size and SHA-256; others,
such as those of a file manager or an editor, are ignored.

Errors state what is wrong with which file (`ArtifactError`, `Damaged`); the command that runs adds the way out.
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
from types import MappingProxyType
from typing import Any, BinaryIO

import msgspec

from adversarial_augment import checks
from adversarial_augment.errors import ArtifactError, NumericalError, StorageError
from adversarial_augment.storage import kills, untrusted

MANIFEST = 'MANIFEST.json'

Entry = dict[str, Any]  # of a file in a manifest: bytes, sha256, and what an adapter adds


class Damaged(Exception):
  """A file is not as its manifest says: `<reason> in <file>`; `detail`, with numbers, continues the file's name."""

  def __init__(self, reason: str, name: str, detail: str = ''):
    super().__init__(f'{reason} in {name}')
    self.name, self.detail = name, detail or f'cannot be used ({reason})'


# Errors of the disk.


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
  """Raises an OSError of the block as a StorageError, `Cannot <action>: <reason>`."""
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


@contextmanager
def damage_in(name: str) -> Iterator[None]:
  """Raises what reading the file `name` raises in the block as `Damaged`."""
  try:
    yield
  except (OSError, untrusted.Unusable) as error:
    raise Damaged(getattr(error, 'strerror', None) or str(error), name) from error


def one_line(error: BaseException) -> str:
  """Returns the type and the text of any exception in one line, at most 200 characters of it."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


# Writing. Each commit is one call of `_commit`; whatever raises an OSError before it leaves what was there.


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
  """Gives a new file to write to, which replaces `path`, in an existing folder, at the end of the block."""
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.unlink(missing_ok=True)  # left by a kill; a link or a pipe is not written to
  try:
    with open(temporary, 'xb') as file:
      yield file
    put(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def put(source: Path, path: Path) -> None:
  """Renames a file of the same folder to `path` when all of it is on the disk."""
  fsync(source)
  _commit(source, path, os.replace)
  fsync(path.parent)


def replace(path: Path, content: bytes | Iterable[bytes]) -> Entry:
  """Replaces a file atomically; returns its entry for a manifest."""
  digest, size = hashlib.sha256(), 0
  with writing(path) as file:
    for block in [content] if isinstance(content, bytes) else content:
      file.write(block)
      digest.update(block)
      size += len(block)
  return {'bytes': size, 'sha256': digest.hexdigest()}


def write_json(path: Path, value: Any) -> None:
  """Replaces a file by JSON with sorted keys; raises NumericalError as `to_json`, or StorageError."""
  content = f'{to_json(path, value, pretty=True)}\n'.encode()
  with storage_errors(f"write '{path}'"):
    replace(path, content)


def to_json(path: Path, value: Any, *, pretty: bool = False) -> str:
  """Returns the JSON for `path`, on one line unless `pretty`.

  Raises:
    NumericalError: a number is NaN or infinite, which JSON does not have.
  """
  try:
    return json.dumps(value, allow_nan=False, indent=2 if pretty else None, sort_keys=pretty)
  except ValueError as error:
    raise NumericalError(f"'{path}' would hold a number that JSON does not have: {error}.") from error


def commit_folder(fresh: Path, path: Path, aside: Path) -> None:
  """Renames a folder to `path` when all of it is on the disk; what was there goes to `aside`, and is then deleted."""
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
  """Deletes a folder; a kill never leaves half of it under its own name, but under `aside`."""
  _commit(path, aside, os.rename)
  delete(aside)


def delete(path: Path) -> None:
  """Deletes a file or a folder, if it exists."""
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
    # Some network file systems cannot sync folders; a rename there is as durable as it gets.
    if error.errno != errno.EINVAL or not path.is_dir():
      raise
  finally:
    os.close(descriptor)


def check_space(place: Path, needed: int) -> None:
  """Raises StorageError where fewer than `needed` bytes are free under a folder, which need not exist."""
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
  """Returns a file's entry for a manifest."""
  return {'bytes': path.stat().st_size, 'sha256': sha256_of(path)}


def entries(folder: Path) -> dict[str, Entry]:
  """Returns the entries of all files below `folder` but the manifest, by relative path."""
  paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
  named = {path.relative_to(folder).as_posix(): path for path in paths}
  return {name: entry(path) for name, path in named.items() if name != MANIFEST}


def size_of(path: Path) -> int | None:
  """Returns the bytes of a file, or None where there is none."""
  return path.stat().st_size if path.is_file() else None


def check_entry(name: str, expected: Entry, size: int | None, sha256: str | None = None) -> None:
  """Raises `Damaged` where a file is missing (size None) or another than its entry says; no hash, no comparison."""
  if size is None:
    raise Damaged('missing file', name, 'is missing')
  if size != expected['bytes']:
    raise Damaged('wrong size', name, f'has {size:,} bytes, but {expected["bytes"]:,} in {MANIFEST}')
  if sha256 not in (None, expected['sha256']):
    detail = f'has SHA-256 {sha256}, but {expected["sha256"]} in {MANIFEST}: it was changed or damaged'
    raise Damaged('sha256 mismatch', name, detail)


def verify(folder: Path, files: Mapping[str, Entry], *, hashed: bool = True) -> None:
  """Raises `Damaged` for the first file that is not as its entry says, by size and, if `hashed`, by SHA-256."""
  for name in sorted(files):
    path = folder / name
    with damage_in(name):
      check_entry(name, files[name], size_of(path))
      if hashed:
        check_entry(name, files[name], size_of(path), sha256_of(path))


def read(
  file: str | os.PathLike,
  record: Any,
  content: bytes | None = None,
  *,
  path: str | os.PathLike = '',
  kind: str = '',
  remedy: str = '',
  about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
  """Returns the JSON object in a manifest with the fields of `record`, a type that msgspec knows.

  `file` is its path, or its name for messages if `content` is given. A damaged manifest is an ArtifactError with the
  other arguments.
  """
  try:
    value = untrusted.read_json(file) if content is None else untrusted.parse_json(content)
    msgspec.convert(value, record)
  except (OSError, ValueError) as reason:
    facts = f"'{file}' is damaged or not of this program ({one_line(reason)})"
    raise ArtifactError(facts, path, kind, remedy, about) from reason
  return value


# Comparing.


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Returns {dotted field: (was, now)} of the fields that differ; a field that is missing on one side is None there."""
  was, now = checks.flatten(found), checks.flatten(wanted)
  return {key: (was.get(key), now.get(key)) for key in {**now, **was} if was.get(key) != now.get(key)}


def check_same(
  path: Path,
  found: Mapping[str, Any],
  wanted: Mapping[str, Any],
  *,
  kind: str = '',
  remedy: str = 'use or replace',
  about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
  """Raises ArtifactError if `path` was made from other conditions; names the first that differs."""
  for field, (was, now) in differences(found, wanted).items():
    facts = f"'{path}' exists already, with {field} = {_short(was)}, and now it would be {_short(now)}"
    raise ArtifactError(facts, path, kind, remedy, about)


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 80 else f'{text[:60]}...'


# Locks.


@contextmanager
def lock(folder: Path, name: str = '', *, wait: bool = False) -> Iterator[None]:
  """Locks a folder, or the thing `name` in it, against a second writer, until the block or the process ends.

  The lock file holds the owner's process id and host. If another process has the lock, either waits, or raises
  ArtifactError.
  """
  path = folder / (f'.{name}.lock' if name else '.lock')
  with storage_errors(f"lock '{folder / name}'"):
    file = path.open('a+', errors='replace')
  with file:
    with storage_errors(f"lock '{folder / name}'"):
      try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        file.seek(0)
        owner = file.read(1000).split()  # the owner writes its name just after it takes the lock
        who = f'process {owner[0]} on {owner[1]}' if len(owner) == 2 else 'another process'
        raise ArtifactError(f"'{folder / name}' is in use by {who}", folder, remedy='elsewhere') from error
      if not wait:
        file.truncate(0)
        print(os.getpid(), socket.gethostname(), file=file, flush=True)
    yield
