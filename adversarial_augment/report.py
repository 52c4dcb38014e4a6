"""Makes one HTML page of one run, or of several side by side: tables, charts and pictures, readable without a network.

python -m adversarial_augment.report runs/ada_edsr
python -m adversarial_augment.report runs/ada_edsr runs/nominal --output=both.html
"""

from collections.abc import Iterator, Sequence
import os
from pathlib import Path
from typing import Any

from adversarial_augment import __version__, cli, inference
from adversarial_augment.cli import progress
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.reporting import charts, comparisons, results, runs, training
from adversarial_augment.reporting.parts import Paragraph, Section
from adversarial_augment.storage import artifact, files

_NO_CHARTS = (
  "There are no charts because Matplotlib is not installed; install the extra 'plots': pip install matplotlib."
)


def report(folders: str | os.PathLike | Sequence[str | os.PathLike], output: str | os.PathLike | None = None) -> Path:
  """Writes the report of some runs atomically. The same runs give the same bytes.

  Args:
    folders: workdir of `train` or the URL of its mirror, or several; results of `evaluate` in them are shown.
    output: the file to write; by default report.html in the run's folder; for a URL, or several, in the current one.

  Returns:
    The file.

  Raises:
    UserError: a folder is missing or holds no run, one of its files is damaged, or `output` is no file to write.
    StorageError: the page cannot be written.
  """
  several: Sequence[Any] = folders if isinstance(folders, list | tuple) else [folders]
  found = runs.collect([inference.run_folder(folder, 'DIR') for folder in several])
  one = len(found) == 1 and not files.is_url(str(several[0]))
  default = found[0].folder if one else Path()
  target = files.output_file(default / 'report.html' if output is None else output, '--output')
  content = _page(found).encode('utf-8', errors='replace')
  with artifact.storage_errors(f"write '{target}'"):
    artifact.replace(target, content)
  return target


def _page(found: Sequence[runs.Run]) -> str:
  """Returns the HTML of a report: the same text for the same runs."""
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('adversarial_augment.reporting'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['class_name'] = lambda value: type(value).__name__
  return environment.get_template('page.html').render(
    title=found[0].label if len(found) == 1 else f'{len(found)} runs: {", ".join(run.label for run in found)}',
    version=__version__,
    notes=[] if charts.available() else [Paragraph(_NO_CHARTS, 'note')],
    unequal=comparisons.unequal_training(found),
    sections=[section for section in _sections(found) if section.parts],
  )


def _sections(found: Sequence[runs.Run]) -> Iterator[Section]:
  yield training.what_was_run(found)
  yield results.headline(found)
  yield comparisons.differences(found)
  for name in EVALUATIONS:
    yield from results.sections(name, found)
  yield results.calibration(found)
  yield results.attacked(found)
  yield training.adversary(found)
  yield training.curves(found)
  yield training.provenance(found)


def main(argv: Sequence[str]) -> None:
  arguments = _parser().parse_args(argv)
  with progress.stage('reading the runs and drawing the page'):
    path = report(arguments.folders, arguments.output)
  print(f'Wrote {path}')


def _parser() -> cli.Parser:
  parser = cli.Parser(
    prog='python -m adversarial_augment.report',
    description='Makes one HTML page of one run, or of several side by side. The page needs no network.',
  )
  parser.add_argument('folders', nargs='+', metavar='DIR', help='the workdir of a run, or the URL of its mirror')
  parser.add_argument(
    '--output', metavar='FILE', help='default: DIR/report.html; for several runs or a URL report.html here'
  )
  return parser


if __name__ == '__main__':
  cli.run(main, kept='no page was written; run the same command again')
