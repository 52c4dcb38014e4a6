"""The processes of one run: how they find each other, and whether all of them were started alike.

Each process looks at its own config and data first, and then meets the others (see peers.py). They exchange what they
found, errors included, so that all of them end with the same line if they differ, and none waits for one that has left.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import importlib.util
import json
import os
from pathlib import Path
import re
import signal
from typing import Any, NamedTuple

from adversarial_augment import checks, cli, errors
from adversarial_augment.cli import environment, signals, streams
from adversarial_augment.errors import AdversarialAugmentError, UserError, show
from adversarial_augment.parallel import peers

_NUMBER = 'the number of processes'
_INITIALIZE = 300  # seconds for JAX, when all have come
_FOREVER = 10**6  # seconds without a heartbeat of JAX's own: it would abort, and name nobody
_PATHS = (
  'data_dir',
  'frost_dir',
  'init_from',
  'corruption_net.weights',
  'attack.distance_from',
  'output',
)  # each process has its own


class Processes(NamedTuple):
  """The processes of a run, as far as the flags and the environment tell."""

  number: int | None  # None: TPU hosts learn it when they meet
  process: int | None  # which one this is
  address: str | None  # of process 0; None if JAX finds it
  source: str  # of this knowledge
  wait: float = cli.WAIT  # seconds for the others to come
  watchdog: float = cli.WATCHDOG  # seconds without progress after which the run ends


def find(arguments: Any) -> Processes | None:
  """Returns the processes of this run; None if this is the only one.

  The flags decide; without them, the environment: JAX_COORDINATOR_ADDRESS, a SLURM step of more than one task, or a
  TPU pod.
  """
  env, patience = os.environ, (arguments.wait, arguments.watchdog)
  if arguments.coordinator_address is not None:
    about = arguments.num_processes, arguments.process_id, arguments.coordinator_address
    return Processes(*about, 'the flags', *patience)
  if 'JAX_COORDINATOR_ADDRESS' in env and 'JAX_NUM_PROCESSES' in env:
    count = _number('JAX_NUM_PROCESSES', 1)
    index = _number('JAX_PROCESS_ID', 0) if 'JAX_PROCESS_ID' in env else None
    if count > 1:
      return Processes(count, index, env['JAX_COORDINATOR_ADDRESS'], 'JAX_NUM_PROCESSES', *patience)
  # Only srun sets SLURM_STEP_NODELIST: a batch script is one process, whatever SLURM_NTASKS says.
  if 'SLURM_STEP_NODELIST' in env and 'SLURM_PROCID' in env:
    name = 'SLURM_STEP_NUM_TASKS' if 'SLURM_STEP_NUM_TASKS' in env else 'SLURM_NTASKS'
    count = _number(name, 1) if name in env else 1
    return Processes(count, _number('SLURM_PROCID', 0), None, name, *patience) if count > 1 else None
  return Processes(None, None, None, 'the TPU runtime', *patience) if _tpu() else None


def number(processes: Processes | None) -> int:
  """Returns how many processes there are, as far as that is known before they meet."""
  return processes.number or 1 if processes else 1


def is_first(processes: Processes | None) -> bool:
  """Returns whether this is process 0, which owns the run's folder."""
  return processes is None or _located(processes, None).process == 0


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
  found = _located(processes, failure)
  if found.number == 1:
    if failure:
      raise failure
    return
  says: dict[str, Any] = {'error': [type(failure).__name__, cli.describe(failure)]} if failure else {'facts': own}
  if not failure:
    versions = {f'the version of {name}': version for name, version in environment.versions().items()}
    own |= {
      _NUMBER: found.number,
      **versions,
      'the code (SHA-256)': environment.source_sha256(),
      **environment.settings(),
    }
  _join(found, says, failure)


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


def _located(processes: Processes, failure: AdversarialAugmentError | None) -> Processes:
  """Returns the processes with all that JAX finds out of a cluster: their number, which one this is, the address."""
  known = processes.address, processes.number, processes.process
  if None in known:
    from jax._src import clusters  # what jax.distributed.initialize calls

    try:
      known = clusters.ClusterEnv.auto_detect_unset_distributed_params(*known, None, None, int(processes.wait))[:3]
    except (RuntimeError, ValueError, OSError) as error:
      raise failure or _cannot_join(processes, error) from error
    if None in known:
      raise failure or _cannot_join(processes, 'JAX does not find their number, or the address of process 0')
  address, number, process = known
  return processes._replace(address=address, number=number, process=process)


def _cannot_join(processes: Processes, reason: Exception | str) -> UserError:
  line = str(reason).partition('\n')[0]
  where = f'(found by {processes.source})'
  return UserError(f'Cannot join the processes of the run {where}: {line}; fix that, and start all of them again.')


def _join(processes: Processes, says: Mapping[str, Any], failure: AdversarialAugmentError | None) -> None:
  """Meets the others, begins to watch them, and starts JAX's service."""
  import jax

  number, process, address, *_ = processes
  assert number is not None
  assert process is not None
  assert address is not None

  def judge(index: int, theirs: Mapping[str, Any]) -> AdversarialAugmentError | None:
    if 'error' in theirs:
      name, message = theirs['error']
      return errors.rebuilt(name, f'process {index}: {message}')
    return _difference(says['facts'], index, theirs['facts'])

  def stop(number: int) -> None:
    streams.say(f'stopped by {signal.Signals(number).name}: no step has been made; {signals.RESUME}.')
    os._exit(75)

  # Python's handlers are not called while C++ waits. From then on, SIGTERM is JAX's.
  with signals.watched((signal.SIGINT, signal.SIGHUP, signal.SIGTERM), stop, restored=(signal.SIGINT, signal.SIGHUP)):
    try:
      links = peers.meet(address, number, process, says, wait=processes.wait, judge=judge)
    except AdversarialAugmentError as error:
      raise failure or error from None
    if failure:
      raise failure
    watch = peers.Watch(process, links, processes.watchdog)
    watch.start()
    cli.watches.append(watch)
    try:
      jax.distributed.initialize(
        address, number, process, initialization_timeout=_INITIALIZE, heartbeat_timeout_seconds=_FOREVER
      )
    except (RuntimeError, ValueError, OSError) as error:
      raise _cannot_join(processes, error) from error


def _difference(first: Mapping[str, Any], index: int, theirs: Mapping[str, Any]) -> UserError | None:
  for name in {**first, **theirs}:
    here, there = (json.dumps(one[name]) if name in one else 'not set' for one in (first, theirs))
    if here != there:
      here, there = (text if len(text) <= 80 else f'{text[:77]}...' for text in (here, there))
      return UserError(
        f'The processes of the run differ: {name} is {here} on process 0 and {there} on process {index}; start all of '
        'them with the same command, data, packages and variables.'
      )
  return None


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
