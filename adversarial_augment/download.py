"""Downloads one file: with progress, resumable, and checked against its SHA-256. Standard library only."""

from collections.abc import Callable
import hashlib
import http.client
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request

from adversarial_augment import files
from adversarial_augment.errors import StorageError, UserError

_CHUNK = 1 << 18
_TIMEOUT = 60.0  # seconds without a byte
_RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


def sha256_of(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, 64 hexadecimal digits."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def part_of(path: pathlib.Path, url: str, sha256: str) -> pathlib.Path:
  """Returns where a download keeps what arrived: another file for each address, so that no two are ever mixed."""
  key = hashlib.sha256(f'{sha256} {url}'.encode(errors='surrogateescape')).hexdigest()[:16]
  return path.with_name(f'{path.name}.{key}.part')


def download(
  url: str, path: pathlib.Path, sha256: str, size: int, *, retries: int = 5, first_wait: float = 1.0
) -> None:
  """Brings a file, or the rest of it: what arrived stays in `part_of` until all of it is there and is right.

  Args:
    url: http or https; a server that knows no range requests is asked for the whole file again.
    path: where it goes; its folder exists, and it is none.
    sha256: of the whole file.
    size: of the whole file, in bytes.
    retries: how often in a row an attempt may bring nothing before giving up.
    first_wait: seconds before the second attempt; doubled for each further one.

  Raises:
    UserError: no such address, no such file on the server, no connection, or another hash or size, whereupon the wrong
      file is removed; or `path` is a folder.
    StorageError: the disk is full or not writable.
  """
  from tqdm import tqdm

  _check_url(url)
  if path.is_dir():
    raise UserError(f"Cannot download to '{path}', which is a folder and must be a file; rename or remove the folder.")
  part = part_of(path, url, sha256)
  failures = 0
  with tqdm(total=size, desc=path.name, unit='B', unit_scale=True, unit_divisor=1024, disable=None) as bar:
    while True:
      have = part.stat().st_size if part.exists() else 0
      if have >= size:
        break
      try:
        _fetch(url, part, have, size, lambda n: (bar.update(n - bar.n), None)[1])
        reason = 'the connection was cut'
      except StorageError:
        raise
      except (OSError, http.client.HTTPException) as error:  # URLError, TimeoutError and errors of TLS are OSErrors
        reason = _explain(error, url)
      now = part.stat().st_size if part.exists() else 0
      if now >= size:
        break
      failures = 0 if now > have else failures + 1
      if failures > retries:
        raise UserError(
          f"Cannot download '{url}': {reason}; {now:,} of {size:,} bytes are kept, and the same command goes on "
          'from there.'
        )
      time.sleep(min(first_wait * 2**failures, 60.0))
  found = sha256_of(part)
  if found != sha256:
    part.unlink()
    raise UserError(
      f"'{url}' has SHA-256 {found}, but {sha256} was expected; the wrong file was removed: try again, or give "
      'another --url, or --from=PATH.'
    )
  part.replace(path)


def _check_url(url: str) -> None:
  """Refuses what is no http or https address before anything is tried."""
  problem = ''
  try:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.hostname:
      problem = 'it must begin with http:// or https:// and name a host'
    elif not url.isascii() or not url.isprintable() or ' ' in url:
      problem = 'blanks, control characters and letters beyond ASCII must be written as %20 and so on'
    elif parts.port == 0:  # reading it also checks that it is a number up to 65535
      problem = 'port 0 cannot be reached'
  except ValueError as error:
    problem = str(error)
  if problem:
    raise _bad_url(url, problem)


def _bad_url(url: str, problem: object) -> UserError:
  return UserError(f'--url={url!r} is not an address that can be downloaded ({problem}); give another one, or --from.')


def _fetch(url: str, part: pathlib.Path, have: int, size: int, report: Callable[[int], None]) -> None:
  """Appends what one connection brings."""
  headers = {'User-Agent': 'adversarial-augment'} | ({'Range': f'bytes={have}-'} if have else {})
  try:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
  except (ValueError, http.client.InvalidURL) as error:  # also one that the server points to
    raise _bad_url(url, error) from error
  with response:
    resumed = response.status == 206 and response.headers.get('Content-Range', '').startswith(f'bytes {have}-')
    position = have if resumed else 0
    report(position)
    with files.storage_errors(f"write '{part}'"):
      file = part.open('ab' if resumed else 'wb')
    with file:
      while block := response.read(_CHUNK):
        position += len(block)
        if position > size:
          file.truncate(0)
          raise UserError(f"'{url}' is longer than the {size:,} bytes expected; it is not the right file.")
        with files.storage_errors(f"write '{part}'"):
          file.write(block)
          file.flush()  # so that a full disk is met here
        report(position)


def _explain(error: Exception, url: str) -> str:
  """Returns why an attempt failed, if another one may help.

  Raises:
    UserError: another one will not help.
  """
  if isinstance(error, urllib.error.HTTPError):
    error.close()
    if error.code not in _RETRY_STATUS:
      raise UserError(
        f"Cannot download '{url}': the server answers {error.code} {error.reason}; give another --url, or --from=PATH."
      ) from error
    return f'the server answers {error.code} {error.reason}'
  if isinstance(error, urllib.error.URLError):
    return str(error.reason)
  return str(error) or type(error).__name__
