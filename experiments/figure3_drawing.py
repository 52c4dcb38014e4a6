"""Draws Figure 3 from the numbers of figure3_reconstruction.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adversarial_augment import metrics
from experiments import figure_files

PAPER = {'edsr': 0.91, 'cae': 0.84}  # mean SSIM over all corruptions (arXiv 2104.01086, figure 3)


def complete(found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the networks for which all corruptions are known; interrupted ones are not drawn."""
  names, nets = set(metrics.ALL_NAMES), found['nets']
  known = {net for net in nets if nets[net]['corruptions'].keys() >= names}
  return {net: nets[net] for net in dict.fromkeys([*PAPER, *sorted(known)]) if net in known}


def draw(found: Mapping[str, Any], path: Path) -> None:
  """Draws bars, and one example per corruption.

  Args:
    found: the numbers.
    path: of the PNG.

  Raises:
    StorageError: it cannot be written.
  """
  names, nets = list(metrics.ALL_NAMES), complete(found)
  figure = figure_files.new(15, 7.2 + 0.4 * len(nets))
  bars, strips = figure.subplots(2, 1, height_ratios=(4, 0.85 * (2 + len(nets))))
  width, handles = 0.8 / len(nets), []
  for number, (net, values) in enumerate(nets.items()):
    colour, cells = f'C{number}', [values['corruptions'][name] for name in names]
    x = np.arange(len(names)) + width * (number - (len(nets) - 1) / 2)
    label = f'{net}: {values["mean"]:.3f} ± {values["std"]:.3f} over all'
    error = {'elinewidth': 0.8, 'capsize': 2}
    mean, std, start = (np.array([cell[key] for cell in cells]) for key in ('mean', 'std', 'start_mean'))
    handles.append(bars.bar(x, mean, width, yerr=std, color=colour, alpha=0.75, label=label, error_kw=error))
    before = f'before, delta = 0: {values["start_mean"]:.3f}'
    handles += bars.plot(x, start, 'v', color='black', markerfacecolor=colour, markersize=5, label=before)
    if net in PAPER:
      published = f'{net} in the paper: {PAPER[net]}'
      handles.append(bars.axhline(PAPER[net], color=colour, linestyle='--', linewidth=1, label=published))
  bars.set_xticks(range(len(names)), [name.replace('_', '\n') for name in names], fontsize=8)
  bars.set_xlim(-0.6, len(names) - 0.4)
  bars.set_ylim(min(0.0, *bars.get_ylim()), 1.25)
  bars.set_yticks(np.linspace(0, 1, 6))
  bars.set_ylabel('SSIM with the corrupted image', fontsize=9)
  bars.grid(axis='y', alpha=0.3, linewidth=0.5)
  bars.legend(handles=handles, fontsize=8, ncols=len(nets), loc='upper center')
  bars.set_title(f'Reconstruction of corruptions by {found["num_steps"]} steps of Adam on the weights', fontsize=10)
  rows = [[found['examples'][name][i] for name in names] for i in (0, 1)]
  rows += [[values['corruptions'][name]['example'][0] for name in names] for values in nets.values()]
  tiles = [figure_files.decoded(row) for row in rows]
  side = tiles[0].shape[1] + 2
  strips.imshow(figure_files.mosaic(tiles), interpolation='nearest')
  strips.set_yticks([side * (i + 0.5) - 1 for i in range(len(rows))], ['clean', 'severity 3', *nets], fontsize=8)
  strips.set_xticks([])
  strips.tick_params(length=0)
  strips.spines[:].set_visible(False)
  figure_files.save(figure, path, about(found))


def about(found: Mapping[str, Any]) -> list[str]:
  """Returns the lines of the caption."""
  data, made = found['provenance']['data']['test'], found['provenance']['corruptions']
  weights = {net: values['weights'] for net, values in complete(found).items()}
  named = '; '.join(f'{net}: {origin["file"]} {origin["sha256"][:12]}' for net, origin in weights.items())
  return [
    f'{data["name"]} ({data["origin"]}), test; n = {found["num_images"]:,} per corruption, severities 1 to 5 in turn; '
    f'frost: {made["frost"]}; seed {found["seed"]}',
    f'Adam({found["learning_rate"]:g}), penalty {found["penalty"]:g}; weights {named}; bars: mean ± standard deviation',
  ]
