"""Curves for TensorBoard, through tensorboardX, which the extra 'logging' installs.

Events are written at once, in the caller's thread: the queue of tensorboardX's own SummaryWriter would stop a run for
ever once the disk is full.
"""

from collections.abc import Mapping
import importlib.util
import os
from pathlib import Path
import socket
import struct
import time
from typing import Any

from adversarial_augment.errors import UserError
from adversarial_augment.storage import files


def check_installed() -> None:
  """Refuses to promise TensorBoard files without the package that writes them.

  Raises:
    UserError: it is not installed.
  """
  if importlib.util.find_spec('tensorboardX') is None:
    raise UserError(
      "config.tensorboard=True needs tensorboardX, which is not installed; install the extra 'logging': "
      'pip install tensorboardX.'
    )


class Board:
  """One file of events."""

  def __init__(self, folder: Path, start: int):
    """Opens a file in `folder`; TensorBoard then forgets what older files say of the steps after `start`.

    Raises:
      StorageError: it cannot be written.
    """
    from tensorboardX.proto import event_pb2

    self._event = event_pb2.Event
    began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    with files.storage_errors(f"write TensorBoard files under '{folder}'"):
      folder.mkdir(exist_ok=True)
      self._file = open(folder / name, 'ab', buffering=0)  # noqa: SIM115  (closed by `close`)
      self._write({'file_version': 'brain.Event:2'}, {'step': start + 1, 'session_log': began})

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a point of every curve; a reader sees it when this returns.

    Raises:
      StorageError: the disk takes it not.
    """
    from tensorboardX import summary

    with files.storage_errors('write the TensorBoard file'):
      self._write(*({'step': step, 'summary': summary.scalar(name, value)} for name, value in values.items()))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, *events: Mapping[str, Any]) -> None:
    from tensorboardX.record_writer import masked_crc32c

    content = b''
    for event in events:
      data = self._event(wall_time=time.time(), **event).SerializeToString()
      for part in (struct.pack('<Q', len(data)), data):
        content += part + struct.pack('<I', masked_crc32c(part))
    while content:
      content = content[self._file.write(content) :]
