"""The flags of the commands that run a config: which one, what replaces its fields, and where the run lives."""

from collections.abc import Callable, Sequence
from pathlib import Path
import sys
from typing import NamedTuple

from ml_collections import ConfigDict

from adversarial_augment import config as configs
from adversarial_augment.checks import did_you_mean
from adversarial_augment.cli import WAIT, WATCHDOG, Parser, add_process_flags, check_processes
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import files
from adversarial_augment.storage.remote import Remote

_TRAIN = """Trains an image classifier with AdversarialAugment (AdA) or without an adversary.

The config file gives every setting; --config.FIELD=VALUE replaces one. The same command resumes a stopped run.
Results, checkpoints and figures are written to the working directory."""

_EXAMPLES = """examples:
  python -m adversarial_augment.{program} --config={example} --workdir=runs/first
  python -m adversarial_augment.{program} --config={example} --config.seed=1
  python -m adversarial_augment.{program} --config={example} --print_config

exit codes: 0 done, 2 wrong input, 3 a number became NaN or infinite, 4 no usable checkpoint, 5 disk full or not
writable, or out of memory, 75 stopped by a signal with all saved, or another process of the run was lost (run the same
command again, on all), 130 interrupted before the run began; a signal that comes a second or more after the first one
ends at once, without saving, with 128 + its number."""


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
  wait: float = WAIT
  watchdog: float = WATCHDOG
  mirror: Remote | None = None
  mirror_every: int | None = None
  max_restarts: int = 0


def split_overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
  """Returns {field: text} of all `--config.FIELD=VALUE` and `--config.FIELD VALUE`, and the other arguments."""
  overrides: dict[str, str] = {}
  rest: list[str] = []
  remaining = iter(argv)
  for argument in remaining:
    if not argument.startswith('--config.'):
      rest.append(argument)
      continue
    name, equals, value = argument.removeprefix('--config.').partition('=')
    if not equals:
      value = next(remaining, '--')
      if value.startswith('--'):
        raise UserError(f'--config.{name} needs a value: --config.{name}=VALUE.')
    overrides[name] = value
  return overrides, rest


def parse_train(argv: Sequence[str]) -> Arguments:
  """Returns the flags of `train`; see `parse`."""
  return parse(argv, 'train', _TRAIN, 'configs/ada_edsr.py:quickstart')


def parse(argv: Sequence[str], program: str, description: str, example: str) -> Arguments:
  """Returns the flags of a program that runs a config; reads no config. `example` is a config for `--help`."""
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
  parser.add_argument('--mirror', metavar='URL', help='where the run is copied to, and begins from in an empty folder')
  parser.add_argument(
    '--mirror_every',
    type=int,
    metavar='STEPS',
    help='by how many steps the copy may be behind at the end; default: config.checkpoint_every',
  )
  parser.add_argument(
    '--max_restarts',
    type=int,
    default=0,
    metavar='N',
    help='restart the run after up to N crashes; default: 0',
  )
  add_process_flags(parser)
  overrides, rest = split_overrides(argv)
  values, unknown = parser.parse_known_args(rest)
  if unknown:
    raise _unknown_flag(unknown[0], [option for action in parser._actions for option in action.option_strings])
  if not values.config and not values.list_configs:
    parser.error(f'--config is missing, for example --config={example}')
  if values.workdir == '':
    parser.error('--workdir is empty; name a folder, or leave the flag out')
  if values.max_restarts < 0:
    parser.error(f'--max_restarts={values.max_restarts} must be at least 0')
  if files.is_url(values.workdir or ''):
    parser.error(f"--workdir='{values.workdir}' is a URL; name a folder of this machine, and the URL as --mirror")
  check_processes(values)
  workdir = files.user_path(values.workdir, '--workdir') if values.workdir else default_workdir(values.config)
  if values.mirror is not None:
    values.mirror = Remote(values.mirror, '--mirror')
    if values.mirror.url == workdir.absolute().as_uri():
      parser.error(f"--mirror='{values.mirror.url}' is the workdir itself; name another folder")
  if values.mirror_every is not None and (values.mirror is None or values.mirror_every < 0):
    parser.error(f'--mirror_every={values.mirror_every} must be at least 0, and goes with --mirror')
  others = {name: getattr(values, name) for name in Arguments._fields[3:]}
  return Arguments(values.config, overrides, workdir, **others)


def unsupervised(program: str, argv: Sequence[str]) -> list[str]:
  """Returns the command line that runs a program with these arguments and no restarts."""
  flag, words = '--max_restarts', iter(argv)
  kept = [word for word in words if not (word.startswith(f'{flag}=') or (word == flag and next(words, True)))]
  return [sys.executable, '-m', f'adversarial_augment.{program}', *kept]


def _unknown_flag(argument: str, options: Sequence[str]) -> UserError:
  name = argument.partition('=')[0]
  known = [*options, *(f'--config.{field}' for table in configs.TABLES.values() for field in table)]
  if not name.startswith('-'):
    return UserError(f'Unexpected argument {show(argument)}; flags begin with --.')
  guess = did_you_mean(name, known) or did_you_mean(f'--config.{name.lstrip("-")}', known)
  return UserError(f'Unknown flag {show(name)}.{guess}')


def default_workdir(spec: str) -> Path:
  """Returns `runs/NAME` or `runs/NAME_VARIANT` for the config `path/NAME.py[:VARIANT]`."""
  path, _, variant = spec.partition('.py:')
  return Path('runs') / '_'.join(part for part in (Path(path).name.removesuffix('.py'), variant) if part)


def resolve_config(
  arguments: Arguments,
  program: str = 'train',
  derived: Callable[[ConfigDict], Sequence[str]] = lambda config: (),
  complete: Callable[[ConfigDict], ConfigDict] = lambda config: config,
) -> ConfigDict | None:
  """Returns the checked config of a program, or None where a flag only asked to print something, which it does.

  `complete` sets the fields that follow from elsewhere, and `derived` gives the lines of what follows from a config,
  which --print_config prints too.
  """
  if arguments.list_configs:
    print(configs.list_configs())
    return None
  config = configs.override(configs.load(arguments.config, program), arguments.overrides)
  configs.validate(config)
  config = complete(config)
  if arguments.print_config:
    print('\n'.join([configs.describe(config), *derived(config)]))
    return None
  return config
