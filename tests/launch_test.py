"""How the processes of a run find each other, what they say while they wait, and that all must be started alike."""

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from adversarial_augment import errors, evaluate
from adversarial_augment.config import command_line, rules
from adversarial_augment.parallel import launch, peers
from tests import trainer

ALONE = command_line.Arguments(config='a.py', overrides={}, workdir=Path('w'))
STEP = {'SLURM_STEP_NODELIST': 'a[1-2]', 'SLURM_PROCID': '0'}
MET = """
  import json, sys
  from adversarial_augment import cli, errors
  from adversarial_augment.config import command_line
  from adversarial_augment.parallel import launch
  def main(argv):
    arguments = command_line.parse_train(argv[2:])
    with launch.together(launch.find(arguments)) as shared:
      if argv[1]:
        raise getattr(errors, argv[1])('Of this process.')
      shared |= json.loads(argv[0])
    print('met')
  cli.run(main, sys.argv[1:])
"""


@pytest.fixture
def environment(monkeypatch):
  """An environment that names no cluster."""
  for name in list(os.environ):
    if name.startswith(
      ('SLURM_', 'TPU_', 'MEGASCALE_', 'JAX_COORDINATOR', 'JAX_NUM_PROC', 'JAX_PROC', 'JAX_PLATFORMS')
    ):
      monkeypatch.delenv(name)


@pytest.mark.parametrize(
  'env, count',
  [
    ({}, 1),
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, 1),  # a batch script without srun
    ({'SLURM_NTASKS': '1', **STEP}, 1),
    ({'SLURM_NTASKS': '4', **STEP}, 4),
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '1', **STEP}, 1),  # an interactive step of a larger job
    ({'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '2', **STEP}, 2),
    ({'SLURM_STEP_NUM_TASKS': '2', **STEP}, 2),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, 1),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'}, 1),
    ({'MEGASCALE_COORDINATOR_ADDRESS': 'a'}, None),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'}, 2),
  ],
)
@pytest.mark.usefixtures('environment')
def test_several_processes_are_found_in_the_environment(env, count, monkeypatch):
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  found = launch.find(ALONE)
  assert (found.number if found else 1) == count
  assert found is None or found.address == env.get('JAX_COORDINATOR_ADDRESS')


@pytest.mark.usefixtures('environment')
def test_flags_decide_about_processes(monkeypatch):
  for name, value in {'SLURM_NTASKS': '4', **STEP}.items():
    monkeypatch.setenv(name, value)
  arguments = ALONE._replace(coordinator_address='localhost:1', num_processes=2, process_id=1)
  assert launch.find(arguments)[:4] == (2, 1, 'localhost:1', 'the flags')


@pytest.mark.usefixtures('environment')
@pytest.mark.parametrize(
  'name, text', [('SLURM_NTASKS', '4(x2)'), ('SLURM_STEP_NUM_TASKS', '0'), ('SLURM_PROCID', 'a')]
)
def test_a_bad_number_of_tasks_is_a_user_error(name, text, monkeypatch):
  for key, value in {**STEP, 'SLURM_NTASKS': '4', name: text}.items():
    monkeypatch.setenv(key, value)
  with pytest.raises(errors.UserError, match=f'The environment has {name}='):
    launch.find(ALONE)


def test_processes_have_equal_parts_of_a_batch():
  assert launch.number(None) == launch.number(launch.Processes(None, None, None, 'the TPU runtime')) == 1
  assert launch.number(launch.Processes(2, 0, None, '')) == 2
  rules.check_batch(8, 2, 'processes')
  with pytest.raises(errors.UserError, match='config.batch_size=1 must be a multiple of the 2 processes'):
    rules.check_batch(1, 2, 'processes')


def start(index: int, port: int, facts: dict, error: str = '', *more: str, count: int = 2, env: dict | None = None):
  flags = ['--config=a.py', f'--coordinator_address=127.0.0.1:{port}', *more]
  flags += [f'--num_processes={count}', f'--process_id={index}']
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(MET), json.dumps(facts), error, *flags],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=trainer.ROOT, env=os.environ | (env or {}),
  )  # fmt: skip


def finish(processes: list[subprocess.Popen], patience: float = 60) -> list[tuple[int, str, list[str]]]:
  try:
    ended = [process.communicate(timeout=patience) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, out, [line for line in err.splitlines() if not line.startswith('waiting for ')])
    for process, (out, err) in zip(processes, ended, strict=True)
  ]


SAME = {'the program': 'train', 'config.seed': 0, 'data.train': 'f' * 64}


def test_processes_that_were_started_alike_meet():
  port = trainer.free_port()
  for code, out, err in finish([start(index, port, SAME, count=3) for index in range(3)]):
    assert (code, out, err) == (0, 'met\n', [])


@pytest.mark.parametrize(
  'other, how, words',
  [
    ({**SAME, 'config.seed': 1}, {}, 'config.seed is 0 on process 0 and 1 on process 1;'),
    ({**SAME, 'frost': 'procedural'}, {}, 'frost is not set on process 0 and "procedural" on process 1;'),
    (SAME, {'env': {'XLA_FLAGS': '--xla_cpu_enable_fast_math=true'}}, 'XLA_FLAGS is not set on process 0 and'),
    (SAME, {'count': 3}, 'the number of processes is 2 on process 0 and 3 on process 1'),
  ],
)
def test_processes_that_differ_all_end_with_the_first_difference(other, how, words):
  port, began = trainer.free_port(), time.monotonic()
  ended = finish([start(0, port, SAME), start(1, port, other, **how)])
  assert time.monotonic() - began < 30
  for code, out, err in ended:
    assert (code, out, len(err)) == (2, '', 1), err
    assert f'The processes of the run differ: {words}' in err[0]
  assert ended[0] == ended[1]


def test_versions_are_compared():
  """Also of a program that says so itself."""
  for name, words in (
    ('jaxlib', 'the version of jaxlib'),
    ('adversarial_augment', 'the version of adversarial_augment'),
  ):
    first = {f'the version of {name}': '1'}
    error = launch._difference(first, 3, {f'the version of {name}': '2'})
    assert str(error).startswith(f'The processes of the run differ: {words} is "1" on process 0 and "2" on process 3;')


@pytest.mark.parametrize('index', [0, 1])
def test_wrong_input_of_one_process_ends_the_others_too(index):
  port = trainer.free_port()
  ended = finish([start(i, port, SAME, 'StorageError' if i == index else '') for i in range(2)])
  assert [code for code, _, _ in ended] == [5, 5]
  assert ended[index][2] == ['-c: Of this process.']
  assert ended[1 - index][2] == [f'-c: process {index}: Of this process.']


@pytest.mark.parametrize(
  'index, words',
  [
    (0, 'waiting for 1 of 2 processes: no word from process 1 for 5 s'),
    (1, 'waiting for process 0: no word from process 0 at 127.0.0.1:'),
  ],
)
def test_a_process_that_waits_says_for_whom_and_can_be_stopped(index, words):
  numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if index else (signal.SIGTERM,)
  processes = [start(index, trainer.free_port(), SAME) for _ in numbers]
  for process, number in zip(processes, numbers, strict=True):
    assert process.stderr.readline().startswith(words)
    process.send_signal(number)
  for number, (code, _, err) in zip(numbers, finish(processes, patience=10), strict=True):
    assert code == 75
    assert err == [f'stopped by {number.name}: no step has been made; run the same command again to resume.']


def test_a_process_that_waits_in_vain_says_so():
  for index, words in ((0, 'no word from process 1 of 2 for 2 s'), (1, 'no word from process 0 at 127.0.0.1')):
    ((code, _, err),) = finish([start(index, trainer.free_port(), SAME, '', '--wait=2')], patience=30)
    assert (code, len(err)) == (75, 1)
    assert err[0].startswith(f'-c: Cannot begin: {words}')


def test_a_port_that_is_taken_is_one_line():
  with socket.socket() as taken:
    taken.bind(('0.0.0.0', 0))
    taken.listen()
    ((code, _, err),) = finish([start(0, taken.getsockname()[1], SAME)])
  assert (code, len(err)) == (2, 1)
  assert 'the port of 127.0.0.1:' in err[0]


def test_a_process_that_does_not_see_the_run_tells_the_others(tmp_path, monkeypatch):
  told: list[dict] = []
  monkeypatch.setattr(peers, 'meet', lambda address, number, index, says, **_: told.append(says))
  monkeypatch.setattr(peers, 'Watch', lambda *_: pytest.fail('it began'))
  flags = ['--coordinator_address=localhost:1', '--num_processes=2', '--process_id=1']
  with pytest.raises(errors.UserError, match='^No run in .* a folder that they share.$') as caught:
    evaluate.main([f'--workdir={tmp_path}', *flags])
  assert told == [{'error': ['UserError', str(caught.value)]}]


@pytest.mark.usefixtures('environment')
def test_jax_finds_what_a_cluster_does_not_tell(monkeypatch):
  """The only place that looks into JAX; its signature is that of several versions."""
  step = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_LOCALID': '0'}
  for name, value in {**STEP, 'SLURM_STEP_NODELIST': 'node[3,5-8]', 'SLURM_PROCID': '1', **step}.items():
    monkeypatch.setenv(name, value)
  found = launch._located(launch.find(ALONE), None)
  assert found[:3] == (2, 1, f'node3:{65535 - 2**12 + 1 + 7}')
  monkeypatch.delenv('SLURM_JOB_ID')
  with pytest.raises(errors.UserError, match='JAX does not find their number, or the address of process 0; fix that'):
    launch._located(launch.find(ALONE), None)


@pytest.mark.parametrize(
  'flag, words', [('--wait=0', '--wait=0 must be at least 1'), ('--watchdog=nan', '--watchdog=nan')]
)
def test_wrong_patience_is_one_line(flag, words):
  with pytest.raises(errors.UserError, match=words):
    command_line.parse_train(['--config=a.py', flag])
