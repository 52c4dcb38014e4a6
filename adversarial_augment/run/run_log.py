"""What a run says while it goes on: lines on the terminal, metrics.jsonl, the progress bar, TensorBoard files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
import sys
import time
from typing import Any

import jax

from adversarial_augment.cli import progress
from adversarial_augment.errors import StorageError
from adversarial_augment.parallel import processes
from adversarial_augment.run import tensorboard
from adversarial_augment.run.forecast import Forecast, shown
from adversarial_augment.run.retries import Retries
from adversarial_augment.storage import artifact, run_directory


class RunLog:
  """The curves of one start of a run; all processes call it together, process 0 writes."""

  def __init__(
    self,
    workdir: Path,
    start: int,
    num_steps: int,
    images_per_step: int,
    board: bool,
    forecast: Forecast | None = None,
  ):
    """Opens the log of `workdir`, which a resume has cut back to `start`."""
    from tqdm import tqdm

    self._path = workdir / 'metrics.jsonl'
    self._num_steps, self._images_per_step = num_steps, images_per_step
    self._forecast = forecast or Forecast(num_steps)
    known = processes.on_process_0(
      lambda: [self._size_on_disk(), run_directory.to_runs(run_directory.truncate_log(self._path)[0])]
    )
    self._size, self.steps = known  # `steps` are those of all lines; on process 0
    self._unwritten: list[dict[str, Any]] = []
    self._retries = Retries()
    self._last_step, self._last_time = start, time.monotonic()
    self._board: tensorboard.Board | None = None

    def open_board() -> None:
      self._board = tensorboard.Board(workdir / 'tensorboard', start)

    if board:
      processes.on_process_0(open_board)
    interactive = jax.process_index() == 0 and sys.stderr.isatty()
    self._bar = tqdm(total=num_steps, initial=start, unit='step', disable=not interactive, dynamic_ncols=True)

  @contextmanager
  def pause(self) -> Iterator[None]:
    """Leaves the time of the block, a save or an evaluation, out of images per second."""
    start = time.monotonic()
    yield
    self._last_time += time.monotonic() - start

  def add(self, step: int, line: Mapping[str, Any]) -> None:
    """Writes the line of a step that has just been finished; one that cannot be written is kept for later.

    Raises:
      StorageError: three attempts in a row failed.
    """
    now = time.monotonic()
    seconds = max(now - self._last_time, 1e-9) / max(step - self._last_step, 1)
    rate, left = self._images_per_step / seconds, self._forecast.left(self._last_step, step, seconds)
    self._last_step, self._last_time = step, now
    line = {**line, 'images_per_second': round(rate, 1)}
    self._unwritten.append(line)
    if step >= self._retries.retry_at:
      self._retries.attempt(step, self.write)
    if jax.process_index() == 0:
      self._show(step, line, left)

  def write(self, *, durable: bool = False) -> None:
    """Appends the lines that have not been written; `durable` waits until all lines are on the disk.

    Raises:
      StorageError: they cannot be written.
    """

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
    """Draws the points of a line, and shows how far the run is: in the bar, or where there is none as a line."""
    known = {name: value for name, value in line.items() if value is not None}  # in the warm-up there is no attack
    self._draw(step, known)
    text = '  '.join(f'{name} {known[name]:.3g}' for name in ('loss', 'accuracy', 'ssim_mean') if name in known)
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

  def _draw(self, step: int, values: Mapping[str, float]) -> None:
    if self._board is None:
      return
    try:
      self._board.add(step, {name: value for name, value in values.items() if name != 'step'})
    except StorageError as error:
      progress.log(f'warning: {error} The run goes on without TensorBoard files.')
      self._board.close()
      self._board = None
