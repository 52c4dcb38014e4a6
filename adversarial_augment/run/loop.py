"""The host loop that `train` and `pretrain` share: resume, step, log, save, evaluate, stop.

It holds nothing that a checkpoint does not: batches and keys are functions of the step. The metrics of step t - 1 are
fetched while step t runs, so that the device does not wait.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import config as configs
from adversarial_augment import registry
from adversarial_augment.cli import environment, progress, signals
from adversarial_augment.errors import CheckpointError, NumericalError, Stopped, UserError, show
from adversarial_augment.parallel import processes
from adversarial_augment.run.forecast import Forecast
from adversarial_augment.run.run_log import Patience, RunLog, tell
from adversarial_augment.storage import checkpoints, files, log_steps, results, run_directory, state_arrays, untrusted
from adversarial_augment.types import TrainState

_ENVIRONMENT = 'environment.json'


class Job(NamedTuple):
  """What a run does; all functions are called on every process."""

  num_steps: int
  images_per_step: int
  keep_checkpoints: int
  tensorboard: bool
  # The state, the updates made so far, the batch; an update that is not 'finite' leaves the state as it was.
  step: Callable[[TrainState, np.int32, Any], tuple[TrainState, dict[str, jax.Array]]]
  read: Callable[[int], Any]  # steps made so far -> the next batch, on the devices
  describe: Callable[[int, Mapping[str, float]], dict[str, Any]]  # step, metrics -> the line of metrics.jsonl
  evaluate: Callable[[TrainState, int, Callable[[], None]], None]  # state, step, poll; poll raises when asked to stop
  dump: Callable[[int], dict[str, Any]]  # steps made so far -> arrays that tell the next batch, by name
  forecast: Forecast | None = None  # of the time that is left; None: by the steps alone


class _Asked(Exception):
  """Leaves an evaluation that was asked to stop."""


@contextmanager
def open_run(workdir: Path, config: ConfigDict, data: Mapping[str, Any] | None = None) -> Iterator[signals.Stop]:
  """Makes the run's directory, locks it, compares it with that of an earlier start, and listens to signals.

  Args:
    workdir: of the run.
    config: of the run.
    data: what the run is made on, as JSON: the hash of each split, and more; kept in data.json.

  Raises:
    CheckpointError: the directory holds a run and none of its checkpoints.
    UserError: another process writes there, or the directory holds a run with another config or on other data.
    StorageError: it cannot be written.
  """
  with ExitStack() as stack:

    def prepare() -> None:
      run_directory.create(workdir)
      stack.enter_context(run_directory.lock(workdir))
      if said := check_run(workdir, config, data or {}):
        tell(said)
      checkpoints.try_to_save(workdir / 'checkpoints')
      run_directory.write_json(workdir / 'config.json', json.loads(configs.to_json(config)))
      run_directory.write_json(workdir / 'data.json', dict(data or {}))
      run_directory.write_json(workdir / _ENVIRONMENT, environment.settings())

    processes.on_process_0(prepare)
    kept = 'the last checkpoint is kept' if checkpoints.steps(workdir / 'checkpoints') else 'no step has been made'
    yield stack.enter_context(signals.listen(jax.process_count() > 1, kept))


def check_run(workdir: Path, config: ConfigDict, data: Mapping[str, Any]) -> str:
  """Looks, where `workdir` holds a run, whether this config and these data may go on with it; touches no device.

  Args:
    workdir: of the run; it need not exist.
    config: of the run.
    data: as of `open_run`; what is left out is not compared.

  Returns:
    What the user is to be told of a run that an older version began, or ''.

  Raises:
    CheckpointError, UserError: as `open_run`.
  """
  _check_not_lost(workdir, config.checkpoint_every)
  said = _check_config(workdir, config)
  _check_data(workdir, data)
  _check_environment(workdir)
  return said


def _check_not_lost(workdir: Path, checkpoint_every: int) -> None:
  """Refuses to begin a run anew over one whose checkpoints are gone: it has closed, or has had time for two."""
  if checkpoints.steps(workdir / 'checkpoints'):
    return
  lines = results.read_log(workdir / 'metrics.jsonl', ())
  made = lines[-1]['step'] if lines else 0
  if (workdir / 'results' / 'train.json').exists() or 0 < 2 * checkpoint_every <= made:
    raise CheckpointError(
      f"'{workdir}' holds a run of {made:,} steps and none of its checkpoints; bring them back, or name another "
      '--workdir.'
    )


def _check_config(workdir: Path, config: ConfigDict) -> str:
  """Returns what is to be said of the config.json of an older version; nothing of the other ones."""
  path = workdir / 'config.json'
  new = json.loads(configs.to_json(config))
  if checkpoints.steps(workdir / 'checkpoints'):
    try:
      old = untrusted.read_json(path)
      if not isinstance(old, dict):
        raise ValueError('no JSON object')
    except (OSError, ValueError) as error:
      raise UserError(
        f"Cannot read '{path}', the config of the checkpoints beside it ({error}); mend it, or name another --workdir."
      ) from error
    added = configs.unknown_to(old)
    changed = configs.differences(registry.flatten(old) | added, new)
    if changed:
      raise UserError(
        f"'{workdir}' holds a run with another config ({'; '.join(changed)}); go back to it, or name another --workdir."
      )
    return configs.note(path, added) if added else ''
  return ''


def _check_data(workdir: Path, new: Mapping[str, Any]) -> None:
  path = workdir / 'data.json'
  if checkpoints.steps(workdir / 'checkpoints') and path.exists():
    try:
      old = dict(untrusted.read_json(path))
    except (OSError, ValueError, TypeError) as error:
      raise UserError(f"Cannot read '{path}' ({error}); mend it, or name another --workdir.") from error
    changed = [name for name in new if old.get(name, new[name]) != new[name]]  # an older run may not know it
    if changed:
      raise UserError(
        f"'{workdir}' holds a run on other data ({', '.join(changed)} in data.json); bring it back, or name "
        'another --workdir.'
      )


def _check_environment(workdir: Path) -> None:
  """Refuses to go on under other settings of JAX: the numbers would be other ones, without a word."""
  path = workdir / _ENVIRONMENT
  if not checkpoints.steps(workdir / 'checkpoints') or not path.exists():  # a run of an older version has none
    return
  try:
    old = dict(untrusted.read_json(path))
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f"Cannot read '{path}' ({error}); mend it, or name another --workdir.") from error
  new = environment.settings()
  for name in sorted({**old, **new}):
    if old.get(name) != new.get(name):
      was, now = (f'{name}={show(one[name])}' if name in one else f'{name} unset' for one in (old, new))
      raise UserError(
        f"'{workdir}' holds a run with {was}, and now there is {now}, which changes its numbers; set the variable as "
        'it was, or name another --workdir.'
      )


def resume(workdir: Path, state: TrainState) -> TrainState:
  """Returns the newest good checkpoint's state, or `state` where there is none, and cuts the log back to it.

  Says which lines of the log are missing or double; the run goes on without them.

  Raises:
    CheckpointError: there are checkpoints and all are damaged.
    UserError: they are of another state than `state`, or of a run with another config.
    StorageError: the directory cannot be read or written.
  """
  path = workdir / 'metrics.jsonl'
  logged: list[list[int]] = []  # on process 0

  def check(manifest: Mapping[str, Any]) -> None:
    config = configs.from_json((workdir / 'config.json').read_text(), 'config.json')  # as `open_run` has written it
    if manifest['config_sha256'] not in configs.all_sha256(config):
      raise UserError(
        f"Checkpoint {manifest['step']} in '{workdir}/checkpoints' is of another run: its config has the hash "
        f'{manifest["config_sha256"][:12]}, that of this run {configs.sha256(config)[:12]}; take it out of the folder, '
        'or name another --workdir.'
      )
    logged[:] = manifest.get('log', ())

  with progress.stage('reading the newest checkpoint', tell):
    restored = checkpoints.restore_newest(workdir / 'checkpoints', state, report=tell, check=check)
  step, state = restored or (0, state)
  checkpoints.remove_unfinished(workdir / 'checkpoints')

  def cut() -> None:
    kept, doubled = run_directory.truncate_log(path, step)
    if missing := sorted(set(log_steps.expand(logged)).difference(kept)):
      tell(f"warning: '{path}' has no line of {log_steps.spell(missing)} any more; the curves have a gap there.")
    if doubled:
      tell(f"warning: '{path}' had a second line of {log_steps.spell(sorted(set(doubled)))}; the first ones stay.")

  processes.on_process_0(cut)
  if step:
    tell(f'resuming from step {step}')
  return state


def run(workdir: Path, config: ConfigDict, state: TrainState, job: Job, stop: signals.Stop) -> TrainState:
  """Trains from `state.step` to `job.num_steps`, saves the last state, and evaluates it.

  Args:
    workdir: of the run, held by `open_run`.
    config: of the run.
    state: where it starts; as `resume` gave it.
    job: what to do.
    stop: what `open_run` gave.

  Raises:
    Stopped: a signal asked for it; the state is saved.
    NumericalError: a loss, metric or parameter is not finite; nothing with it was saved.
    StorageError: three writes in a row failed.
  """
  start = int(state.step)
  saving, owed = Patience(), False
  alone = jax.process_count() == 1  # several processes settle in lockstep, because writing a line is a collective
  pending: tuple[int, dict[str, Any]] | None = None  # the step made last, and its metrics on the device
  with closing(RunLog(workdir, start, job.num_steps, job.images_per_step, job.tensorboard, job.forecast)) as log:

    def settle() -> None:
      """Checks and logs the step that was made last."""
      nonlocal pending
      if pending is None:
        return
      (step, metrics), pending = pending, None
      values = {name: float(value) for name, value in jax.device_get(metrics).items()}
      if not values.pop('finite') or not all(map(math.isfinite, values.values())):
        _fail(workdir, config, job, step, values, state)
      if step == 1 or step % config.log_every == 0 or step == job.num_steps:
        log.add(step, job.describe(step, values))

    def save(step: int, *, final: bool = False) -> bool:
      """Saves the state with all the lines of the log that lead to it."""
      settle()

      def write() -> None:
        log.write(durable=True)  # before the checkpoint that covers it
        sha256 = configs.sha256(config)
        checkpoints.save(workdir / 'checkpoints', step, state, config_sha256=sha256, log=log.steps)
        checkpoints.prune(workdir / 'checkpoints', job.keep_checkpoints)

      with log.pause(), progress.stage(f'saving step {step}', tell):
        saved = saving.attempt(step, write, final=final)
      if saved:
        stop.unsaved, stop.kept = False, f'step {step} is saved'
      return saved

    def finish_if_asked(step: int) -> None:
      if name := stop.requested():
        save(step, final=True)
        raise Stopped(
          f'stopped by {name} after step {step} of {job.num_steps}, which is saved; the same command goes on.'
        )

    def poll() -> None:
      files.crash_point('mid_eval')
      if stop.requested():
        raise _Asked

    def evaluate(step: int) -> None:
      settle()
      with log.pause():
        try:
          job.evaluate(state, step, poll)
        except _Asked:
          finish_if_asked(step)

    for step in range(start, job.num_steps):
      if step and config.eval_every and step % config.eval_every == 0:
        evaluate(step)
      if alone and pending is not None and pending[1]['finite'].is_ready():
        settle()  # nobody waits for it; its line gets the time at which it was finished
      state, metrics = job.step(state, np.int32(step), job.read(step))
      stop.unsaved = True
      settle()
      pending = step + 1, metrics
      owed = owed or bool(config.checkpoint_every and (step + 1) % config.checkpoint_every == 0)
      if owed and step + 1 >= saving.retry_at:
        owed = not save(step + 1)
      finish_if_asked(step + 1)
    save(job.num_steps, final=True)
    evaluate(job.num_steps)
  return state


def _fail(
  workdir: Path, config: ConfigDict, job: Job, step: int, values: Mapping[str, float], state: TrainState
) -> None:
  """Reports a step that gave NaN or infinity; the same command meets it again, from the last checkpoint."""
  path = workdir / 'failures' / f'step_{step}.npz'
  where = f"The batch and the state before it are in '{path}'"

  def dump() -> None:
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = state_arrays.to_host(state_arrays.flatten(state))
    np.savez(path, **job.dump(step - 1), **arrays)

  if jax.process_index() == 0:
    try:
      dump()
    except OSError as error:
      where = f"They could not be written to '{path}' ({error})"
  raise NumericalError(
    f'Not finite after step {step}: loss {values.get("loss")}, learning rate {values.get("learning_rate")} '
    f'(config {configs.sha256(config)[:12]}). {where}, the last checkpoint is kept and the same '
    'command meets the failure again; a lower config.optimizer.learning_rate often mends it.'
  )
