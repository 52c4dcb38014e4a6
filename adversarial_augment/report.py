"""Makes one HTML page of one run, or of several side by side: tables, charts and pictures, readable without a network.

python -m adversarial_augment.report runs/ada_edsr
python -m adversarial_augment.report runs/ada_edsr runs/nominal --output=both.html
"""

from collections.abc import Sequence
import os
from pathlib import Path
from typing import Any

from adversarial_augment import cli
from adversarial_augment.cli import progress
from adversarial_augment.reporting import page, runs
from adversarial_augment.storage import artifact, files


def report(folders: str | os.PathLike | Sequence[str | os.PathLike], output: str | os.PathLike | None = None) -> Path:
  """Writes the report of some runs atomically. The same runs give the same bytes.

  Args:
    folders: workdir of `train`, or several; results of `evaluate` in them are shown.
    output: the file to write; by default report.html, in the run's folder, or for several runs in the current one.

  Returns:
    The file.

  Raises:
    UserError: a folder is missing or holds no run, one of its files is damaged, or `output` is no file to write.
    StorageError: the page cannot be written.
  """
  several: Sequence[Any] = folders if isinstance(folders, list | tuple) else [folders]
  found = runs.collect(several)
  default = found[0].folder if len(found) == 1 else Path()
  target = files.output_file(default / 'report.html' if output is None else output, '--output')
  content = page.page(found).encode('utf-8', errors='replace')
  with artifact.storage_errors(f"write '{target}'"):
    artifact.replace(target, content)
  return target


def main(argv: Sequence[str]) -> None:
  """Runs the command line; see `--help`."""
  arguments = _parser().parse_args(argv)
  with progress.stage('reading the runs and drawing the page'):
    path = report(arguments.folders, arguments.output)
  print(f'Wrote {path}')


def _parser() -> cli.Parser:
  parser = cli.Parser(
    prog='python -m adversarial_augment.report',
    description='Makes one HTML page of one run, or of several side by side. The page needs no network.',
  )
  parser.add_argument('folders', nargs='+', metavar='DIR', help='the workdir of a run')
  parser.add_argument('--output', metavar='FILE', help='default: DIR/report.html, or report.html here for several runs')
  parser.add_argument('--debug', action='store_true', help='show tracebacks')
  return parser


if __name__ == '__main__':
  cli.run(main, kept='no page was written; run the same command again')
