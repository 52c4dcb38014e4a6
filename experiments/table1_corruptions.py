"""Table 1 of arXiv 2104.01086: trains every row, evaluates it on CIFAR-10-C, and compares it with the paper's numbers.

  python -m experiments.table1_corruptions --scale=laptop                                    # every row, one seed
  python -m experiments.table1_corruptions --scale=laptop --rows=nominal,augmix --seeds=0,1,2
  python -m experiments.table1_corruptions --scale=gpu                                       # ResNet-18, on one GPU
  python -m experiments.table1_corruptions --scale=full                                      # the paper's setting

Missing runs are trained one after the other; stopped runs resume. With --scale=laptop, all rows of a seed are
fine-tuned from the same nominal run, on the same number of images. Rows and seeds are added to those already in OUTPUT.
docs/reproduction.md has the results, and the hyperparameters that were tried.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from pathlib import Path
from typing import Any, NamedTuple

from adversarial_augment import checks, cli
from adversarial_augment import config as configs
from adversarial_augment.config import command_line
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import files
from experiments import figure_files, runs, table1_drawing

# Config -> name of the row in the paper (reporting/published.py); None: not in the paper for CIFAR-10.
ROWS: dict[str, str | None] = {
  'nominal': 'Nominal',
  'augmix': 'AugMix',
  'deepaugment': 'DeepAugment',
  'deepaugment10x': 'DeepAugment (10×)',
  'deepaugment_augmix': 'DeepAugment + AugMix',
  'deepaugment10x_augmix': 'DeepAugment (10×) + AugMix',
  'ada_edsr': 'AdA',
  'ada_cae': None,
  'ada_augmix': 'AdA + AugMix',
  'ada_deepaugment_augmix': 'AdA + DeepAugment + AugMix',
  'ada_deepaugment10x_augmix': 'AdA + DeepAugment (10×) + AugMix',
}


Rows = Mapping[str, table1_drawing.Seeds]  # row -> seed -> entry


class Table(NamedTuple):
  """A table of runs: one program."""

  name: str  # of its files
  module: str
  about: str  # its docstring
  rows: Mapping[str, str | None]  # as `ROWS`
  differing: tuple[str, ...] = ()  # scales at which rows see different numbers of images, as published


class Scale(NamedTuple):
  variant: str  # of every row's config
  start: str | None = None  # config of the run from which rows are fine-tuned
  fields: Mapping[str, str] = {}  # of every run's config
  alexnet: str | None = None  # config of the run that measures perceptual distances; None: what ships does


SCALES = {
  'full': Scale('', alexnet='configs/alexnet.py'),
  # Held out, to choose nu, steps and width.
  'laptop': Scale('laptop', 'configs/nominal.py:laptop_start', {'holdout': '5000'}),
  'gpu': Scale('gpu', alexnet='configs/alexnet.py:gpu'),
  'quickstart': Scale('quickstart'),
  'smoke': Scale('smoke', fields={'evals': 'clean,cifar10_c'}),  # which the config leaves out
}


def main(argv: Sequence[str]) -> None:
  make(Table('table1', 'experiments.table1_corruptions', __doc__, ROWS), argv)


def make(about: Table, argv: Sequence[str]) -> None:
  """Trains the rows of a table, and writes it."""
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser(about).parse_args(rest)
  scale = checks.lookup(SCALES, arguments.scale, '--scale')
  rows = list(about.rows) if arguments.rows is None else arguments.rows.split(',')
  for row in rows:
    checks.lookup(about.rows, row, 'row')
  chosen = seeds(arguments.seeds)
  root = files.user_path(arguments.workdir, '--workdir') / arguments.scale
  for name, value in overrides.items():
    if name in ('seed', 'init_from', *scale.fields):
      way_out = 'set seeds with --seeds' if name == 'seed' else 'omit it'
      raise UserError(f'--config.{name}={show(value)}: config.{name} is set by the experiment; {way_out}.')
  flags = _flags({**scale.fields, **overrides})
  figure_files.check_drawable()
  texts = functools.partial(_texts, about, arguments.scale)
  picture = functools.partial(table1_drawing.picture, names=about.rows)
  table = runs.Table(arguments.output, f'{about.name}_{arguments.scale}.json', texts, picture)
  for seed in chosen:
    for row in rows:
      workdir = root / row / f'seed{seed}'
      _train(scale, root, row, seed, flags)
      table.add(row, entry(workdir), str(seed))
  print(f'wrote {table.path}, .csv, .md and .png')


def _flags(values: Mapping[str, object]) -> list[str]:
  return [f'--config.{name}={value}' for name, value in values.items()]


def _train(scale: Scale, root: Path, row: str, seed: int, flags: Sequence[str]) -> None:
  flags = [*_flags({'seed': seed}), *flags]
  if scale.start is not None:
    start = root / 'start' / f'seed{seed}'
    runs.train(scale.start, start, flags)
    flags = [*_flags({'init_from': start}), *flags]
  config = f'configs/{row}.py' + (f':{scale.variant}' if scale.variant else '')
  measured_by = '--config.attack.distance_from='
  if (
    scale.alexnet is not None
    and configs.load(config).attack.distance == 'alexnet'
    and not any(flag.startswith(measured_by) for flag in flags)
  ):
    alexnet = root / 'alexnet' / f'seed{seed}'
    runs.train(scale.alexnet, alexnet, flags)
    flags = [f'{measured_by}{alexnet}', *flags]
  runs.train(config, root / row / f'seed{seed}', flags)


def entry(workdir: Path) -> dict[str, Any]:
  """Returns the table's entry of one run: errors are fractions, `minutes` are training only."""
  corrupted, clean, closing = (runs.result(workdir, name) for name in ('cifar10_c', 'clean', 'train'))
  if not corrupted['checkpoint_sha256'] == clean['checkpoint_sha256'] == closing['state_sha256']:
    raise UserError(f"the results in '{workdir}' are from several checkpoints; evaluate it again with --overwrite.")
  return {
    'mce': corrupted['mce'],
    'clean_error': 1 - clean['accuracy'],
    'corruption_error': corrupted['corruption_error'],
    'images_seen': closing['step'] * closing['config']['batch_size'],
    'num_images': corrupted['num_images'],
    'origin': corrupted['origin'],
    'minutes': round(runs.minutes(workdir), 2),
    'command': closing['command'],
    'provenance': corrupted['provenance'] | {'checkpoint_sha256': closing['state_sha256']},
  }


def _check(table: Rows, path: Path, *, same_training: bool) -> None:
  """Refuses a table whose rows are not comparable."""
  properties: dict[str, Callable[[Mapping[str, Any]], str]] = {
    'images_seen': lambda entry: f'{entry["images_seen"]:,}',
    'num_images': lambda entry: f'{entry["num_images"]:,}',
    'test images': lambda entry: entry['provenance']['data']['test'].get('sha256', '')[:12],
    'corruptions': lambda entry: entry['provenance']['corruptions'].get('sha256', '')[:12],
  }
  if not same_training:
    del properties['images_seen']
  for field, of in properties.items():
    found = {of(entry): f'{row}, seed {seed}' for row, seeds in table.items() for seed, entry in seeds.items()}
    if len(found) > 1:
      said = '; '.join(f'{value} ({where})' for value, where in found.items())
      raise UserError(f"rows of '{path}' differ in {field}: {said}; name another --output, or repeat those runs.")


def _texts(about: Table, scale: str, table: Rows, path: Path) -> dict[str, str]:
  """Returns the files beside a table: suffix -> contents.

  Raises:
    UserError: its rows are not comparable.
  """
  _check(table, path, same_training=scale not in about.differing)
  return table1_drawing.texts(table, about.rows)


def seeds(text: str) -> list[int]:
  """Returns the seeds of a flag; raises UserError for other text."""
  try:
    return [int(seed) for seed in text.split(',')]
  except ValueError:
    raise UserError(f"--seeds='{text}' must be whole numbers separated by commas, such as 0,1,2.") from None


def _parser(about: Table) -> argparse.ArgumentParser:
  parser = cli.Parser(
    prog=f'python -m {about.module}', description=about.about.splitlines()[0], epilog=f'rows: {", ".join(about.rows)}'
  )
  parser.add_argument('--rows', metavar='NAMES', help='configs, separated by commas; default: all')
  add_flags(parser)
  return parser


def add_flags(parser: argparse.ArgumentParser, scales: Iterable[str] = SCALES, seeds: str = '0') -> None:
  """Adds the flags of experiments that train runs at a scale, for some seeds."""
  parser.add_argument('--scale', required=True, metavar='NAME', help=', '.join(scales))
  parser.add_argument('--seeds', default=seeds, metavar='NUMBERS', help=f'separated by commas; default: {seeds}')
  parser.add_argument(
    '--workdir', default='runs/table1', metavar='DIR', help='folder of the runs; default: runs/table1'
  )
  parser.add_argument(
    '--output', default='experiments/results', metavar='DIR', help='folder of the table; default: experiments/results'
  )
  parser.add_argument(
    '--config.FIELD', dest='_', metavar='VALUE', help='override a field in every run, such as data_dir'
  )


if __name__ == '__main__':
  cli.run(main)
