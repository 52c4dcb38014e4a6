"""What a run says while it goes on: lines on the terminal, metrics.jsonl, the progress bar, TensorBoard files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
import dataclasses
import importlib.util
import os
from pathlib import Path
import socket
import sys
import time
from typing import Any

import jax

from adversarial_augment.cli import progress
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.parallel import processes
from adversarial_augment.run.retries import Retries
from adversarial_augment.storage import artifact, run_directory


@dataclasses.dataclass
class Forecast:
  """When a run ends: its steps without and with the adversary, and its evaluations, each by the time that it takes."""

  num_steps: int
  warmup_steps: int = 0  # the first ones, which are without the adversary
  attacked: float | None = None  # seconds of a step with it, as last measured
  eval_every: int = 0  # steps between evaluations; 0: there is the closing one only
  evaluation: float = 0.0  # seconds of one
  clean: float = 0.0  # seconds of a step without the adversary, as last measured

  def left(self, before: int, step: int, seconds: float) -> float:
    """Returns the seconds until the run is evaluated, where each step from `before` to `step` took `seconds`."""
    if step <= self.warmup_steps:
      self.clean = seconds
    elif before >= self.warmup_steps or self.attacked is None:
      self.attacked = seconds
    clean, total = max(self.warmup_steps - step, 0), max(self.num_steps - step, 0)
    attacked = seconds if self.attacked is None else self.attacked
    between = (self.num_steps - 1) // self.eval_every - step // self.eval_every if self.eval_every else 0
    return clean * self.clean + (total - clean) * attacked + (max(between, 0) + 1) * self.evaluation


def shown(seconds: float) -> str:
  """Returns a time as 01:02:03, or in days."""
  whole = round(seconds)
  if whole >= 86400:
    return f'{seconds / 86400:.1f} days'
  return f'{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}'


def check_tensorboard() -> None:
  """Refuses curves for TensorBoard without the package that writes them."""
  if importlib.util.find_spec('tensorboardX') is None:
    raise UserError(
      "TensorBoard files need tensorboardX, which is not installed; install the extra 'logging': pip install "
      'tensorboardX.'
    )


class Board:
  """A file of curves for TensorBoard, through tensorboardX.

  Events are written in the caller's thread: the queue of its SummaryWriter blocks forever once a disk is full.
  """

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
    with suppress(OSError):
      self._file.close()

  def _write(self, *events: Mapping[str, Any]) -> None:
    for event in events:
      self._file.write(self._event(wall_time=time.time(), **event).SerializeToString())
    self._file.flush()


class RunLog:
  """The curves of one start of a run; all processes call it together, process 0 writes."""

  def __init__(self, workdir: Path, start: int, num_steps: int, images_per_step: int, board: bool, forecast: Forecast):
    """Opens the log of `workdir`, which a resume has cut back to `start`."""
    from tqdm import tqdm

    self._path = workdir / 'metrics.jsonl'
    self._num_steps, self._images_per_step, self._forecast = num_steps, images_per_step, forecast
    self._unwritten: list[dict[str, Any]] = []
    self._retries = Retries()
    self._last_step, self._last_time = start, time.monotonic()
    self._board: Board | None = None

    def open_files() -> list[Any]:
      if board:
        self._board = Board(workdir / 'tensorboard', start)
      return [self._size_on_disk(), run_directory.to_runs(run_directory.truncate_log(self._path)[0])]

    self._size, self.steps = processes.on_process_0(open_files)  # `steps` are those of all lines; on process 0
    interactive = jax.process_index() == 0 and sys.stderr.isatty()
    self._bar = tqdm(total=num_steps, initial=start, unit='step', disable=not interactive, dynamic_ncols=True)

  @contextmanager
  def pause(self) -> Iterator[None]:
    """Leaves the time of the block, a save or an evaluation, out of images per second."""
    start = time.monotonic()
    yield
    self._last_time += time.monotonic() - start

  def add(self, step: int, line: Mapping[str, Any]) -> None:
    """Writes the line of a step that has just been finished; one that cannot be written is kept for later."""
    now = time.monotonic()
    seconds = max(now - self._last_time, 1e-9) / max(step - self._last_step, 1)
    rate, left = self._images_per_step / seconds, self._forecast.left(self._last_step, step, seconds)
    self._last_step, self._last_time = step, now
    line = {**line, 'images_per_second': round(rate, 1)}
    self._unwritten.append(line)
    if step >= self._retries.retry_at:
      self._retries.attempt(step, self.write)
    if jax.process_index() == 0:
      known = {name: value for name, value in line.items() if value is not None}  # in the warm-up there is no attack
      self._draw(step, known)
      self._show(step, known, left)

  def write(self, *, durable: bool = False) -> None:
    """Appends the lines that have not been written; `durable` waits until all lines are on the disk."""

    def write() -> None:
      self._append()
      if durable and self._size:
        with artifact.storage_errors(f"write '{self._path}'"):
          artifact.fsync(self._path)
          artifact.fsync(self._path.parent)

    processes.on_process_0(write)
    self._unwritten.clear()

  def close(self) -> None:
    """Ends the progress bar and the TensorBoard file."""
    self._bar.close()
    if self._board is not None:
      self._board.close()

  def _append(self) -> None:
    size = self._size_on_disk()
    if size != self._size:
      what = 'lost' if size < self._size else 'gained'
      progress.log(
        f"warning: '{self._path}' has {what} {abs(size - self._size):,} bytes through another program: lines of its "
        'curves are missing or double; the run goes on.'
      )
    while self._unwritten:
      run_directory.append_line(self._path, self._unwritten[0])
      run_directory.append_step(self.steps, self._unwritten.pop(0)['step'])
      size = self._size_on_disk()
    self._size = size

  def _size_on_disk(self) -> int:
    with artifact.storage_errors(f"look at '{self._path}'"):
      return self._path.stat().st_size if self._path.exists() else 0

  def _show(self, step: int, line: Mapping[str, Any], left: float) -> None:
    """Shows how far the run is: in the bar, or where there is none as a line."""
    text = '  '.join(f'{name} {line[name]:.3g}' for name in ('loss', 'accuracy', 'ssim_mean') if name in line)
    text += f'  {line["images_per_second"]:.0f} images/s'
    if self._bar.disable:
      progress.log(f'step {step}/{self._num_steps}  {text}  ETA {shown(left)}')
      return
    remaining = self._bar.format_interval(left)  # the bar's own estimate knows the steps so far only
    self._bar.bar_format = (
      f'{{l_bar}}{{bar}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{remaining}, {{rate_fmt}}{{postfix}}]'
    )
    self._bar.set_postfix_str(text, refresh=False)
    self._bar.update(step - self._bar.n)

  def _draw(self, step: int, line: Mapping[str, float]) -> None:
    if self._board is None:
      return
    try:
      self._board.add(step, {name: value for name, value in line.items() if name != 'step'})
    except StorageError as error:
      progress.log(f'warning: {error} The run goes on without TensorBoard files.')
      self._board.close()
      self._board = None
