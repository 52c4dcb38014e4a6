"""The sections on what was run, training, the adversary, and the provenance of the numbers."""

import base64
from collections.abc import Iterator, Mapping, Sequence
import itertools
import json
from pathlib import Path
import re
from typing import Any

from adversarial_augment import checks
from adversarial_augment import config as configs
from adversarial_augment.config import adversaries
from adversarial_augment.config.evaluations import are_read
from adversarial_augment.config.tables import SIZE_KINDS
from adversarial_augment.reporting import charts, comparisons, figures, parts, sources
from adversarial_augment.reporting.charts import Series
from adversarial_augment.reporting.parts import NONE, Folded, Paragraph, Row, Section, Table, grid, percent, section
from adversarial_augment.reporting.runs import Run
from adversarial_augment.storage import sharing

_LOGGED = (
  'step', 'loss', 'accuracy', 'attack_loss_start', 'attack_loss_end', 'ssim_mean', 'learning_rate', 'images_per_second',
)  # fmt: skip
_BETWEEN = {'Accuracy': ('clean', 'accuracy'), 'mCE': ('cifar10_c', 'mce')}  # by title of the chart


def what_was_run(runs: Sequence[Run]) -> Section:
  """A column for each run: method, data, steps, machine; and the settings that differ."""
  columns, words = ('', *(run.label for run in runs)), len(runs) + 1
  abouts = [about(run) for run in runs]
  table = Table('Runs', columns, [Row((name, *(one[name] for one in abouts))) for name in abouts[0]], words=words)
  whole = [_settings(run) for run in runs]
  shown = [sharing.relative(config, run.folder) for config, run in zip(whole, runs, strict=True)]
  texts = lambda configs, name: [json.dumps(config[name]) if name in config else NONE for config in configs]
  names = [name for name in sorted(set().union(*whole)) if len(set(texts(whole, name))) > 1]
  rows = [Row((name, *texts(shown, name))) for name in names]
  differing = Table('Settings that differ', ('config', *columns[1:]), rows, words=words)
  cautions = [Paragraph(text, 'note') for text in _cautions(runs)]
  return section('runs', 'What was run', *cautions, table, differing, sources.test_images(runs))


def _settings(run: Run) -> dict[str, Any]:
  """Returns the fields of a run's config, also of an older version; of an audit, those that evaluations read."""
  flat = checks.flatten(run.config) | configs.unknown_to(run.config)
  return {name: value for name, value in flat.items() if not run.audited or are_read(name)}


def about(run: Run) -> dict[str, str]:
  """Returns method, data, steps and machine of a run, by name."""
  config, results = run.config, list(run.results.values())
  attack, net, classifier = config['attack'], config['corruption_net'], config['classifier']
  network = NONE
  if adversaries.moves_weights(attack):
    sizes = {name: net[name] for name in SIZE_KINDS if net.get(name) is not None}
    network = ', '.join([net['name'], *(f'{name} {size}' for name, size in sizes.items())])
  steps = f'{run.closing["step"]:,} of {run.closing["num_steps"]:,}' if run.closing else 'not finished'
  named = re.search(r'--config[= ](\S+)', sharing.relative(run.closing.get('command', ''), run.folder))
  data, devices, versions = config['dataset'], NONE, NONE
  if source := run.closing or (results[0]['provenance'] if results else None):
    splits = [split for split in source['data'].values() if isinstance(split, dict)]
    data = ', '.join(sorted({f'{split.get("name")} ({split.get("origin", "unverified")})' for split in splits}))
    devices = _devices(source)
    versions = ', '.join(f'{name} {version}' for name, version in sorted(source['versions'].items()))
  about = {
    'config': named[1] if named else NONE,
    'training': adversaries.describe(attack),
    'corruption network': network,
    'classifier': f'{classifier["name"]}-{classifier["depth"]}, width {classifier["width"]}',
    'data set': data,
    'steps': f'{steps}, {config["batch_size"]} images each',
    'images seen in training': comparisons.images_seen(run),
    'seed': str(config['seed']),
    'devices': devices,
    'versions': versions,
  }
  if run.audited:
    model = run.audited
    doubts = sorted(
      {doubt for result in (*results, *run.robustness) for doubt in result['provenance'].get('doubts', ())}
    )
    unknown = dict.fromkeys(('config', 'corruption network', 'steps', 'seed'), NONE)
    name = f'{model["model"]} ({model["kind"]}), weights {model["weights_sha256"][:12]}'
    doubtful = f', DOUBTFUL: {", ".join(doubts)}' if doubts else ''
    about |= {**unknown, 'training': 'elsewhere, not known', 'classifier': f'{name}{doubtful}'}
  return about


def _devices(source: Mapping[str, Any]) -> str:
  """Returns the devices of a result; of a run that changed them, which ones it had to which step."""
  groups = itertools.groupby(source.get('segments', ()), lambda one: f'{one["devices"]} × {one["device_kind"]}')
  shown = [f'{devices} to step {[*starts][-1]["last_step"]:,}' for devices, starts in groups]
  if len(shown) > 1:
    return ', '.join(shown)
  return f'{source["devices"]["count"]} × {source["devices"]["kind"]}'


def _cautions(runs: Sequence[Run]) -> Iterator[str]:
  """Yields cautions for a reader who compares numbers."""
  sets = {run.label: run.config['dataset'] for run in runs}
  if len(set(sets.values())) > 1:
    which = ', '.join(f'{label}: {name}' for label, name in sets.items())
    yield f'These runs use different data sets, so their numbers are not comparable ({which}).'
  for run in runs:
    last = run.closing.get('step')
    old = [f'{name} from step {one["step"]}' for name, one in run.results.items() if last not in (None, one['step'])]
    if old:
      yield f'{run.label} was trained to step {last}, but these results are from other steps: {", ".join(old)}.'
    elif len({result['checkpoint_sha256'] for result in run.results.values()}) > 1:
      yield f'The results of {run.label} come from different checkpoints; evaluate them together.'
    images = {name: sources.test_set(result) for name, result in run.results.items()}
    if len(set(images.values())) > 1:
      which = ', '.join(f'{name}: {test_set}' for name, test_set in images.items())
      yield f'The results of {run.label} come from different test sets ({which}); evaluate them together.'


def curves(runs: Sequence[Run]) -> Section:
  """The metrics of training over its steps, and what was evaluated between them."""
  drawn, never = [], []
  for index, panel in enumerate((*figures.PANELS, figures.Panel('mCE', {}))):
    lines = [line for number, run in enumerate(runs) for line in _series(run, number, panel, len(runs) > 1)]
    if panel.is_empty(value for line in lines for value in line.y):
      never += [panel.title] if any(len(line.y) for line in lines) else []
      continue
    ends = '; '.join(f'{line.label}: from {line.y[0]:.3g} to {line.y[-1]:.3g}' for line in lines if len(line.y))
    alt = f'{panel.title} over the steps of training. {ends}.'
    drawn.append(charts.chart(f'curve{index}', panel.title, lines, alt, x='step'))
  rows = [
    Row((run.label, *(_metric(run.metrics[at], name) for name in _LOGGED)))
    for run in runs
    if run.metrics
    for at in sorted({0, len(run.metrics) // 2, len(run.metrics) - 1})
  ]
  caption = 'First, middle and last line of metrics.jsonl, of training batches'
  table = Table(caption, ('run', *_LOGGED), rows)
  without = ', '.join(run.label for run in runs if not run.metrics)
  missing = Paragraph(f'No metrics.jsonl in {without}; training writes it.') if without else None
  none = Paragraph(f'{", ".join(never)}: none.') if never else None
  return section('training', 'Training', grid(*drawn), none, table, missing)


def _series(run: Run, number: int, panel: figures.Panel, several: bool) -> Iterator[Series]:
  """Yields the curves of a run in a panel, those of evaluations between steps last."""
  label = f'{run.label}, ' if several else ''
  for rank, (metric, name) in enumerate(panel.fields.items()):
    both = run.label if several and len(panel.fields) == 1 else f'{label}{name}'
    yield Series(both, *figures.curve(run.metrics, metric), number, second=rank > 0)
  name, field = _BETWEEN.get(panel.title, ('', ''))
  if found := [one for one in run.between if name in one['evals']]:
    steps, values = [one['step'] for one in found], [one['evals'][name][field] for one in found]
    yield Series(f'{label}{name}, {found[0]["split"]}', steps, values, number, second=True)


def _metric(line: Mapping[str, Any], name: str) -> str:
  value = line.get(name)
  return NONE if value is None else str(value) if isinstance(value, int) else f'{value:.4g}'


def adversary(runs: Sequence[Run]) -> Section:
  """Adversarial examples, and how similar they are to the clean images (Figure 1b)."""
  pictures = [_examples(run) for run in runs if run.examples]
  damages = [Paragraph(run.damage, 'note') for run in runs if run.damage]
  lines, rows, means = [], [], []
  for number, run, result in sources.having(runs, 'ada'):
    lines.append(Series(run.label, *_density(result['ssim_histogram']), number))
    values = (f'{result[name]:.4f}' for name in ('ssim', 'attack_loss_start', 'attack_loss_end'))
    shares = (percent(result[name]) for name in ('ssim_corrected', 'ssim_below_min'))
    least = f'{result["provenance"]["config"]["attack"]["min_ssim"]:g}'
    rows.append(Row((run.label, least, *values, *shares)))
    means.append(f'{run.label}: mean {result["ssim"]:.4f}')
  title, alt = 'SSIM of adversarial and clean images, before the line search', f'Density of SSIM. {"; ".join(means)}.'
  density = charts.chart('ssim', title, lines, alt, x='SSIM', y='density', from_zero=True)
  columns = ('run', 'minimum SSIM', 'mean SSIM', 'loss at start', 'at end', 'corrected, %', 'left below, %')
  caption = 'The adversary on test images; the line search corrects those below the minimum SSIM'
  table = Table(caption, columns, rows)
  return section('adversary', 'The adversary', grid(*pictures, style='pictures'), *damages, grid(density, table))


def _examples(run: Run) -> parts.Pictures:
  """The picture of adversarial examples: in parts that lie beside or below each other, as the page is wide."""
  title, pieces = figures.pieces(run.examples)
  about = f'{run.label}: clean, adversarial, and the difference (× {figures.GAIN:g}, around mid-grey)'
  alt = f'Clean test images, what the adversary makes of them, and the differences, with the SSIM of each: {run.label}'
  return parts.Pictures(
    f'{about}; {title}' if title else about, alt, [base64.b64encode(piece).decode() for piece in pieces]
  )


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
  shown = []
  for run in runs:
    table = Table('Where the numbers come from', ('', run.label), list(map(Row, _origins(run))), words=2)
    name, content = ('audit.json', run.audited) if run.audited else ('config.json', run.config)
    text = json.dumps(sharing.relative(content, run.folder), indent=2, sort_keys=True)
    shown.append(Folded(run.label, [table, Folded(name, text)]))
  return section('provenance', 'Provenance', *shown)


def _origins(run: Run) -> Iterator[tuple[str, str]]:
  """Yields what is known of the training and the evaluations, those that all share once."""
  yield 'folder', sharing.relative(str(run.folder), Path.cwd())
  for name in ('command', 'state_sha256', 'config_sha256'):
    if name in run.closing:
      yield f'training: {name}', _plain(sharing.relative(run.closing[name], run.folder))
  by_result = {name: _flat(sharing.relative(result, run.folder)) for name, result in run.results.items()}
  for key in dict.fromkeys(key for flat in by_result.values() for key in flat):
    values = {name: flat[key] for name, flat in by_result.items() if key in flat}
    shared = len(values) == len(by_result) and len(set(values.values())) == 1
    for name, value in [('evaluation', next(iter(values.values())))] if shared else values.items():
      yield f'{name}: {key}', value


def _flat(result: Mapping[str, Any]) -> dict[str, str]:
  """The provenance of an evaluation as text, without the config, which is that of the run."""
  about = {key: value for key, value in result['provenance'].items() if key != 'config'}
  flat = {key: result[key] for key in ('step', 'checkpoint_sha256', 'seconds')} | checks.flatten(about)
  return {key: _plain(value) for key, value in flat.items()}


def _plain(value: object) -> str:
  return value if isinstance(value, str) else json.dumps(value)
