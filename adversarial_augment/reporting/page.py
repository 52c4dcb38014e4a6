"""The page: its sections in order, its style, and its frame."""

from collections.abc import Iterator, Sequence
from html import escape

from adversarial_augment import __version__, registry
from adversarial_augment.reporting import charts, comparisons, markup, results, robustness, training
from adversarial_augment.reporting.markup import Section
from adversarial_augment.reporting.runs import Run
from adversarial_augment.reporting.style import STYLE

_NO_CHARTS = "There are no charts, for Matplotlib is not installed; install the extra 'plots': pip install matplotlib."


def page(runs: Sequence[Run]) -> str:
  """Returns the HTML of a report: the same text for the same runs.

  Args:
    runs: at least one.
  """
  title = runs[0].label if len(runs) == 1 else f'{len(runs)} runs: {", ".join(run.label for run in runs)}'
  sections = [section for section in _sections(runs) if section.parts]
  links = ''.join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections)
  plain = '' if charts.available() else markup.paragraph(_NO_CHARTS, 'note')
  unequal = comparisons.unequal_training(runs)
  body = '\n'.join(_section(section, '' if section.key == 'provenance' else unequal) for section in sections)
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)} · adversarial_augment</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="quiet">Image classifiers under corruptions: a report of adversarial_augment {escape(__version__)}, after
<a href="https://arxiv.org/abs/2104.01086">arXiv 2104.01086</a>.</p>
<nav>{links}</nav>
{plain}
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _sections(runs: Sequence[Run]) -> Iterator[Section]:
  yield training.what_was_run(runs)
  yield results.headline(runs)
  yield comparisons.differences(runs)
  for evaluation in registry.evaluations().values():
    yield from evaluation.sections(runs)
  yield results.calibration(runs)
  yield robustness.attacked(runs)
  yield training.adversary(runs)
  yield training.curves(runs)
  yield training.provenance(runs)


def _section(section: Section, unequal: str) -> str:
  kind = 'note' if section.key == 'runs' else 'quiet'  # loud once, and beside every comparison
  parts = '\n'.join([markup.paragraph(unequal, kind) if unequal else '', *section.parts])
  return f'<section id="{section.key}">\n<h2>{escape(section.title)}</h2>\n{parts}\n</section>'
