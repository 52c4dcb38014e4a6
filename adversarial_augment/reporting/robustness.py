"""The section on l_p attacks: accuracy over the radius, stage by stage, and whether it is reliable."""

from collections import Counter
from collections.abc import Iterator, Sequence
import itertools
from typing import Any

from adversarial_augment.reporting import charts
from adversarial_augment.reporting.charts import Axes, Series
from adversarial_augment.reporting.parts import Chart, Paragraph, Section, grid, section
from adversarial_augment.reporting.runs import Run
from adversarial_augment.reporting.tables import Row, Table, percent

NORMS = {'linf': 'l_inf', 'l2': 'l_2'}


def attacked(runs: Sequence[Run]) -> Section:
  """Robust accuracy of all runs that were attacked."""
  found = [(number, run, result) for number, run in enumerate(runs) for result in run.robustness]
  if not found:
    return section('robustness', 'Robust accuracy')
  columns = ('run', 'attack', 'epsilon', 'valid', 'clean', 'robust', '95 % from', 'to', 'in 8 bits')
  rows = [
    Row((
      run.label, f'{result["attack"]}, {NORMS[result["norm"]]}', result['epsilon_text'],
      f'UNRELIABLE: {", ".join(result["flags"])}' if result['flags'] else 'yes',
      percent(result['clean_accuracy']), percent(result['robust_accuracy']), *map(percent, result['interval']),
      percent(result['robust_accuracy_uint8']),
    ))
    for _, run, result in found
  ]  # fmt: skip
  suspects = sorted({f'{run.label} ({", ".join(result["flags"])})' for _, run, result in found if result['flags']})
  warning = f'Unreliable: {"; ".join(suspects)}. These numbers are only loose upper bounds.'
  note = (
    'An image counts as robust if no attack of the suite changed its class within the radius epsilon, for images in '
    '[0, 1]: an upper bound. In 8 bits: the final images, rounded.'
  )
  return section(
    'robustness',
    'Robust accuracy',
    Paragraph(warning, 'note') if suspects else None,
    Paragraph(note),
    grid(*(_curves(found, norm) for norm in NORMS)),
    Table('Accuracy under l_p attacks in %', columns, rows, words=4),
    *(table for run in runs for table in _stages(run)),
  )


def _curves(found: Sequence[tuple[int, Run, dict[str, Any]]], norm: str) -> Chart | None:
  """Returns the accuracies over epsilon within the balls of one norm, from that without an attack on."""
  same_norm = [item for item in found if item[2]['norm'] == norm]
  num_runs, attacks = 1 + max((number for number, _, _ in found), default=0), Counter[int]()
  lines = []
  for (number, label, attack), group in itertools.groupby(same_norm, lambda x: (x[0], x[1].label, x[2]['attack'])):
    results = sorted((result for _, _, result in group), key=lambda result: result['epsilon'])
    x = [0.0, *(result['epsilon'] for result in results)]
    y = [100 * results[0]['clean_accuracy'], *(100 * result['robust_accuracy'] for result in results)]
    # A run's first attack has the look that the run has on the whole page; further ones look as no run does.
    lines.append(Series(f'{label}, {attack}', x, y, number + num_runs * attacks[number]))
    attacks[number] += 1
  about = '; '.join(f'{line.label}: {", ".join(f"{y:.1f}" for y in line.y)}' for line in lines)
  axes = Axes('epsilon', 'accuracy in %', from_zero=True)
  caption = f'Accuracy over the radius, {NORMS[norm]}'
  return charts.chart(f'robust{norm}', caption, lines, axes, f'Accuracy in % over epsilon. {about}.')


def _stages(run: Run) -> Iterator[Table]:
  """Yields a table for each suite and norm: what was left after each of its attacks."""
  suite = lambda result: (result['attack'], result['norm'], result['stages'])
  for (attack, norm, stages), group in itertools.groupby(run.robustness, suite):
    rows = []
    for result in group:
      n = result['num_images']
      left = [result['num_correct'], *(result['survivors'][stage] for stage in stages)]
      seconds = sum(result['seconds'].values())
      cells = (percent(count / n) for count in left)
      rows.append(Row((result['epsilon_text'], *cells, f'{seconds:.0f}')))
    columns = ('epsilon', 'before', *(f'after {stage}' for stage in stages), 'seconds')
    caption = f'{run.label}: accuracy in % after each stage of {attack}, {NORMS[norm]}'
    yield Table(caption, columns, rows)
