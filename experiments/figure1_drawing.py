"""Draws Figure 1 from the numbers of figure1_ssim.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adversarial_augment.config import adversaries
from adversarial_augment.reporting.figures import GAIN
from experiments import figure_files


def draw(found: Mapping[str, Any], nus: Sequence[float], path: Path) -> None:
  """Draws the examples (1a) beside the densities (1b).

  Args:
    found: the numbers.
    nus: the radii to draw.
    path: of the PNG.

  Raises:
    StorageError: it cannot be written.
  """
  shown = {f'{nu:g}': found['nus'][f'{nu:g}'] for nu in nus}
  clean = figure_files.decoded(found['clean'])
  rows, labels = [clean], ['clean']
  for nu, values in shown.items():
    adversarial = figure_files.decoded(values['adversarial'])
    difference = np.clip(127.5 + GAIN * (adversarial.astype(np.float64) - clean), 0, 255).astype(np.uint8)
    rows += [adversarial, difference]
    labels += [f'ν = {nu}', f'difference × {GAIN:g}']
  figure = figure_files.new(13.5, 1.4 + 0.62 * max(len(rows), 7))
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
  height, width = clean.shape[1] + 2, clean.shape[2] + 2
  left.imshow(figure_files.mosaic(rows), interpolation='nearest')
  left.set_yticks([height * (i + 0.5) - 1 for i in range(len(rows))], labels, fontsize=8)
  left.set_xticks([])
  left.tick_params(length=0)
  left.spines[:].set_visible(False)
  left.set_title('(a) Images under AdA, before the line search, with their SSIM', fontsize=9)
  for row, values in enumerate(shown.values()):
    for column in range(len(clean)):
      where = width * column + 1, height * (2 * row + 2) - 4
      box = {'facecolor': 'white', 'alpha': 0.7, 'linewidth': 0, 'pad': 0.8}
      left.text(*where, f'{values["ssim"][column]:.3f}', fontsize=6, bbox=box)
  lowest = min(min(values['ssim']) for values in shown.values())
  for nu, values in shown.items():
    label = f'ν = {nu}: mean {values["mean"]:.4f} ({values["mean_with_network"]:.4f} with c(x)), '
    label += f'below {found["threshold"]:g}: {100 * values["below"]:.2f} %'
    right.plot(values['grid'], values['density'], linewidth=1.4, label=label)
  right.set_yscale('log')
  right.set_ylim(1e-2, 30 * max(max(values['density']) for values in shown.values()))
  right.set_xlim(min(lowest - 0.02, found['threshold'] - 0.05), 1.0)
  right.axvline(found['threshold'], color='grey', linestyle='--', linewidth=1)
  right.set_xlabel('SSIM(x, x̂) before the line search', fontsize=9)
  right.set_ylabel('density (logarithmic)', fontsize=9)
  right.set_title('(b) Similarity to the clean image', fontsize=9)
  right.grid(alpha=0.3, linewidth=0.5)
  right.tick_params(labelsize=8)
  right.legend(fontsize=8, loc='upper left')
  figure_files.save(figure, path, about(found))


def about(found: Mapping[str, Any]) -> list[str]:
  """Returns the lines of the caption."""
  origin = found['provenance']
  data, config, weights = origin['data'][found['split']], origin['config'], origin['weights']
  size = ' '.join(f'{name}={value}' for name, value in weights['network'].items() if name != 'name')
  attack = found['trained_with']
  trained = f'with {adversaries.describe(attack)}' if attack['name'] in adversaries.ADVERSARIES else 'nominally'
  return [
    f'{data["name"]} ({data["origin"]}), {found["split"]}; checkpoint {found["checkpoint_sha256"][:12]} '
    f'(step {found["step"]:,}); n = {found["num_images"]:,}; seed {found["seed"]}',
    f'{weights["network"]["name"]} {size}, {weights["file"]}; {config["attack"]["num_steps"]} steps '
    f'({config["attack"]["step"]}), running statistics; classifier {config["classifier"]["name"]}-'
    f'{config["classifier"]["depth"]}, width {config["classifier"]["width"]}, trained {trained}',
  ]
