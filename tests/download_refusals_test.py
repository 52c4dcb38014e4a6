"""Network errors that will not pass are told at once, with the proxy that is to blame; others after every attempt."""

import errno
import http.server
import socket
import ssl
import threading
import time

import pytest

from adversarial_augment.errors import UserError
from adversarial_augment.storage import download as download_lib

URL = 'https://example.org/file.bin'
PROXY = 'http://name:secret@proxy.example.org:3128'


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  for name in (
    'http_proxy',
    'https_proxy',
    'all_proxy',
    'no_proxy',
    'HTTP_PROXY',
    'HTTPS_PROXY',
    'ALL_PROXY',
    'NO_PROXY',
  ):
    monkeypatch.delenv(name, raising=False)


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
    (socket.gaierror(socket.EAI_NONAME, 'Name or service not known'), 'the host of the address is not known'),
    (socket.gaierror(socket.EAI_FAIL, 'Non-recoverable failure'), 'the host of the address is not known'),
  ],
)
def test_what_will_not_pass_is_not_tried_again(error, words, tmp_path, monkeypatch, capsys):
  fails_with(monkeypatch, error)
  assert words in refused(tmp_path)
  assert capsys.readouterr().err == f"downloading '{URL}' (170 MB)...\n"


@pytest.mark.parametrize(
  'error, words',
  [
    (socket.gaierror(socket.EAI_NONAME, 'Name or service not known'), 'the host of the proxy is not known'),
    (
      OSError('Tunnel connection failed: 407 Proxy Authentication Required'),
      'the proxy refuses (Tunnel connection failed: 407',
    ),
    (OSError('Tunnel connection failed: 403 Forbidden'), 'the proxy refuses'),
  ],
)
@pytest.mark.parametrize('variable', ['https_proxy', 'HTTPS_PROXY'])
def test_a_proxy_is_named(error, words, variable, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv(variable, PROXY)
  fails_with(monkeypatch, error)
  message = refused(tmp_path)
  assert words in message
  assert f'through the proxy proxy.example.org:3128 ({variable})' in message
  assert 'mend or unset the proxy' in message
  assert f'through the proxy proxy.example.org:3128 ({variable})...' in capsys.readouterr().err


@pytest.mark.parametrize('proxy', ['socks5://host:1080', 'http://host:port', 'http://', 'http://name:secret@host:x'])
def test_what_is_no_proxy_is_told_before_anything_is_tried(proxy, tmp_path, monkeypatch):
  monkeypatch.setattr(download_lib, '_fetch', lambda *_: pytest.fail('it tried'))
  monkeypatch.setenv('https_proxy', proxy)
  assert 'the proxy https_proxy=' in refused(tmp_path)


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
