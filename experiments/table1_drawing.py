"""Table 1 as CSV, Markdown and a picture, from the entries of table1_corruptions.py.

All numbers are percent. With several seeds: the mean +- its standard error.
"""

from collections.abc import Mapping, Sequence
import csv
import io
import math
import statistics
from typing import Any, NamedTuple

from adversarial_augment import metrics
from adversarial_augment.reporting.published import COLUMNS, MODELS, PAPER

Seeds = Mapping[str, Mapping[str, Any]]  # seed -> entry of the table


class Estimate(NamedTuple):
  """A mean over seeds, in percent, and its standard error, which is None for one seed."""

  mean: float
  error: float | None

  def __str__(self) -> str:
    return f'{self.mean:.2f}' if self.error is None else f'{self.mean:.2f} ± {self.error:.2f}'


def estimate(values: Sequence[float]) -> Estimate:
  error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
  return Estimate(100 * statistics.mean(values), None if error is None else 100 * error)


QUANTITIES = {
  'clean error': lambda entry: entry['clean_error'],
  'mCE': lambda entry: entry['mce'],
  'gap': lambda entry: entry['mce'] - entry['clean_error'],
}
GROUPS = {
  'blurs': ('defocus_blur', 'motion_blur', 'zoom_blur'),
  'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
}


def texts(table: Mapping[str, Seeds], names: Mapping[str, str | None]) -> dict[str, str]:
  """Returns the table as '.csv' and '.md'.

  Args:
    table: row -> seed -> entry.
    names: row -> its name in the paper, or None; in the order of the table.
  """
  table, paper = _in_order(table, names)
  return {'.csv': _csv(table, paper), '.md': _markdown(table, paper)}


def _in_order(table: Mapping[str, Seeds], names: Mapping[str, str | None]) -> tuple[dict[str, Seeds], dict[str, Any]]:
  """Returns the rows in `names`, and the paper's rows under the same keys."""
  published = {model.name: model for model in MODELS if model.source == PAPER}
  paper = {row: published[name] for row, name in names.items() if name is not None}
  return {row: table[row] for row in names if row in table}, paper


def about(table: Mapping[str, Seeds]) -> str:
  """Describes the data of the numbers."""
  entry = next(entry for seeds in table.values() for entry in seeds.values())
  provenance = entry['provenance']
  data = provenance['data']['test']
  seen = [entry['images_seen'] for seeds in table.values() for entry in seeds.values()]
  trained = ' to '.join(f'{number:,}' for number in sorted({min(seen), max(seen)}))
  return (
    f'{data["name"]} ({data["origin"]}), corruptions {entry["origin"]}, seed {provenance["corruptions"]["seed"]}, '
    f'frost: {provenance["corruptions"]["frost"]}; n = {entry["num_images"]:,} images per cell; '
    f'{trained} training images seen by every row'
  )


def _csv(table: Mapping[str, Seeds], paper: Mapping[str, Any]) -> str:
  text = io.StringIO()
  out = csv.writer(text, lineterminator='\n')
  out.writerow(['row', 'source', 'seed', 'clean_error', 'mce', *COLUMNS])
  for row, seeds in table.items():
    for seed, entry in seeds.items():
      errors = [entry['corruption_error'][name] for name in metrics.NAMES]
      out.writerow([row, 'ours', seed, entry['clean_error'], entry['mce'], *errors])
    if row in paper:
      model = paper[row]
      values = (round(value / 100, 6) for value in (model.clean, model.mce, *model.errors))
      out.writerow([row, 'paper', '', *values])
  return text.getvalue()


def _markdown(table: Mapping[str, Seeds], paper: Mapping[str, Any]) -> str:
  lines = [f'Errors in percent. Ours: {about(table)}. The paper: official CIFAR-10-C, n = 10,000.', '']
  lines += header(['row', 'seeds', *QUANTITIES, 'paper: clean', 'paper: mCE', *COLUMNS.values()])
  for row, seeds in table.items():
    own = [estimate([of(entry) for entry in seeds.values()]) for of in QUANTITIES.values()]
    cells = [f'{estimate([e["corruption_error"][name] for e in seeds.values()]).mean:.1f}' for name in metrics.NAMES]
    model = paper.get(row)
    theirs = [f'{model.clean:.2f}', f'{model.mce:.2f}'] if model else ['', '']
    lines.append(line([row, ', '.join(sorted(seeds)), *own, *theirs, *cells]))
  for base in ('nominal', 'augmix'):
    if base in table and len(table) > 1:
      lines += ['', f'Difference to {base}, paired by seed, in points:', '']
      lines += header(['row', 'seeds', *QUANTITIES, *GROUPS])
      lines += [
        line([row, ', '.join(both), *_differences(table[base], seeds, both)])
        for row, seeds in table.items()
        if row != base and (both := sorted(seeds.keys() & table[base].keys()))
      ]
  return '\n'.join(lines) + '\n'


def _differences(base: Seeds, seeds: Seeds, both: Sequence[str]) -> list[Estimate]:
  mean = lambda names: lambda entry: statistics.mean(entry['corruption_error'][name] for name in names)
  quantities = [*QUANTITIES.values(), *(mean(names) for names in GROUPS.values())]
  return [estimate([of(seeds[seed]) - of(base[seed]) for seed in both]) for of in quantities]


def header(names: Sequence[str]) -> list[str]:
  """Returns the first two lines of a table in Markdown."""
  return [line(names), line(['---'] * len(names))]


def line(cells: Sequence[object]) -> str:
  """Returns one line of a table in Markdown."""
  return '| ' + ' | '.join(map(str, cells)) + ' |'


def picture(table: Mapping[str, Seeds], names: Mapping[str, str | None]) -> bytes:
  """Returns the table as PNG; the arguments are those of `texts`."""
  table, paper = _in_order(table, names)
  headings = ['clean', 'mCE', *COLUMNS.values()]
  values = {}
  for row, seeds in table.items():
    ours = [estimate([of(entry) for entry in seeds.values()]).mean for of in list(QUANTITIES.values())[:2]]
    ours += [estimate([entry['corruption_error'][name] for entry in seeds.values()]).mean for name in metrics.NAMES]
    theirs = [paper[row].clean, paper[row].mce] if row in paper else [math.nan] * 2
    values[f'{row} ({len(seeds)})'] = ours + theirs
  return heat_map(
    values, [*headings, 'paper:\nclean', 'paper:\nmCE'], title='Error in percent; row (number of seeds)',
    below=about(table), apart=(1.5, len(headings) - 0.5),
  )  # fmt: skip


def heat_map(
  rows: Mapping[str, Sequence[float]],
  columns: Sequence[str],
  *,
  title: str,
  below: str,
  apart: Sequence[float],
  marks: Sequence[Sequence[str]] | None = None,
) -> bytes:
  """Returns rows of percentages as PNG, with white lines at `apart`, in columns from -0.5 on; NaN is a dash.

  `marks` are written behind the numbers.
  """
  from matplotlib.figure import Figure

  values = list(rows.values())
  figure = Figure(figsize=(14, 1.6 + 0.36 * len(rows)), layout='constrained')
  axes = figure.add_subplot()
  highest = max(value for numbers in values for value in numbers if not math.isnan(value))
  axes.imshow(values, cmap='cividis_r', aspect='auto', vmin=0, vmax=highest)
  for i, numbers in enumerate(values):
    for j, value in enumerate(numbers):
      dark = not math.isnan(value) and value > 0.55 * highest
      text = '–' if math.isnan(value) else f'{value:.1f}'
      text += marks[i][j] if marks is not None else ''
      axes.text(j, i, text, ha='center', va='center', fontsize=8, color='white' if dark else 'black')
  axes.set_xticks(range(len(columns)), columns, fontsize=8)
  axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
  for edge in apart:
    axes.axvline(edge, color='white', linewidth=3)
  axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
  axes.set_title(title, fontsize=9)
  figure.supxlabel(below, fontsize=7)
  content = io.BytesIO()
  figure.savefig(content, format='png', dpi=150)
  return content.getvalue()
