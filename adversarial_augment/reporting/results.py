"""The sections on accuracy, corruption errors, calibration, and l_p attacks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import Any

from adversarial_augment import metrics
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.reporting import charts, parts, published, sources
from adversarial_augment.reporting.charts import Series
from adversarial_augment.reporting.parts import NONE, Paragraph, Row, Section, Table, folded, grid, percent, section
from adversarial_augment.reporting.runs import Run
from adversarial_augment.reporting.sources import NORMS, Result

_SEVERITIES = tuple(map(str, metrics.SEVERITIES))


def headline(runs: Sequence[Run]) -> Section:
  """The numbers that matter, each with its interval."""
  placed = sorted((entry.headline, name) for name, entry in EVALUATIONS.items() if entry.headline)
  headlines = [(name, heading, EVALUATIONS[name].number) for (_, heading), name in placed]
  cards, rows = [], []
  for run in runs:
    found = [(title, run.results[name], field) for name, title, field in headlines if name in run.results]
    cards.append(grid(*(_card(*one) for one in found), style='cards', title=run.label if len(runs) > 1 else ''))
    for title, result, field in found:
      interval = map(percent, result['interval'])
      rows.append(Row((run.label, title, percent(result[field]), *interval, str(result['step']))))
  note = Paragraph(
    'Intervals show how much other test images of the same kind would change a number (95 %, binomial); another '
    'training seed may change it more. mCE is the mean of the 15 corruption errors, not divided by those of another '
    'network.'
  )
  table = Table('Headline numbers', ('run', 'number', '%', '95 % from', 'to', 'at step'), rows, words=2)
  shown = (*cards, note, folded('As a table', table)) if rows else ()
  return section('headline', 'Headline numbers', *shown, *map(sources.unmeasured, runs))


def _card(title: str, result: Result, field: str) -> parts.Card:
  low, high = result['interval']
  lines = f'{percent(low)} to {percent(high)} %', f'{result["origin"]}, n = {result["num_images"]:,}'
  return parts.Card(title, f'{percent(result[field])} %', lines)


def sections(name: str, runs: Sequence[Run]) -> list[Section]:
  """Returns the sections of an evaluation."""
  entry = EVALUATIONS[name]
  if entry.corruptions:
    return [_paper_columns(runs), _by_severity(runs)] if entry.corruptions == metrics.NAMES else [_extra(name, runs)]
  return [_accuracies(name, runs)] if entry.section else []


def _comparability(run: Run, result: Result) -> tuple[str, str]:
  """Returns whether a run is 'not ', 'only roughly ' or '' comparable with published numbers, and why."""
  name, frost = sources.data_set(run, result), sources.made_up_frost(result)
  origin, n = result['origin'], result['num_images']
  if name != 'cifar10':
    return 'not ', f'its data set is {name}, not CIFAR-10'
  if frost:
    return 'not ', f'its frost is made of {frost}'
  if origin == 'official' and n == 10_000:
    return '', 'its images are the official CIFAR-10-C files'
  of = '' if origin == 'official' else f' from {sources.split(result).get("origin", "unverified")} test images'
  return 'only roughly ', f'its CIFAR-10-C is {origin}{of}, {n:,} images per cell; theirs is official, 10,000 per cell'


def _paper_columns(runs: Sequence[Run]) -> Section:
  """Table 1 of the paper with a row for each run."""
  found = sources.having(runs, 'cifar10_c')
  if not found:
    return section('corruptions', 'Corruption errors')
  rows, cautions, left_out, is_comparable = [], {'note': '', 'quiet': ''}, [], True
  for _, run, result in found:
    how, why = _comparability(run, result)
    cautions['note' if how else 'quiet'] += f' {run.label} is {how}comparable with published numbers: {why}.'
    is_comparable &= how != 'not '
    clean = run.results.get('clean')
    if clean and (differs := _difference(clean, result)):
      text = 'has no clean error in this row, because it is from another checkpoint or other images'
      left_out.append(Paragraph(f'{run.label} {text}: {differs}.', 'note'))
      clean = None
    clean_error = percent(1 - clean['accuracy']) if clean else NONE
    errors = [percent(result['corruption_error'][name], 1) for name in metrics.NAMES]
    rows.append(Row((run.label, clean_error, percent(result['mce']), *errors)))
  known = [
    Row((f'{name} ({source})', f'{clean:.2f}', f'{mce:.2f}', *(f'{error:.1f}' for error in errors)), 'published')
    for name, source, clean, mce, errors, _ in published.MODELS
  ]
  columns = ('setup', 'clean error', 'mCE', *published.COLUMNS.values())
  caption = 'Errors in %, mean over five severities'
  table = Table(caption, columns, [*rows, *known] if is_comparable else rows, groups=published.GROUPS)
  apart = None if is_comparable else Table(f'Published. {caption}', columns, known, groups=published.GROUPS)
  others = folded('Published numbers, which are not comparable to these', apart)
  below = Paragraph(
    'Rows that say “paper” (its Tables 1 to 3) or “RobustBench” are published numbers of others, on the official '
    'CIFAR-10-C, 10,000 images per cell. They were not measured here.'
  )
  notes = [Paragraph(text.strip(), style) for style, text in cautions.items() if text]
  return section('corruptions', 'Corruption errors, as in the paper', *notes, table, *left_out, others, below)


def _difference(clean: Result, corrupted: Result) -> str:
  """Says how the checkpoint or the test images of two results differ; '' where they are the same."""
  about = lambda result: {
    'test set': sources.test_set(result),
    'images': f'{result.get("subset_of", result["num_images"]):,}',
    'step': f'{result["step"]:,}',
    'checkpoint': result['checkpoint_sha256'][:12],
  }
  return sources.differing(about(clean), about(corrupted))


def _by_severity(runs: Sequence[Run]) -> Section:
  """Errors by corruption and severity, one map for each run, all in the same colours; and their means."""
  found = sources.having(runs, 'cifar10_c')
  is_comparable = bool(found) and all(_comparability(run, result)[0] != 'not ' for _, run, result in found)
  known = [model for model in published.MODELS if model.severity and is_comparable]
  lines = [
    Series(run.label, metrics.SEVERITIES, [100 * error for error in result['severity_error']], number)
    for number, run, result in found
  ]
  rows = [Row((run.label, *map(percent, result['severity_error']))) for _, run, result in found]
  for model in known:
    lines.append(Series(f'{model.name.partition(",")[0]} (published)', metrics.SEVERITIES, model.severity, None))
    errors = (f'{error:.2f}' for error in model.severity)
    rows.append(Row((f'{model.name} ({published.ROBUSTBENCH})', *errors), 'published'))
  alt = f'Errors in % at severities 1 to 5. {charts.in_words(lines)}.'
  caption = 'Mean error over 15 corruptions'
  curve = charts.chart('severity', caption, lines, alt, x='severity', y='error in %', from_zero=True)
  caption = 'Errors in % at severities 1 to 5, mean over 15 corruptions'
  table = Table(caption, ('setup', *_SEVERITIES), rows)
  maps = _maps(runs, 'cifar10_c', curve)
  return section('severity', 'Errors by corruption and severity', *maps, table)


def _extra(name: str, runs: Sequence[Run]) -> Section:
  """Corruptions that are no part of the mCE."""
  return section(name.removeprefix('cifar10_c_'), EVALUATIONS[name].section, *_maps(runs, name))


def _accuracies(name: str, runs: Sequence[Run]) -> Section:
  """Accuracies of an evaluation, and published ones on the same images."""
  entry, found = EVALUATIONS[name], sources.having(runs, name)
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


def _maps(runs: Sequence[Run], name: str, beside: parts.Part | None = None) -> list[parts.Part]:
  """Returns the heat maps of an evaluation."""
  entry, found = EVALUATIONS[name], sources.having(runs, name)
  if not found:
    return []
  shade = charts.Shade([error for _, _, result in found for row in result['error'].values() for error in row])
  maps = []
  for _, run, result in found:
    cells = lambda errors, error: map(shade.cell, (*errors, error))  # and their mean
    rows = [
      Row((published.LABELS[key], *cells(result['error'][key], result['corruption_error'][key])))
      for key in entry.corruptions
    ]
    rows.append(Row((entry.mean_label, *cells(result['severity_error'], result[entry.mean_error])), 'mean'))
    caption = f'{run.label}: errors in % under {len(entry.corruptions)} corruptions'
    maps.append(Table(caption, ('severity', *_SEVERITIES, 'mean'), rows))
  key = shade.scale('Errors in %, on a logarithmic scale, the same for all maps')
  return [key, grid(*maps, beside, style='maps')]


def calibration(runs: Sequence[Run]) -> Section:
  """Confidence against accuracy, on clean images and under attack."""
  drawn, rows, bins = [], [], []
  for name, title in (('clean', 'clean images'), ('ada', 'images under AdA')):
    found = sources.having(runs, name)
    drawn.append(_reliability(found, name, title))
    for _, run, result in found:
      rows.append(Row((run.label, title, percent(result['calibration']['ece']))))
      bins += [Row((run.label, title, *cells)) for cells in _bins(result['calibration'])]
  table = Table('Expected calibration error in %, 15 bins of equal width', ('run', 'of', 'ECE'), rows, words=2)
  columns = ('run', 'of', 'confidence', 'images', 'mean confidence', 'accuracy')
  filled = Table('Confidence bins that contain images, in %', columns, bins, words=3)
  return section('calibration', 'Calibration', grid(*drawn, table), folded('Images in each bin', filled))


def _reliability(found: Sequence[tuple[int, Run, Result]], name: str, title: str) -> parts.Chart | None:
  """Returns the reliability diagram of one evaluation."""
  lines, counts, errors = [], [], []
  for number, run, result in found:
    about = result['calibration']
    filled = [
      (100 * total / count, 100 * correct / count)
      for count, correct, total in zip(about['count'], about['num_correct'], about['confidence'], strict=True)
      if count
    ]
    confidence, accuracy = zip(*filled, strict=True)
    lines.append(Series(run.label, confidence, accuracy, number))
    outline = [100 * edge for edge in about['edges'] for _ in range(2)]
    heights = [0, *(count for count in about['count'] for _ in range(2)), 0]
    counts.append(Series(run.label, outline, heights, number))
    errors.append(f'{run.label} {percent(about["ece"])} %')
  guide = [Series('confidence = accuracy', (0, 100), (0, 100), None)] if lines else []
  alt = (
    'Accuracy against confidence in 15 bins, and below it how many images each bin contains. '
    f'Expected calibration error: {"; ".join(errors)}.'
  )
  axes: dict[str, Any] = {'x': 'confidence in %', 'y': 'accuracy in %', 'from_zero': True, 'square': True}
  caption = f'Reliability on {title}, and images in each bin'
  return charts.chart(f'calibration{name}', caption, [*lines, *guide], alt, **axes, counts=counts)


def _bins(about: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields for each bin that contains images: its range, their number, mean confidence and accuracy."""
  columns = (about[name] for name in ('count', 'num_correct', 'confidence'))
  for (low, high), count, correct, total in zip(itertools.pairwise(about['edges']), *columns, strict=True):
    if count:
      yield f'{100 * low:.0f} to {100 * high:.0f}', f'{count:,}', percent(total / count), percent(correct / count)


def attacked(runs: Sequence[Run]) -> Section:
  """Robust accuracy of all runs that were attacked."""
  found = [(number, run, result) for number, run in enumerate(runs) for result in run.robustness]
  if not found:
    return section('robustness', 'Robust accuracy')
  rows, suspects = [], set()
  for _, run, result in found:
    flags = ', '.join(result['flags'])
    suspects |= {f'{run.label} ({flags})'} if flags else set()
    shares = (result['clean_accuracy'], result['robust_accuracy'], *result['interval'], result['robust_accuracy_uint8'])
    about = run.label, f'{result["attack"]}, {sources.norm_of(result)}', result['epsilon_text']
    rows.append(Row((*about, f'UNRELIABLE: {flags}' if flags else 'yes', *map(percent, shares))))
  warning = f'Unreliable: {"; ".join(sorted(suspects))}. These numbers are only loose upper bounds.'
  note = (
    'An image counts as robust if no attack of the suite changed its class within the radius epsilon, for images in '
    '[0, 1]: an upper bound. In 8 bits: the final images, rounded.'
  )
  own = (
    'Its own distance is that of the features of each classifier, by which a classifier can look robust because its '
    'features move easily: these numbers are not for comparisons.'
  )
  columns = ('run', 'attack', 'epsilon', 'valid', 'clean', 'robust', '95 % from', 'to', 'in 8 bits')
  return section(
    'robustness',
    'Robust accuracy',
    Paragraph(warning, 'note') if suspects else None,
    Paragraph(note),
    Paragraph(own, 'note') if any(result['norm'] == 'self' for _, _, result in found) else None,
    grid(*(_over_radius(found, norm) for norm in NORMS if norm != 'self')),
    Table('Accuracy under attacks in %', columns, rows, words=4),
    *(table for run in runs for table in _stages(run)),
  )


def _over_radius(found: Sequence[tuple[int, Run, Result]], norm: str) -> parts.Chart | None:
  """Returns the accuracies over epsilon within the balls of one norm, from that without an attack on."""
  same_norm = [item for item in found if item[2]['norm'] == norm]
  num_runs, attacks = 1 + max(number for number, _, _ in found), Counter[int]()
  lines = []
  # Results by different networks are different lines, whatever their order.
  kind = lambda x: (x[0], x[1].label, x[2]['attack'], sources.norm_of(x[2]))
  for (number, label, attack, ball), group in itertools.groupby(sorted(same_norm, key=kind), kind):
    results = sorted((result for _, _, result in group), key=lambda result: result['epsilon'])
    x = [0.0, *(result['epsilon'] for result in results)]
    y = [100 * results[0]['clean_accuracy'], *(100 * result['robust_accuracy'] for result in results)]
    # A run's first attack has the look that the run has on the whole page; further ones look as no run does.
    by = '' if ball == NORMS[norm] else f' {ball}'
    lines.append(Series(f'{label}, {attack}{by}', x, y, number + num_runs * attacks[number]))
    attacks[number] += 1
  alt = f'Accuracy in % over epsilon. {charts.in_words(lines)}.'
  caption = f'Accuracy over the radius, {NORMS[norm]}'
  return charts.chart(f'robust{norm}', caption, lines, alt, x='epsilon', y='accuracy in %', from_zero=True)


def _stages(run: Run) -> Iterator[Table]:
  """Yields a table for each suite and norm: what was left after each of its attacks."""
  suite = lambda result: (result['attack'], sources.norm_of(result), result['stages'])
  for (attack, ball, stages), group in itertools.groupby(sorted(run.robustness, key=suite), suite):
    rows = []
    for result in group:
      left = [result['num_correct'], *(result['survivors'][stage] for stage in stages)]
      cells = (percent(count / result['num_images']) for count in left)
      rows.append(Row((result['epsilon_text'], *cells, f'{sum(result["seconds"].values()):.0f}')))
    columns = ('epsilon', 'before', *(f'after {stage}' for stage in stages), 'seconds')
    yield Table(f'{run.label}: accuracy in % after each stage of {attack}, {ball}', columns, rows)
