"""Comparisons of runs: how many images they were trained on, and their differences, image by image."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment import metrics
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.datasets.made_with import with_code
from adversarial_augment.reporting import published, sources
from adversarial_augment.reporting.parts import Paragraph, Part, Section, grid, section
from adversarial_augment.reporting.robustness import NORMS
from adversarial_augment.reporting.runs import Run
from adversarial_augment.reporting.tables import NONE, Row, Table, percent
from adversarial_augment.storage import outcomes

# What decides how strong the adversary of the evaluation is, whatever that of the training was.
_ADVERSARY = ('nu', 'num_steps', 'step', 'step_fraction', 'init', 'keep_best', 'min_ssim', 'root')
_CORRUPTION_SET = ('seed', 'frost', 'made_with', 'sha256')
_CORRUPTIONS = {
  'cifar10_c': ('mCE, mean corruption error', published.COLUMNS),
  'cifar10_c_extra': ('Extra corruptions, mean error', published.EXTRA),
}


class Pair(NamedTuple):
  """A number of two runs, as fractions."""

  title: str
  first: float
  other: float
  bits: tuple[np.ndarray, np.ndarray] | None  # that number of each image [n]; None where it is not known


def images_seen(run: Run) -> str:
  """Returns how many images a run had seen in training when it was evaluated, repeated ones included."""
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


def different_images(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
  """Says how the images of two results of one evaluation differ; '' where they are the same."""
  mine, its = _images(one), _images(other)
  names = list(mine | its)
  if 'seed' in mine and 'seed' in its and not ('sha256' in mine and 'sha256' in its):
    names = [name for name in names if name != 'sha256']  # what is made in memory has none
  found = [f'{name} {mine.get(name, NONE)} against {its.get(name, NONE)}' for name in names
           if mine.get(name) != its.get(name)]  # fmt: skip
  if not found and not sources.has_hash(one):
    found = ['unknown, because their test set has no hash']
  return ', '.join(found)


def _images(result: Mapping[str, Any]) -> dict[str, str]:
  """Returns everything that determines which images an evaluation uses."""
  source = result['provenance']
  of = f' of {result["subset_of"]:,}, evenly spaced' if 'subset_of' in result else ''
  about = {'test set': sources.test_set(result), 'split': result['split'], 'number': f'{result["num_images"]:,}{of}'}
  own: dict[str, Any] = {}
  if 'error' in result:
    own = {name: value for name, value in sources.corruption_set(result).items() if name in _CORRUPTION_SET}
    own['made_with'] = with_code(own.get('made_with'), 'corruptions')
  elif 'ssim' in result:
    own = {name: source['config']['attack'].get(name) for name in _ADVERSARY}
    own['weights'] = str(sources.weights(result).get('sha256'))[:12]
  elif result.get('eval') in source:  # it reads sets of its own
    own = {'data sets': source[result['eval']]}
  return about | {name: str(value) for name, value in own.items() if value is not None}


def test_images(runs: Sequence[Run]) -> Table | None:
  """Says once, for all tables and charts, which images each evaluation used and where they come from."""
  about = [dict(_images_of(run)) for run in runs]
  names = list(dict.fromkeys(name for one in about for name in one))
  if not names:
    return None
  texts_of = {name: [one.get(name, NONE) for one in about] for name in names}
  rows = [Row((name, *texts)) for name, texts in texts_of.items()]
  columns = ['evaluation', *(run.label for run in runs)]
  if all(len(set(texts)) == 1 for texts in texts_of.values()):
    rows, columns = [Row(row.cells[:2]) for row in rows], ['evaluation', 'images']
  return Table('Test images used below', columns, rows, words=len(columns))


def _images_of(run: Run) -> Iterator[tuple[str, str]]:
  """Yields each evaluation with its images; all l_p attacks together where they used the same ones."""
  for name, result in run.results.items():
    evaluation = EVALUATIONS[name]
    texts = [f'{part}: {sources.images(result, result[part])}' for part in evaluation.parts]
    yield evaluation.title, '; '.join(texts) or sources.images(result)
  attacked = {name: sources.images(result) for name, result in _attacks(run).items()}
  yield from (
    [('l_p attacks', next(iter(attacked.values())))] if len(set(attacked.values())) == 1 else attacked.items()
  )


def differences(runs: Sequence[Run]) -> Section:
  """The difference of each further run from the first, with paired intervals."""
  parts: list[Part | None] = []
  for other in runs[1:]:
    numbers, corruptions, reasons = _compared(runs[0], other)
    columns = ('number', 'difference', '95 % from', 'to', runs[0].label, other.label)
    about = f'{other.label} minus {runs[0].label}'
    tables = [
      Table(f'{about}: {what}', columns, [Row((pair.title, *_cells(pair))) for pair in pairs])
      for what, pairs in (('headline numbers in %', numbers), ('errors in %, by corruption', corruptions))
      if pairs
    ]
    parts += [grid(*tables), *(Paragraph(reason, 'note') for reason in reasons)]
  if any(parts):
    parts.append(
      Paragraph(
        'Intervals are paired (95 %, Bonett and Price 2012): both runs saw the same images, and only images on which '
        'they differ count; the corrupted versions of one image count as one. One in twenty such intervals misses the '
        'true difference by chance. Another training seed may change more.'
      )
    )
  return section('differences', 'Differences', *parts)


def _cells(pair: Pair) -> tuple[str, ...]:
  signed = lambda value: f'{100 * value:+.2f}'.replace('-', '\N{MINUS SIGN}')
  interval: tuple[str, ...] = (NONE, NONE)
  if pair.bits is not None:
    interval = tuple(map(signed, metrics.paired_interval(pair.bits[1] - pair.bits[0])))
  return signed(pair.other - pair.first), *interval, percent(pair.first), percent(pair.other)


def _compared(first: Run, other: Run) -> tuple[list[Pair], list[Pair], list[str]]:
  """Returns pairs of headline numbers, pairs for each corruption, and what is left out or has no interval."""
  numbers, corruptions, reasons, old = [], [], [], []
  both = [(name, first.results[name], other.results[name]) for name in first.results if name in other.results]
  for name, one, two in [*both, *_same_attacks(first, other)]:
    if reason := different_images(one, two):
      reasons.append(f'No difference in {name}, which used different images: {reason}.')
      continue
    found = list(_headlines(name, one, two))
    numbers += found
    corruptions += [_error(label, one, two, (key,)) for key, label in _CORRUPTIONS.get(name, ('', {}))[1].items()]
    if any(pair.bits is None for pair in found):
      old.append(name)
  if old:
    reasons.append(
      f'No intervals for {", ".join(old)}: results of older versions do not record which images were classified '
      'correctly; evaluate again.'
    )
  return numbers, corruptions, reasons


def _headlines(name: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[Pair]:
  """Yields the headline numbers of an evaluation or an attack."""
  if name in _CORRUPTIONS:
    title, labels = _CORRUPTIONS[name]
    yield _error(title, one, two, tuple(labels))
  elif name in EVALUATIONS:
    title, parts = EVALUATIONS[name].title, EVALUATIONS[name].parts
    yield from (_accuracy(f'{title} {part} accuracy', one[part], two[part]) for part in parts)
    if not parts:
      yield _accuracy(title[0].upper() + title[1:], one, two)
  else:
    yield _accuracy(f'Robust accuracy, {name}', one, two, 'robust_accuracy', 'robust')


def _same_attacks(first: Run, other: Run) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
  known = _attacks(other)
  return [(name, result, known[name]) for name, result in _attacks(first).items() if name in known]


def _attacks(run: Run) -> dict[str, dict[str, Any]]:
  return {f'{one["attack"]}, {NORMS[one["norm"]]} {one["epsilon_text"]}': one for one in run.robustness}


def _accuracy(
  title: str, one: Mapping[str, Any], two: Mapping[str, Any], value: str = 'accuracy', field: str = 'correct'
) -> Pair:
  bits = None
  if field in one and field in two:
    first, other = (outcomes.unpack(result[field], result['num_images']).astype(float) for result in (one, two))
    bits = first, other
  return Pair(title, one[value], two[value], bits)


def _error(title: str, one: Mapping[str, Any], two: Mapping[str, Any], corruptions: Sequence[str]) -> Pair:
  """A mean error over corruptions and their severities; its bits are errors, so that more is worse."""
  first, other = (float(np.mean([result['error'][name] for name in corruptions])) for result in (one, two))
  bits = None
  if 'correct' in one and 'correct' in two:
    bits = 1 - _share_of_forms(one, corruptions), 1 - _share_of_forms(two, corruptions)
  return Pair(title, first, other, bits)


def _share_of_forms(result: Mapping[str, Any], corruptions: Sequence[str]) -> np.ndarray:
  """Returns for each image [n] the share of its corrupted forms that are classified rightly."""
  cells = [cell for name in corruptions for cell in result['correct'][name]]
  return np.mean([outcomes.unpack(cell, result['num_images']) for cell in cells], axis=0)
