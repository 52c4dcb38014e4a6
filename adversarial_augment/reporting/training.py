"""The sections on what was run, training, the adversary, and the provenance of the numbers."""

import base64
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import re
from typing import Any

from adversarial_augment import config as configs
from adversarial_augment import registry
from adversarial_augment.config import adversaries
from adversarial_augment.config.tables import SIZE_KINDS
from adversarial_augment.reporting import charts, comparisons, figures, sources
from adversarial_augment.reporting.charts import Axes, Series
from adversarial_augment.reporting.parts import Folded, Paragraph, Pictures, Preformatted, Section, grid, section
from adversarial_augment.reporting.runs import Run
from adversarial_augment.reporting.tables import NONE, Row, Table, percent
from adversarial_augment.storage import sharing

_LOGGED = (
  'step', 'loss', 'accuracy', 'attack_loss_start', 'attack_loss_end', 'ssim_mean', 'learning_rate', 'images_per_second',
)  # fmt: skip
_BETWEEN = {'Accuracy': ('clean', 'accuracy'), 'mCE': ('cifar10_c', 'mce')}  # by title of the chart


def what_was_run(runs: Sequence[Run]) -> Section:
  """A column for each run: method, data, steps, machine; and the settings that differ."""
  abouts = [_about(run) for run in runs]
  rows = [Row((name, *(about[name] for about in abouts))) for name in abouts[0]]
  width = len(runs) + 1
  parts = [Table('Runs', ('', *(run.label for run in runs)), rows, words=width)]
  whole = [registry.flatten(run.config) | configs.unknown_to(run.config) for run in runs]  # also of older versions
  flat = [{name: json.dumps(value) for name, value in config.items()} for config in whole]
  names = sorted(set().union(*flat))
  shown = [sharing.relative(config, run.folder) for config, run in zip(whole, runs, strict=True)]
  differing = [
    Row((name, *(json.dumps(config[name]) if name in config else NONE for config in shown)))
    for name in names
    if len({config.get(name) for config in flat}) > 1
  ]
  if differing:
    parts.append(Table('Settings that differ', ('config', *(run.label for run in runs)), differing, words=width))
  return section('runs', 'What was run', *_warnings(runs), *parts, comparisons.test_images(runs))


def _about(run: Run) -> dict[str, str]:
  config, results = run.config, list(run.results.values())
  attack, net, classifier = config['attack'], config['corruption_net'], config['classifier']
  network = NONE
  if adversaries.moves_weights(attack):
    sizes = {name: net[name] for name in SIZE_KINDS if net.get(name) is not None}
    network = ', '.join([net['name'], *(f'{name} {size}' for name, size in sizes.items())])
  steps = f'{run.closing["step"]:,} of {run.closing["num_steps"]:,}' if run.closing else 'not finished'
  command = sharing.relative(run.closing.get('command', ''), run.folder)
  named = re.search(r'--config[= ](\S+)', command)
  about = {
    'config': named[1] if named else NONE,
    'training': adversaries.describe(attack),
    'corruption network': network,
    'classifier': f'{classifier["name"]}-{classifier["depth"]}, width {classifier["width"]}',
    'data set': config['dataset'],
    'steps': f'{steps}, {config["batch_size"]} images each',
    'images seen in training': comparisons.images_seen(run),
    'seed': str(config['seed']),
    'devices': NONE,
    'versions': NONE,
  }
  source = run.closing or (results[0]['provenance'] if results else None)
  if source is None:
    return about
  splits = [split for split in source['data'].values() if isinstance(split, dict)]
  return about | {
    'data set': ', '.join(sorted({f'{split.get("name")} ({split.get("origin", "unverified")})' for split in splits})),
    'devices': f'{source["devices"]["count"]} × {source["devices"]["kind"]}',
    'versions': ', '.join(f'{name} {version}' for name, version in sorted(source['versions'].items())),
  }


def _warnings(runs: Sequence[Run]) -> list[Paragraph]:
  """Cautions for a reader who compares numbers."""
  found = []
  sets = {run.label: run.config['dataset'] for run in runs}
  if len(set(sets.values())) > 1:
    which = ', '.join(f'{label}: {name}' for label, name in sets.items())
    found.append(f'These runs use different data sets, so their numbers are not comparable ({which}).')
  for run in runs:
    last = run.closing.get('step')
    old = [
      f'{name} from step {result["step"]}' for name, result in run.results.items() if last not in (None, result['step'])
    ]
    if old:
      found.append(f'{run.label} was trained to step {last}, but these results are from other steps: {", ".join(old)}.')
    states = {result['checkpoint_sha256'] for result in run.results.values()}
    if len(states) > 1 and not old:
      found.append(f'The results of {run.label} come from different checkpoints; evaluate them together.')
    images = {name: sources.test_set(result) for name, result in run.results.items()}
    if len(set(images.values())) > 1:
      which = ', '.join(f'{name}: {test_set}' for name, test_set in images.items())
      found.append(f'The results of {run.label} come from different test sets ({which}); evaluate them together.')
  return [Paragraph(text, 'note') for text in found]


def curves(runs: Sequence[Run]) -> Section:
  """The metrics of training over its steps, and what was evaluated between them."""
  drawn, never = [], []
  for index, panel in enumerate((*figures.PANELS, figures.Panel('mCE', {}))):
    title, lines = panel.title, []
    for number, run in enumerate(runs):
      label = f'{run.label}, ' if len(runs) > 1 else ''
      for rank, (metric, name) in enumerate(panel.fields.items()):
        points = [(line['step'], line[metric]) for line in run.metrics if line.get(metric) is not None]
        both = f'{label}{name}' if len(panel.fields) > 1 or not label else run.label
        lines.append(Series(both, *_split(points), number, second=rank > 0))
      lines += _between(run, label, number, *_BETWEEN[title]) if title in _BETWEEN else []
    if panel.is_empty(value for line in lines for value in line.y):
      never += [panel.title] if any(len(line.y) for line in lines) else []
      continue
    alt = f'{title} over the steps of training. {_ends(lines)}'
    drawn.append(charts.chart(f'curve{index}', title, lines, Axes('step', '', whole=True), alt))
  rows = [
    Row((run.label, *(_metric(run.metrics[at], name) for name in _LOGGED)))
    for run in runs
    if run.metrics
    for at in sorted({0, len(run.metrics) // 2, len(run.metrics) - 1})
  ]
  caption = 'First, middle and last line of metrics.jsonl, of training batches'
  table = Table(caption, ('run', *_LOGGED), rows) if rows else None
  without = ', '.join(run.label for run in runs if not run.metrics)
  missing = Paragraph(f'No metrics.jsonl in {without}; training writes it.') if without else None
  none = Paragraph(f'{", ".join(never)}: none.') if never else None
  return section('training', 'Training', grid(*drawn), none, table, missing)


def _metric(line: dict, name: str) -> str:
  value = line.get(name)
  return NONE if value is None else str(value) if isinstance(value, int) else f'{value:.4g}'


def _split(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
  return [x for x, _ in points], [y for _, y in points]


def _between(run: Run, label: str, number: int, name: str, field: str) -> list[Series]:
  """The results of an evaluation during training, on the split that the run evaluates."""
  found = [one for one in run.between if name in one['evals']]
  points = [(one['step'], one['evals'][name][field]) for one in found]
  return [Series(f'{label}{name}, {found[0]["split"]}', *_split(points), number, second=True)] if found else []


def _ends(lines: Sequence[Series]) -> str:
  ends = (f'{line.label}: from {line.y[0]:.3g} to {line.y[-1]:.3g}' for line in lines if len(line.y))
  return f'{"; ".join(ends)}.'


def adversary(runs: Sequence[Run]) -> Section:
  """Adversarial examples, and how similar they are to the clean images (Figure 1b)."""
  pictures = [_examples(run) for run in runs if run.examples]
  damages = [Paragraph(run.damage, 'note') for run in runs if run.damage]
  found = sources.having(runs, 'ada')
  lines, rows = [], []
  for number, run, result in found:
    lines.append(Series(run.label, *_density(result['ssim_histogram']), number))
    values = [f'{result[name]:.4f}' for name in ('ssim', 'attack_loss_start', 'attack_loss_end')]
    shares = [percent(result[name]) for name in ('ssim_corrected', 'ssim_below_min')]
    least = f'{result["provenance"]["config"]["attack"]["min_ssim"]:g}'
    rows.append(Row((run.label, least, *values, *shares)))
  about = '; '.join(f'{run.label}: mean {result["ssim"]:.4f}' for _, run, result in found)
  title = 'SSIM of adversarial and clean images, before the line search'
  density = charts.chart('ssim', title, lines, Axes('SSIM', 'density', from_zero=True), f'Density of SSIM. {about}.')
  columns = ('run', 'minimum SSIM', 'mean SSIM', 'loss at start', 'at end', 'corrected, %', 'left below, %')
  caption = 'The adversary on test images; the line search corrects those below the minimum SSIM'
  table = Table(caption, columns, rows) if rows else None
  return section('adversary', 'The adversary', grid(*pictures, style='pictures'), *damages, grid(density, table))


def _examples(run: Run) -> Pictures:
  """The picture of adversarial examples: in parts that lie beside or below each other, as the page is wide."""
  title, parts = figures.pieces(run.examples)
  about = f'{run.label}: clean, adversarial, and the difference (× {figures.GAIN:g}, around mid-grey)'
  alt = f'Clean test images, what the adversary makes of them, and the differences, with the SSIM of each: {run.label}'
  return Pictures(f'{about}; {title}' if title else about, alt, [base64.b64encode(part).decode() for part in parts])


def _density(histogram: Mapping[str, Any]) -> tuple[list[float], list[float]]:
  """The outline of a histogram of area 1, from its first filled bin on."""
  bins = list(zip(histogram['edges'][:-1], histogram['edges'][1:], histogram['count'], strict=True))
  first = next(i for i, (_, _, n) in enumerate(bins) if n)
  x, y = [bins[first][0]], [0.0]
  for left, right, n in bins[first:]:
    x += [left, right]
    y += [n / sum(histogram['count']) / (right - left)] * 2
  return [*x, x[-1]], [*y, 0.0]


def provenance(runs: Sequence[Run]) -> Section:
  """Hashes, versions, commands and the whole config, folded."""
  parts = []
  for run in runs:
    rows = [Row(('folder', sharing.relative(str(run.folder), Path.cwd())))]
    sources = {name: _source(sharing.relative(result, run.folder)) for name, result in run.results.items()}
    if run.closing:
      names = ('command', 'state_sha256', 'config_sha256')
      rows += [
        Row((f'training: {name}', _plain(sharing.relative(run.closing[name], run.folder))))
        for name in names
        if name in run.closing
      ]
    for key in dict.fromkeys(key for source in sources.values() for key in source):
      values = {name: source[key] for name, source in sources.items() if key in source}
      shared = len(values) == len(sources) and len(set(values.values())) == 1
      shown = [('evaluation', next(iter(values.values())))] if shared else values.items()
      rows += [Row((f'{name}: {key}', value)) for name, value in shown]
    table = Table('Where the numbers come from', ('', run.label), rows, words=2)
    config = json.dumps(sharing.relative(run.config, run.folder), indent=2, sort_keys=True)
    parts.append(Folded(run.label, [table, Folded('config.json', [Preformatted(config)])]))
  return section('provenance', 'Provenance', *parts)


def _source(result: Mapping[str, Any]) -> dict[str, str]:
  """The provenance of an evaluation as text, without the config, which is that of the run."""
  about = {key: value for key, value in result['provenance'].items() if key != 'config'}
  flat = {key: result[key] for key in ('step', 'checkpoint_sha256', 'seconds')} | registry.flatten(about)
  return {key: _plain(value) for key, value in flat.items()}


def _plain(value: object) -> str:
  return value if isinstance(value, str) else json.dumps(value)
