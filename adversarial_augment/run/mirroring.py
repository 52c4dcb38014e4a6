"""A run and its mirror: where it starts, and the thread that copies what it has saved."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
import threading
import time
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from adversarial_augment.cli import progress, streams
from adversarial_augment.config import command_line
from adversarial_augment.errors import Stopped, StorageError, UserError
from adversarial_augment.parallel import devices, processes
from adversarial_augment.run import opening
from adversarial_augment.storage import artifact, checkpoints, mirror
from adversarial_augment.storage.remote import Remote, Unreachable

_ATTEMPTS = 5  # to reach the mirror at the start of an empty folder, 1, 2, 4 and 8 seconds apart
_LONGEST_WAIT = 60.0  # seconds between attempts to copy
_PAUSE = 2.0  # seconds between them when the run has ended
_PATIENCE = 60.0  # seconds of failures at the end of a run
_GRACE = 20.0  # seconds for the last checkpoint of a run that is stopped; preemption often leaves 30


class Start(NamedTuple):
  """What the start of a run has found in its mirror."""

  reached: bool  # whether it could be read
  step: int  # of the checkpoint that the folder and the mirror share; 0 without one


def fetch(arguments: command_line.Arguments, config: ConfigDict) -> Start | None:
  """Brings a run's folder to the newest checkpoint of its mirror; None where it has no mirror. Call on process 0.

  A mirror that cannot be reached is waited for, for some seconds, if the folder has no checkpoint.

  Raises:
    UserError: the mirror holds another run.
    CheckpointError: all checkpoints are damaged, and the folder has none.
  """
  source, workdir = arguments.mirror, arguments.workdir
  if source is None:
    return None

  def check(folder: Path, manifest: Mapping[str, Any]) -> None:
    if not (folder / 'config.json').exists():
      raise UserError(f"'{source.url}' has checkpoints, but no config.json; bring it back", remedy='mirror')
    try:
      opening.check_run(folder, config, {}, source.url)
      opening.check_manifest(manifest, config, source.url)
    except UserError as error:
      raise UserError(str(error), remedy='mirror') from error

  for attempt in range(_ATTEMPTS):
    try:
      with progress.stage(f'reading {source.url}'):
        return Start(True, mirror.fetch(source, workdir, check))
    except Unreachable as error:
      if checkpoints.steps(workdir / 'checkpoints') or attempt == _ATTEMPTS - 1:
        streams.say(f'warning: {source.url} cannot be read ({error}); the run goes on with what is in {workdir}.')
        break
      if attempt == 0:
        streams.say(f'warning: {source.url} cannot be read ({error}); trying again.')
      time.sleep(2.0**attempt)
  return Start(False, 0)


def compilation_cache(arguments: command_line.Arguments) -> None:
  """Keeps compiled programs in the run's folder, where it has a mirror, and takes those that the mirror has."""
  target, workdir = arguments.mirror, arguments.workdir
  if target is None:
    devices.compilation_cache()
    return
  try:
    with progress.stage(f'reading the compiled programs of {target.url}'):
      mirror.fetch_compiled(target, workdir)
  except Unreachable as error:
    streams.say(f'warning: the compiled programs of {target.url} cannot be read ({error}).')
  devices.compilation_cache((workdir / mirror.COMPILED).absolute())


class Copies:
  """Copies to a mirror what a run has saved, in a thread of process 0.

  Copies are made one after the other. One that is slower than the run leaves out what is no longer the newest.
  """

  def __init__(self, target: Remote, workdir: Path, keep: int, every: int, start: Start | None):
    """Starts the thread.

    Args:
      target: the mirror.
      workdir: of the run.
      keep: checkpoints that stay in the mirror.
      every: steps by which the mirror may be behind at the end of the run.
      start: see `fetch`; None on processes that do not own the folder, and copy nothing.
    """
    self._mirror, self._workdir, self._keep, self._every = target, workdir, keep, every
    self._unseen, self._done = start is not None and not start.reached, start.step if start else 0
    self._ahead = 0  # the step of a newer checkpoint in a mirror that was not seen at the start
    self._sent: dict[str, tuple[int, int]] = {}  # size and time of the files of the run that are there
    self._wanted: int | None = None  # what is to be copied next
    self._busy = self._closed = self._hurry = False
    self._failures, self._reason = 0, ''
    self._changed = threading.Condition()
    if start is not None:
      threading.Thread(target=self._work, daemon=True).start()

  def offer(self, step: int) -> None:
    """Has a checkpoint copied that has just been saved; all processes call it.

    Raises:
      Stopped: the mirror, which could not be reached at the start, holds a newer checkpoint.
    """
    processes.on_process_0(lambda: self._offer(step))

  def finish(self) -> None:
    """Waits until all of a finished run is copied; all processes call it.

    Raises:
      StorageError: the mirror cannot be reached, and what is there is too old.
    """
    with progress.stage(f'copying to {self._mirror.url}', progress.log):
      processes.on_process_0(self._finish)

  def close(self) -> None:
    """Ends the copies of a run that stops; those that are under way get some seconds."""
    with self._changed, progress.stage(f'copying to {self._mirror.url}', progress.log):
      self._hurry = True
      self._changed.notify_all()
      self._changed.wait_for(self._idle, _GRACE)
      self._closed = True
      self._changed.notify_all()

  def _offer(self, step: int) -> None:
    self._want(step)
    if self._ahead:
      raise Stopped(
        f'{self._mirror.url} could not be read when this run began, and holds step {self._ahead} of it; run the same '
        'command again to go on from there.'
      )

  def _want(self, step: int) -> None:
    with self._changed:
      self._wanted = step
      self._changed.notify_all()

  def _idle(self) -> bool:
    return self._wanted is None and not self._busy

  def _finish(self) -> None:
    began, step = time.monotonic(), max(checkpoints.steps(self._workdir / 'checkpoints'), default=0)
    with self._changed:
      self._wanted, self._hurry = step, True
      self._changed.notify_all()
      while not self._changed.wait_for(self._idle, 1.0):
        if self._failures and time.monotonic() - began > _PATIENCE:
          break
    if self._idle():
      return
    if self._done < step - self._every:
      raise StorageError(
        f'Cannot write to {self._mirror.url} ({self._reason}): what is there ends with step {self._done:,} of '
        f"{step:,}; the run is whole in '{self._workdir}': run the same command again to copy it."
      )
    progress.log(
      f'warning: {self._mirror.url} lacks the end of the run ({self._reason}); run the same command again to copy it.'
    )

  def _work(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or self._wanted is not None)
        if self._closed or self._wanted is None:
          return
        step, self._wanted, self._busy = self._wanted, None, True
      try:
        self._copy(step)
        failure = None
      except Exception as error:  # nothing here may end the run
        failure = str(error) if isinstance(error, Unreachable) else artifact.one_line(error)
      with self._changed:
        self._busy = False
        if failure is None:
          if self._failures:
            progress.log(f'{self._mirror.url} can be written again.')
          self._failures = 0
        else:
          self._failures, self._reason = self._failures + 1, failure
          self._wanted = step if self._wanted is None else self._wanted
          if self._failures == 1:
            progress.log(f'warning: cannot write to {self._mirror.url} ({failure}); the run goes on and tries again.')
        self._changed.notify_all()
        if failure is not None:
          self._changed.wait_for(lambda: self._closed or self._hurry, min(2.0**self._failures, _LONGEST_WAIT))
          if self._hurry and not self._closed:
            self._changed.wait_for(lambda: self._closed, _PAUSE)

  def _copy(self, step: int) -> None:
    """Copies a checkpoint, unless it is there or no longer here, and what else is new in the run's folder."""
    if self._unseen:
      self._ahead = mirror.newest_step(self._mirror)
      if self._ahead > step:
        return
      self._ahead, self._unseen = 0, False
    with checkpoints.in_use(self._workdir / 'checkpoints' / str(step)):
      new = step > self._done and step in checkpoints.steps(self._workdir / 'checkpoints')
      if new:
        mirror.put_checkpoint(self._mirror, self._workdir, step)
      for name in mirror.run_files(self._workdir):
        status = (self._workdir / name).stat()
        version = status.st_size, status.st_mtime_ns
        if self._sent.get(name) != version:
          self._mirror.put(self._workdir / name, name)
          self._sent[name] = version
      if new:
        mirror.put_manifest(self._mirror, self._workdir, step)
        self._done = step
        mirror.prune(self._mirror, step, self._keep)


@contextmanager
def copying(
  arguments: command_line.Arguments, config: ConfigDict, start: Start | None, keep: int
) -> Iterator[Callable[[int], None]]:
  """Copies a run to its mirror, if it has one, during the block and at its end.

  Yields:
    What is to be called on all processes with the step of each checkpoint, when it has been saved; see `Copies.offer`.
  """
  if arguments.mirror is None:
    yield lambda step: None
    return
  every = config.checkpoint_every if arguments.mirror_every is None else arguments.mirror_every
  copies = Copies(arguments.mirror, arguments.workdir, keep, every, start)
  try:
    yield copies.offer
    copies.finish()
  finally:
    copies.close()
