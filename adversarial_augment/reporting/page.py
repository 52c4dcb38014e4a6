"""The page: its sections in order, and the templates that draw them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from adversarial_augment import __version__
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.reporting import charts, comparisons, results, robustness, training
from adversarial_augment.reporting.parts import Paragraph, Section
from adversarial_augment.reporting.runs import Run

_NO_CHARTS = (
  "There are no charts because Matplotlib is not installed; install the extra 'plots': pip install matplotlib."
)


def page(runs: Sequence[Run]) -> str:
  """Returns the HTML of a report: the same text for the same runs.

  Args:
    runs: at least one.
  """
  import jinja2

  sections = [section for section in _sections(runs) if section.parts]
  if unequal := comparisons.unequal_training(runs):  # said loudly once, and again beside every comparison
    sections = [
      section._replace(parts=[Paragraph(unequal, 'note' if section.key == 'runs' else 'quiet'), *section.parts])
      if section.key != 'provenance'
      else section
      for section in sections
    ]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['class_name'] = lambda value: type(value).__name__
  return environment.get_template('page.html').render(
    title=runs[0].label if len(runs) == 1 else f'{len(runs)} runs: {", ".join(run.label for run in runs)}',
    version=__version__,
    notes=[] if charts.available() else [Paragraph(_NO_CHARTS, 'note')],
    sections=sections,
  )


def _sections(runs: Sequence[Run]) -> Iterator[Section]:
  yield training.what_was_run(runs)
  yield results.headline(runs)
  yield comparisons.differences(runs)
  for name in EVALUATIONS:
    yield from results.sections(name, runs)
  yield results.calibration(runs)
  yield robustness.attacked(runs)
  yield training.adversary(runs)
  yield training.curves(runs)
  yield training.provenance(runs)
