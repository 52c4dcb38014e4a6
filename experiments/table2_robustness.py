"""Table 2 of arXiv 2104.01086: accuracy of trained runs under l_p attacks, compared with the paper's numbers.

  python -m experiments.table2_robustness ada_edsr=runs/table1/laptop/ada_edsr/seed0 nominal=runs/nominal
  python -m experiments.table2_robustness nominal=runs/nominal --num_examples=1000
  python -m experiments.table2_robustness nominal=runs/nominal --num_examples=256 --suite=autoattack   # on a laptop

The suite `paper` is AutoAttack's APGD and Square with MultiTargeted, whose 180 restarts take nearly all of the time.
Runs are attacked one after the other, unless they already were; stopped attacks resume. ROW=DIR assigns a run to a row
of the paper, named after its config; DIR alone is a run without a row. Runs are added to those already in OUTPUT, which
must have been attacked by the same suite on the same number of images.
"""

import argparse
from collections.abc import Mapping, Sequence
import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

from adversarial_augment import checks, cli, results
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_request
from experiments import runs
from experiments.table1_corruptions import ROWS


class Published(NamedTuple):
  """A row of the paper; accuracies in percent."""

  clean: float
  cifar10_1: float  # v6
  robust: tuple[float, ...]  # within the balls of `COLUMNS`


COLUMNS = {
  'l2_0.5': 'l_2 0.5', 'l2_1': 'l_2 1', 'linf_1/255': 'l_inf 1/255', 'linf_2/255': 'l_inf 2/255',
  'linf_4/255': 'l_inf 4/255',
}  # fmt: skip

# Table 2 of arXiv 2104.01086, of 10,000 test images.
PAPER = {
  'AdA + DeepAugment (10×) + AugMix': Published(94.93, 87.35, (18.63, 0.99, 77.72, 49.95, 13.88)),
  'AdA + DeepAugment + AugMix': Published(94.72, 88.20, (13.25, 0.30, 75.23, 44.78, 9.68)),
  'AdA + AugMix': Published(96.26, 91.05, (2.26, 0.00, 68.32, 26.45, 0.99)),
  'AdA': Published(96.18, 90.50, (8.61, 0.03, 77.78, 44.39, 5.89)),
  'DeepAugment': Published(94.27, 87.10, (0.55, 0.00, 55.18, 14.43, 0.28)),
  'DeepAugment + AugMix': Published(94.25, 87.60, (0.56, 0.00, 49.63, 12.86, 0.15)),
  'DeepAugment (10×)': Published(95.57, 88.75, (1.56, 0.00, 64.72, 21.35, 0.70)),
  'DeepAugment (10×) + AugMix': Published(95.21, 89.35, (1.16, 0.00, 55.58, 17.07, 0.49)),
  'AugMix': Published(96.05, 90.40, (0.00, 0.00, 28.48, 1.53, 0.00)),
  'Nominal': Published(95.77, 89.65, (0.00, 0.00, 24.23, 0.85, 0.00)),
}

ATTACKS = {  # suite -> flags of evaluate
  attack_request.TABLE2_SUITE: [[f'--attack={attack_request.TABLE2}']],
  'autoattack': [
    ['--attack=autoattack', '--norm=l2', '--epsilon=0.5,1'],
    ['--attack=autoattack', '--norm=linf', '--epsilon=1/255,2/255,4/255'],
  ],
}
_SUITES = {
  attack_request.TABLE2_SUITE: '"AutoAttack & MultiTargeted" (suite `paper`)',
  'autoattack': 'the standard AutoAttack (suite `autoattack`)',
}
_NONE = '–'


def main(argv: Sequence[str]) -> None:
  arguments = _parser().parse_args(argv)
  named = dict(_named(text) for text in arguments.runs)
  number = arguments.num_examples
  checks.lookup(ATTACKS, arguments.suite, '--suite')
  flags = [] if number is None else [f'--num_examples={number}']
  table = runs.Table(arguments.output, 'table2.json', _texts)
  for workdir, row in named.items():
    for attack in ATTACKS[arguments.suite]:
      # Suspect numbers are marked in the table. Known results are not computed again.
      runs.start('adversarial_augment.evaluate', f'--workdir={workdir}', *attack, '--allow_suspect', *flags)
    table.add(workdir, entry(Path(workdir), row, arguments.suite))
  print(f'wrote {table.path}, .csv and .md')


def _named(text: str) -> tuple[str, str | None]:
  """Returns the workdir and the row of ROW=DIR, or of DIR."""
  row, equals, workdir = text.partition('=')
  if not equals or Path(text).is_dir():  # whose name may contain =
    return text, None
  checks.lookup(ROWS, row, 'row')
  return workdir, row


def entry(workdir: Path, row: str | None, suite: str = attack_request.TABLE2_SUITE) -> dict[str, Any]:
  """Returns the table's entry of one run; accuracies are fractions.

  Raises:
    UserError: a result is missing or damaged, or they are from several checkpoints.
  """
  found = {}
  for ball in attack_request.TABLE2_BALLS:
    result = results.load(workdir, results.robustness_name(suite, *ball))
    if not result:
      raise UserError(f"'{workdir}' has no result for {ball[0]} {ball[1]}; attack it with --suite={suite}.")
    found['_'.join(ball)] = result
  first = next(iter(found.values()))
  same = ('checkpoint_sha256', 'num_images', 'origin')
  if any(result[name] != first[name] for result in found.values() for name in same):
    raise UserError(
      f"the results in '{workdir}' are from several checkpoints or sets of images; evaluate again with --overwrite."
    )
  newer = results.load(workdir, 'cifar10_1')
  is_same = newer.get('checkpoint_sha256') == first['checkpoint_sha256']
  return {
    'row': row,
    'suite': suite,
    'clean_accuracy': first['clean_accuracy'],
    'cifar10_1': newer['accuracy'] if newer and is_same else None,
    'robust_accuracy': {ball: result['robust_accuracy'] for ball, result in found.items()},
    'interval': {ball: result['interval'] for ball, result in found.items()},
    'flags': {ball: result['flags'] for ball, result in found.items()},
    'num_images': first['num_images'],
    'origin': first['origin'],
    'data': first['provenance']['data']['test']['name'],
    'checkpoint_sha256': first['checkpoint_sha256'],
    'command': first['provenance']['command'],
  }


def _check(table: Mapping[str, Mapping[str, Any]], path: Path) -> None:
  """Refuses a table whose rows are not comparable."""
  for field in ('suite', 'num_images', 'data', 'origin'):
    found = {entry[field]: workdir for workdir, entry in table.items()}
    if len(found) > 1:
      said = '; '.join(f'{value} ({workdir})' for value, workdir in found.items())
      raise UserError(f"runs of '{path}' differ in {field}: {said}; name another --output, or attack those runs again.")


def _texts(table: Mapping[str, Mapping[str, Any]], path: Path) -> dict[str, str]:
  """Returns the files beside a table: suffix -> contents.

  Raises:
    UserError: its runs are not comparable.
  """
  _check(table, path)
  return {'.csv': as_csv(table), '.md': as_markdown(table)}


def rows(table: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """Returns the cells of the table, in percent: each run, and the paper's row below it."""
  percent = lambda value: _NONE if value is None else f'{100 * value:.2f}'
  cells = []
  for workdir, entry in table.items():
    robust = [
      percent(value) + (' UNRELIABLE' if entry['flags'][ball] else '')
      for ball, value in entry['robust_accuracy'].items()
    ]
    paper_name = ROWS.get(entry['row'] or '')
    label = paper_name or entry['row'] or workdir
    images = f'{entry["data"]} ({entry["origin"]}), n = {entry["num_images"]:,}'
    plain = percent(entry['clean_accuracy']), percent(entry['cifar10_1'])
    cells.append([label, f'ours: {workdir}', images, *plain, *robust])
    if paper_name:
      paper = PAPER[paper_name]
      numbers = (f'{value:.2f}' for value in (paper.clean, paper.cifar10_1, *paper.robust))
      cells.append([label, 'paper', 'cifar10 (official), n = 10,000', *numbers])
  return cells


def as_csv(table: Mapping[str, Mapping[str, Any]]) -> str:
  lines = io.StringIO()
  writer = csv.writer(lines, lineterminator='\n')
  writer.writerows([_head(), *rows(table)])
  return lines.getvalue()


def as_markdown(table: Mapping[str, Mapping[str, Any]]) -> str:
  head = _head()
  lines = [head, ['---'] * 3 + ['---:'] * (len(head) - 3), *rows(table)]
  text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
  suite = _SUITES[next(iter(table.values()))['suite']]
  return (
    f'Accuracy in %, clean, on CIFAR-10.1 v6, and under {suite}.\n'
    'Paper: Table 2 of arXiv 2104.01086, which does not list its attacks; `paper` is our reading.\n\n'
    f'{text}\n'
  )


def _head() -> list[str]:
  return ['setup', 'source', 'images', 'clean', 'CIFAR-10.1', *COLUMNS.values()]


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(
    prog='python -m experiments.table2_robustness',
    description=__doc__.splitlines()[0],
    epilog=f'rows: {", ".join(ROWS)}',
  )
  parser.add_argument('runs', nargs='+', metavar='[ROW=]DIR', help='working directories of runs')
  parser.add_argument(
    '--num_examples', type=attack_request.integer(1), metavar='N', help='attack the first N test images; default: all'
  )
  parser.add_argument(
    '--suite', default=attack_request.TABLE2_SUITE, metavar='NAME', help=f'{" or ".join(ATTACKS)}; default: %(default)s'
  )
  parser.add_argument(
    '--output', default='experiments/results', metavar='DIR', help='folder of the table; default: experiments/results'
  )
  return parser


if __name__ == '__main__':
  cli.run(main)
