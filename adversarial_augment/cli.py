"""What the command lines share: flags, one-line errors, exit codes, and what JAX must be told before it starts.

JAX is imported inside the functions that need it, so that wrong input is reported before that costs time.
"""

import argparse
from collections.abc import Callable, Sequence
import errno
import importlib.metadata
import importlib.util
import os
from pathlib import Path
import re
import signal
import sys
import traceback
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict

from adversarial_augment import config as configs
from adversarial_augment import environment, fields, files, jax_errors, signals, streams
from adversarial_augment.errors import AdversarialAugmentError, Interrupted, StorageError, UserError, require_assertions

_INTERRUPTED = 130  # what a shell reports for Ctrl-C
_LESS_MEMORY = 'end other programs that use the device, or do less at once: fewer images, or a smaller batch'
_KEPT = 'what was written before is kept, and the same command goes on'

_TRAIN = """Trains an image classifier with AdversarialAugment (AdA) or without an adversary.

The config file gives every setting; --config.FIELD=VALUE replaces one. The same command goes on with a run that was
stopped. Results, checkpoints and figures are written to the working directory."""

_EXAMPLES = """examples:
  python -m adversarial_augment.{program} --config={example} --workdir=runs/first
  python -m adversarial_augment.{program} --config={example} --config.seed=1
  python -m adversarial_augment.{program} --config={example} --print_config

exit codes: 0 done, 2 wrong input, 3 a number became NaN or infinite, 4 no usable checkpoint, 5 disk full or not
writable, or out of memory, 75 stopped by a signal with all saved (run the same command again), 130 interrupted before
the run began, 134 another process of the run died (start all of them again); a signal that comes a second or more after
the first one ends at once, without saving, with 128 + its number."""


class Arguments(NamedTuple):
  """The flags of `train` and `pretrain`."""

  config: str  # path.py[:variant]
  overrides: dict[str, str]  # dotted field -> text
  workdir: Path
  debug: bool = False
  print_config: bool = False
  list_configs: bool = False
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that raises UserError and takes no abbreviated flags."""

  def __init__(self, **options: Any):
    super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message} (see {self.prog} --help).')


def run(
  main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None, *, less_memory: str = _LESS_MEMORY
) -> NoReturn:
  """Calls `main` and ends the process: known errors as one line on standard error, others with their traceback.

  Args:
    main: takes the arguments, returns the exit code (None is 0).
    argv: defaults to those of the process; with `--debug` among them, known errors show their traceback too.
    less_memory: what lowers the memory that the program needs, for the message where it was too much.
  """
  arguments = list(sys.argv[1:] if argv is None else argv)
  program = Path(sys.argv[0]).stem
  streams.secure()
  signals.raise_once()
  try:
    require_assertions()
    environment.pin()
    code = main(arguments) or 0
    sys.stdout.flush()
  except BrokenPipeError:  # whoever read what was printed, such as `head`, has gone
    streams.discard_output()
    code = 128 + signal.SIGPIPE
  except (Exception, KeyboardInterrupt) as error:
    known = _known(error) or jax_errors.explain(error, less_memory)
    if known is None:
      raise
    if '--debug' in arguments:
      traceback.print_exc()
    line = ' '.join(known[0].split())
    # Text of a file that somebody else has written must not steer the terminal.
    printable = ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in line)
    streams.say(f'{program}: {printable}')
    code = known[1]
  if argv is None:  # this is the end of the process
    signals.ignore()
  sys.exit(code)


def _known(error: BaseException) -> tuple[str, int] | None:
  """Returns the message and the exit code of an error that is no defect of the program; None of another one."""
  if isinstance(error, KeyboardInterrupt):
    return f'interrupted: {str(error) or _KEPT}.', _INTERRUPTED
  if isinstance(error, Interrupted):
    return f'{error}: {_KEPT}.', error.exit_code
  if isinstance(error, AdversarialAugmentError):
    return str(error), error.exit_code
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of standard output
    streams.discard_output()
    return f'Cannot write: {error.strerror}; free space, or send the output elsewhere.', StorageError.exit_code
  return None


def split_overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
  """Returns {field: text} of all `--config.FIELD=VALUE` and `--config.FIELD VALUE`, and the other arguments.

  Raises:
    UserError: a field without a value.
  """
  overrides: dict[str, str] = {}
  rest: list[str] = []
  remaining = iter(argv)
  for argument in remaining:
    if not argument.startswith('--config.'):
      rest.append(argument)
      continue
    name, equals, value = argument.removeprefix('--config.').partition('=')
    if not equals:
      following = next(remaining, None)
      if following is None or following.startswith('--'):
        raise UserError(f'--config.{name} needs a value: --config.{name}=VALUE.')
      value = following
    overrides[name] = value
  return overrides, rest


def parse_train(argv: Sequence[str]) -> Arguments:
  """Returns the flags of `train`; see `parse`."""
  return parse(argv, 'train', _TRAIN, 'configs/ada_edsr.py:quickstart')


def parse(argv: Sequence[str], program: str, description: str, example: str) -> Arguments:
  """Returns the flags of a program that runs a config; reads no config. `--help` prints and exits with 0.

  Args:
    argv: the arguments after the program's name.
    program: the module's name, without the package.
    description: what `--help` says first.
    example: a config for the examples of `--help`.

  Raises:
    UserError: unknown flags, or flags that lack a value or have a wrong one.
  """
  parser = Parser(
    prog=f'python -m adversarial_augment.{program}',
    description=description,
    epilog=_EXAMPLES.format(program=program, example=example),
  )
  parser.add_argument('--config', default='', metavar='PATH.py[:VARIANT]', help='config file; required')
  parser.add_argument(
    '--config.FIELD', dest='_', metavar='VALUE', help='replace a field of the config, for example --config.seed=1'
  )
  parser.add_argument('--workdir', metavar='DIR', help='where the run lives; default: runs/CONFIG[_VARIANT]')
  parser.add_argument('--print_config', action='store_true', help='print every field with its meaning, and exit')
  parser.add_argument('--list_configs', action='store_true', help='print the configs that ship, and exit')
  parser.add_argument('--debug', action='store_true', help='show tracebacks')
  add_process_flags(parser)
  overrides, rest = split_overrides(argv)
  values, unknown = parser.parse_known_args(rest)
  if unknown:
    raise UserError(
      _unknown_flag(unknown[0], [option for action in parser._actions for option in action.option_strings])
    )
  if not values.config and not values.list_configs:
    parser.error(f'--config is missing, for example --config={example}')
  if values.workdir == '':
    parser.error('--workdir is empty; name a folder, or leave the flag out')
  check_processes(values)
  workdir = files.user_path(values.workdir, '--workdir') if values.workdir else default_workdir(values.config)
  return Arguments(
    values.config,
    overrides,
    workdir,
    values.debug,
    values.print_config,
    values.list_configs,
    values.coordinator_address,
    values.num_processes,
    values.process_id,
  )


def _unknown_flag(argument: str, options: Sequence[str]) -> str:
  name = argument.partition('=')[0]
  known = [*options, *(f'--config.{field}' for table in configs.TABLES.values() for field in table)]
  if not name.startswith('-'):
    return f'Unexpected argument {fields.show(argument)}; flags begin with --.'
  bare = name.lstrip('-')
  guess = fields.closest(name, known) or fields.closest(f'--config.{bare}', known)
  return f'Unknown flag {fields.show(name)}.{guess}'


def add_process_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a program that runs as several processes."""
  group = parser.add_argument_group('several processes (found by themselves on TPU pods and under SLURM)')
  group.add_argument('--coordinator_address', metavar='HOST:PORT', help='of process 0')
  group.add_argument('--num_processes', type=int, metavar='N', help='how many')
  group.add_argument('--process_id', type=int, metavar='I', help='which one this is, from 0')


def check_processes(arguments: argparse.Namespace) -> None:
  """Checks those flags.

  Raises:
    UserError: some are missing, or out of range.
  """
  address, count, index = arguments.coordinator_address, arguments.num_processes, arguments.process_id
  if address is None and count is None and index is None:
    return
  if address is None or count is None or index is None:
    raise UserError('--coordinator_address, --num_processes and --process_id go together; give all three, or none.')
  port = re.fullmatch(r'.+:([0-9]{1,5})', address)
  if not port or not 0 < int(port[1]) < 65536:
    raise UserError(f'--coordinator_address={fields.show(address)} must be HOST:PORT, for example localhost:12321.')
  if count < 1:
    raise UserError(f'--num_processes={count} must be at least 1.')
  if not 0 <= index < count:
    raise UserError(f'--process_id={index} must be from 0 to {count - 1} (--num_processes={count}).')


def default_workdir(spec: str) -> Path:
  """Returns `runs/NAME` or `runs/NAME_VARIANT` for the config `path/NAME.py[:VARIANT]`."""
  path, _, variant = spec.partition('.py:')
  return Path('runs') / '_'.join(part for part in (Path(path).name.removesuffix('.py'), variant) if part)


def resolve_config(
  arguments: Arguments, program: str = 'train', derived: Callable[[ConfigDict], Sequence[str]] = lambda config: ()
) -> ConfigDict | None:
  """Returns the checked config, or None where a flag only asked to print something, which it does.

  Args:
    arguments: of the program.
    program: its name.
    derived: config -> the lines of what follows from it, which --print_config prints too.

  Raises:
    UserError: see `config.load`, `config.override` and `config.validate`.
  """
  if arguments.list_configs:
    print(configs.list_configs())
    return None
  config = configs.override(configs.load(arguments.config, program), arguments.overrides)
  configs.validate(config)
  if arguments.print_config:
    print('\n'.join([configs.describe(config), *derived(config)]))
    return None
  return config


def usable_cores() -> int:
  """Returns how many cores this process may run on."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def virtual_devices(batch_size: int) -> int | None:
  """Lets the CPU backend split the work over the cores; other backends are not touched. Call before any array is made.

  XLA runs many ops of one CPU device on one core, so that several devices are faster. Their number becomes the largest
  divisor of the batch size that is at most the usable cores. A choice of the user stands: JAX_NUM_CPU_DEVICES,
  `jax_num_cpu_devices`, or XLA_FLAGS=--xla_force_host_platform_device_count. So do devices that exist already, as in a
  notebook.

  Args:
    batch_size: images per step of this process.

  Returns:
    How many devices this process will have, or None where that is not known before they exist: with accelerators.

  Raises:
    UserError: a choice of the user is 0 devices.
  """
  import jax

  forced = re.findall(r'xla_force_host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  count = int(forced[-1]) if forced else jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
  if count == 0:
    name = 'XLA_FLAGS' if forced else 'JAX_NUM_CPU_DEVICES'
    raise UserError(f'{name} asks for 0 devices of the CPU; name at least 1, or leave it out.')
  if not forced and count < 0:
    count = next(n for n in range(min(usable_cores(), batch_size), 0, -1) if batch_size % n == 0)
    try:
      jax.config.update('jax_num_cpu_devices', count)
    except RuntimeError:  # the devices exist already
      return jax.local_device_count()
  return count if _cpu_only() else None


def _cpu_only() -> bool:
  """Returns whether JAX will run on the CPU for certain: it is told to, or there is no plugin of another platform."""
  import jax

  platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
  plugins = any(importlib.util.find_spec(name) for name in ('jax_plugins', 'libtpu'))
  return platforms == 'cpu' or not (platforms or plugins or importlib.metadata.entry_points(group='jax_plugins'))


def compilation_cache() -> None:
  """Keeps compiled programs in the user's cache folder, so that the next start is faster.

  JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=0 switches it off.
  """
  import jax

  switched_on, chosen = jax.config.jax_enable_compilation_cache, jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if not switched_on or chosen is not None:
    return
  try:
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'adversarial_augment' / 'xla'
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError) as error:  # a read-only home, or none
    streams.say(f'Compiled programs are not kept for the next start: {error}.')
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
