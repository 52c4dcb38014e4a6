"""Command lines of `prepare` that messages name as a way out: they work as they are printed."""

import os
import pathlib
import shlex

DATA_DIR = '~/tensorflow_datasets'  # where `prepare` writes by default, and `train` reads


def prepare(data_dir: str | pathlib.Path, command: str, *flags: str) -> str:
  """Returns a command line of `prepare`.

  Args:
    data_dir: the folder of prepared data sets.
    command: one of its subcommands.
    flags: '--name=value'.
  """
  usual = os.path.expanduser(data_dir) == os.path.expanduser(DATA_DIR)
  where = [] if usual else [f'--data_dir={data_dir}']
  return f'python -m adversarial_augment.prepare {" ".join(map(shlex.quote, [command, *flags, *where]))}'
