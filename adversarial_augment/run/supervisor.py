"""Restarts a run after a crash of its own, for machines without a scheduler; imports no JAX.

The run is a child process with the same standard streams. It gets the signals that this process gets; a Ctrl-C in a
terminal reaches it twice, which counts once. On Linux it does not outlive this process.
"""

from collections.abc import Sequence
from contextlib import suppress
import ctypes
import functools
from pathlib import Path
import signal
import subprocess
import sys
import time

from adversarial_augment import results
from adversarial_augment.cli import signals, streams
from adversarial_augment.errors import CheckpointError, Interrupted, NumericalError, Stopped, UserError

_FINAL = (0, *(error.exit_code for error in (UserError, NumericalError, CheckpointError)))  # it would end so again
_LONGEST = 60  # seconds between two starts
_PR_SET_PDEATHSIG = 1


def run(command: Sequence[str], workdir: Path, max_restarts: int) -> int:
  """Runs a command, again after each crash, until it ends, has had its restarts, or fails twice at the same step.

  Returns:
    The last exit code; for a signal, 128 + its number.

  Raises:
    Interrupted: a signal came between two starts.
  """
  asked: list[int] = []  # signals that this process has got
  child: subprocess.Popen | None = None

  def receive(number: int, _: object) -> None:
    asked.append(number)
    if child is not None:
      child.send_signal(number)

  signals.handle(receive)
  failed_after: set[int] = set()
  restarts = 0
  while True:
    child = subprocess.Popen(command, preexec_fn=_end_with_parent())
    for number in asked:  # one that came before there was a child to tell
      child.send_signal(number)
    code = child.wait()
    child = None
    exit_code = 128 - code if code < 0 else code
    if asked or code in _FINAL:
      return exit_code
    step = _last_step(workdir)
    ended = f'ended with {signal.Signals(-code).name if code < 0 else f"exit code {code}"}'
    ended += '' if step is None else f' after step {step:,}'
    if restarts == max_restarts:
      streams.say(f'no restart: {ended}, and {max_restarts} of {max_restarts} are used up.')
      return exit_code
    if step is not None and code != Stopped.exit_code:  # somebody else's part was lost, whatever the step
      if step in failed_after:
        streams.say(f'no restart: {ended}, for the second time.')
        return exit_code
      failed_after.add(step)
    pause = min(2**restarts, _LONGEST)
    restarts += 1
    streams.say(f'restart {restarts} of {max_restarts} in {pause} s: {ended}')
    again = time.monotonic() + pause
    while time.monotonic() < again:
      if asked:
        raise Interrupted(f'stopped by {signal.Signals(asked[0]).name}')
      time.sleep(0.1)


def _end_with_parent() -> functools.partial | None:
  """Returns what makes the kernel kill a child when its parent ends, to be called in the child."""
  if sys.platform != 'linux':
    return None
  return functools.partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _last_step(workdir: Path) -> int | None:
  """Returns the last logged step of a run; None where there is no run, as for all processes of several but one."""
  if not workdir.is_dir():
    return None
  lines = []
  with suppress(UserError):
    lines = results.read_log(workdir / 'metrics.jsonl', ())
  return lines[-1]['step'] if lines else 0
