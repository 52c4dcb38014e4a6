r"""Figure 2 of arXiv 2104.01086: heat maps of the accuracy on every corruption during the training of one run.

  python -m adversarial_augment.train --config=CONFIG --workdir=RUN --config.eval_every=STEPS \
      --config.evals=clean,cifar10_c,cifar10_c_extra
  python -m experiments.figure2_training --workdir=RUN

It reads RUN/results/eval_STEP.json, and train.json if the last step was measured on the same images. The paper does not
say how it normalises; here, the smallest value becomes 0 and the largest 1, and all become 0 if they are equal.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
import re
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import cli, inference, metrics, results
from adversarial_augment.config import adversaries
from adversarial_augment.errors import UserError
from adversarial_augment.storage import files
from experiments import figure_files

NAME = 'figure2_training'
_COMMON, _EXTRA = 'cifar10_c', 'cifar10_c_extra'
PANELS = {
  'accuracy': 'Accuracy',
  'by_column': 'Normalised across corruptions, at each step',
  'by_row': 'Normalised across steps, for each corruption',
}


def main(argv: Sequence[str]) -> None:
  arguments = _parser().parse_args(argv)
  figure_files.check_drawable()
  workdir = files.user_path(arguments.workdir, '--workdir')
  config = inference.read_config(workdir)
  found = collect(workdir, config)
  path = figure_files.place(arguments.output, workdir / 'figures', NAME)
  figure_files.write(path, found)
  draw(found, path.with_suffix('.png'))
  print(f'{len(found["corruptions"])} corruptions at {len(found["steps"])} steps')
  print(f'wrote {path} and {path.with_suffix(".png").name}')


def collect(workdir: Path, config: ConfigDict) -> dict[str, Any]:
  """Returns the numbers of the figure.

  Args:
    workdir: of a run.
    config: of that run.

  Raises:
    UserError: it was evaluated on the corruptions at fewer than two steps, or on different images.
  """
  by_step = _evaluations(workdir, config)
  last = by_step[max(by_step)]
  settings = {step: _images_of(result) for step, result in by_step.items()}
  other = [step for step, setting in settings.items() if setting != settings[max(by_step)]]
  if other:
    raise UserError(
      f"'{workdir}/results/eval_{other[0]}.json' used other images than the evaluation of step {max(by_step)}; remove "
      'the old files.'
    )
  without = [step for step, result in by_step.items() if _EXTRA not in result['evals']]
  names = list(metrics.NAMES if without else metrics.ALL_NAMES)
  if without and len(without) < len(by_step):
    print(f'note: the extra corruptions are left out; they were not measured at step {without[0]}')
  accuracy = np.array([[1 - _errors(by_step[step])[name] for step in sorted(by_step)] for name in names])
  return {
    'figure': NAME,
    'steps': sorted(by_step),
    'corruptions': names,
    'accuracy': accuracy.tolist(),
    'by_column': normalised(accuracy, axis=0).tolist(),
    'by_row': normalised(accuracy, axis=1).tolist(),
    'num_images': last['evals'][_COMMON]['num_images'],
    'origin': last['evals'][_COMMON]['origin'],
    'split': last['split'],
    'step': last['step'],
    'checkpoint_sha256': last['state_sha256'],
    'provenance': {key: last[key] for key in ('data', 'weights', 'seed', 'config', 'config_sha256', 'versions', 'git')}
    | {'command': figure_files.command(NAME), 'train_command': last['command']},
  }


def normalised(values: np.ndarray, axis: int) -> np.ndarray:
  """Returns [n, m] values shifted and scaled to [0, 1] along an axis; 0 if all are equal."""
  low, high = values.min(axis, keepdims=True), values.max(axis, keepdims=True)
  return np.where(high > low, (values - low) / np.where(high > low, high - low, 1), 0.0)


def _evaluations(workdir: Path, config: ConfigDict) -> dict[int, dict[str, Any]]:
  """Returns step -> evaluation on the corruptions; all use the images of the evaluations during training."""
  paths = (workdir / 'results').glob('eval_*.json')
  numbered = {int(match[1]): path for path in paths if (match := re.fullmatch(r'eval_(\d+)', path.stem))}
  found = {step: _read(path) for step, path in numbered.items()}
  by_step = {step: result for step, result in found.items() if _COMMON in result['evals']}
  closing = workdir / 'results' / 'train.json'
  last = _read(closing) if closing.exists() else None
  if by_step and last and _COMMON in last['evals'] and last['split'] == next(iter(by_step.values()))['split']:
    by_step[last['step']] = last
  if len(by_step) < 2:
    num_steps = last['num_steps'] if last else config.num_steps
    every = max(1, num_steps // 20) if num_steps else 'STEPS'
    raise UserError(
      f"'{workdir}' has no evaluations on the corruptions during training; train it in a new folder with "
      f'--config.eval_every={every} --config.evals=clean,{_COMMON},{_EXTRA}.'
    )
  return by_step


def _read(path: Path) -> dict[str, Any]:
  """Returns a file of results.

  Raises:
    UserError: it is damaged.
  """
  result = results.read(path)
  if not {'evals', 'step', 'state_sha256', 'split'} <= result.keys():
    raise UserError(f"'{path}' is damaged; remove it and repeat the training command, which evaluates that step again.")
  return result


def _images_of(result: Mapping[str, Any]) -> tuple[Any, ...]:
  """Returns which images an evaluation used."""
  measured = result['evals'][_COMMON]
  data = result['data'][result['split']]
  return result['split'], data.get('sha256'), measured['num_images'], measured['origin']


def _errors(result: Mapping[str, Any]) -> dict[str, float]:
  """Returns the error on each corruption, averaged over severities."""
  evals = result['evals']
  return evals[_COMMON]['corruption_error'] | evals.get(_EXTRA, {'corruption_error': {}})['corruption_error']


def draw(found: Mapping[str, Any], path: Path) -> None:
  """Draws the three heat maps.

  Args:
    found: the numbers.
    path: of the PNG.

  Raises:
    StorageError: it cannot be written.
  """
  names, steps = found['corruptions'], found['steps']
  figure = figure_files.new(14, 1.8 + 0.2 * len(names))
  grid = figure.subplots(1, 3, sharey=True)
  ticks = range(0, len(steps), -(-len(steps) // 8))
  for axes, (key, title) in zip(grid, PANELS.items(), strict=True):
    shown = axes.imshow(found[key], aspect='auto', cmap='viridis', interpolation='nearest')
    axes.set_title(title, fontsize=9)
    axes.set_xticks(ticks, [f'{steps[tick]:,}' for tick in ticks], fontsize=7)
    axes.set_yticks(range(len(names)), [name.replace('_', ' ') for name in names], fontsize=8)
    axes.set_xlabel('step', fontsize=8)
    axes.tick_params(length=2)
    if len(names) > len(metrics.NAMES):
      axes.axhline(len(metrics.NAMES) - 0.5, color='white', linewidth=2)
    figure.colorbar(shown, ax=axes, pad=0.02, aspect=40).ax.tick_params(labelsize=7)
  figure_files.save(figure, path, about(found))


def about(found: Mapping[str, Any]) -> list[str]:
  """Returns the lines of the caption."""
  origin = found['provenance']
  data, config = origin['data'][found['split']], origin['config']
  adversary = adversaries.describe(config['attack'], config['corruption_net']['name'])
  return [
    f'{data["name"]} ({data["origin"]}), {found["split"]}, corruptions {found["origin"]}; n = {found["num_images"]:,} '
    f'images per severity, mean of five severities; last column: checkpoint {found["checkpoint_sha256"][:12]} '
    f'(step {found["step"]:,})',
    f'trained with {adversary}; classifier {config["classifier"]["name"]}-{config["classifier"]["depth"]}, width '
    f'{config["classifier"]["width"]}; seed {origin["seed"]}',
  ]


def _parser() -> argparse.ArgumentParser:
  parser = figure_files.parser(
    NAME,
    'Draws Figure 2: accuracy on every corruption during training, raw and normalised.',
    'examples:\n' + '\n'.join(__doc__.splitlines()[2:5]),
  )
  parser.add_argument(
    '--workdir', required=True, metavar='RUN', help='working directory of a run with evaluations during training'
  )
  return parser


if __name__ == '__main__':
  cli.run(main)
