"""The host loop that `train` and `pretrain` share: step, log, save, evaluate, stop.

It holds nothing that a checkpoint does not: batches and keys are functions of the step. The metrics of step t - 1 are
fetched while step t runs, so that the device does not wait.
"""

from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import config as configs
from adversarial_augment.cli import progress, signals
from adversarial_augment.errors import NumericalError, Stopped
from adversarial_augment.run.retries import Retries
from adversarial_augment.run.run_log import Forecast, RunLog
from adversarial_augment.storage import checkpoints, kills, state_arrays
from adversarial_augment.types import TrainState


class Job(NamedTuple):
  """What a run does; all functions are called on every process."""

  num_steps: int
  images_per_step: int
  keep_checkpoints: int
  tensorboard: bool
  # State, its step, batch -> the next state, metrics; an update that is not 'finite' leaves the state as it was.
  step: Callable[[TrainState, np.int32, Any], tuple[TrainState, dict[str, jax.Array]]]
  read: Callable[[int], Any]  # step -> its batch, on the devices
  describe: Callable[[int, Mapping[str, float]], dict[str, Any]]  # step, metrics -> the line of metrics.jsonl
  evaluate: Callable[[TrainState, int, Callable[[], None]], None]  # state, step, poll; poll raises when asked to stop
  dump: Callable[[int], dict[str, Any]]  # step -> arrays that reproduce its batch, by name
  saved: Callable[[int], None] = lambda step: None  # called with the step of what is saved, at the start too
  forecast: Forecast | None = None  # of the time that is left; None: by the steps alone


class _StopRequested(Exception):
  """Leaves an evaluation."""


def run(workdir: Path, config: ConfigDict, state: TrainState, job: Job, stop: signals.Stop) -> TrainState:
  """Trains within `opening.open_run` from `state.step` to `job.num_steps`, saves the last state, and evaluates it."""
  start = int(state.step)
  forecast = job.forecast or Forecast(job.num_steps)
  with closing(RunLog(workdir, start, job.num_steps, job.images_per_step, job.tensorboard, forecast)) as log:
    loop = _Loop(workdir, config, state, job, stop, log)
    job.saved(start)
    for step in range(start, job.num_steps):
      if step and config.eval_every and step % config.eval_every == 0:
        loop.evaluate(step)
      with progress.compiling() if step == start else nullcontext():
        loop.step(step)
      loop.save_if_due(step + 1)
      loop.stop_if_requested(step + 1)
    loop.save(job.num_steps, final=True)
    loop.evaluate(job.num_steps)
    return loop.state


class _Loop:
  """A run between two steps. `step` counts the updates made so far."""

  def __init__(self, workdir: Path, config: ConfigDict, state: TrainState, job: Job, stop: signals.Stop, log: RunLog):
    self.state = state
    self._workdir, self._config, self._job, self._stop, self._log = workdir, config, job, stop, log
    self._retries, self._save_owed = Retries(), False
    self._pending: tuple[int, dict[str, Any]] | None = None  # the last step, and its metrics on the device

  def step(self, step: int) -> None:
    """Starts an update, and logs the one before it while the device works."""
    # Several processes log in lockstep, because writing a line is a collective.
    if jax.process_count() == 1 and self._pending is not None and self._pending[1]['finite'].is_ready():
      self._log_pending()  # at once, so that its line gets the time at which it was finished
    self.state, metrics = self._job.step(self.state, np.int32(step), self._job.read(step))
    self._stop.unsaved = True
    self._log_pending()
    self._pending = step + 1, metrics

  def _log_pending(self) -> None:
    """Checks and logs the last step."""
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not values.pop('finite') or not all(map(math.isfinite, values.values())):
      self._fail(step, values)
    if step == 1 or step % self._config.log_every == 0 or step == self._job.num_steps:
      self._log.add(step, self._job.describe(step, values))

  def save_if_due(self, step: int) -> None:
    """Saves the state where a checkpoint is due, or one that failed before can be tried again."""
    every = self._config.checkpoint_every
    self._save_owed |= bool(every and step % every == 0)
    if self._save_owed and step >= self._retries.retry_at:
      self._save_owed = not self.save(step)

  def save(self, step: int, *, final: bool = False) -> bool:
    """Saves the state with all the lines of the log that lead to it; returns whether that succeeded."""
    self._log_pending()
    folder, config_sha256 = self._workdir / 'checkpoints', configs.sha256(self._config)

    def write() -> None:
      self._log.write(durable=True)  # before the checkpoint that covers it
      checkpoints.save(folder, step, self.state, config_sha256=config_sha256, log=self._log.steps)
      checkpoints.prune(folder, self._job.keep_checkpoints)

    with self._log.pause(), progress.stage(f'saving step {step}', progress.log):
      saved = self._retries.attempt(step, write, final=final)
    if saved:
      self._stop.unsaved, self._stop.kept = False, f'step {step} is saved'
      self._job.saved(step)
    return saved

  def evaluate(self, step: int) -> None:
    """Evaluates the state; a signal on the way saves it and stops the run."""
    self._log_pending()
    with self._log.pause():
      try:
        self._job.evaluate(self.state, step, self._poll)
      except _StopRequested:
        self.stop_if_requested(step)

  def _poll(self) -> None:
    kills.crash_point('mid_eval')
    if self._stop.requested():
      raise _StopRequested

  def stop_if_requested(self, step: int) -> None:
    """Saves the state and raises `Stopped` where a signal came."""
    if name := self._stop.requested():
      self.save(step, final=True)
      raise Stopped(
        f'stopped by {name} after step {step} of {self._job.num_steps}, which is saved; run the same command again '
        'to resume.'
      )

  def _fail(self, step: int, values: Mapping[str, float]) -> None:
    """Reports a step that gave NaN or infinity; the same command meets it again, from the last checkpoint."""
    path = self._workdir / 'failures' / f'step_{step}.npz'
    where = f"The batch and the state before it are in '{path}'"
    if jax.process_index() == 0:
      try:
        path.parent.mkdir(exist_ok=True)
        arrays: dict[str, Any] = state_arrays.to_host(state_arrays.flatten(self.state))
        np.savez(path, **self._job.dump(step - 1), **arrays)
      except OSError as error:
        where = f"They could not be written to '{path}' ({error})"
    raise NumericalError(
      f'Not finite after step {step}: loss {values.get("loss")}, learning rate {values.get("learning_rate")} '
      f'(config {configs.sha256(self._config)[:12]}). {where}, the last checkpoint is kept and the same '
      'command meets the failure again; a lower learning rate often helps.'
    )
