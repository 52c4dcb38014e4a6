"""The processes of one run: how they find each other, and whether all of them were started alike.

Each process looks at its own config and data first, and then meets the others. They exchange what they found, errors
included, so that all of them end with the same line if they differ, and none waits for one that has left.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import hashlib
import importlib.util
import json
import os
from pathlib import Path
import re
import signal
import socket
import threading
from typing import Any, NamedTuple

from adversarial_augment import checks, cli, errors
from adversarial_augment.cli import environment, signals, streams
from adversarial_augment.errors import AdversarialAugmentError, UserError, show

_PATIENCE = 300  # seconds to wait for the others; _SHORT if this process has failed
_SHORT = 30
_KEY = 'adversarial_augment/start'
_PATHS = ('data_dir', 'frost_dir', 'init_from', 'corruption_net.weights', 'output')  # each process has its own


class Processes(NamedTuple):
  """The processes of a run, as far as the flags and the environment tell."""

  number: int | None  # None: TPU hosts learn it when they meet
  process: int | None  # which one this is
  address: str | None  # of process 0; None if JAX finds it
  source: str  # of this knowledge


def find(arguments: Any) -> Processes | None:
  """Returns the processes of this run; None if this is the only one.

  The flags decide; without them, the environment: JAX_COORDINATOR_ADDRESS, a SLURM step of more than one task, or a
  TPU pod.
  """
  env = os.environ
  if arguments.coordinator_address is not None:
    return Processes(arguments.num_processes, arguments.process_id, arguments.coordinator_address, 'from the flags')
  if 'JAX_COORDINATOR_ADDRESS' in env and 'JAX_NUM_PROCESSES' in env:
    count = _number('JAX_NUM_PROCESSES', 1)
    index = _number('JAX_PROCESS_ID', 0) if 'JAX_PROCESS_ID' in env else None
    if count > 1:
      return Processes(count, index, env['JAX_COORDINATOR_ADDRESS'], 'JAX_NUM_PROCESSES')
  # Only srun sets SLURM_STEP_NODELIST: a batch script is one process, whatever SLURM_NTASKS says.
  if 'SLURM_STEP_NODELIST' in env and 'SLURM_PROCID' in env:
    name = 'SLURM_STEP_NUM_TASKS' if 'SLURM_STEP_NUM_TASKS' in env else 'SLURM_NTASKS'
    count = _number(name, 1) if name in env else 1
    return Processes(count, _number('SLURM_PROCID', 0), None, name) if count > 1 else None
  return Processes(None, None, None, 'the TPU runtime') if _tpu() else None


def number(processes: Processes | None) -> int:
  """Returns how many processes there are, as far as that is known before they meet."""
  return processes.number or 1 if processes else 1


@contextmanager
def together(processes: Processes | None) -> Iterator[dict[str, Any]]:
  """Runs the block, and then meets the other processes. Call before any array is made.

  Yields:
    A dict, in which the block stores what must be equal on all processes (see `facts`). If it stays empty, and the
    block raises no error, the processes do not meet.

  Raises:
    AdversarialAugmentError: the block raised it here or on another process; or the processes differ, or cannot meet.
  """
  own: dict[str, Any] = {}
  failure: AdversarialAugmentError | None = None
  try:
    yield own
  except AdversarialAugmentError as error:
    if processes is None:
      raise
    failure = error
  if processes is None or not (own or failure):
    return
  _join(processes, failure)
  if failure:
    _exchange({'error': [type(failure).__name__, cli.describe(failure)]})
    raise failure
  versions = {f'the version of {name}': version for name, version in environment.versions().items()}
  program = {**versions, 'the code (SHA-256)': environment.source_sha256(), **environment.settings()}
  everybody = _exchange(own | program)
  for index, theirs in everybody.items():
    if 'error' in theirs:
      name, message = theirs['error']
      raise errors.rebuilt(name, f'process {index}: {message}')
  _compare(everybody)


def facts(program: str, config: str, about: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what must be equal on all processes of a run.

  Args:
    program: its name.
    config: as JSON; fields that name files and folders are not compared.
    about: further facts, such as the hashes of data, as nested dicts.
  """
  flat = checks.flatten(json.loads(config))
  compared = {f'config.{name}': value for name, value in flat.items() if name not in _PATHS}
  return {'the program': program, **compared, **checks.flatten(json.loads(json.dumps(about)))}


def _compare(everybody: Mapping[int, Mapping[str, Any]]) -> None:
  first = everybody[0]
  for index, theirs in everybody.items():
    for name in {**first, **theirs}:
      here, there = (json.dumps(one[name]) if name in one else 'not set' for one in (first, theirs))
      if here != there:
        here, there = (text if len(text) <= 80 else f'{text[:77]}...' for text in (here, there))
        raise UserError(
          f'The processes of the run differ: {name} is {here} on process 0 and {there} on process {index}; start all '
          'of them with the same command, data, packages and variables.'
        )


def _join(processes: Processes, failure: AdversarialAugmentError | None) -> None:
  """Meets the others; exits with a line if they do not come: JAX itself would abort."""
  import jax

  patience, waited_for = (_SHORT if failure else _PATIENCE), _waited_for(processes)
  lost = f'{waited_for} did not come within {patience} s; start all processes of the run, or this one alone.'

  def give_up() -> None:
    streams.say(cli.describe(failure) if failure else f'Cannot start: {lost}')
    os._exit(failure.exit_code if failure else UserError.exit_code)

  def stop(number: int) -> None:
    streams.say(f'stopped by {signal.Signals(number).name}: no step has been made; {signals.RESUME}.')
    os._exit(75)

  if processes.address:
    _check_address(processes.address, processes.process)
  timer = threading.Timer(patience, give_up)
  timer.daemon = True
  # Python's handlers are not called while C++ waits. From then on, SIGTERM is JAX's.
  with signals.watched((signal.SIGINT, signal.SIGHUP, signal.SIGTERM), stop, restored=(signal.SIGINT, signal.SIGHUP)):
    if processes.number != 1:
      streams.say(f'waiting for {waited_for} (for up to {patience} s)...')
    timer.start()
    try:
      jax.distributed.initialize(
        processes.address, processes.number, processes.process, initialization_timeout=patience + 60
      )
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(
        f'Cannot join the processes of the run ({processes.source}): {str(error).splitlines()[0]}; fix that, and start '
        'all of them again.'
      ) from error
    finally:
      timer.cancel()


def _check_address(address: str, index: int | None) -> None:
  """Refuses what would make JAX abort: a second process of this index on this machine, or a port in use."""
  claim = socket.socket(socket.AF_UNIX)
  try:
    claim.bind(f'\0adversarial_augment {hashlib.sha256(address.encode()).hexdigest()} {index}')
  except OSError as error:
    raise UserError(
      f'Process {index} of the run at {address} has been started already; wait until it ends.', remedy='process_id'
    ) from error
  claim.detach()  # held until this process ends
  try:
    if index == 0:
      socket.create_server(('', int(address.rpartition(':')[2]))).close()
  except OSError as error:
    raise UserError(
      f'Cannot join the processes of the run: the port of {address} cannot be opened ({error.strerror}); name another '
      'one, or end the program that uses it.'
    ) from error


def _waited_for(processes: Processes) -> str:
  count, index, address, source = processes
  if count is None or index is None:
    who = 'the other processes'
  elif index:
    who = 'process 0'
  else:
    who = f'process{"es 1 to" if count > 2 else ""} {count - 1} of {count}'
  return f'{who}{" at " + address if address else ""} ({source})'


def _exchange(own: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
  """Returns what each process shares, by its index; uses no device, because devices may differ."""
  from jax._src import distributed  # the only way to the service by which processes meet

  state = distributed.global_state
  client: Any = state.client
  number, count = 'the number of processes', state.num_processes
  shared: dict[int, Mapping[str, Any]] = {state.process_id: {number: count, **own}}
  client.key_value_set(f'{_KEY}/{state.process_id}', json.dumps(shared[state.process_id]))
  for index in range(count):
    try:
      shared[index] = json.loads(client.blocking_key_value_get(f'{_KEY}/{index}', _SHORT * 1000))
    except RuntimeError as error:
      raise UserError(f'Process {index} left before the run began; start all processes again.') from error
    if shared[index][number] != count:  # the others may never come
      break
  return shared


def _number(name: str, least: int) -> int:
  text = os.environ.get(name, '')
  if not re.fullmatch('[0-9]{1,9}', text) or int(text) < least:
    raise UserError(f'The environment has {name}={show(text)}; it must be a number of at least {least}.')
  return int(text)


def _tpu() -> bool:
  """Returns whether this may be one host of a TPU pod.

  Only Google's metadata server knows whether a Cloud TPU VM is one of several. `jax.distributed.initialize` asks it; on
  a single host it finds one process, which is harmless.
  """
  env = os.environ
  platforms = env.get('JAX_PLATFORMS', '')
  if platforms and 'tpu' not in platforms:
    return False
  if 'MEGASCALE_COORDINATOR_ADDRESS' in env or ',' in env.get('TPU_WORKER_HOSTNAMES', ''):
    return True
  chips = any(Path('/dev').glob('accel[0-9]*')) or any(Path('/dev/vfio').glob('[0-9]*'))
  return chips and 'TPU_SKIP_MDS_QUERY' not in env and importlib.util.find_spec('libtpu') is not None
