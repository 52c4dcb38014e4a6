"""Tests of the downloader, against a server on this machine."""

from collections.abc import Iterator
import hashlib
import http.server
import pathlib
import re
import threading
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


def test_whole_file(server, tmp_path):
  _download(server, tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert server.requests == [None]
  assert [path.name for path in tmp_path.iterdir()] == ['file']
  assert artifact.sha256_of(tmp_path / 'file') == SHA256


def test_cut_connections_are_resumed_with_ranges(server, tmp_path):
  server.behaviour['cut_after'] = 400_000  # 8 answers, more than the retries: each brings something
  _download(server, tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert server.requests == [None, *(f'bytes={n}-' for n in range(400_000, 3_000_000, 400_000))]


def test_a_later_command_goes_on(server, tmp_path):
  _part(server.url, tmp_path).write_bytes(CONTENT[:1_234_567])
  _download(server, tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert server.requests == ['bytes=1234567-']


def test_server_without_ranges_sends_it_all_again(server, tmp_path):
  server.behaviour['ranges'] = False
  _part(server.url, tmp_path).write_bytes(CONTENT[:1_000])
  _download(server, tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert server.requests == ['bytes=1000-']


def test_server_that_cuts_and_has_no_ranges_is_given_up(server, tmp_path):
  server.behaviour.update(ranges=False, cut_after=1_000)
  with pytest.raises(UserError, match='the connection was cut; 1,000 of 3,000,000 bytes are kept'):
    _download(server, tmp_path / 'file')
  assert len(server.requests) == 4  # the first, which brought something, and three without progress


def test_complete_part_needs_no_server(tmp_path):
  _part('http://127.0.0.1:1/', tmp_path).write_bytes(CONTENT)
  _download(Server('http://127.0.0.1:1/', {}, []), tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT


@pytest.mark.parametrize('resumed', [False, True])
def test_wrong_hash_is_named_and_removed(server, tmp_path, resumed):
  if resumed:
    _part(server.url, tmp_path).write_bytes(b'x' * 1000)
  else:
    server.behaviour['content'] = b'x' * len(CONTENT)
  with pytest.raises(UserError, match=f'has SHA-256 [0-9a-f]{{64}}, but {SHA256} was expected'):
    _download(server, tmp_path / 'file')
  assert not list(tmp_path.iterdir())


def test_longer_file_is_refused_without_reading_it_all(server, tmp_path):
  with pytest.raises(UserError, match='longer than the 1,000 bytes expected'):
    _download(server, tmp_path / 'file', size=1000)
  assert _part(server.url, tmp_path).stat().st_size == 0


def test_404_is_told_at_once(server, tmp_path):
  server.behaviour['status'] = [404]
  with pytest.raises(UserError, match='the server answers 404 Not Found; check the address') as caught:
    _download(server, tmp_path / 'file')
  assert cli.describe(caught.value).endswith(', or give another --url, or a file that you have with --from.')
  assert len(server.requests) == 1


def test_busy_server_is_asked_again(server, tmp_path):
  server.behaviour['status'] = [503, 429]
  _download(server, tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT


def test_server_that_stays_busy_is_given_up(server, tmp_path):
  server.behaviour['status'] = [503] * 9
  with pytest.raises(UserError, match='answers 503'):
    _download(server, tmp_path / 'file')
  assert len(server.requests) == 3


def test_unreachable(tmp_path):
  with pytest.raises(UserError, match='refused') as caught:
    _download(Server('http://127.0.0.1:1/x', {}, []), tmp_path / 'file')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'url',
  [
    '',
    'no address',
    'zzz://host/x',
    'file:///etc/hostname',
    'ftp://host/x',
    'http://',
    'http:///x',
    'http://exa mple/',
    'http://host/a b',
    'http://host/\n',
    'http://host/\udcff',
    'http://höst/',
    'http://host:99999/x',
    'http://host:0/x',
    'http://host:x/',
    'http://[::1/x',
  ],
)
def test_what_is_no_address_is_told_at_once(tmp_path, monkeypatch, url):
  monkeypatch.setattr(download_lib, '_fetch', lambda *_: pytest.fail('it tried'))
  with pytest.raises(UserError, match='cannot be downloaded') as caught:
    _download(Server(url, {}, []), tmp_path / 'file')
  assert '\n' not in str(caught.value)


def test_parts_of_two_addresses_are_not_mixed(server, tmp_path):
  _part('http://127.0.0.1:1/', tmp_path).write_bytes(b'x' * 1000)
  _download(server, tmp_path / 'file')
  assert (tmp_path / 'file').read_bytes() == CONTENT
  assert server.requests == [None]


def test_target_that_is_a_folder(server, tmp_path):
  with pytest.raises(UserError, match='is a folder'):
    _download(server, tmp_path)
  assert not server.requests


def test_folder_that_cannot_be_written(server, tmp_path):
  with pytest.raises(StorageError, match='Cannot write'):
    _download(server, tmp_path / 'missing' / 'file')


def test_full_disk(server, tmp_path):
  _part(server.url, tmp_path).symlink_to('/dev/full')
  with pytest.raises(StorageError, match='No space left'):
    _download(server, tmp_path / 'file')
