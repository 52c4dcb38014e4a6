"""Downloads one file: with progress, resumable, and checked against its SHA-256. Standard library only."""

from collections.abc import Callable
import hashlib
import http.client
import os
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
_PASSING_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # cut off; others are of the two sides
_PASSING_NAMES = (socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM)  # no answer; others are an answer


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
    UserError: no such address, no such file on the server, a proxy or a certificate that is wrong, no connection, or
      another hash or size, whereupon the wrong file is removed; or `path` is a folder.
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
        reason = _explain(error, url, proxy)
      now = part.stat().st_size if part.exists() else 0
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
  return UserError(f'{url!r} cannot be downloaded ({problem}); mend the address.', remedy='url')


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
  """Returns ' through the proxy ADDRESS (VARIABLE)' where the environment names one for `url`, without its password.

  Raises:
    UserError: it is no proxy that can be used.
  """
  parts = urllib.parse.urlsplit(url)
  proxy = urllib.request.getproxies().get(parts.scheme)
  if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition('@')[2]):
    return ''
  variable = next(
    (name for name in (f'{parts.scheme}_proxy', f'{parts.scheme}_PROXY'.upper()) if name in os.environ), ''
  )
  try:
    of_proxy = urllib.parse.urlsplit(proxy if '://' in proxy else f'http://{proxy}')
    address = f'{of_proxy.hostname}:{of_proxy.port}' if of_proxy.port else of_proxy.hostname
    problem = '' if address and of_proxy.scheme in ('http', 'https') else 'it must be http://HOST:PORT'
  except ValueError as error:
    problem = str(error)
  if problem:
    shown = re.sub('//[^/]*@', '//', proxy)  # without the password
    raise UserError(
      f"Cannot download '{url}': the proxy {variable}={shown!r} cannot be used ({problem}); change or unset the "
      'variable.',
      remedy='from',
    )
  return f' through the proxy {address} ({variable})' if variable else f' through the proxy {address}'


def _explain(error: Exception, url: str, proxy: str) -> str:
  """Returns why an attempt failed, if another one may help.

  Raises:
    UserError: another one will not help.
  """
  problem, way_out = '', 'check the address'
  reason = error.reason if isinstance(error, urllib.error.URLError) else error
  text = str(reason) or type(reason).__name__
  if isinstance(error, urllib.error.HTTPError):
    error.close()
    text = f'the server answers {error.code} {error.reason}'
    if error.code not in _RETRY_STATUS:
      problem = text
  elif not isinstance(error, urllib.error.URLError):  # the connection stood
    return text
  elif isinstance(reason, ssl.SSLCertVerificationError):
    problem = f'the certificate is not accepted ({reason.verify_message or text})'
    way_out = 'set SSL_CERT_FILE to a file with the certificates of your network'
  elif isinstance(reason, ssl.SSLError) and not isinstance(reason, _PASSING_TLS):
    problem = f'no TLS connection is possible ({text})'
  elif isinstance(reason, socket.gaierror) and reason.errno not in _PASSING_NAMES:
    problem = f'the host of the {"proxy" if proxy else "address"} is not known ({reason.strerror})'
  elif (tunnel := re.search('Tunnel connection failed: ([0-9]+)', text)) and int(tunnel[1]) not in _RETRY_STATUS:
    problem = f'the proxy refuses ({text})'
  if problem:
    if proxy and not isinstance(reason, ssl.SSLCertVerificationError):
      way_out = 'mend or unset the proxy of the environment'
    raise UserError(f"Cannot download '{url}'{proxy}: {problem}; {way_out}.", remedy='url') from error
  return text
