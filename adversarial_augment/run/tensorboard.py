"""Curves for TensorBoard, through tensorboardX, which the extra 'logging' installs.

Events are written in the caller's thread: the queue of tensorboardX's SummaryWriter blocks forever once a disk is full.
"""

from collections.abc import Mapping
import contextlib
import importlib.util
import os
from pathlib import Path
import socket
import time
from typing import Any

from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact


def check_installed() -> None:
  if importlib.util.find_spec('tensorboardX') is None:
    raise UserError(
      "TensorBoard files need tensorboardX, which is not installed; install the extra 'logging': pip install "
      'tensorboardX.'
    )


class Board:
  """One file of events; writing raises StorageError where it fails."""

  def __init__(self, folder: Path, start: int):
    """Opens a file in `folder`; TensorBoard then forgets what older files say of the steps after `start`."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter

    self._event = event_pb2.Event
    # Two starts within a second have different process ids. An absolute path is never taken for one of cloud storage.
    path = folder.absolute() / f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    with artifact.storage_errors(f"write TensorBoard files under '{folder}'"):
      folder.mkdir(exist_ok=True)
      self._file = RecordWriter(str(path))
      began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      try:
        self._write({'file_version': 'brain.Event:2'}, {'step': start + 1, 'session_log': began})
      except OSError:
        self.close()
        raise

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a point of every curve; a reader sees it when this returns."""
    from tensorboardX import summary

    with artifact.storage_errors('write the TensorBoard file'):
      self._write(*({'step': step, 'summary': summary.scalar(name, value)} for name, value in values.items()))

  def close(self) -> None:
    """Closes the file; what a full disk has not taken is lost."""
    with contextlib.suppress(OSError):
      self._file.close()

  def _write(self, *events: Mapping[str, Any]) -> None:
    for event in events:
      self._file.write(self._event(wall_time=time.time(), **event).SerializeToString())
    self._file.flush()
