"""The downloader, against a server on this machine: what it resumes, what it tries again, and what it refuses."""

from collections.abc import Iterator
import errno
import hashlib
import http.server
import pathlib
import re
import socket
import ssl
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest

from adversarial_augment import cli
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.storage import artifact
from adversarial_augment.storage import download as download_lib

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(NamedTuple):
  url: str
  behaviour: dict  # ranges: bool; cut_after: bytes per answer, or None; status: list of codes to answer first; content
  requests: list  # the Range header of each


@pytest.fixture
def server() -> Iterator[Server]:
  behaviour = {'ranges': True, 'cut_after': None, 'status': [], 'content': CONTENT}
  requests: list = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      requests.append(self.headers['Range'])
      if behaviour['status']:
        self.send_error(behaviour['status'].pop(0))
        return
      content = behaviour['content']
      start = 0
      if self.headers['Range'] and behaviour['ranges']:
        start = int(re.fullmatch(r'bytes=(\d+)-', self.headers['Range'])[1])
        self.send_response(206)
        self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
      else:
        self.send_response(200)
      rest = content[start:]
      self.send_header('Content-Length', str(len(rest)))
      self.end_headers()
      self.wfile.write(rest[: behaviour['cut_after']])
      self.close_connection = True

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield Server(f'http://127.0.0.1:{httpd.server_port}/file.bin', behaviour, requests)
    httpd.shutdown()
    thread.join()


def _download(server: Server, path: pathlib.Path, **changes) -> None:
  arguments = {'sha256': SHA256, 'size': len(CONTENT), 'retries': 2, 'first_wait': 0.001} | changes
  download_lib.download(server.url, path, **arguments)


def _part(url: str, folder: pathlib.Path) -> pathlib.Path:
  return download_lib.part_of(folder / 'file', url, SHA256)


@pytest.mark.parametrize(
  'behaviour, have, requests',
  [
    ({}, 0, [None]),
    ({'cut_after': 400_000}, 0, [None, *(f'bytes={n}-' for n in range(400_000, 3_000_000, 400_000))]),  # many cuts
    ({}, 1_234_567, ['bytes=1234567-']),  # as an earlier command left it
    ({'ranges': False}, 1_234_567, ['bytes=1234567-']),  # the server sends it all again
    ({}, 3_000_000, []),
    ({'status': [503, 429]}, 0, [None] * 3),  # a busy server
  ],
)
def test_a_download_brings_what_is_missing(server, tmp_path, behaviour, have, requests):
  server.behaviour.update(behaviour)
  if have:
    _part(server.url, tmp_path).write_bytes(CONTENT[:have])
  _part('http://127.0.0.1:1/', tmp_path).write_bytes(b'x' * 1000)  # of another address
  _download(server, tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert artifact.sha256_of(tmp_path / 'file') == SHA256
  assert server.requests == requests
  assert {path.name for path in tmp_path.iterdir()} == {'file', _part('http://127.0.0.1:1/', tmp_path).name}


@pytest.mark.parametrize(
  'behaviour, changes, message, requests, kept',
  [
    # The first brings something, and three bring nothing more.
    ({'ranges': False, 'cut_after': 1_000}, {}, 'connection was cut; 1,000 of 3,000,000 bytes are kept', 4, 1_000),
    ({'content': b'x' * len(CONTENT)}, {}, f'has SHA-256 [0-9a-f]{{64}}, but {SHA256} was expected', 1, None),
    ({}, {'size': 1000}, 'longer than the 1,000 bytes expected', 1, 0),
    ({'status': [404]}, {}, 'the server answers 404 Not Found; check the address', 1, None),
    ({'status': [503] * 9}, {}, 'answers 503', 3, None),
  ],
)
def test_a_download_is_given_up(server, tmp_path, behaviour, changes, message, requests, kept):
  server.behaviour.update(behaviour)
  with pytest.raises(UserError, match=message) as caught:
    _download(server, tmp_path / 'file', **changes)
  assert len(server.requests) == requests
  assert [path.stat().st_size for path in tmp_path.iterdir()] == ([] if kept is None else [kept])
  if behaviour.get('status') == []:  # 404
    assert cli.describe(caught.value).endswith(', or give another --url, or a file that you have with --from.')


def test_a_part_that_is_wrong_is_removed(server, tmp_path):
  _part(server.url, tmp_path).write_bytes(b'x' * 1000)
  with pytest.raises(UserError, match=f'but {SHA256} was expected'):
    _download(server, tmp_path / 'file')
  assert not list(tmp_path.iterdir())


def test_unreachable(tmp_path):
  with pytest.raises(UserError, match='refused') as caught:
    _download(Server('http://127.0.0.1:1/x', {}, []), tmp_path / 'file')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'url',
  [
    '', 'no address', 'zzz://host/x', 'file:///etc/hostname', 'ftp://host/x', 'http://', 'http:///x',
    'http://exa mple/', 'http://host/a b', 'http://host/\n', 'http://host/\udcff', 'http://höst/',
    'http://host:99999/x', 'http://host:0/x', 'http://host:x/', 'http://[::1/x',
  ],
)  # fmt: skip
def test_what_is_no_address_is_told_at_once(tmp_path, monkeypatch, url):
  monkeypatch.setattr(download_lib, '_fetch', lambda *_: pytest.fail('it tried'))
  with pytest.raises(UserError, match='cannot be downloaded') as caught:
    _download(Server(url, {}, []), tmp_path / 'file')
  assert '\n' not in str(caught.value)


def test_a_target_that_cannot_be_written(server, tmp_path):
  with pytest.raises(UserError, match='is a folder'):
    _download(server, tmp_path)
  assert not server.requests
  with pytest.raises(StorageError, match='Cannot write'):
    _download(server, tmp_path / 'missing' / 'file')


def test_full_disk(server, tmp_path):
  _part(server.url, tmp_path).symlink_to('/dev/full')
  with pytest.raises(StorageError, match='No space left'):
    _download(server, tmp_path / 'file')


# Networks and proxies.

URL = 'https://example.org/file.bin'
PROXY = 'http://name:secret@proxy.example.org:3128'


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(name.upper(), raising=False)


def refused(tmp_path, url: str = URL) -> str:
  """Returns the message of a download that is given up at once."""
  began = time.monotonic()
  with pytest.raises(UserError) as caught:
    download_lib.download(url, tmp_path / 'file', 'f' * 64, 170_000_000, first_wait=10.0)
  assert time.monotonic() - began < 5
  assert '\n' not in str(caught.value)
  assert 'secret' not in str(caught.value)
  return str(caught.value)


def fails_with(monkeypatch, error: OSError) -> None:
  """Makes every connection fail so, however deep urllib has its own handling."""

  def connect(*_, **__):
    raise error

  monkeypatch.setattr(socket, 'create_connection', connect)


CERTIFICATE = ssl.SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')
CERTIFICATE.verify_message = 'self-signed certificate in certificate chain'


@pytest.mark.parametrize(
  'error, words',
  [
    (CERTIFICATE, 'the certificate is not accepted (self-signed certificate in certificate chain); set SSL_CERT_FILE'),
    (ssl.SSLError(1, '[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert'), 'no TLS connection is possible'),
    (socket.gaierror(socket.EAI_NONAME, 'Name or service not known'), 'the host is not known'),
    (socket.gaierror(socket.EAI_FAIL, 'Non-recoverable failure'), 'the host is not known'),
  ],
)
def test_what_will_not_pass_is_not_tried_again(error, words, tmp_path, monkeypatch, capsys):
  fails_with(monkeypatch, error)
  assert words in refused(tmp_path)
  assert capsys.readouterr().err == f"downloading '{URL}' (170 MB)...\n"


@pytest.mark.parametrize(
  'error, words',
  [
    (socket.gaierror(socket.EAI_NONAME, 'Name or service not known'), 'the host is not known'),
    (
      OSError('Tunnel connection failed: 407 Proxy Authentication Required'),
      'Tunnel connection failed: 407',
    ),
    (OSError('Tunnel connection failed: 403 Forbidden'), 'Tunnel connection failed: 403'),
  ],
)
@pytest.mark.parametrize('variable', ['https_proxy', 'HTTPS_PROXY'])
def test_a_proxy_is_named(error, words, variable, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv(variable, PROXY)
  fails_with(monkeypatch, error)
  message = refused(tmp_path)
  assert words in message
  assert 'through the proxy proxy.example.org:3128 (https_proxy)' in message
  assert 'mend or unset the proxy' in message
  assert 'through the proxy proxy.example.org:3128 (https_proxy)...' in capsys.readouterr().err


@pytest.mark.parametrize('proxy', ['socks5://host:1080', 'http://host:port', 'http://', 'http://name:secret@host:x'])
def test_what_is_no_proxy_is_told_before_anything_is_tried(proxy, tmp_path, monkeypatch):
  monkeypatch.setattr(download_lib, '_fetch', lambda *_: pytest.fail('it tried'))
  monkeypatch.setenv('https_proxy', proxy)
  assert 'the proxy in https_proxy must be http://HOST:PORT' in refused(tmp_path)


def test_hosts_that_need_no_proxy_do_not_name_it(tmp_path, monkeypatch):
  monkeypatch.setenv('https_proxy', PROXY)
  monkeypatch.setenv('no_proxy', 'example.org')
  fails_with(monkeypatch, socket.gaierror(socket.EAI_NONAME, 'Name or service not known'))
  assert 'proxy' not in refused(tmp_path)


def test_tls_where_the_server_has_none(tmp_path):
  with http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler) as server:
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    message = refused(tmp_path, f'https://127.0.0.1:{server.server_port}/x')
    server.shutdown()
    thread.join()
  assert 'no TLS connection is possible' in message


@pytest.mark.parametrize(
  'error',
  [
    socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution'),
    ConnectionRefusedError(errno.ECONNREFUSED, 'Connection refused'),
    ssl.SSLEOFError(8, 'EOF occurred in violation of protocol'),
    OSError('Tunnel connection failed: 503 Service Unavailable'),
    TimeoutError('timed out'),
  ],
)
def test_what_may_pass_is_tried_again_and_said_at_once(error, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('https_proxy', PROXY)
  fails_with(monkeypatch, error)
  with pytest.raises(UserError, match=r'through the proxy proxy.example.org:3128 \(https_proxy\): .* are kept'):
    download_lib.download(URL, tmp_path / 'file', 'f' * 64, 1000, retries=2, first_wait=0.001)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3
  assert all('trying again in 0 s, with 0 of 1,000 bytes' in line for line in lines[1:])
