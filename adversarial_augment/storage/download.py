"""Downloads one file: with progress, resumable, and checked against its SHA-256. Standard library only."""

from collections.abc import Callable
import hashlib
import http.client
import pathlib
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

from adversarial_augment.cli import streams
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.storage import artifact

_CHUNK = 1 << 18
_TIMEOUT = 60.0  # seconds without a byte
_RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
_PASSING_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # cut off; others will come again
_PASSING_NAMES = (socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM)  # no answer; others are an answer


def part_of(path: pathlib.Path, url: str, sha256: str) -> pathlib.Path:
  """Returns where a download keeps what has arrived: another file for each address, so that no two are mixed."""
  key = hashlib.sha256(f'{sha256} {url}'.encode(errors='surrogateescape')).hexdigest()[:16]
  return path.with_name(f'{path.name}.{key}.part')


def download(
  url: str, path: pathlib.Path, sha256: str, size: int, *, retries: int = 5, first_wait: float = 1.0
) -> None:
  """Downloads a file, or the rest of it, into an existing folder; until it is whole and right, it stays in `part_of`.

  A server without range requests is asked for the whole file again. `retries` attempts in a row may bring nothing; the
  wait between them begins with `first_wait` seconds and doubles.

  Raises:
    UserError: the address, the server, the proxy, the certificate or the connection does not work; the file has
      another hash or size, and is removed; or `path` is a folder.
    StorageError: the disk is full or not writable.
  """
  from tqdm import tqdm

  _check_url(url)
  if path.is_dir():
    raise UserError(f"Cannot download to '{path}', which is a folder and must be a file; rename or remove the folder.")
  part = part_of(path, url, sha256)
  proxy = _proxy(url)
  streams.say(f"downloading '{url}' ({size / 1e6:,.0f} MB){proxy}...")
  failures = 0
  with tqdm(total=size, desc=path.name, unit='B', unit_scale=True, unit_divisor=1024, disable=None) as bar:
    while (have := artifact.size_of(part) or 0) < size:
      reason = _fetch(url, part, have, size, proxy, lambda n: (bar.update(n - bar.n), None)[1])
      now = artifact.size_of(part) or 0
      if now >= size:
        break
      failures = 0 if now > have else failures + 1
      if failures > retries:
        raise UserError(
          f"Cannot download '{url}'{proxy}: {reason}; {now:,} of {size:,} bytes are kept, and the same command goes on "
          'from there.'
        )
      wait = min(first_wait * 2**failures, 60.0)
      with bar.external_write_mode():
        streams.say(f'{reason}; trying again in {wait:.0f} s, with {now:,} of {size:,} bytes')
      time.sleep(wait)
  found = artifact.sha256_of(part)
  if found != sha256:
    part.unlink()
    raise UserError(
      f"'{url}' has SHA-256 {found}, but {sha256} was expected; the wrong file was removed: try again.", remedy='url'
    )
  with artifact.storage_errors(f"write '{path}'"):
    artifact.put(part, path)


def _check_url(url: str) -> None:
  """Refuses an address that is not http or https before anything is tried."""
  try:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.hostname:
      raise ValueError('it must begin with http:// or https:// and name a host')
    if not url.isascii() or not url.isprintable() or ' ' in url:
      raise ValueError('blanks, control characters and letters beyond ASCII must be written as %20 and so on')
    if parts.port == 0:  # reading it also checks that it is a number up to 65535
      raise ValueError('port 0 cannot be reached')
  except ValueError as error:
    raise _bad_url(url, error) from None


def _bad_url(url: str, problem: object) -> UserError:
  return UserError(f'{url!r} cannot be downloaded ({problem}); mend the address.', remedy='url')


def _fetch(url: str, part: pathlib.Path, have: int, size: int, proxy: str, report: Callable[[int], None]) -> str:
  """Appends what one connection brings; returns why it ended. Raises UserError where another will not help."""
  headers = {'User-Agent': 'adversarial-augment'} | ({'Range': f'bytes={have}-'} if have else {})
  try:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310
      _append(response, url, part, have, size, report)
    return 'the connection was cut'
  except (UserError, StorageError):
    raise
  except (ValueError, http.client.InvalidURL) as error:  # also one that the server points to
    raise _bad_url(url, error) from error
  except (OSError, http.client.HTTPException) as error:  # URLError, TimeoutError and errors of TLS are OSErrors
    return _explain(error, url, proxy)


def _append(
  response: http.client.HTTPResponse, url: str, part: pathlib.Path, have: int, size: int, report: Callable[[int], None]
) -> None:
  resumed = response.status == 206 and response.headers.get('Content-Range', '').startswith(f'bytes {have}-')
  position = have if resumed else 0
  report(position)
  with artifact.storage_errors(f"write '{part}'"):
    file = part.open('ab' if resumed else 'wb')
  with file:
    while block := response.read(_CHUNK):
      position += len(block)
      if position > size:
        file.truncate(0)
        raise UserError(f"'{url}' is longer than the {size:,} bytes expected; it is not the right file.")
      with artifact.storage_errors(f"write '{part}'"):
        file.write(block)
        file.flush()  # so that a full disk is met here
      report(position)


def _proxy(url: str) -> str:
  """Returns ' through the proxy ADDRESS' if the environment has one for `url`, without its password."""
  parts = urllib.parse.urlsplit(url)
  proxy = urllib.request.getproxies().get(parts.scheme)
  if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition('@')[2]):
    return ''
  variable = f'{parts.scheme}_proxy'
  address = re.fullmatch(r'(?:https?://)?(?:[^/]*@)?((?:[\w.-]+|\[[\da-fA-F:]+\])(?::\d+)?)/?', proxy)
  if not address:
    raise UserError(
      f"Cannot download '{url}': the proxy in {variable} must be http://HOST:PORT; change or unset it.", remedy='from'
    )
  return f' through the proxy {address[1]} ({variable})'


def _explain(error: Exception, url: str, proxy: str) -> str:
  """Returns why an attempt failed, if another one may help, and else raises UserError."""
  if not isinstance(error, urllib.error.URLError):  # the connection stood
    return str(error) or type(error).__name__
  reason = error.reason
  text = str(
    getattr(reason, 'verify_message', '') or getattr(reason, 'strerror', '') or reason or type(reason).__name__
  )
  way_out = 'mend or unset the proxy' if proxy else 'check the address'
  if isinstance(error, urllib.error.HTTPError):
    error.close()
    text, passes = f'the server answers {error.code} {reason}', error.code in _RETRY_STATUS
  elif isinstance(reason, ssl.SSLCertVerificationError):
    text, passes = f'the certificate is not accepted ({text})', False
    way_out = 'set SSL_CERT_FILE to a file with the certificates of your network'
  elif isinstance(reason, ssl.SSLError):
    text, passes = f'no TLS connection is possible ({text})', isinstance(reason, _PASSING_TLS)
  elif isinstance(reason, socket.gaierror):
    text, passes = f'the host is not known ({text})', reason.errno in _PASSING_NAMES
  elif tunnel := re.search('Tunnel connection failed: ([0-9]+)', text):
    passes = int(tunnel[1]) in _RETRY_STATUS
  else:
    passes = isinstance(reason, OSError)  # else a text, of an address or a proxy that cannot be used
  if not passes:
    raise UserError(f"Cannot download '{url}'{proxy}: {text}; {way_out}.", remedy='url') from error
  return text
