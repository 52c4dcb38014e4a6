"""Pictures of a run: what the adversary does to images (Figure 1a), and the training curves.

Matplotlib, of the extra 'plots', is imported when a picture is drawn; no display is needed.
"""

from collections.abc import Iterable, Mapping, Sequence
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from adversarial_augment import results
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact

if TYPE_CHECKING:
  from matplotlib.figure import Figure

GAIN = 5.0  # of the differences in `ada_examples`; they are drawn around mid-grey
_DPI = 160
_LEFT, _TILE, _GAP, _TOP = 1.0, 1.05, 0.05, 0.4  # inches: names of the rows, a tile, between tiles, the title
_SMALL: dict[str, Any] = {'ha': 'center', 'va': 'bottom', 'fontsize': 8}  # text
_PIECE = 4  # columns of a part for a narrow page
_COLUMNS = 'Columns'  # where the columns are, in a PNG's own words: left edge, distance, upper edge, number


class Panel(NamedTuple):
  """A panel of the training curves."""

  title: str
  fields: Mapping[str, str]  # of metrics.jsonl, with their labels
  counts_events: bool = False  # of a kind that may never happen; without any, the panel is empty

  def is_empty(self, values: Iterable[float]) -> bool:
    found = list(values)
    return not found or (self.counts_events and not any(found))


PANELS = (
  Panel('Loss', {'loss': 'training'}),
  Panel('Accuracy', {'accuracy': 'training'}),
  Panel('Loss under attack', {'attack_loss_start': 'at the start', 'attack_loss_end': 'after the last step'}),
  Panel('Mean SSIM, before any line search', {'ssim_mean': 'mean'}),
  Panel(
    'Images below the SSIM threshold',
    {'ssim_corrected': 'corrected', 'ssim_below_min': 'left below'},
    counts_events=True,
  ),
  Panel('Learning rate', {'learning_rate': 'learning rate'}),
)
METRICS = tuple(field for panel in PANELS for field in panel.fields)


def curve(lines: Sequence[Mapping[str, Any]], field: str) -> tuple[list[int], list[float]]:
  """Returns steps and values of one field of metrics.jsonl, where it is present."""
  found = [line for line in lines if line.get(field) is not None]
  return [line['step'] for line in found], [line[field] for line in found]


def ada_examples(
  path: Path,
  images: np.ndarray,
  corrupted: np.ndarray,
  ssim: Sequence[float] | np.ndarray,
  labels: Sequence[str],
  seen: tuple[Sequence[str], Sequence[str]],
  title: str,
) -> None:
  """Draws clean and adversarial images [n, h, w, 3] in [0, 1] and their differences as a PNG, one column each.

  This is Figure 1a of arXiv 2104.01086. `labels` are the true classes, [n], and `seen` those that a classifier took the
  clean and the adversarial images for.
  """
  n, heads = len(images), _heads(labels, seen)
  above = [0.07 + 0.14 * max(text.count('\n') + 1 for text, _ in row) if row else 0.0 for row in heads]
  width, height = _LEFT + n * (_TILE + _GAP) + 0.1, _TOP + sum(above) + 3 * (_TILE + _GAP) + 0.3
  figure = _figure(width, height)

  def write(x: float, y: float, text: str, **options: Any) -> None:
    figure.text(x / width, y / height, text, **_SMALL | options)

  rows = {
    'clean': images,
    'adversarial': corrupted,
    f'difference\n× {GAIN:g}': np.clip(0.5 + GAIN * (corrupted - images), 0.0, 1.0),
  }
  y = height - _TOP
  for (name, tiles), row, room in zip(rows.items(), heads, above, strict=True):
    y -= room + _TILE + _GAP
    middle = 0.72 if name.startswith('difference') else 0.5
    write(_LEFT - 0.08, y + middle * _TILE, name, ha='right', va='center', fontsize=9)
    for column, tile in enumerate(tiles):
      x = _LEFT + column * (_TILE + _GAP)
      axes = figure.add_axes((x / width, y / height, _TILE / width, _TILE / height))
      axes.imshow(tile.astype(np.float32), vmin=0.0, vmax=1.0, interpolation='nearest')
      axes.set_axis_off()
      if row:
        text, is_wrong = row[column]
        weight = 'bold' if is_wrong else 'normal'
        write(x + _TILE / 2, y + _TILE + 0.04, text, parse_math=False, weight=weight)
  for column, value in enumerate(ssim):
    write(_LEFT + column * (_TILE + _GAP) + _TILE / 2, 0.1, f'SSIM {value:.3f}')
  _draw_key(figure, width, height, y)
  # A long title breaks into lines; there is room for two.
  figure.suptitle(title, x=0.5, y=1 - 0.08 / height, va='top', fontsize=10, wrap=True, parse_math=False)
  columns = [round(_DPI * inches) for inches in (_LEFT, _TILE + _GAP, _TOP)]
  _save(figure, path, {'Title': title, _COLUMNS: json.dumps([*columns, n])})


def _heads(labels: Sequence[str], seen: tuple[Sequence[str], Sequence[str]]) -> list[list[tuple[str, bool]]]:
  """Returns what stands above each tile of the three rows, and whether the classifier was wrong."""
  short = lambda name: name if len(name) <= 14 else f'{name[:13]}…'
  pairs = [list(zip(labels, row, strict=True)) for row in seen]
  longest = max(len(short(name) + short(taken)) for row in pairs for name, taken in row)
  between = ' ' if longest <= 7 else '\n'
  head = lambda name, taken: (f'{short(name)}{between}seen as {short(taken)}', name != taken)
  return [*([head(*pair) for pair in row] for row in pairs), []]


def _draw_key(figure: 'Figure', width: float, height: float, y: float) -> None:
  """Draws what the greys of the differences mean, left of their row, whose lower edge is `y` inches up."""
  axes = figure.add_axes((0.14 / width, (y + 0.34) / height, (_LEFT - 0.28) / width, 0.12 / height))
  axes.imshow(np.linspace(0, 1, 64)[None], cmap='gray', vmin=0, vmax=1, aspect='auto')
  most = 0.5 / GAIN
  axes.set_xticks([0, 31.5, 63], [f'−{most:g}', '0', f'+{most:g}'], fontsize=7)
  axes.set_yticks([])
  axes.tick_params(length=2, pad=1)
  axes.set_xlabel('change of a colour', fontsize=6, labelpad=1)


def pieces(picture: bytes) -> tuple[str, list[bytes]]:
  """Returns the title of a PNG of `ada_examples`, and parts of 4 columns, each with the names of the rows.

  Without more columns than that, or without a word of where they are: '' and the whole picture.
  """
  with Image.open(io.BytesIO(picture), formats=('PNG',)) as image:
    image.load()
    about: dict[str, Any] = getattr(image, 'text', {})
    try:
      left, step, top, n = (int(number) for number in json.loads(about[_COLUMNS]))
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
      return '', [picture]
    fits = min(left, step, top) > 0 and left + n * step <= image.width and top < image.height
    if not fits or n <= _PIECE:
      return '', [picture]
    names, parts = image.crop((0, top, left, image.height)), []
    for first in range(0, n, _PIECE):
      tiles = image.crop((left + first * step, top, left + min(first + _PIECE, n) * step, image.height))
      part = Image.new('RGB', (left + _PIECE * step, tiles.height), 'white')
      part.paste(names, (0, 0))
      part.paste(tiles, (left, 0))
      content = io.BytesIO()
      part.save(content, 'PNG')
      parts.append(content.getvalue())
    return str(about.get('Title', '')), parts


def training_curves(path: Path, metrics_jsonl: Path) -> None:
  """Draws the metrics of a run over its steps as a PNG, one panel for each quantity that the run has something of."""
  lines = results.read_log(metrics_jsonl, METRICS)
  panels = {}
  for panel in PANELS:
    curves = {label: curve(lines, field) for field, label in panel.fields.items()}
    if not panel.is_empty(value for _, values in curves.values() for value in values):
      panels[panel.title] = curves
  if not panels:
    raise UserError(f"'{metrics_jsonl}' holds no known metric, so there is nothing to draw.")

  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = _figure(3.6 * columns, 2.6 * rows, layout='constrained')
  for index, (title, curves) in enumerate(panels.items()):
    axes = figure.add_subplot(rows, columns, index + 1)
    for label, (steps, values) in curves.items():
      if steps:
        axes.plot(steps, values, linewidth=1.2, marker='o' if len(steps) == 1 else None, markersize=4, label=label)
    if not any(any(values) for _, values in curves.values()):
      axes.set_ylim(0, 1)  # else zeros float in the middle of nothing
    axes.set_title(title, fontsize=10)
    axes.set_xlabel('step', fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, linewidth=0.5)
    if len(curves) > 1:
      axes.legend(fontsize=7, frameon=False)
  _save(figure, path)


def _figure(width: float, height: float, layout: Any = None) -> 'Figure':
  """A figure of that many inches, outside pyplot, so that no display or state is involved."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), facecolor='white', layout=layout)


def _save(figure: 'Figure', path: Path, about: Mapping[str, str] | None = None) -> None:
  """Writes a PNG that says `about` itself, so that no half-written picture is ever seen."""
  picture = io.BytesIO()
  figure.savefig(picture, dpi=_DPI, format='png', metadata=dict(about or {}))
  with artifact.storage_errors(f"write the figure '{path}'"):
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.replace(path, picture.getvalue())
