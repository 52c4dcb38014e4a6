"""Pictures of a run: what the adversary does to images (Figure 1a), and the training curves.

Matplotlib, of the extra 'plots', is imported when a picture is drawn; no display is needed.
"""

from collections.abc import Iterable, Mapping, Sequence
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from adversarial_augment import results
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, files

if TYPE_CHECKING:
  from matplotlib.figure import Figure

GAIN = 5.0  # of the differences in `ada_examples`; they are drawn around mid-grey
_DPI = 160
_LEFT, _TILE, _GAP, _TOP = 1.0, 1.05, 0.05, 0.4  # inches: names of the rows, a tile, between tiles, the title
_PIECE = 4  # columns of a part for a narrow page
_COLUMNS = 'Columns'  # where the columns are, in a PNG's own words: left edge, distance, upper edge, number


class Panel(NamedTuple):
  """A panel of `training_curves`."""

  title: str
  fields: Mapping[str, str]  # of metrics.jsonl, with their labels
  counts_events: bool = False  # of a kind that may never happen; without any, the panel is empty

  def is_empty(self, values: Iterable[float]) -> bool:
    """Whether there is nothing to show."""
    found = list(values)
    return not found or (self.counts_events and not any(found))


PANELS = (
  Panel('Loss', {'loss': 'training'}),
  Panel('Accuracy', {'accuracy': 'training'}),
  Panel('Loss under attack', {'attack_loss_start': 'at the random start', 'attack_loss_end': 'after the last step'}),
  Panel('Mean SSIM, before any line search', {'ssim_mean': 'mean'}),
  Panel(
    'Images below the SSIM threshold',
    {'ssim_corrected': 'corrected', 'ssim_below_min': 'left below'},
    counts_events=True,
  ),
  Panel('Learning rate', {'learning_rate': 'learning rate'}),
)
METRICS = tuple(field for panel in PANELS for field in panel.fields)


def ada_examples(
  path: str | os.PathLike,
  images: np.ndarray,
  corrupted: np.ndarray,
  ssim: Sequence[float] | np.ndarray,
  labels: Sequence[str | int] | np.ndarray | None = None,
  *,
  seen: tuple[Sequence[str | int] | np.ndarray, Sequence[str | int] | np.ndarray] | None = None,
  title: str,
) -> Path:
  """Draws clean images, adversarial images and their differences (Figure 1a of arXiv 2104.01086), one column each.

  Args:
    path: the picture to write; the suffix decides the format.
    images: clean, [n, h, w, 3] in [0, 1]; about 8 look best.
    corrupted: adversarial, of the same shape.
    ssim: of each pair, [n], written below it.
    labels: names of the true classes, written above the columns.
    seen: names of the classes that a classifier took the clean and the adversarial images for; needs `labels`.
    title: what was drawn: nu, step, network.

  Returns:
    The path.

  Raises:
    UserError: Matplotlib is not installed, or the shapes do not fit.
    StorageError: the file cannot be written.
  """
  images, corrupted, values = np.asarray(images), np.asarray(corrupted), np.asarray(ssim)
  n = len(images)
  if images.ndim != 4 or not n or corrupted.shape != images.shape or values.shape != (n,):
    raise UserError(
      f'A picture of examples needs two sets of images [n, h, w, 3] of one shape and n values of SSIM, '
      f'not {list(images.shape)}, {list(corrupted.shape)} and {list(values.shape)}.'
    )
  if seen is not None and labels is None:
    raise UserError('`seen` was given without the true labels; give `labels` as well.')
  for names in [] if labels is None else [labels, *(seen or ())]:
    if len(names) != n:
      raise UserError(f'{len(names)} labels were given for {n} images; give one for each.')

  heads = _heads(labels, seen, n)
  above = [0.07 + 0.14 * max(head.text.count('\n') + 1 for head in row) if row[0].text else 0.0 for row in heads]
  width = _LEFT + n * (_TILE + _GAP) + 0.1
  height = _TOP + sum(above) + 3 * (_TILE + _GAP) + 0.3
  figure = _new_figure(width, height)
  rows = (
    ('clean', images),
    ('adversarial', corrupted),
    (f'difference\n× {GAIN:g}', np.clip(0.5 + GAIN * (corrupted - images), 0.0, 1.0)),
  )
  y = height - _TOP
  for (name, tiles), over, room in zip(rows, heads, above, strict=True):
    y -= room + _TILE + _GAP
    middle = 0.72 if name.startswith('difference') else 0.5
    figure.text((_LEFT - 0.08) / width, (y + middle * _TILE) / height, name, ha='right', va='center', fontsize=9)
    for column, (tile, head) in enumerate(zip(tiles, over, strict=True)):
      x = _LEFT + column * (_TILE + _GAP)
      axes = figure.add_axes((x / width, y / height, _TILE / width, _TILE / height))
      axes.imshow(tile.astype(np.float32), vmin=0.0, vmax=1.0, interpolation='nearest')
      axes.set_axis_off()
      figure.text((x + _TILE / 2) / width, (y + _TILE + 0.04) / height, head.text, ha='center', va='bottom', fontsize=8,
                  parse_math=False, weight='bold' if head.is_wrong else 'normal')  # fmt: skip
  for column, value in enumerate(values):
    x = _LEFT + column * (_TILE + _GAP) + _TILE / 2
    figure.text(x / width, 0.1 / height, f'SSIM {value:.3f}', ha='center', va='bottom', fontsize=8)
  _key(figure, width, height, y)
  # A long title breaks into lines; there is room for two.
  figure.suptitle(title, x=0.5, y=1 - 0.08 / height, va='top', fontsize=10, wrap=True, parse_math=False)
  columns = [round(_DPI * inches) for inches in (_LEFT, _TILE + _GAP, _TOP)]
  return _save(figure, path, {'Title': title, _COLUMNS: json.dumps([*columns, n])})


class _Head(NamedTuple):
  """What stands above a tile."""

  text: str = ''
  is_wrong: bool = False


def _heads(labels: Any, seen: Any, n: int) -> list[list[_Head]]:
  """Returns what stands above each tile of the three rows."""
  nothing = [_Head()] * n
  short = lambda name: name if len(name) <= 14 else f'{name[:13]}…'
  names = [''] * n if labels is None else list(map(str, labels))
  if seen is None:
    return [[_Head(short(name)) for name in names], nothing, nothing]
  pairs = [list(zip(names, map(str, row), strict=True)) for row in seen]
  longest = max(len(short(name) + short(taken)) for row in pairs for name, taken in row)
  between = ' ' if longest <= 7 else '\n'
  head = lambda name, taken: _Head(f'{short(name)}{between}seen as {short(taken)}', name != taken)
  return [*([head(*pair) for pair in row] for row in pairs), nothing]


def _key(figure: 'Figure', width: float, height: float, y: float) -> None:
  """Draws what the greys of the differences mean, left of their row, whose lower edge is `y` inches up."""
  axes = figure.add_axes((0.14 / width, (y + 0.34) / height, (_LEFT - 0.28) / width, 0.12 / height))
  axes.imshow(np.linspace(0, 1, 64)[None], cmap='gray', vmin=0, vmax=1, aspect='auto')
  most = 0.5 / GAIN
  axes.set_xticks([0, 31.5, 63], [f'−{most:g}', '0', f'+{most:g}'], fontsize=7)
  axes.set_yticks([])
  axes.tick_params(length=2, pad=1)
  axes.set_xlabel('change of a colour', fontsize=6, labelpad=1)


def pieces(picture: bytes) -> tuple[str, list[bytes]]:
  """Cuts what `ada_examples` drew into parts of 4 columns, for a narrow page.

  Args:
    picture: a PNG.

  Returns:
    The title, and the parts without it, each with the names of the rows; '' and the whole picture where it has no more
    columns than that, or does not say where they are.
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
    names = image.crop((0, top, left, image.height))
    parts = []
    for first in range(0, n, _PIECE):
      tiles = image.crop((left + first * step, top, left + min(first + _PIECE, n) * step, image.height))
      part = Image.new('RGB', (left + _PIECE * step, tiles.height), 'white')
      part.paste(names, (0, 0))
      part.paste(tiles, (left, 0))
      content = io.BytesIO()
      part.save(content, 'PNG')
      parts.append(content.getvalue())
    return str(about.get('Title', '')), parts


def training_curves(path: str | os.PathLike, metrics_jsonl: str | os.PathLike) -> Path:
  """Draws the metrics of a run over its steps, one panel for each quantity that the run has something of.

  Args:
    path: the picture to write; the suffix decides the format.
    metrics_jsonl: the run's metrics.jsonl.

  Returns:
    The path.

  Raises:
    UserError: Matplotlib is not installed, or the metrics are missing, damaged, or none that is known.
    StorageError: the file cannot be written.
  """
  lines = results.read_log(files.user_path(metrics_jsonl, 'metrics_jsonl'), METRICS)
  panels = []
  for panel in PANELS:
    curves = {label: _curve(lines, field) for field, label in panel.fields.items()}
    if not panel.is_empty(value for _, values in curves.values() for value in values):
      panels.append((panel.title, curves))
  if not panels:
    raise UserError(f"'{metrics_jsonl}' holds no known metric, so there is nothing to draw.")

  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = _new_figure(3.6 * columns, 2.6 * rows)
  figure.set_layout_engine('constrained')
  for index, (title, curves) in enumerate(panels):
    axes = figure.add_subplot(rows, columns, index + 1)
    for label, (steps, values) in curves.items():
      if len(steps):
        axes.plot(steps, values, linewidth=1.2, marker='o' if len(steps) == 1 else None, markersize=4, label=label)
    if not any(np.any(values) for _, values in curves.values()):
      axes.set_ylim(0, 1)  # else zeros float in the middle of nothing
    axes.set_title(title, fontsize=10)
    axes.set_xlabel('step', fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, linewidth=0.5)
    if len(curves) > 1:
      axes.legend(fontsize=7, frameon=False)
  return _save(figure, path)


def _new_figure(width: float, height: float) -> 'Figure':
  """A figure of that many inches, outside pyplot, so that no display or state is involved."""
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError as error:
    raise UserError(
      "Figures need Matplotlib, which is not installed; install the extra 'plots': pip install matplotlib."
    ) from error
  figure = Figure(figsize=(width, height), facecolor='white')
  FigureCanvasAgg(figure)
  return figure


def _save(figure: 'Figure', path: str | os.PathLike, about: Mapping[str, str] | None = None) -> Path:
  """Writes the figure so that no half-written picture is ever seen, and what a PNG says `about` itself."""
  target = files.user_path(path, 'path')
  form, known = target.suffix.removeprefix('.'), figure.canvas.get_supported_filetypes()
  if form not in known:
    raise UserError(f"path='{target}' must end in one of .{', .'.join(sorted(known))}, which says what is drawn.")
  picture = io.BytesIO()
  figure.savefig(picture, dpi=_DPI, format=form, metadata=dict(about or {}) if form == 'png' else None)
  with artifact.storage_errors(f"write the figure '{target}'"):
    target.parent.mkdir(parents=True, exist_ok=True)
    artifact.replace(target, picture.getvalue())
  return target


def _curve(lines: Sequence[dict[str, Any]], field: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of one field, where it is present."""
  points = [(line['step'], line[field]) for line in lines if line.get(field) is not None]
  steps, values = zip(*points, strict=True) if points else ((), ())
  return np.asarray(steps), np.asarray(values, np.float64)
