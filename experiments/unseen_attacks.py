"""Every classifier of Tables 1 to 3 against every adversary, AdA, l_p and perceptual, beside its mCE, as one matrix.

  python -m experiments.unseen_attacks --scale=laptop --num_examples=256          # all finished runs of that scale
  python -m experiments.unseen_attacks --scale=laptop --rows=nominal,rlat,pat_self --num_examples=256

Takes the runs of table1_corruptions and table3_perceptual. What has been measured already is not measured again, and
stopped attacks resume. AdA is that of ada_edsr.py at this scale for every run: where a run's own result has other
settings or images, it is replaced. The l_p attacks are AutoAttack; the perceptual ones, LPA and PPGD, are bounded by
the distance of one and the same AlexNet, the one that ships.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from adversarial_augment import checks, cli, inference, results
from adversarial_augment import config as configs
from adversarial_augment.config.adversaries import ADVERSARIES, moves_activations
from adversarial_augment.config.fields import spell
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_request
from adversarial_augment.storage import files
from experiments import runs, table1_corruptions, table1_drawing, table3_perceptual

Entry = Mapping[str, Any]


class Adversary(NamedTuple):
  """A column: an attack within one set."""

  heading: str
  attack: str
  norm: str  # or the distance
  epsilon: str

  @property
  def flags(self) -> list[str]:
    ball = 'distance' if self.attack == attack_request.PERCEPTUAL else 'norm'
    return [f'--attack={self.attack}', f'--{ball}={self.norm}', f'--epsilon={self.epsilon}']

  @property
  def result(self) -> str:
    return results.robustness_name(self.attack, self.norm, self.epsilon)


ADA = 'AdA'
ADA_FIELDS = ('nu', 'num_steps', 'moved', 'step', 'step_fraction', 'init', 'keep_best', 'min_ssim', 'root')
PERCEPTUAL = Adversary('perceptual 0.5', attack_request.PERCEPTUAL, 'alexnet', '0.5')  # the radius of PAT's evaluation
ADVERSARY_COLUMNS = (
  Adversary('l_inf 2/255', 'autoattack', 'linf', '2/255'),
  Adversary('l_inf 8/255', 'autoattack', 'linf', '8/255'),
  Adversary('l_2 0.5', 'autoattack', 'l2', '0.5'),
  Adversary('l_2 1', 'autoattack', 'l2', '1'),
  # By the AlexNet that ships, hardly any small classifier withstands 0.5.
  Adversary('perceptual 0.2', attack_request.PERCEPTUAL, 'alexnet', '0.2'),
  PERCEPTUAL,
)
MARKS = '†: the kind of adversary that the row was trained against; ?: UNRELIABLE, see the flags in the JSON file'
COLUMNS = (ADA, *(adversary.heading for adversary in ADVERSARY_COLUMNS))


def main(argv: Sequence[str]) -> None:
  arguments = _parser().parse_args(argv)
  scale = checks.lookup(table1_corruptions.SCALES, arguments.scale, '--scale')
  root = files.user_path(arguments.workdir, '--workdir') / arguments.scale
  seeds = table1_corruptions.seeds(arguments.seeds) if arguments.seeds else None
  found = list(_finished(root, arguments.rows, seeds))
  table = runs.Table(arguments.output, f'unseen_{arguments.scale}.json', _texts, _picture)
  ada = configs.load(f'configs/ada_edsr.py:{scale.variant}' if scale.variant else 'configs/ada_edsr.py')
  for row, seed, workdir in found:
    _attack(workdir, ada, arguments.num_examples)
    table.add(row, entry(workdir), seed)
  print(f'wrote {table.path}, .md and .png')


def _finished(root: Path, rows: str | None, seeds: Sequence[int] | None) -> Iterator[tuple[str, str, Path]]:
  """Yields row, seed and workdir of the finished runs, of these seeds; raises UserError for rows that have none."""
  names = list(table3_perceptual.ROWS) if rows is None else rows.split(',')
  for row in names:
    checks.lookup(table3_perceptual.ROWS, row, 'row')
  folders = ['seed*'] if seeds is None else [f'seed{seed}' for seed in seeds]
  there = {
    row: [one for folder in folders for one in sorted((root / row).glob(folder)) if runs.is_finished(one)]
    for row in names
  }
  missing = [row for row in names if not there[row]]
  if len(missing) == len(names) or (rows and missing):
    none = f"'{root / missing[0] if rows else root}' holds no finished run"
    raise UserError(f'{none}; train it with experiments.table3_perceptual, or name its --workdir.')
  for row, workdirs in there.items():
    for workdir in workdirs:
      yield row, workdir.name.removeprefix('seed'), workdir


def _attack(workdir: Path, ada: ConfigDict, number: int | None) -> None:
  evaluate = 'adversarial_augment.evaluate', f'--workdir={workdir}'
  for adversary in ADVERSARY_COLUMNS:
    # Suspect numbers are marked in the table.
    runs.start(
      *evaluate, *adversary.flags, '--allow_suspect', *([] if number is None else [f'--num_examples={number}'])
    )
  if not _is_made(results.load(workdir, 'ada'), ada, number):
    flags = ada_flags(inference.read_config(workdir), ada, number)
    runs.start(*evaluate, '--evals=ada', *flags, '--overwrite')


def _settings(ada: ConfigDict) -> dict[str, Any]:
  """Returns the fields of a config that decide what AdA does to an image."""
  nets = {name: value for name, value in checks.flatten(ada).items() if name.startswith('corruption_net.')}
  return {f'attack.{name}': ada.attack[name] for name in ADA_FIELDS} | nets


def ada_flags(config: ConfigDict, ada: ConfigDict, number: int | None) -> list[str]:
  """Returns the flags by which an evaluation of a run has the AdA of another config, on so many images."""
  flat, wanted = checks.flatten(config), _settings(ada) | {'eval_images': number}
  if not moves_activations(config.attack):  # other adversaries have rules about the same fields
    own = {field: about.default for adversary in ADVERSARIES.values() for field, about in adversary.fields.items()}
    wanted |= own | {'attack.name': ada.attack.name}
  return [f'--{spell({name: value}, name)}' for name, value in wanted.items() if flat[name] != value]


def _is_made(result: Entry, ada: ConfigDict, number: int | None) -> bool:
  """Returns whether a run's result under AdA has these settings and images."""
  if not result:
    return False
  flat = checks.flatten(result['provenance']['config'])
  whole = result.get('subset_of', result['num_images'])
  same_images = result['num_images'] == (number or whole)
  return same_images and all(flat.get(name, value) == value for name, value in _settings(ada).items())


def entry(workdir: Path) -> dict[str, Any]:
  """Returns the table's entry of one run; accuracies are fractions.

  Raises:
    UserError: a result is missing or damaged, or they are from several checkpoints.
  """
  found = {ADA: results.load(workdir, 'ada')}
  found |= {adversary.heading: results.load(workdir, adversary.result) for adversary in ADVERSARY_COLUMNS}
  clean, corrupted = (results.load(workdir, name) for name in ('clean', 'cifar10_c'))
  for name, result in {**found, 'clean images': clean, 'corruptions': corrupted}.items():
    if not result:
      raise UserError(f"'{workdir}' has no result for {name}; evaluate it.")
    if result['checkpoint_sha256'] != clean['checkpoint_sha256']:
      raise UserError(f"the results in '{workdir}' are from several checkpoints; evaluate it again with --overwrite.")
  first = found[ADA]
  return {
    'clean_accuracy': clean['accuracy'],
    'mce': corrupted['mce'],
    'corruptions': corrupted['provenance']['corruptions'].get('sha256', '')[:12],
    'corrupted_images': corrupted['num_images'],
    'accuracy': {name: result.get('robust_accuracy', result.get('accuracy')) for name, result in found.items()},
    'interval': {name: result['interval'] for name, result in found.items()},
    'flags': {name: result.get('flags', []) for name, result in found.items()},
    'command': {name: result['provenance']['command'] for name, result in found.items()},
    'num_images': first['num_images'],
    'data': first['provenance']['data']['test']['name'],
    'origin': first['origin'],
    'attack': adversary_of(first),
    'trained_against': trained_against(corrupted['provenance']['config']['attack']),
    'distance': found[PERCEPTUAL.heading]['distance']['sha256'][:12],
    'checkpoint_sha256': clean['checkpoint_sha256'],
  }


def adversary_of(result: Entry) -> str:
  """Returns the strength of AdA in a result."""
  return ADVERSARIES['ada'].strength(result['provenance']['config']['attack'])


def trained_against(attack: Mapping[str, Any]) -> list[str]:
  """Returns the columns of the kind of adversary that a run was trained against, by its fields `attack.*`."""
  if attack['name'] == 'ada':
    return [ADA]
  kind = attack.get('norm') or attack.get('distance')
  return [adversary.heading for adversary in ADVERSARY_COLUMNS if adversary.norm == kind]


def _check(table: Mapping[str, table1_drawing.Seeds], path: Path) -> None:
  """Refuses a table whose rows are not comparable."""
  for field in ('num_images', 'data', 'origin', 'attack', 'distance', 'corruptions', 'corrupted_images'):
    found = {entry[field]: f'{row}, seed {seed}' for row, seeds in table.items() for seed, entry in seeds.items()}
    if len(found) > 1:
      said = '; '.join(f'{value} ({where})' for value, where in found.items())
      raise UserError(f"rows of '{path}' differ in {field}: {said}; name another --output, or attack those runs again.")


def _texts(table: Mapping[str, table1_drawing.Seeds], path: Path) -> dict[str, str]:
  """Returns the files beside a table: suffix -> contents."""
  _check(table, path)
  lines = [f'Accuracy in percent; {about(table)}. {MARKS}.', '']
  lines += table1_drawing.header(['row', 'seeds', 'clean', *COLUMNS, 'mCE'])
  for row, seeds in _in_order(table).items():
    cells = zip(_estimates(seeds), ('clean', *COLUMNS, 'mCE'), strict=True)
    marked = [f'{cell} {_mark(seeds, name)}'.rstrip() for cell, name in cells]
    lines.append(table1_drawing.line([row, ', '.join(sorted(seeds)), *marked]))
  return {'.md': '\n'.join(lines) + '\n'}


def _mark(seeds: table1_drawing.Seeds, name: str) -> str:
  """Returns the marks of a cell: of `MARKS`."""
  entries = seeds.values()
  is_seen = any(name in entry.get('trained_against', ()) for entry in entries)
  return '†' * is_seen + '?' * any(bool(entry['flags'].get(name)) for entry in entries)


def _in_order(table: Mapping[str, table1_drawing.Seeds]) -> dict[str, table1_drawing.Seeds]:
  return {row: table[row] for row in table3_perceptual.ROWS if row in table}


def _estimates(seeds: table1_drawing.Seeds) -> list[table1_drawing.Estimate]:
  """Returns the numbers of a row: clean accuracy, accuracies under attack, mCE."""
  accuracies = [[entry['accuracy'][name] for entry in seeds.values()] for name in COLUMNS]
  clean, mce = ([entry[name] for entry in seeds.values()] for name in ('clean_accuracy', 'mce'))
  return [table1_drawing.estimate(values) for values in (clean, *accuracies, mce)]


def about(table: Mapping[str, table1_drawing.Seeds]) -> str:
  """Describes the numbers."""
  entry = next(entry for seeds in table.values() for entry in seeds.values())
  return (
    f'{entry["data"]} ({entry["origin"]}), n = {entry["num_images"]:,} images under each adversary; AdA: '
    f'{entry["attack"]}; l_p: AutoAttack; perceptual: LPA and PPGD, AlexNet {entry["distance"]}. mCE: mean corruption '
    'error, lower is better'
  )


def _picture(table: Mapping[str, table1_drawing.Seeds]) -> bytes:
  columns, table = ['clean', *COLUMNS, 'mCE'], _in_order(table)
  values = {f'{row} ({len(seeds)})': [one.mean for one in _estimates(seeds)] for row, seeds in table.items()}
  marks = [[_mark(seeds, name) for name in columns] for seeds in table.values()]
  return table1_drawing.heat_map(
    values, columns, title='Accuracy in percent; row (number of seeds)', below=f'{about(table)}.\n{MARKS}',
    apart=(0.5, len(COLUMNS) + 0.5), marks=marks,
  )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(
    prog='python -m experiments.unseen_attacks',
    description=__doc__.splitlines()[0],
    epilog=f'rows: {", ".join(table3_perceptual.ROWS)}',
  )
  parser.add_argument('--scale', required=True, metavar='NAME', help=', '.join(table1_corruptions.SCALES))
  parser.add_argument('--rows', metavar='NAMES', help='configs, separated by commas; default: all with a finished run')
  parser.add_argument('--seeds', metavar='NUMBERS', help='separated by commas; default: all with a finished run')
  parser.add_argument(
    '--num_examples', type=attack_request.integer(1), metavar='N', help='attack the first N test images; default: all'
  )
  parser.add_argument(
    '--workdir', default='runs/table1', metavar='DIR', help='folder of the runs; default: runs/table1'
  )
  parser.add_argument(
    '--output', default='experiments/results', metavar='DIR', help='folder of the matrix; default: experiments/results'
  )
  return parser


if __name__ == '__main__':
  cli.run(main)
