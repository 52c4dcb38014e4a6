"""The way out of an error: the command line, or the flag, that fixes it.

Below the commands, errors carry facts and the name of a remedy; `describe` turns both into what a user reads. The
command lines in it work as they are printed.
"""

from collections.abc import Mapping
import hashlib
import os
from pathlib import Path
import shlex
from typing import Any

from adversarial_augment.errors import ArtifactError
from adversarial_augment.metrics import BAR_NAMES

DATA_DIR = '~/tensorflow_datasets'  # where `prepare` writes by default, and `train` reads
NETS = {'edsr': 'edsr_16x64_x4', 'cae': 'cae_16'}  # of which DeepAugment sets are made, and the largest that ship
DEEPAUGMENT: dict[str, Any] = {  # the flags of `prepare deepaugment`
  'dataset': 'cifar10', 'net': 'edsr', 'copies': 1, 'seed': 0, 'bug_compatible': True, 'scale': 'native32',
}  # fmt: skip
_SHIPPED = Path(__file__).parents[1] / 'corruption_nets' / 'shipped'
_ARCHIVES = {  # with corruptions of a test set
  'cifar10': 'CIFAR-10-C.tar (Zenodo record 2535967)',
  'cifar100': 'CIFAR-100-C.tar (Zenodo record 3555552)',
}
WAYS_OUT = {  # by remedy; what begins with 'or' is one more way than the message has
  'from': 'or give a file or folder that you have with --from',
  'process_id': 'or give each process its own --process_id',
  'mirror': 'or name another --mirror',
  'url': 'or give another --url, or a file that you have with --from',
  'workdir': 'or name another --workdir',
  'debug': 'or see its traceback with --debug',
  'elsewhere': 'wait until it ends, or use another folder',
  'use or replace': 'use it as it is, or replace it with --overwrite',
  'replace': 'replace it with --overwrite',
  'begin anew': 'remove it, or start over with --overwrite',
}


def describe(error: BaseException) -> str:
  """Returns the message of an error, with its way out."""
  remedy = getattr(error, 'remedy', '')
  if not remedy:
    return str(error)
  special = _BY_KIND[error.kind](error) if isinstance(error, ArtifactError) and error.kind else {}
  way_out = {**WAYS_OUT, **special}[remedy]
  return f'{str(error).removesuffix(".")}{"," if way_out.startswith("or ") else ";"} {way_out}.'


def prepare(data_dir: str | os.PathLike, command: str, *flags: str) -> str:
  """Returns the command line of a subcommand of `prepare`; `flags` are like '--name=value'."""
  usual = os.path.expanduser(data_dir) == os.path.expanduser(DATA_DIR)
  words = [command, *flags, *([] if usual else [f'--data_dir={data_dir}'])]
  return f'python -m adversarial_augment.prepare {shlex.join(words)}'


def deepaugment(folder: Path, dataset: str, about: Mapping[str, Any], *more: str) -> str:
  """Returns the command line that makes a DeepAugment set of `dataset` in `folder`.

  Args:
    folder: of the set.
    dataset: whose images it has.
    about: its manifest or plan; what is missing or of another type has its default.
    more: further flags.
  """
  values = {name: about[name] if type(about.get(name)) is type(usual) else usual for name, usual in DEEPAUGMENT.items()}
  values['dataset'] = dataset
  changed = {name: value for name, value in values.items() if value != DEEPAUGMENT[name]}
  flags = [f'--no-{name}' if value is False else f'--{name}={value}' for name, value in changed.items()]
  if folder.name != values['net']:
    flags.append(f'--name={folder.name}')
  weights = about.get('weights')
  sha256 = weights.get('sha256') if isinstance(weights, Mapping) else None
  shipped = {hashlib.sha256(file.read_bytes()).hexdigest(): file.stem for file in _SHIPPED.glob('*.safetensors')}
  used = shipped.get(str(sha256), 'FILE.safetensors') if sha256 else NETS.get(values['net'])
  if used != NETS.get(values['net']):
    flags.append(f'--weights={used}')
  note = f' (FILE.safetensors is the file with SHA-256 {sha256})' if used == 'FILE.safetensors' else ''
  return prepare(folder.parent.parent, 'deepaugment', *flags, *more) + note


def _corruptions(error: ArtifactError) -> dict[str, str]:
  folder, dataset = Path(error.path), error.about['dataset']
  base = dataset.partition(':')[0]
  bar = folder.name.endswith('_c_bar')
  name = 'cifar10_c_bar' if bar else 'cifar10_c'
  command = lambda *flags: prepare(folder.parent, name, f'--dataset={dataset}', *flags)
  make, remake = command(), command('--overwrite')
  source, seed = error.about.get('source'), error.about.get('seed')
  again = command(*([f'--from={source}'] if source else [f'--seed={seed}'] if seed else []))
  import_in_order = prepare(folder.parent, base, '--overwrite')
  if folder.name.removesuffix('_bar') != f'{base.replace("/", "_")}_c':  # it was going to be imported
    make = remake = 'the same command without --from'
    again, import_in_order = 'the command that made it', f'prepare {base}'
  return {
    'make': f'make them with {make}' + ('' if bar else f', or get {_ARCHIVES.get(base, _ARCHIVES["cifar10"])}'),
    'remake': f'make it again with {remake}',
    'resume': f'run {again} once more, which resumes it',
    'remove and resume': f'remove it, and run {again} once more',
    'import in order': f'import it with {import_in_order} instead',
  }


def _deepaugment(error: ArtifactError) -> dict[str, str]:
  folder, about = Path(error.path), error.about
  made = about.get('made')
  command = lambda *more, **changes: deepaugment(folder, about['dataset'], {**(made or {}), **changes}, *more)
  net, copies = {'net': folder.name} if folder.name in NETS else {}, about.get('copies', 1)
  remake = command('--overwrite') if made else 'the flags of its first time and --overwrite'
  by_flags = all(field.partition('.')[0] in (*DEEPAUGMENT, 'weights') for field in about.get('differing', []))
  return {
    'make': f'run {command(copies=copies, **net)}',
    'resume': f'run {command()}, which resumes it',
    'remake': f'make the set again with {remake}',
    'more copies': f'lower config.deepaugment.copies, or make more with {command("--overwrite", copies=copies)}',
    'begin anew': 'start over with the same command and --overwrite',
    'use or replace': 'use it as it is, choose another --name, or replace it with --overwrite',
    'resume or replace': (f'resume it with {command()}, ' if by_flags else '')
    + 'choose another --name, or replace it with --overwrite',
  }


def _data_set(error: ArtifactError) -> dict[str, str]:
  """Returns how a missing data set is made."""
  name, data_dir = error.about['name'], error.about['data_dir']
  base, _, variant = name.partition('/')
  if base in ('cifar10', 'cifar100', 'tiny_imagenet'):
    how = prepare(data_dir, base)
  elif error.about['imported_from']:
    how = prepare(data_dir, base, f'--from={error.about["imported_from"]}')
  elif base.endswith('_corrupted'):
    name = 'cifar10_c_bar' if variant.rpartition('_')[0] in BAR_NAMES else 'cifar10_c'
    how = prepare(data_dir, name, f'--dataset={base.removesuffix("_corrupted")}', '--format=array_record')
  elif variant:
    how = "tfds's download_and_prepare(file_format='array_record')"
  else:
    how = prepare(data_dir, 'images', f'--name={base}', '--from=FOLDER')
  return {'make': f"make it with {how}, or use the data set 'embedded'"}


_BY_KIND = {'cifar10_c': _corruptions, 'deepaugment': _deepaugment, 'data set': _data_set}
