"""The host loop that `train` and `pretrain` share: resume, step, log, save, evaluate, stop.

It holds nothing that a checkpoint does not: batches and keys are functions of the step. The metrics of step t - 1 are
fetched while step t runs, so that the device does not wait.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
import json
from pathlib import Path
import sys
import time
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from adversarial_augment import checkpoints, processes, run_directory, signals
from adversarial_augment import config as configs
from adversarial_augment.errors import NumericalError, StorageError, Stopped, UserError
from adversarial_augment.types import TrainState

_ATTEMPTS = 3  # writes that fail in a row before the run ends


class Job(NamedTuple):
  """What a run does; all functions are called on every process."""

  num_steps: int
  images_per_step: int
  keep_checkpoints: int
  tensorboard: bool
  step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]  # metrics: scalars, with 'finite'
  read: Callable[[int], Any]  # steps made so far -> the next batch, on the devices
  describe: Callable[[int, Mapping[str, float]], dict[str, Any]]  # step, metrics -> the line of metrics.jsonl
  evaluate: Callable[[TrainState, int, Callable[[], None]], None]  # state, step, poll; poll raises when asked to stop
  dump: Callable[[int, Path], None]  # writes the batch of a step that went wrong


class _Asked(Exception):
  """Leaves an evaluation that was asked to stop."""


@contextmanager
def open_run(workdir: Path, config: ConfigDict) -> Iterator[None]:
  """Makes the run's directory, locks it, and compares its config with that of an earlier start.

  Raises:
    UserError: another process writes there, or the directory holds a run with another config.
    StorageError: it cannot be written.
  """
  if jax.process_index() != 0:
    processes.on_process_0(lambda: None)
    yield
    return
  held = run_directory.lock(workdir)

  def prepare() -> None:
    run_directory.create(workdir)
    held.__enter__()
    _check_config(workdir, config)

  processes.on_process_0(prepare)
  try:
    yield
  finally:
    held.__exit__(None, None, None)


def _check_config(workdir: Path, config: ConfigDict) -> None:
  path = workdir / 'config.json'
  new = json.loads(configs.to_json(config))
  if path.exists() and checkpoints.steps(workdir / 'checkpoints'):
    try:
      old = json.loads(path.read_text())
    except (OSError, ValueError) as error:
      raise UserError(f"Cannot read '{path}' ({error}); mend it, or name another --workdir.") from error
    changed = configs.differences(old, new)
    if changed:
      raise UserError(
          f"'{workdir}' holds a run with another config ({'; '.join(changed)}); go back to it, or name another --workdir."
      )
  run_directory.write_json(path, new)


def resume(workdir: Path, state: TrainState) -> TrainState:
  """Returns the newest good checkpoint's state, or `state` where there is none, and cuts the log back to it."""
  folder = workdir / 'checkpoints'
  restored = checkpoints.restore_newest(folder, state, report=tell)
  step = 0 if restored is None else restored[0]

  def clean() -> None:
    checkpoints_exist = folder.exists()
    if checkpoints_exist:
      checkpoints.remove_unfinished(folder)
    run_directory.truncate_log(workdir / 'metrics.jsonl', step)

  if jax.process_index() == 0:
    clean()
  if restored is None:
    return state
  tell(f'resuming from step {step}')
  return restored[1]


def run(workdir: Path, config: ConfigDict, state: TrainState, job: Job) -> TrainState:
  """Trains from `state.step` to `job.num_steps`, and saves the last state.

  Raises:
    Stopped: a signal asked for it; the state is saved.
    NumericalError: a loss, gradient or parameter is not finite; nothing with it was saved.
    StorageError: three writes in a row failed.
  """
  start = int(state.step)
  log = _Log(workdir, job, start)
  saver = _Saver(workdir / 'checkpoints', configs.sha256(config), job.keep_checkpoints)
  pending: tuple[int, dict[str, jax.Array]] | None = None

  def settle() -> None:
    """Checks and logs the step that was made last."""
    nonlocal pending
    if pending is None:
      return
    (step, metrics), pending = pending, None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not values.pop('finite'):
      _fail(workdir, config, job, step, values)
    if step == 1 or step % config.log_every == 0 or step == job.num_steps:
      log.write(step, values)

  with signals.listen(jax.process_count() > 1) as stop:

    def finish_if_asked(step: int) -> None:
      if name := stop.requested():
        settle()
        saver.save(step, state, final=True)
        raise Stopped(f'stopped by {name} after step {step} of {job.num_steps}, which is saved; the same command goes on.')

    def poll() -> None:
      if stop.requested():
        raise _Asked

    def evaluate(step: int) -> None:
      with log.pause():
        try:
          job.evaluate(state, step, poll)
        except _Asked:
          finish_if_asked(step)

    for step in range(start, job.num_steps):
      if step and config.eval_every and step % config.eval_every == 0:
        evaluate(step)
      state, metrics = job.step(state, job.read(step))
      settle()
      pending = step + 1, metrics
      stop.saveable = True
      if saver.due(step + 1, config.checkpoint_every):
        settle()
        with log.pause():
          saver.save(step + 1, state)
      finish_if_asked(step + 1)
    settle()
    saver.save(job.num_steps, state, final=True)
    log.flush(final=True)
    log.close()
    stop.saveable = True
    evaluate(job.num_steps)
  return state


def tell(message: str) -> None:
  """Prints a line on process 0's standard error."""
  if jax.process_index() == 0:
    print(message, file=sys.stderr, flush=True)


def _fail(workdir: Path, config: ConfigDict, job: Job, step: int, values: Mapping[str, float]) -> None:
  """Reports a step that gave NaN or infinity; the same command meets it again, from the last checkpoint."""
  path = workdir / 'failures' / f'step_{step}.npz'
  path.parent.mkdir(exist_ok=True)
  job.dump(step - 1, path)
  raise NumericalError(
      f'Not finite after step {step}: loss {values.get("loss")}, learning rate {values.get("learning_rate")} '
      f"(config {configs.sha256(config)[:12]}). The batch is in '{path}', the last checkpoint is kept and the same "
      'command meets the failure again; a lower config.optimizer.learning_rate often mends it.'
  )


class _Saver:
  """Saves checkpoints; a disk that is full for a while does not end the run."""

  def __init__(self, folder: Path, config_sha256: str, keep: int):
    self._folder, self._config_sha256, self._keep = folder, config_sha256, keep
    self._failures, self._retry_at = 0, 0

  def due(self, step: int, every: int) -> bool:
    return bool(every and step % every == 0) or step == self._retry_at

  def save(self, step: int, state: TrainState, final: bool = False) -> None:
    while True:
      try:
        checkpoints.save(self._folder, step, state, config_sha256=self._config_sha256)
        checkpoints.prune(self._folder, self._keep)
        self._failures, self._retry_at = 0, 0
        return
      except StorageError as error:
        self._failures += 1
        if self._failures == 1:
          tell(f'warning: {error} Training goes on and tries again.')
        if self._failures >= _ATTEMPTS:
          raise
        if not final:
          self._retry_at = step + 10 * 2**self._failures
          return
        time.sleep(0.5 * 2**self._failures)


class _Log:
  """Writes metrics.jsonl and the progress bar, on process 0."""

  def __init__(self, workdir: Path, job: Job, start: int):
    from tqdm import tqdm

    self._path, self._job = workdir / 'metrics.jsonl', job
    self._active = jax.process_index() == 0
    self._unwritten: list[dict[str, Any]] = []
    self._failures = 0
    self._last_step, self._last_time = start, time.monotonic()
    self._board = None
    if job.tensorboard and self._active:
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start + 1)
    interactive = self._active and sys.stderr.isatty()
    self._bar = tqdm(total=job.num_steps, initial=start, unit='step', disable=not interactive, dynamic_ncols=True)

  @contextmanager
  def pause(self) -> Iterator[None]:
    """Leaves the time of the block, a save or an evaluation, out of images per second."""
    start = time.monotonic()
    yield
    self._last_time += time.monotonic() - start

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if not self._active:
      return
    now = time.monotonic()
    rate = (step - self._last_step) * self._job.images_per_step / max(now - self._last_time, 1e-9)
    self._last_step, self._last_time = step, now
    line = self._job.describe(step, values) | {'images_per_second': round(rate, 1)}
    if self._board is not None:
      for name in line.keys() - {'step'}:
        self._board.add_scalar(name, line[name], step)
    self._unwritten.append(line)
    self.flush()
    text = '  '.join(f'{name} {line[name]:.3g}' for name in ('loss', 'accuracy', 'ssim_mean') if name in line)
    if self._bar.disable:
      seconds = (self._job.num_steps - step) * self._job.images_per_step / max(rate, 1e-9)
      left = time.strftime('%H:%M:%S', time.gmtime(seconds)) if seconds < 86400 else f'{seconds / 86400:.1f} days'
      tell(f'step {step}/{self._job.num_steps}  {text}  {rate:.0f} images/s  ETA {left}')
    else:
      self._bar.set_postfix_str(f'{text}  {rate:.0f} images/s')
      self._bar.update(step - self._bar.n)

  def flush(self, final: bool = False) -> None:
    """Appends the lines that have not been written; keeps them for the next time where the disk takes none."""
    while self._unwritten:
      try:
        run_directory.append_line(self._path, self._unwritten[0])
        self._unwritten.pop(0)
        self._failures = 0
      except StorageError as error:
        self._failures += 1
        if self._failures == 1:
          tell(f'warning: {error} Training goes on and tries again.')
        if self._failures >= _ATTEMPTS:
          raise
        if not final:
          return
        time.sleep(0.5 * 2**self._failures)

  def close(self) -> None:
    self._bar.close()
    if self._board is not None:
      self._board.close()
