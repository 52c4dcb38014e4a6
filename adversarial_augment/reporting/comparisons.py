"""Comparisons of runs: how many images they were trained on, and their differences, image by image."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment import metrics
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.reporting import published, sources
from adversarial_augment.reporting.parts import NONE, Paragraph, Part, Row, Section, Table, grid, percent, section
from adversarial_augment.reporting.runs import Run
from adversarial_augment.storage import outcomes

Result = Mapping[str, Any]


class Pair(NamedTuple):
  """A number of two runs, as fractions."""

  title: str
  values: tuple[float, ...]
  bits: tuple[np.ndarray, ...]  # that number of each image, twice [n]; () where it is not known

  def row(self) -> Row:
    signed = lambda value: f'{100 * value:+.2f}'.replace('-', '\N{MINUS SIGN}')
    first, other = self.values
    interval = map(signed, metrics.paired_interval(self.bits[1] - self.bits[0])) if self.bits else (NONE, NONE)
    return Row((self.title, signed(other - first), *interval, percent(first), percent(other)))


def images_seen(run: Run) -> str:
  """Returns how many images a run had seen in training when it was evaluated, repeated ones included."""
  if run.audited:
    return 'unknown'
  steps = {result['step'] for result in (*run.results.values(), *run.robustness)}
  if not steps:
    steps = {run.closing['step']} if run.closing else {run.metrics[-1]['step']} if run.metrics else set()
  seen = [f'{step * run.config["batch_size"]:,}' for step in sorted(steps)]
  before = run.config.get('init_from')
  return (' or '.join(seen) or 'unknown') + (f', after those of {Path(str(before)).name}' if before and seen else '')


def unequal_training(runs: Sequence[Run]) -> str:
  """Returns a caution for comparisons of runs that were trained on different numbers of images; else ''."""
  seen = {run.label: images_seen(run) for run in runs}
  if len(set(seen.values())) < 2:
    return ''
  numbers = '; '.join(f'{label}: {number}' for label, number in seen.items())
  return f'Trained on different numbers of images, which explains a part of the differences ({numbers}).'


def differences(runs: Sequence[Run]) -> Section:
  """The difference of each further run from the first, with paired intervals."""
  parts: list[Part | None] = []
  for other in runs[1:]:
    numbers, corruptions, reasons = _compared(runs[0], other)
    columns = ('number', 'difference', '95 % from', 'to', runs[0].label, other.label)
    tables = (
      Table(f'{other.label} minus {runs[0].label}: {what}', columns, [pair.row() for pair in pairs])
      for what, pairs in (('headline numbers in %', numbers), ('errors in %, by corruption', corruptions))
    )
    parts += [grid(*tables), *(Paragraph(reason, 'note') for reason in reasons)]
  note = Paragraph(
    'Intervals are paired (95 %, Bonett and Price 2012): both runs saw the same images, and only images on which they '
    'differ count; the corrupted versions of one image count as one. One in twenty such intervals misses the true '
    'difference by chance. Another training seed may change more.'
  )
  found = section('differences', 'Differences', *parts)
  return found._replace(parts=[*found.parts, note]) if found.parts else found


def _compared(first: Run, other: Run) -> tuple[list[Pair], list[Pair], list[str]]:
  """Returns pairs of headline numbers, pairs for each corruption, and what is left out or has no interval."""
  numbers, corruptions, reasons, old = [], [], [], []
  mine, its = (run.results | sources.attacks(run) for run in (first, other))
  for name, one, two in [(name, mine[name], its[name]) for name in mine if name in its]:
    if reason := sources.different_images(one, two):
      reasons.append(f'No difference in {name}, which used different images: {reason}.')
      continue
    found = list(_headlines(name, one, two))
    numbers += found
    if name in EVALUATIONS:
      keys = EVALUATIONS[name].corruptions
      corruptions += [_error(published.LABELS[key], (one, two), (key,)) for key in keys]
    if not all(pair.bits for pair in found):
      old.append(name)
  if old:
    reasons.append(
      f'No intervals for {", ".join(old)}: results of older versions do not record which images were classified '
      'correctly; evaluate again.'
    )
  return numbers, corruptions, reasons


def _headlines(name: str, one: Result, two: Result) -> Iterator[Pair]:
  """Yields the headline numbers of an evaluation or an attack."""
  entry = EVALUATIONS.get(name)
  if entry is None:
    yield _accuracy(f'Robust accuracy, {name}', (one, two), 'robust_accuracy', 'robust')
  elif entry.corruptions:
    title = entry.headline[1] if entry.headline else f'{entry.section}, mean error'
    yield _error(title, (one, two), entry.corruptions)
  elif entry.parts:
    yield from (_accuracy(f'{entry.title} {part} accuracy', (one[part], two[part])) for part in entry.parts)
  else:
    yield _accuracy(entry.title[0].upper() + entry.title[1:], (one, two))


def _accuracy(title: str, results: Sequence[Result], value: str = 'accuracy', field: str = 'correct') -> Pair:
  bits = tuple(outcomes.unpack(one[field], one['num_images']).astype(float) for one in results if field in one)
  return Pair(title, tuple(one[value] for one in results), bits if len(bits) == len(results) else ())


def _error(title: str, results: Sequence[Result], corruptions: Sequence[str]) -> Pair:
  """A mean error over corruptions and their severities; its bits are errors, so that more is worse."""
  values = tuple(float(np.mean([one['error'][name] for name in corruptions])) for one in results)
  is_known = all('correct' in one for one in results)
  return Pair(title, values, tuple(1 - _mean_correct(one, corruptions) for one in results) if is_known else ())


def _mean_correct(result: Result, corruptions: Sequence[str]) -> np.ndarray:
  """Returns for each image [n] the share of its corrupted versions that are classified correctly."""
  cells = [cell for name in corruptions for cell in result['correct'][name]]
  return np.mean([outcomes.unpack(cell, result['num_images']) for cell in cells], axis=0)
