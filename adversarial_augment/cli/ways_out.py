"""The flags and commands that mend an error. The rooms below the commands raise facts; a command adds these words."""

from collections.abc import Callable
import os
import shlex

from adversarial_augment.errors import AdversarialAugmentError

DATA_DIR = '~/tensorflow_datasets'  # where `prepare` writes by default, and `train` reads


def describe(error: AdversarialAugmentError) -> str:
  """Returns the message of an error, with the way out that its `remedy` stands for."""
  if error.remedy not in _WAYS_OUT:
    return str(error)
  return f'{str(error).removesuffix(".")}, or {_WAYS_OUT[error.remedy](**error.facts)}.'


def prepare(data_dir: str | os.PathLike, command: str, *flags: str) -> str:
  """Returns a command line of `prepare` that works as it is printed.

  Args:
    data_dir: the folder of prepared data sets.
    command: one of its subcommands.
    flags: '--name=value'.
  """
  usual = os.path.expanduser(data_dir) == os.path.expanduser(DATA_DIR)
  where = [] if usual else [f'--data_dir={os.fspath(data_dir)}']
  return f'python -m adversarial_augment.prepare {" ".join(map(shlex.quote, [command, *flags, *where]))}'


def _prepare_dataset(name: str, data_dir: str) -> str:
  base, _, variant = name.partition('/')
  if base == 'cifar10':
    command = prepare(data_dir, 'cifar10')
  elif base == 'cifar10_1':
    command = prepare(data_dir, 'cifar10_1', '--from=FOLDER')
  elif base.endswith('_corrupted'):
    dataset = base.removesuffix('_corrupted')
    command = prepare(data_dir, 'cifar10_c', f'--dataset={dataset}', '--format=array_record')
  elif variant:
    command = "tfds's download_and_prepare(file_format='array_record')"
  else:
    command = prepare(data_dir, 'images', f'--name={base}', '--from=FOLDER')
  return f'make it with {command}'


_WAYS_OUT: dict[str, Callable[..., str]] = {
  'data_dir': lambda: 'name another --data_dir',
  'from': lambda: 'name a file or folder that you have with --from',
  'name': lambda: 'choose another --name',
  'overwrite': lambda: 'replace it with --overwrite',
  'prepare': _prepare_dataset,
  'process_id': lambda: 'give each process its own --process_id',
  'url': lambda: 'give another --url, or a file that you have with --from',
  'workdir': lambda: 'name another --workdir',
}
