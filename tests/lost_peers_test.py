"""Each of four processes of a run is killed or stopped at each stage: the others end soon, and name it."""

from collections.abc import Callable, Iterator
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import trainer

pytestmark = pytest.mark.slow

NUMBER = 4
TIMES = 5
FLAGS = ('--config.num_steps=40', '--config.eval_every=5', '--config.holdout=64', f'--num_processes={NUMBER}')


class Group:
  """Four processes of one run; process 0 alone writes into its workdir."""

  def __init__(self, nursery: subprocess.Popen, folder: Path, *flags: str):
    folder.mkdir(exist_ok=True)
    self._nursery, self.workdir = nursery, folder / 'w0'
    self.logs = [folder / f'{index}.log' for index in range(NUMBER)]
    self.pids: list[int] = []
    self.codes: dict[int, int] = {}
    address = f'--coordinator_address=127.0.0.1:{trainer.free_port()}'
    for index, log in enumerate(self.logs):
      log.unlink(missing_ok=True)
      rest = (f'--workdir={folder / f"w{index}"}', address, f'--process_id={index}', *flags)
      nursery.stdin.write(json.dumps([[*trainer.NOMINAL, *FLAGS, *rest], str(log)]) + '\n')
      nursery.stdin.flush()
      while len(self.pids) == index:
        self._read()

  def text(self, index: int) -> str:
    return self.logs[index].read_text() if self.logs[index].exists() else ''

  def signal(self, index: int, number: int) -> None:
    os.kill(self.pids[index], number)

  def wait_for(self, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + trainer.PATIENCE
    while not happened():
      assert os.path.exists(f'/proc/{self.pids[0]}'), self.text(0)  # it has ended by itself
      assert time.monotonic() < deadline, self.text(0)
      time.sleep(0.002)

  def end(self, *indices: int) -> list[int]:
    """Returns the exit codes of these processes."""
    while not all(self.pids[index] in self.codes for index in indices):
      self._read()
    return [self.codes[self.pids[index]] for index in indices]

  def _read(self) -> None:
    pid, *code = map(int, self._nursery.stdout.readline().split())
    if code:
      self.codes[pid] = code[0]
    else:
      self.pids.append(pid)


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> Iterator[Callable[..., Group]]:
  nurseries: dict[bool, subprocess.Popen] = {}

  def begin(folder: Path, *flags: str, cached: bool = True) -> Group:
    if cached not in nurseries:
      cache = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.getbasetemp() / 'lost_peers_xla')}
      env = os.environ | {'JAX_NUM_CPU_DEVICES': '1'} | (cache if cached else {'JAX_ENABLE_COMPILATION_CACHE': '0'})
      nurseries[cached] = subprocess.Popen(
        [sys.executable, '-m', 'tests.nursery'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=trainer.ROOT, start_new_session=True,
      )  # fmt: skip
    return Group(nurseries[cached], folder, *flags)

  yield begin
  for nursery in nurseries.values():
    os.killpg(nursery.pid, signal.SIGKILL)
    nursery.wait()
    nursery.stdin.close()
    nursery.stdout.close()


@pytest.fixture(scope='module')
def straight(start, tmp_path_factory) -> Path:
  group = start(tmp_path_factory.mktemp('straight'))
  assert group.end(*range(NUMBER)) == [0] * NUMBER, group.text(0)
  return group.workdir


def is_saving(group: Group) -> bool:
  folders = (group.workdir / 'checkpoints').glob('*.tmp')
  return 'step ' in group.text(0) and any(int(folder.stem) <= 40 for folder in folders)  # not the test write


PLACES = {
  'compile': lambda group: 'compiling the train step' in group.text(0),
  'step': lambda group: '\nstep ' in group.text(0),
  'save': is_saving,
  'evaluation': lambda group: 'evaluating' in group.text(0),
}


def named(index: int) -> str:
  return f'Process {index} of the run, on {socket.gethostname()}, '


@pytest.mark.parametrize('place', PLACES)
def test_a_killed_process_ends_the_others_and_the_run_goes_on(start, straight, tmp_path, place):
  for victim in range(NUMBER):
    others = [index for index in range(NUMBER) if index != victim]
    for _ in range(TIMES):
      every = f'--config.checkpoint_every={1 if place == "save" else 3}'
      group = start(tmp_path / 'run', every, cached=place != 'compile')
      group.wait_for(lambda group=group: PLACES[place](group))
      began = time.monotonic()
      group.signal(victim, signal.SIGKILL)
      assert group.end(*others) == [75] * (NUMBER - 1), [group.text(index) for index in others]
      assert time.monotonic() - began < 60
      assert all(f'{named(victim)}was lost: ' in group.text(index) for index in others)
  group = start(tmp_path / 'run')
  assert group.end(*range(NUMBER)) == [0] * NUMBER, group.text(0)
  assert trainer.result(group.workdir)['state_sha256'] == trainer.result(straight)['state_sha256']
  assert trainer.curves(group.workdir) == trainer.curves(straight)


@pytest.mark.parametrize('victim', range(NUMBER))
def test_a_stopped_process_is_noticed_by_the_watchdog(start, tmp_path, victim):
  others = [index for index in range(NUMBER) if index != victim]
  group = start(tmp_path / 'run', '--watchdog=15')
  group.wait_for(lambda: PLACES['step'](group))
  began = time.monotonic()
  group.signal(victim, signal.SIGSTOP)
  assert group.end(*others) == [75] * (NUMBER - 1), [group.text(index) for index in others]
  assert 10 < time.monotonic() - began < 25
  assert all(f'process {victim}' in group.text(index).lower() for index in others)
  group.signal(victim, signal.SIGCONT)
  assert group.end(victim) == [75], group.text(victim)
