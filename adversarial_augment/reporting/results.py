"""The sections on accuracy, corruption errors and calibration."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adversarial_augment import metrics
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.reporting import charts, published, sources, tables
from adversarial_augment.reporting.charts import Axes, Series
from adversarial_augment.reporting.parts import Card, Folded, Grid, Heading, Paragraph, Part, Section, grid, section
from adversarial_augment.reporting.runs import Run
from adversarial_augment.reporting.tables import NONE, Row, Shaded, Table, percent


def headline(runs: Sequence[Run]) -> Section:
  """The numbers that matter, each with its interval."""
  placed = sorted((entry.headline, name) for name, entry in EVALUATIONS.items() if entry.headline)
  headlines = [(name, heading, EVALUATIONS[name].number) for (_, heading), name in placed]
  parts: list[Part] = []
  for run in runs:
    cards = [_card(title, run.results[name], field) for name, title, field in headlines if name in run.results]
    if cards:
      parts += [*([Heading(run.label)] if len(runs) > 1 else []), Grid(cards, 'cards')]
  rows = [
    Row((run.label, title, *_with_interval(run.results[name], field)))
    for run in runs
    for name, title, field in headlines
    if name in run.results
  ]
  columns = ('run', 'number', '%', '95 % from', 'to', 'at step')
  note = Paragraph(
    'Intervals show how much other test images of the same kind would change a number (95 %, binomial); another '
    'training seed may change it more. mCE is the mean of the 15 corruption errors, not divided by those of another '
    'network.'
  )
  if rows:
    parts += [note, Folded('As a table', [Table('Headline numbers', columns, rows, words=2)])]
  return section('headline', 'Headline numbers', *parts, *map(sources.unmeasured, runs))


def _card(title: str, result: dict[str, Any], field: str) -> Card:
  low, high = result['interval']
  lines = f'{percent(low)} to {percent(high)} %', sources.images_in_short(result)
  return Card(title, f'{percent(result[field])} %', lines)


def _with_interval(result: dict[str, Any], field: str) -> tuple[str, ...]:
  return percent(result[field]), *map(percent, result['interval']), str(result['step'])


def sections(name: str, runs: Sequence[Run]) -> list[Section]:
  """Returns the sections of an evaluation."""
  entry = EVALUATIONS[name]
  if entry.corruptions:
    return [paper_columns(runs), by_severity(runs)] if entry.corruptions == metrics.NAMES else [extra(name, runs)]
  return [accuracies(name, runs)] if entry.section else []


class Comparability(NamedTuple):
  """Whether a run's corruption errors are comparable with published ones."""

  comparable: bool
  caution: bool
  sentence: str


def comparability(run: Run, result: dict[str, Any]) -> Comparability:
  """Returns whether a run's result of `cifar10_c` is comparable with published numbers."""
  name = sources.data_set(run, result)
  if name != 'cifar10':
    sentence = f'{run.label} is not comparable with published numbers: its data set is {name}, not CIFAR-10.'
    return Comparability(False, True, sentence)
  if frost := sources.made_up_frost(result):
    sentence = f'{run.label} is not comparable with published numbers: its frost is made of {frost}.'
    return Comparability(False, True, sentence)
  origin, n = result['origin'], result['num_images']
  if origin == 'official' and n == 10_000:
    sentence = f'{run.label} is comparable with published numbers: its images are the official CIFAR-10-C files.'
    return Comparability(True, False, sentence)
  of = '' if origin == 'official' else f' from {sources.split(result).get("origin", "unverified")} test images'
  sentence = (
    f'{run.label} is only roughly comparable with published numbers: its CIFAR-10-C is {origin}{of}, {n:,} images per '
    'cell; theirs is official, 10,000 per cell.'
  )
  return Comparability(True, True, sentence)


def paper_columns(runs: Sequence[Run]) -> Section:
  """Table 1 of the paper with a row for each run."""
  found = sources.having(runs, 'cifar10_c')
  if not found:
    return section('corruptions', 'Corruption errors')
  rows, left_out = [], []
  for _, run, result in found:
    clean = run.results.get('clean')
    differs = _difference(clean, result) if clean else ''
    if differs:
      left_out.append(
        f'{run.label} has no clean error in this row, because it is from another checkpoint or other images: {differs}.'
      )
    clean_error = percent(1 - clean['accuracy']) if clean and not differs else NONE
    errors = [percent(result['corruption_error'][name], 1) for name in metrics.NAMES]
    rows.append(Row((run.label, clean_error, percent(result['mce']), *errors)))
  known = [
    Row((f'{model.name} ({model.source})', f'{model.clean:.2f}', f'{model.mce:.2f}',
         *(f'{error:.1f}' for error in model.errors)), 'published')
    for model in published.MODELS
  ]  # fmt: skip
  columns = ('setup', 'clean error', 'mCE', *published.COLUMNS.values())
  comparabilities = [comparability(run, result) for _, run, result in found]
  notes = [
    Paragraph(' '.join(one.sentence for one in comparabilities if one.caution is caution), kind)
    for caution, kind in ((True, 'note'), (False, 'quiet'))
    if any(one.caution is caution for one in comparabilities)
  ]
  below = Paragraph(
    'Rows that say “paper” (its Tables 1 and 2) or “RobustBench” are published numbers of others, on the official '
    'CIFAR-10-C, 10,000 images per cell. They were not measured here.'
  )
  caption = 'Errors in %, mean over five severities'
  comparable = all(one.comparable for one in comparabilities)
  table = Table(caption, columns, [*rows, *known] if comparable else rows, groups=published.GROUPS)
  missing = [Paragraph(text, 'note') for text in left_out]
  apart = Table(f'Published. {caption}', columns, known, groups=published.GROUPS)
  folded = None if comparable else Folded('Published numbers, which are not comparable to these', [apart])
  return section('corruptions', 'Corruption errors, as in the paper', *notes, table, *missing, folded, below)


def _difference(clean: Mapping[str, Any], corrupted: Mapping[str, Any]) -> str:
  """Says how the checkpoint or the test images of two results differ; '' where they are the same."""
  about = lambda result: {
    'test set': sources.test_set(result),
    'images': f'{result.get("subset_of", result["num_images"]):,}',
    'step': f'{result["step"]:,}',
    'checkpoint': result['checkpoint_sha256'][:12],
  }
  pairs = zip(about(clean).items(), about(corrupted).values(), strict=True)
  return ', '.join(f'{what} {one} against {other}' for (what, one), other in pairs if one != other)


def by_severity(runs: Sequence[Run]) -> Section:
  """Errors by corruption and severity, one map for each run, all in the same colours; and their means."""
  title, found = 'Errors by corruption and severity', sources.having(runs, 'cifar10_c')
  if not found:
    return section('severity', title)
  comparable = all(comparability(run, result).comparable for _, run, result in found)
  known = [model for model in published.MODELS if model.severity and comparable]
  lines = [
    Series(run.label, metrics.SEVERITIES, [100 * e for e in result['severity_error']], number)
    for number, run, result in found
  ]
  lines += [
    Series(f'{model.name.partition(",")[0]} (published)', metrics.SEVERITIES, model.severity or (), None)
    for model in known
  ]
  about = '; '.join(f'{line.label}: {", ".join(f"{y:.1f}" for y in line.y)}' for line in lines)
  curve = charts.chart(
    'severity',
    'Mean error over 15 corruptions',
    lines,
    Axes('severity', 'error in %', from_zero=True, whole=True),
    f'Errors in % at severities 1 to 5. {about}.',
  )
  rows = [Row((run.label, *(percent(e) for e in result['severity_error']))) for _, run, result in found]
  rows += [
    Row((f'{model.name} ({published.ROBUSTBENCH})', *(f'{e:.2f}' for e in model.severity or ())), 'published')
    for model in known
  ]
  columns = ('setup', *map(str, metrics.SEVERITIES))
  caption = 'Errors in % at severities 1 to 5, mean over 15 corruptions'
  maps = _maps(runs, 'cifar10_c', published.COLUMNS, ('mCE', 'mce'), curve)
  return section('severity', title, *maps, Table(caption, columns, rows))


def extra(name: str, runs: Sequence[Run]) -> Section:
  """Corruptions that are no part of the mCE."""
  entry, known = EVALUATIONS[name], {**published.COLUMNS, **published.EXTRA}
  labels = {corruption: known[corruption] for corruption in entry.corruptions}
  maps = _maps(runs, name, labels, (entry.mean_label.capitalize(), entry.mean_error))
  return section('extra', entry.section, *maps)


def accuracies(name: str, runs: Sequence[Run]) -> Section:
  """Accuracies of an evaluation, and published ones on the same images."""
  entry, found = EVALUATIONS[name], sources.having(runs, name)
  if not found:
    return section(name, entry.section)
  rows = [
    Row((run.label, part, percent(one['accuracy']), *map(percent, one['interval'])))
    for _, run, result in found
    for part, one in ([(part, result[part]) for part in entry.parts] or [(NONE, result)])
  ]
  if any(sources.data_set(run, result) in entry.datasets for _, run, result in found):
    main = next(iter(entry.parts), NONE)
    rows += [
      Row((f'{model} ({published.PAPER})', main, f'{accuracy:.2f}', NONE, NONE), 'published')
      for model, accuracy in entry.published.items()
    ]
  columns = ('setup', 'version', 'accuracy', '95 % from', 'to')
  return section(name, entry.section, Table('Accuracy in %', columns, rows, words=2))


def _maps(
  runs: Sequence[Run], name: str, labels: Mapping[str, str], mean: tuple[str, str], beside: Part | None = None
) -> list[Part]:
  """Returns the heat maps of an evaluation.

  Args:
    runs: those without the evaluation are left out.
    name: of the evaluation.
    labels: of its corruptions.
    mean: label and field of the mean over all.
    beside: what follows the last map.
  """
  found = sources.having(runs, name)
  if not found:
    return []
  shade = tables.Shade([error for _, _, result in found for row in result['error'].values() for error in row])

  def shaded(errors: Sequence[float]) -> Iterator[Shaded]:
    return (Shaded(percent(error, 1), shade.level(error)) for error in errors)

  maps = []
  for _, run, result in found:
    rows = [
      Row((label, *shaded(result['error'][key]), *shaded([result['corruption_error'][key]])))
      for key, label in labels.items()
    ]
    rows.append(Row((mean[0], *shaded(result['severity_error']), *shaded([result[mean[1]]])), 'mean'))
    caption = f'{run.label}: errors in % under {len(labels)} corruptions'
    maps.append(Table(caption, ('severity', *map(str, metrics.SEVERITIES), 'mean'), rows))
  key = tables.scale('Errors in %, on a logarithmic scale, the same for all maps', shade)
  return [key, grid(*maps, beside, style='maps')]


def calibration(runs: Sequence[Run]) -> Section:
  """Confidence against accuracy, on clean images and under attack."""
  drawn, rows, bins = [], [], []
  for name, title in (('clean', 'clean images'), ('ada', 'images under AdA')):
    lines, counts = [], []
    found = sources.having(runs, name)
    for number, run, result in found:
      filled = _filled(result['calibration'])
      lines.append(Series(run.label, [100 * one.confidence for one in filled], [100 * one.accuracy for one in filled],
                          number))  # fmt: skip
      edges = [100 * edge for edge in result['calibration']['edges']]
      outline = [edge for edge in edges for _ in range(2)]
      heights = [0, *(count for count in result['calibration']['count'] for _ in range(2)), 0]
      counts.append(Series(run.label, outline, heights, number))
      rows.append(Row((run.label, title, percent(result['calibration']['ece']))))
      bins += [
        Row((run.label, title, one.range, f'{one.num_images:,}', percent(one.confidence), percent(one.accuracy)))
        for one in filled
      ]
    guide = [Series('confidence = accuracy', (0, 100), (0, 100), None)] if lines else []
    about = '; '.join(f'{run.label} {percent(r["calibration"]["ece"])} %' for _, run, r in found)
    alt = (
      'Accuracy against confidence in 15 bins, and below it how many images each bin contains. '
      f'Expected calibration error: {about}.'
    )
    axes = Axes('confidence in %', 'accuracy in %', from_zero=True, square=True)
    caption = f'Reliability on {title}, and images in each bin'
    drawn.append(charts.chart(f'calibration{name}', caption, [*lines, *guide], axes, alt, counts=counts))
  if not rows:
    return section('calibration', 'Calibration')
  caption = 'Expected calibration error in %, 15 bins of equal width'
  table = Table(caption, ('run', 'of', 'ECE'), rows, words=2)
  columns = ('run', 'of', 'confidence', 'images', 'mean confidence', 'accuracy')
  folded = Table('Confidence bins that contain images, in %', columns, bins, words=3)
  return section('calibration', 'Calibration', grid(*drawn, table), Folded('Images in each bin', [folded]))


class Bin(NamedTuple):
  """Images of similar confidence; confidence and accuracy are fractions."""

  range: str  # in percent
  num_images: int
  confidence: float
  accuracy: float


def _filled(bins: Mapping[str, Any]) -> list[Bin]:
  parts = zip(bins['edges'], bins['edges'][1:], bins['count'], bins['num_correct'], bins['confidence'], strict=False)
  return [
    Bin(f'{100 * low:.0f} to {100 * high:.0f}', count, total / count, correct / count)
    for low, high, count, correct, total in parts
    if count
  ]
