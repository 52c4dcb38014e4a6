"""Starts the trainer as a user does, in processes of their own, and interrupts it."""

from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import random
import signal
import socket
import subprocess
import sys
import time
from typing import Any

ROOT = Path(__file__).parents[1]
NUM_STEPS = 12
PATIENCE = 240  # seconds, on a busy machine

# A run without an adversary, whose step compiles in a second: nothing of what is tested here looks at the images.
NOMINAL = (
  '--config=configs/ada_edsr.py:smoke',
  '--config.attack.name=none',
  '--config.evals=clean',
  f'--config.num_steps={NUM_STEPS}',
  '--config.checkpoint_every=3',
  '--config.eval_every=5',
  '--config.holdout=64',
)
ADA = (
  '--config=configs/ada_edsr.py:smoke',
  '--config.attack.num_steps=1',
  '--config.evals=clean',
  f'--config.num_steps={NUM_STEPS}',
  '--config.checkpoint_every=3',
)


class Run:
  """One started trainer; its standard error and output go to files."""

  def __init__(self, workdir: Path, flags: Sequence[str], env: dict[str, str], wrapper: Sequence[str] = ()):
    self.workdir = workdir
    logs = workdir.parent / 'logs'
    logs.mkdir(exist_ok=True)
    self._out, self._err = (logs / f'{time.monotonic_ns()}.{name}' for name in ('out', 'err'))
    command = [*wrapper, sys.executable, '-m', 'adversarial_augment.train', *flags, f'--workdir={workdir}']
    with open(self._out, 'wb') as out, open(self._err, 'wb') as err:
      self.process = subprocess.Popen(
        command, stdout=out, stderr=err, env=os.environ | env, cwd=ROOT, start_new_session=True
      )

  @property
  def err(self) -> str:
    return self._err.read_text()

  @property
  def out(self) -> str:
    return self._out.read_text()

  def wait(self) -> int:
    """Returns the exit code; kills the whole group when it takes too long."""
    try:
      return self.process.wait(PATIENCE)
    finally:
      self.kill()

  def kill(self) -> None:
    if self.process.poll() is None:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()

  def wait_for(self, happened: Callable[[], bool]) -> None:
    """Waits until something has happened, or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not happened() and self.process.poll() is None:
      assert time.monotonic() < deadline, self.err
      time.sleep(0.002)

  def wait_for_line(self, text: str) -> None:
    self.wait_for(lambda: text in self.err)

  def wait_for_step(self, step: int) -> None:
    self.wait_for(lambda: last_step(self.workdir) >= step)


class Rig:
  """What the runs of a test session share: a folder with compiled programs and with the runs to compare with."""

  def __init__(self, folder: Path):
    self._folder = folder / 'rig'
    self._folder.mkdir(exist_ok=True)
    self.env = {'JAX_COMPILATION_CACHE_DIR': os.environ.get('JAX_COMPILATION_CACHE_DIR', str(self._folder / 'xla'))}

  def straight(self, base: Sequence[str] = NOMINAL) -> Path:
    """Returns the workdir of a run that nobody interrupted."""
    workdir = self._folder / ('nominal' if base == NOMINAL else 'ada')
    if not (workdir / 'results' / 'train.json').exists():
      self.finish(workdir, base=base)
    return workdir

  def start(self, workdir: Path, *flags: str, base: Sequence[str] = NOMINAL, wrapper: Sequence[str] = (), **env: str):
    return Run(workdir, [*base, *flags], self.env | env, wrapper)

  def finish(self, workdir: Path, *flags: str, base: Sequence[str] = NOMINAL, **env: str) -> Run:
    """Runs to the end."""
    run = self.start(workdir, *flags, base=base, **env)
    assert run.wait() == 0, run.err
    return run

  def start_pair(self, workdirs: Sequence[Path], *flags: str, base: Sequence[str] = NOMINAL, **env: str) -> list[Run]:
    """Starts two processes of one run, on loopback, with one device each."""
    port = free_port()
    several = (f'--coordinator_address=127.0.0.1:{port}', '--num_processes=2')
    return [
      self.start(workdir, *flags, *several, f'--process_id={index}', base=base, **({'JAX_NUM_CPU_DEVICES': '1'} | env))
      for index, workdir in enumerate(workdirs)
    ]


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def lines(workdir: Path) -> list[dict[str, Any]]:
  """The whole lines of the log."""
  path = workdir / 'metrics.jsonl'
  content = path.read_bytes() if path.exists() else b''
  return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b'\n')]


def steps(workdir: Path) -> list[int]:
  return [line['step'] for line in lines(workdir)]


def last_step(workdir: Path) -> int:
  return max(steps(workdir), default=0)


def result(workdir: Path, name: str = 'train') -> dict[str, Any]:
  return json.loads((workdir / 'results' / f'{name}.json').read_text())


def newest(workdir: Path) -> int:
  folder = workdir / 'checkpoints'
  return max((int(path.name) for path in folder.glob('*') if path.name.isdigit()), default=0)


def curves(workdir: Path) -> list[dict[str, Any]]:
  """The log without what depends on the clock."""
  return [{name: value for name, value in line.items() if name != 'images_per_second'} for line in lines(workdir)]


def timeless(found: dict) -> dict:
  """What two runs of one config have in common."""
  return {name: value for name, value in found.items() if name not in ('seconds', 'command', 'provenance', 'segments')}


def assert_same_end(workdir: Path, straight: Path) -> None:
  """The run ended as the one that nobody interrupted: state, every line of the log, every evaluation."""
  assert result(workdir)['state_sha256'] == result(straight)['state_sha256']
  assert curves(workdir) == curves(straight)
  assert steps(workdir) == list(range(1, NUM_STEPS + 1))
  names = sorted(path.stem for path in (straight / 'results').iterdir())
  assert sorted(path.stem for path in (workdir / 'results').iterdir()) == names
  for name in names:
    assert timeless(result(workdir, name)) == timeless(result(straight, name))
  assert not list((workdir / 'checkpoints').glob('*.tmp'))


def kill_at_random(rig: Rig, workdir: Path, rng: random.Random, base: Sequence[str] = NOMINAL) -> None:
  """Starts the run and kills it some time after a random line of the log that it writes itself."""
  run = rig.start(workdir, base=base)
  step = rng.randint(1, NUM_STEPS)
  run.wait_for(lambda: any(f'step {later}/' in run.err for later in range(step, NUM_STEPS + 1)))
  time.sleep(rng.uniform(0, 1.5 if step == NUM_STEPS else 0.15))
  run.kill()


def complaints(err: str) -> list[str]:
  """Returns the lines of standard error without those that a slow machine prints of its progress."""
  return [line for line in err.splitlines() if not line.endswith('...')]
