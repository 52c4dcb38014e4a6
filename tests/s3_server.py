"""An S3 server on loopback, which keeps what it has through a kill."""

import os
from pathlib import Path
import socket
import subprocess
import sys
import time
import urllib.request

from tests import trainer


class Server:
  """moto's server; it records what it is asked to do, and does it again when it is started again."""

  def __init__(self, folder: Path):
    self._port = trainer.free_port()
    self._recording = folder / 'requests.jsonl'
    self.env = {
      'AWS_ENDPOINT_URL': f'http://127.0.0.1:{self._port}',
      'AWS_ACCESS_KEY_ID': 'id',
      'AWS_SECRET_ACCESS_KEY': 'very-secret',
      'AWS_DEFAULT_REGION': 'us-east-1',
    }
    self.start()

  def start(self) -> None:
    env = {'MOTO_ENABLE_RECORDING': 'True', 'MOTO_RECORDER_FILEPATH': str(self._recording)}
    command = [sys.executable, '-m', 'moto.server', '-p', str(self._port)]
    self._process = subprocess.Popen(
      command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + trainer.PATIENCE
    while True:
      try:
        socket.create_connection(('127.0.0.1', self._port)).close()
        break
      except OSError:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if self._recording.exists():
      self._post('replay-recording')

  def _post(self, action: str) -> None:
    url = f'{self.env["AWS_ENDPOINT_URL"]}/moto-api/recorder/{action}'
    urllib.request.urlopen(urllib.request.Request(url, method='POST')).read()

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()
