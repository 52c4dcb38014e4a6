"""Pictures of a run: what the adversary does to images (Figure 1a), and the training curves.

Matplotlib, of the extra 'plots', is imported when a picture is drawn; no display is needed.
"""

from collections.abc import Sequence
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adversarial_augment import files, results
from adversarial_augment.errors import UserError

if TYPE_CHECKING:
  from matplotlib.figure import Figure

GAIN = 5.0  # of the differences in `ada_examples`; they are drawn around mid-grey

# Panels of `training_curves`: title, and the fields of metrics.jsonl with their labels.
PANELS: tuple[tuple[str, dict[str, str]], ...] = (
  ('Loss', {'loss': 'training'}),
  ('Accuracy', {'accuracy': 'training'}),
  ('Loss under attack', {'attack_loss_start': 'at the random start', 'attack_loss_end': 'after the last step'}),
  ('Mean SSIM, before any line search', {'ssim_mean': 'mean'}),
  ('Images below the SSIM threshold', {'ssim_corrected': 'corrected', 'ssim_below_min': 'left below'}),
  ('Learning rate', {'learning_rate': 'learning rate'}),
)
METRICS = tuple(field for _, fields in PANELS for field in fields)


def ada_examples(
  path: str | os.PathLike,
  images: np.ndarray,
  corrupted: np.ndarray,
  ssim: Sequence[float] | np.ndarray,
  labels: Sequence[str | int] | np.ndarray | None = None,
  *,
  title: str,
) -> Path:
  """Draws clean images, adversarial images and their differences (Figure 1a of arXiv 2104.01086), one column each.

  Args:
    path: the picture to write; the suffix decides the format.
    images: clean, [n, h, w, 3] in [0, 1]; about 8 look best.
    corrupted: adversarial, of the same shape.
    ssim: of each pair, [n], written below it.
    labels: names written above the columns.
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
  if labels is not None and len(labels) != n:
    raise UserError(f'{len(labels)} labels were given for {n} images; give one for each.')

  inch = 1.05  # side of a tile
  left, right, top, bottom = 0.85, 0.1, 0.62 if labels is not None else 0.45, 0.3
  gap = 0.05
  width, height = left + n * (inch + gap) + right, top + 3 * (inch + gap) + bottom
  figure = _new_figure(width, height)
  rows = (
    ('clean', images),
    ('adversarial', corrupted),
    (f'difference\n× {GAIN:g}', np.clip(0.5 + GAIN * (corrupted - images), 0.0, 1.0)),
  )
  for row, (name, tiles) in enumerate(rows):
    y = (bottom + (2 - row) * (inch + gap)) / height
    figure.text((left - 0.08) / width, y + inch / height / 2, name, ha='right', va='center', fontsize=9)
    for column, tile in enumerate(tiles):
      x = (left + column * (inch + gap)) / width
      axes = figure.add_axes((x, y, inch / width, inch / height))
      axes.imshow(tile.astype(np.float32), vmin=0.0, vmax=1.0, interpolation='nearest')
      axes.set_axis_off()
  for column in range(n):
    x = (left + column * (inch + gap) + inch / 2) / width
    figure.text(x, 0.1 / height, f'SSIM {values[column]:.3f}', ha='center', va='bottom', fontsize=8)
    if labels is not None:
      figure.text(x, 1 - (top - 0.06) / height, str(labels[column]), ha='center', va='bottom', fontsize=8)
  # A long title breaks into lines; there is room for two.
  figure.suptitle(title, x=0.5, y=1 - 0.08 / height, va='top', fontsize=10, wrap=True)
  return _save(figure, path)


def training_curves(path: str | os.PathLike, metrics_jsonl: str | os.PathLike) -> Path:
  """Draws the metrics of a run over its steps, one panel for each quantity that the run has.

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
  for title, fields in PANELS:
    curves = {label: _curve(lines, field) for field, label in fields.items()}
    if any(len(steps) for steps, _ in curves.values()):
      panels.append((title, curves))
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


def _save(figure: 'Figure', path: str | os.PathLike) -> Path:
  """Writes the figure so that no half-written picture is ever seen."""
  target = files.user_path(path, 'path')
  form, known = target.suffix.removeprefix('.'), figure.canvas.get_supported_filetypes()
  if form not in known:
    raise UserError(f"path='{target}' must end in one of .{', .'.join(sorted(known))}, which says what is drawn.")
  picture = io.BytesIO()
  figure.savefig(picture, dpi=160, format=form)
  with files.storage_errors(f"write the figure '{target}'"):
    target.parent.mkdir(parents=True, exist_ok=True)
    files.replace(target, picture.getvalue())
  return target


def _curve(lines: Sequence[dict[str, Any]], field: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of one field, where it is present."""
  points = [(line['step'], line[field]) for line in lines if line.get(field) is not None]
  steps, values = zip(*points, strict=True) if points else ((), ())
  return np.asarray(steps), np.asarray(values, np.float64)
