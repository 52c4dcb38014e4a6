"""The frontier of mCE against cost as CSV, Markdown and a picture, from the entries of frontier.py.

All errors are percent; costs are in nominal steps. With several seeds: the mean +- its standard error.
"""

from collections.abc import Mapping
import csv
import io
import math
from pathlib import Path
import statistics
import textwrap
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from adversarial_augment import metrics
from adversarial_augment.errors import UserError
from adversarial_augment.reporting.published import COLUMNS
from experiments import figure_files
from experiments.table1_drawing import QUANTITIES, Estimate, Seeds, estimate, header, line

Entries = Mapping[str, Seeds]  # setting -> seed -> entry of the table
MINUTES = '_equal_minutes'
COSTS = ('cost_measured', 'cost_flop')  # of a step, in nominal ones
_FADED = 0.55
_TICKS = (1, 1.5, 2, 3, 5, 10, 20)
_ENDS = 0.9, 26  # of the axis of costs
REFERENCES = ('ada_10_steps', 'ada_augmix_10_steps', 'nominal', 'augmix')
NAMED = (*REFERENCES, 'fast_ada', 'fast_ada_augmix', 'fast_ada_augmix_every_4', 'fast_ada_random')  # in pictures


class _Provenance(msgspec.Struct):
  config: dict[str, Any]
  data: dict[str, Any]
  corruptions: dict[str, Any]


class _Entry(msgspec.Struct):
  split: Literal['test', 'holdout']
  cost_measured: Annotated[float, msgspec.Meta(gt=0)]
  cost_flop: Annotated[float, msgspec.Meta(gt=0)]
  provenance: _Provenance


def texts(table: Entries, path: Path) -> dict[str, str]:
  """Returns the files of a table: suffix -> contents.

  Raises:
    UserError: entries of a split are of different images or corruptions, or of different lengths.
  """
  msgspec.convert(table, dict[str, dict[Annotated[str, msgspec.Meta(pattern='^[0-9]+$')], _Entry]])
  for split in _splits(table):
    found, seen = {}, {}
    for name, seeds in parts(table, split).items():
      for seed, entry in seeds.items():
        found[tuple(images(entry, split).values())] = f'{name}, seed {seed}'
        if not name.endswith(MINUTES):
          seen[entry['images_seen']] = f'{name}, seed {seed}'
    if len(found) > 1:
      where = '; '.join(found.values())
      raise UserError(f"entries of '{path}' are of different images ({where}); name another --output, or repeat them.")
    if seen and max(seen) > 1.01 * min(seen):  # free replay rounds its steps
      where = '; '.join(f'{seen[number]}: {number:,}' for number in (min(seen), max(seen)))
      raise UserError(f"entries of '{path}' saw different numbers of images ({where}); name another --output.")
  return {'.csv': _csv(table), '.md': _markdown(table)}


def images(entry: Mapping[str, Any], split: str) -> dict[str, Any]:
  """Returns what tells the images of an entry from others."""
  data, made = (entry['provenance'][part] for part in ('data', 'corruptions'))
  return {
    'SHA-256 of the images': data[split].get('sha256'),
    'number of images': entry['num_images'],
    'version of the corruptions': made.get('made_with', {}).get('corruptions'),
    'SHA-256 of the corrupted images': made.get('sha256'),
    'seed of the corruptions': made.get('seed'),
    'frost': made.get('frost'),
  }


def parts(table: Entries, split: str) -> dict[str, Seeds]:
  """Returns the entries of a split, those that an entry on test images keeps included."""
  found: dict[str, dict[str, Mapping[str, Any]]] = {}
  for name, seeds in table.items():
    for seed, entry in seeds.items():
      one = entry if entry['split'] == split else entry.get('holdout')
      if one is not None:
        found.setdefault(name, {})[seed] = one
  return found


def _splits(table: Entries) -> list[str]:
  return [split for split in ('test', 'holdout') if parts(table, split)]


def _csv(table: Entries) -> str:
  text = io.StringIO()
  out = csv.writer(text, lineterminator='\n')
  numbers = (*COSTS, 'images_seen', 'minutes', 'clean_error', 'mce')
  out.writerow(['setting', 'split', 'seed', 'start', *numbers, *COLUMNS])
  for split in _splits(table):
    for name, seeds in parts(table, split).items():
      for seed, entry in seeds.items():
        errors = [entry['corruption_error'][corruption] for corruption in metrics.NAMES]
        out.writerow([name, split, seed, start(entry)[:8], *(entry[number] for number in numbers), *errors])
  return text.getvalue()


def _markdown(table: Entries) -> str:
  lines = []
  for split in _splits(table):
    of_split = parts(table, split)
    lines += [
      f'Errors in percent, ± their standard error over seeds; costs in nominal steps. {about(of_split, split)}.',
      '',
    ]
    columns = ['setting', 'seeds', 'cost, measured', 'cost by FLOP', 'images seen', 'minutes', *QUANTITIES]
    lines += header(columns)
    for name, seeds in sorted(of_split.items(), key=lambda item: _cost(item[1])):
      first = next(iter(seeds.values()))
      minutes = statistics.mean(entry['minutes'] for entry in seeds.values())
      cells = [f'{_cost(seeds):.2f}', f'{first["cost_flop"]:.2f}', f'{first["images_seen"]:,}', f'{minutes:.1f}']
      own = [estimate([of(entry) for entry in seeds.values()]) for of in QUANTITIES.values()]
      lines.append(line([name, ', '.join(sorted(seeds)), *cells, *own]))
    lines.append('')
    for reference in _references(of_split):
      others = differences(of_split, reference)
      if others:
        lines += [f'Difference to {reference}, paired by seed, in points:', '']
        lines += header(['setting', 'seeds', *QUANTITIES])
        lines += [line([name, ', '.join(both), *found]) for name, (both, found) in others.items()]
        lines.append('')
      alike = {name for name in of_split if name.endswith(MINUTES) == reference.endswith(MINUTES)}
      left = sorted(alike - {reference, *others})
      for is_common, why in ((True, 'their starts are others'), (False, 'they have no seed in common')):
        of = [name for name in left if bool(of_split[name].keys() & of_split[reference].keys()) == is_common]
        if of:
          lines += [f'Not compared with {reference}, because {why}: {", ".join(of)}.', '']
  return '\n'.join(lines)


def start(entry: Mapping[str, Any]) -> str:
  """Returns the hash of the classifier that a run started from; '' where it started from scratch."""
  return (entry['provenance'].get('init_from') or {}).get('checkpoint_sha256', '')


def _references(table: Entries) -> list[str]:
  return [name for one in REFERENCES for name in (one, one + MINUTES) if name in table]


def differences(table: Entries, reference: str) -> dict[str, tuple[list[str], list[Estimate]]]:
  """Returns, of each other setting with as many minutes or images, the common seeds and the mean differences.

  A seed whose start was trained again, as on another machine, is common to runs from the same start alone.
  """
  base, found = table[reference], {}
  for name, seeds in table.items():
    both = sorted(one for one in seeds.keys() & base.keys() if start(seeds[one]) == start(base[one]))
    if name != reference and both and name.endswith(MINUTES) == reference.endswith(MINUTES):
      values = [estimate([of(seeds[one]) - of(base[one]) for one in both]) for of in QUANTITIES.values()]
      found[name] = both, values
  return found


def about(table: Entries, split: str) -> str:
  """Describes the data of the numbers."""
  entry = next(entry for seeds in table.values() for entry in seeds.values())
  data, made = (entry['provenance'][part] for part in ('data', 'corruptions'))
  of = {'test': 'test images', 'holdout': 'training images that no run has seen'}[split]
  return (
    f'{data[split]["name"]} ({data[split]["origin"]}), {entry["num_images"]:,} {of}; corruptions {entry["origin"]}, '
    f'seed {made["seed"]}, frost: {made["frost"]}'
  )


def _above(points: Mapping[str, tuple[float, float]]) -> dict[str, bool]:
  """Returns whether the name of a point (cost, value) goes above it: away from the point that lies next to it."""
  values = [value for _, value in points.values()]
  height = max(values) - min(values) or 1

  def distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return math.hypot(math.log(one[0] / other[0], _ENDS[1] / _ENDS[0]), (one[1] - other[1]) / height)

  found = {}
  for name, point in points.items():
    others = [other for one, other in points.items() if one != name]
    found[name] = point[1] >= min(others, key=lambda other: distance(point, other), default=point)[1]
  return found


def _cost(seeds: Seeds) -> float:
  return statistics.mean(entry['cost_measured'] for entry in seeds.values())


def picture(table: Entries) -> bytes:
  """Returns clean error, mCE and gap against cost as PNG; rows: test images, equal minutes, held-out images.

  Dots are at the measured cost, rings at that by FLOP; see `heights`. `NAMED` have their names.
  """
  from matplotlib.figure import Figure

  rows = {}
  for split in _splits(table):
    for minutes, alike in ((False, 'equal images'), (True, 'equal minutes')):
      chosen = {name: seeds for name, seeds in parts(table, split).items() if name.endswith(MINUTES) == minutes}
      if chosen and not (minutes and rows.keys() & {f'{alike}, test images'}):
        rows[f'{alike}, {"test" if split == "test" else "held-out"} images'] = chosen
  figure = Figure(figsize=(13, 4.2 * len(rows)), layout='constrained')
  axes = figure.subplots(len(rows), len(QUANTITIES), squeeze=False)
  notes = [f'{about(parts(table, split), split)}.' for split in _splits(table)]
  for row, (title, chosen) in zip(axes, rows.items(), strict=True):
    drawn, reference = heights(chosen)
    of = f'the mean of {reference.removesuffix(MINUTES)}, and differences to it, paired by seed'
    notes.append(f'{title.capitalize()}: {of}, with standard errors where there are several seeds.')
    if left := sorted(chosen.keys() - drawn.keys()):
      notes[-1] += f' Not drawn, with an mCE above nominal or from another start: {", ".join(left)}.'
    named = list(filter(_is_special, drawn))
    for column, (axis, quantity) in enumerate(zip(row, QUANTITIES, strict=True)):
      above = _above({name: (_cost(chosen[name]), drawn[name][column][0]) for name in named})
      for name, estimates in drawn.items():
        (value, error), style, cost = estimates[column], _style(name), _cost(chosen[name])
        axis.errorbar(cost, value, error, **style, markersize=5, capsize=2)
        flop = next(iter(chosen[name].values()))['cost_flop']
        axis.plot([cost, flop], [value, value], color=style['color'], linewidth=0.5, alpha=0.5)
        axis.errorbar(flop, value, **style, markersize=5, fillstyle='none')
        if name in named:
          is_left, is_above = cost < 8, above[name]
          place = {'xytext': (4 if is_left else -6, 3 if is_above else -9), 'ha': 'left' if is_left else 'right'}
          axis.annotate(name.removesuffix(MINUTES), (cost, value), **place, textcoords='offset points', fontsize=7)
      axis.set_xscale('log')
      axis.set_xlim(_ENDS)
      axis.set_xticks(_TICKS, map(str, _TICKS))
      axis.minorticks_off()
      axis.set_title(f'{quantity} (%), {title}', fontsize=10)
      axis.set_xlabel('cost of a step, in nominal steps', fontsize=8)
      axis.grid(alpha=0.3)
  marks = {
    'without AugMix': {'marker': 'o', 'color': 'C0'},
    'with AugMix': {'marker': 's', 'color': 'C1'},
    'other settings': {'marker': 'o', 'color': '0.3', 'alpha': _FADED},
    'cost measured': {'marker': 'o', 'color': '0.3'},
    'cost by FLOP': {'marker': 'o', 'color': '0.3', 'fillstyle': 'none'},
  }
  for label, style in marks.items():
    axes[0, 1].plot([], [], linestyle='none', markersize=5, label=label, **style)
  axes[0, 1].legend(fontsize=8, loc='upper right')
  figure.supxlabel('\n'.join(textwrap.fill(note, 200) for note in notes), fontsize=7)
  content = io.BytesIO()
  figure.savefig(content, format='png', dpi=130)
  return content.getvalue()


def heights(table: Entries) -> tuple[dict[str, list[Estimate]], str]:
  """Returns where a picture has settings, in the order of `QUANTITIES`, and the reference, which lies at its mean.

  The reference is the first of `REFERENCES` with the most seeds or, without any, the first by name. Others lie above it
  by the difference of their common seeds, with its standard error. Left out are those with another start, and others
  than the reference with an mCE above nominal's.
  """
  reference = max(_references(table), key=lambda name: len(table[name]), default=min(table))
  own = [estimate([of(entry) for entry in table[reference].values()]) for of in QUANTITIES.values()]
  found = {reference: [Estimate(one.mean, None) for one in own]}
  for name, (_, others) in differences(table, reference).items():
    found[name] = [Estimate(one.mean + other.mean, other.error) for one, other in zip(own, others, strict=True)]
  mce, nominal = list(QUANTITIES).index('mCE'), [found[name] for name in found if name.startswith('nominal')]
  highest = nominal[0][mce].mean if nominal else np.inf
  return {name: one for name, one in found.items() if name == reference or one[mce].mean <= highest}, reference


def _is_special(name: str) -> bool:
  return name.removesuffix(MINUTES) in NAMED


def _style(name: str) -> dict[str, Any]:
  kind = 'augmix' in name
  return {'fmt': 's' if kind else 'o', 'color': 'C1' if kind else 'C0', 'alpha': 1.0 if _is_special(name) else _FADED}


def draw_densities(found: Mapping[str, Any], path: Path) -> None:
  """Draws the densities of the SSIM that adversaries leave, by frontier_strength.py, between its percentiles."""
  named = {name: one for name, one in found['settings'].items() if name in NAMED}
  figure = figure_files.new(9, 5)
  axes = figure.subplots()
  for name, one in named.items():
    edges = np.array(one['ssim_percentiles'])  # rounded to 1e-6
    density = 1 / (len(edges) - 1) / np.maximum(np.diff(edges), 1e-6)
    axes.stairs(density, edges, linewidth=1.5, label=f'{name}: mean {one["ssim_mean"]:.4f}')
  axes.set_yscale('log')
  axes.set_xlabel('SSIM with c(x)')
  axes.set_ylabel('density (logarithmic)')
  axes.legend(fontsize=8, loc='upper left')
  data = found['provenance']['data']['validation']
  figure_files.save(figure, path, [f'{data["name"]} ({data["origin"]}), {found["num_images"]} held-out images'])
