"""The way out of an error that speaks of something on disk: the command line, or the flag, that mends it.

Below the commands, errors carry facts alone (`ArtifactError`). The commands that load data put `added` around what they
do. The command lines work as they are printed.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import shlex
from typing import Any

from adversarial_augment import registry
from adversarial_augment.datasets import cifar10_c, mixture, source
from adversarial_augment.errors import ArtifactError
from adversarial_augment.storage import artifact, files

DATA_DIR = '~/tensorflow_datasets'  # where `prepare` writes by default, and `train` reads
NETS = {'edsr': 'edsr_16x64_x4', 'cae': 'cae_16'}  # of which DeepAugment sets are made, and the largest that ship
DEEPAUGMENT: dict[str, Any] = {  # the flags of `prepare deepaugment`
  'dataset': 'cifar10', 'net': 'edsr', 'copies': 1, 'seed': 0, 'bug_compatible': True, 'scale': 'native32',
}  # fmt: skip
_SHIPPED = pathlib.Path(__file__).parents[1] / 'corruption_nets' / 'shipped'


@contextlib.contextmanager
def added(elsewhere: str = '--data_dir') -> Iterator[None]:
  """Adds the way out to an ArtifactError of the block.

  Args:
    elsewhere: the flag that names another folder to write to.
  """
  try:
    yield
  except ArtifactError as error:
    explained(error, elsewhere)
    raise


def explained(error: ArtifactError, elsewhere: str = '--data_dir') -> str:
  """Returns the message with its way out, which the error keeps."""
  ways = {cifar10_c.KIND: _corruptions, mixture.KIND: _deepaugment, source.KIND: _data_set}
  usual = {
    'elsewhere': f'wait until it ends, or name another {elsewhere}',
    'use or replace': 'use it as it is, or replace it with --overwrite',
    'replace': 'replace it with --overwrite',
    'begin anew': 'remove it, or begin anew with --overwrite',
  }
  if not error.way_out and error.remedy:
    error.way_out = (ways[error.kind](error) if error.kind in ways else '') or usual.get(error.remedy, '')
  return str(error)


def prepare(data_dir: str | os.PathLike, command: str, *flags: str) -> str:
  """Returns a command line of `prepare`.

  Args:
    data_dir: the folder of prepared data sets.
    command: one of its subcommands.
    flags: '--name=value'.
  """
  usual = os.path.expanduser(data_dir) == os.path.expanduser(DATA_DIR)
  where = [] if usual else [f'--data_dir={data_dir}']
  return f'python -m adversarial_augment.prepare {" ".join(map(shlex.quote, [command, *flags, *where]))}'


def deepaugment(folder: pathlib.Path, dataset: str, about: Mapping[str, Any], *more: str) -> str:
  """Returns the command line that makes a DeepAugment set.

  Args:
    folder: of the set.
    dataset: whose images it has.
    about: what its manifest or its plan says; what is missing has its default.
    more: further flags.
  """
  flat = registry.flatten(about)
  values = {name: flat[name] if type(flat.get(name)) is type(usual) else usual for name, usual in DEEPAUGMENT.items()}
  values |= {'dataset': dataset}
  flags = [_flag(name, values[name]) for name, usual in DEEPAUGMENT.items() if values[name] != usual]
  if folder.name != values['net']:
    flags.append(f'--name={folder.name}')
  usual, sha256, note = NETS.get(values['net'], ''), flat.get('weights.sha256'), ''
  weights = usual if sha256 is None else _shipped(sha256)
  if weights is None:
    weights, note = 'FILE.safetensors', f' (FILE.safetensors being what has SHA-256 {sha256})'
  if weights != usual:
    flags.append(f'--weights={weights}')
  return prepare(folder.parent.parent, 'deepaugment', *flags, *more) + note


def _flag(name: str, value: str | int) -> str:
  return f'--no-{name}' if value is False else f'--{name}={value}'


def _shipped(sha256: str) -> str | None:
  """Returns the name of the weights that ship and have this hash, or None."""
  shipped = files.named(_SHIPPED, '*.safetensors')
  return next((file.stem for file in shipped if artifact.sha256_of(file) == sha256), None)


def _corruptions(error: ArtifactError) -> str:
  folder, dataset = pathlib.Path(error.path), error.about['dataset']
  if folder.name == cifar10_c.folder_name(dataset):
    command = lambda *flags: prepare(folder.parent, 'cifar10_c', f'--dataset={dataset}', *flags)
    origin, seed = error.about.get('source'), error.about.get('seed')
    again = command(*([f'--from={origin}'] if origin else [f'--seed={seed}'] if seed else []))
    make, remake = command(), command('--overwrite')
    in_order = prepare(folder.parent, 'cifar10', '--overwrite')
  else:  # it is there to be imported
    make = remake = 'the same command without --from'
    again, in_order = 'the command that made it', 'prepare cifar10'
  return {
    'make': f'make them with {make}, or get CIFAR-10-C.tar (Zenodo record 2535967)',
    'remake': f'make it again with {remake}',
    'resume': f'start {again} once more, which goes on where it was interrupted',
    'remove and resume': f'remove it, and start {again} once more',
    'import in order': f'bring it in with {in_order} instead',
  }.get(error.remedy, '')


def _deepaugment(error: ArtifactError) -> str:
  folder, dataset, made = pathlib.Path(error.path), error.about['dataset'], error.about.get('made')
  command = lambda *more, **changes: deepaugment(folder, dataset, {**(made or {}), **changes}, *more)
  match error.remedy:
    case 'make':
      net = {'net': folder.name} if folder.name in NETS else {}
      return f'start {command(copies=error.about["copies"], **net)}'
    case 'resume':
      return f'start {command()}, which goes on where it was stopped'
    case 'remake':
      return (
        f'make the set again with {command("--overwrite") if made else "the flags of its first time and --overwrite"}'
      )
    case 'more copies':
      more = command('--overwrite', copies=error.about['copies'])
      return f'lower config.deepaugment.copies, or make more with {more}'
    case 'begin anew':
      return 'start anew with the same command and --overwrite'
    case 'use or replace':
      return 'use it as it is, choose another --name, or replace it with --overwrite'
    case 'resume or replace':
      by_flags = all(field.partition('.')[0] in (*DEEPAUGMENT, 'weights') for field in error.about['differing'])
      go_on = f'go on with it by {command()}, ' if by_flags else ''
      return f'{go_on}choose another --name, or replace it with --overwrite'
  return ''


def _data_set(error: ArtifactError) -> str:
  """How a data set that is missing comes about."""
  if error.remedy != 'make':
    return ''
  stem, data_dir = error.about['name'], error.about['data_dir']
  base, _, variant = stem.partition('/')
  evaluation = registry.evaluations().get(base)
  if base == 'cifar10':
    how = prepare(data_dir, 'cifar10')
  elif evaluation and evaluation.imported_from:
    how = prepare(data_dir, base, f'--from={evaluation.imported_from}')
  elif base.endswith('_corrupted'):
    how = prepare(data_dir, 'cifar10_c', f'--dataset={base.removesuffix("_corrupted")}', '--format=array_record')
  elif variant:
    how = "tfds's download_and_prepare(file_format='array_record')"
  else:
    how = prepare(data_dir, 'images', f'--name={base}', '--from=FOLDER')
  return f"make it with {how}, or use the data set 'embedded'"
