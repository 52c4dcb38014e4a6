"""Figure 1 of arXiv 2104.01086: images under AdA, and their SSIM with the clean images, for several radii nu.

  python -m experiments.figure1_ssim --workdir=runs/nominal
  python -m experiments.figure1_ssim --workdir=runs/ada --num_images=10000 --nus=0.015,0.03
  python -m experiments.figure1_ssim --workdir=runs/start --split=validation --config.corruption_net.name=cae

The adversary, network and classifier are those of the run; only the radius changes. SSIM is measured before the line
search, with the image x (`ssim`, `mean`), and with c(x), what the network makes of x without an adversary
(`mean_with_network`): only the latter shows what the adversary adds. With --seed=0, the random draws are those of
`evaluate --evals=ada`. Radii that are already in the JSON file are not measured again. The densities are Gaussian
kernel estimates (Scott's rule), reflected at 1, the largest SSIM.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import checks, cli, datasets, inference, results
from adversarial_augment import config as configs
from adversarial_augment.cli import progress, signals
from adversarial_augment.config import command_line
from adversarial_augment.config.adversaries import ADVERSARIES
from adversarial_augment.datasets import classes, sampling
from adversarial_augment.errors import NumericalError, UserError
from adversarial_augment.parallel import devices
from adversarial_augment.storage import files
from adversarial_augment.types import Dataset
from experiments import figure1_drawing, figure_files

NAME = 'figure1_ssim'
NUS = '.0075,.009375,.015,.0225,.03'
THRESHOLD = 0.3  # of the line search (arXiv 2104.01086, section 2)
_EXAMPLES = 6
_GRID = 2001  # points of a density
_SPLITS = {'test': 'test', 'validation': 'train'}  # and what they are read from
_STRENGTH = ('attack.nu', 'attack.num_steps')
_FIELDS, _GROUPS = ('data_dir', 'batch_size', 'precision'), ('attack', 'corruption_net')


def main(argv: Sequence[str]) -> None:
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser().parse_args(rest)
  nus = parse_nus(arguments.nus)
  figure_files.check_seed(arguments.seed)
  figure_files.check_drawable()
  workdir = files.user_path(arguments.workdir, '--workdir')
  config = adversary(inference.read_config(workdir), overrides)
  test = images_of(config, arguments.split)
  test = classes.in_order(test, inference.classes(workdir), f"The run '{workdir}'")
  figure_files.check_num_images(arguments.num_images, 2, test)
  test = test._replace(num_examples=arguments.num_images)
  from adversarial_augment.training import builders

  builders.check_adversary(config, test.image_shape)
  path = figure_files.place(arguments.output, workdir / 'figures', NAME)
  devices.virtual_devices(devices.usable_cores())
  devices.compilation_cache()
  with signals.listen(several_processes=False, kept=f"finished radii are kept in '{path}'"):
    options = {'overwrite': arguments.overwrite, 'split': arguments.split}
    found = measure(config, workdir, test, nus, arguments.seed, path, **options)
    figure1_drawing.draw(found, nus, path.with_suffix('.png'))
  for nu in nus:
    values = found['nus'][f'{nu:g}']
    below = f'below {THRESHOLD:g}: {100 * values["below"]:.2f} %'
    print(f'  nu {nu:<9g} mean SSIM {values["mean"]:.4f}  {below}  with c(x): {values["mean_with_network"]:.4f}')
  print(f'wrote {path} and {path.with_suffix(".png").name}')


def images_of(config: ConfigDict, split: str) -> Dataset:
  """Returns the test images, or those that the run has held out of its training images.

  Raises:
    UserError: another split, or the run has held out none.
  """
  source = checks.lookup(_SPLITS, split, '--split')
  images = datasets.load(config.dataset, source, config.data_dir)
  if split == 'test':
    return images
  if not config.holdout:
    raise UserError('--split=validation: the run has config.holdout=0, so that it has seen all training images.')
  return sampling.holdout(images, config.holdout)[1]


def adversary(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
  """Returns a run's config with an adversary and without a line search.

  Args:
    config: of a run, nominal or not.
    overrides: dotted fields to text.

  Raises:
    UserError: a field of the classifier's training, or an invalid value.
  """
  for name in overrides:
    if name not in _FIELDS and name.partition('.')[0] not in _GROUPS or name in ('attack.nu', 'attack.min_ssim'):
      raise UserError(
        f'config.{name} does not apply to this figure; omit it, or change {", ".join(_FIELDS)}, attack.* or '
        'corruption_net.* (--nus sets the radii; the line search is off).'
      )
  others = {field: about for one in ADVERSARIES.values() for field, about in one.fields.items()}
  own = ADVERSARIES['ada']
  unknown = {field: about.default for field, about in others.items() if field not in own.fields}
  start = {} if config.attack.init in own.starts else {'attack.init': 'ball'}  # as evaluations have it
  changed = configs.override(config, {name: str(value).lower() for name, value in (unknown | start).items()})
  changed = configs.override(changed, {**overrides, 'attack.name': 'ada', 'attack.min_ssim': '-1'})
  configs.validate(changed)
  return changed


def parse_nus(text: str) -> list[float]:
  """Returns radii in ascending order.

  Raises:
    UserError: not positive numbers separated by commas.
  """
  try:
    nus = sorted({float(nu) for nu in text.split(',')})
  except ValueError:
    nus = [0.0]
  if not all(0 < nu <= 1e3 for nu in nus):
    raise UserError(f"--nus='{text}' must be positive numbers separated by commas, such as {NUS}.")
  return nus


def measure(
  config: ConfigDict,
  workdir: Path,
  test: Dataset,
  nus: Sequence[float],
  seed: int,
  path: Path,
  *,
  overwrite: bool,
  split: str = 'test',
) -> dict[str, Any]:
  """Returns the numbers of the figure, and saves those of each radius as soon as they are known.

  Args:
    config: of `adversary`.
    workdir: of the run.
    test: the images.
    nus: radii.
    seed: of the adversary's draws.
    path: of the JSON.
    overwrite: whether to replace its contents.
    split: of the images, for the caption.

  Raises:
    AdversarialAugmentError: no intact checkpoint, or `path` has other contents or cannot be written.
  """
  from adversarial_augment.evaluation.accuracy import batches
  from adversarial_augment.parallel import sharding
  from adversarial_augment.run import summary

  mesh = sharding.data_mesh()
  restored = inference.restore(config, workdir, test.num_classes, test.image_shape, mesh)
  provenance = summary.provenance(config, {split: test}, NAME, workdir) | {'command': figure_files.command(NAME)}
  provenance['config_sha256'] = restored.config_sha256  # of the run
  versions = {package: provenance['versions'][package] for package in ('adversarial_augment', 'jax')}
  attack = {name: value for name, value in config.attack.items() if name != 'nu'}
  setting = [split, attack, config.corruption_net.to_dict(), provenance['weights'], config.precision, versions]
  conditions = results.digest([restored.sha256, dict(test.provenance), test.num_examples, seed, setting])
  found = figure_files.known(path, conditions, overwrite) or {
    'figure': NAME,
    'conditions_sha256': conditions,
    'step': restored.step,
    'checkpoint_sha256': restored.sha256,
    'trained_with': inference.read_config(workdir).attack.to_dict(),
    'split': split,
    'num_images': test.num_examples,
    'seed': seed,
    'provenance': provenance,
    'threshold': THRESHOLD,
    'clean': figure_files.encoded(test.read(np.arange(min(_EXAMPLES, test.num_examples))).images),
    'nus': {},
  }
  print(f'{workdir}: step {restored.step:,}, checkpoint {restored.sha256[:12]}, on {test.name}', flush=True)
  missing = [nu for nu in nus if f'{nu:g}' not in found['nus']]
  with progress.images(len(missing) * test.num_examples) as advance:
    for nu in missing:
      changed = configs.override(config, {'attack.nu': str(nu)})
      run, phi = corruptor(changed, mesh, test, seed)
      batched = functools.partial(run, restored.state.params, restored.state.model_state, phi)
      said = functools.partial(advance, f'nu {nu:g}')
      found['nus'][f'{nu:g}'] = _one(batched, batches(test, mesh, config.batch_size), said)
      figure_files.write(path, found)
  return found


def corruptor(config: ConfigDict, mesh: Any, test: Dataset, seed: int) -> tuple[Callable, Any]:
  """Returns (params, model_state, phi, batch) -> (images, SSIM with the clean images, SSIM with c(x)), and phi.

  Images are [n, h, w, c] and SSIMs [n], all before the line search. The draws of an image depend on the seed and its
  index; those of the network are the same in c(x). The classifier uses running statistics.

  Args:
    config: with the adversary.
    mesh: the devices.
    test: the images.
    seed: of the draws.
  """
  import jax
  from jax.sharding import PartitionSpec

  from adversarial_augment import classifiers, ssim, threefry
  from adversarial_augment.parallel import sharding
  from adversarial_augment.training import builders, recipe

  attack, phi = builders.evaluation_adversary(config, mesh)
  at_rest, _ = builders.evaluation_adversary(configs.override(config, dict.fromkeys(_STRENGTH, '0')), mesh)
  classifier = recipe.attacked_classifier(config, test.num_classes)

  def local(params, model_state, phi, batch):
    logits_fn = classifiers.logits_fn(classifier, params, model_state)
    keys = jax.vmap(functools.partial(jax.random.fold_in, threefry.key(seed)))(batch.indices)
    images = batch.images.astype(jax.tree.leaves(params)[0].dtype) / 255
    result, start = (each(keys, logits_fn, images, batch.labels, phi) for each in (attack, at_rest))
    return result.images, result.metrics['ssim'], ssim.ssim(start.images, result.images)

  data, whole = PartitionSpec(sharding.AXIS), PartitionSpec()
  mapped = jax.shard_map(local, mesh=mesh, in_specs=(whole, whole, whole, data), out_specs=data, check_vma=False)
  return jax.jit(mapped), sharding.replicate(mesh, phi)


def _one(run: Callable, batches: Iterable[Any], advance: Callable[[int], None]) -> dict[str, Any]:
  """Returns the numbers of one radius."""
  import jax

  values: list[float] = []
  with_network: list[float] = []
  examples: list[np.ndarray] = []
  for batch in batches:
    images, with_image, with_output, mask = jax.device_get((*run(batch), batch.mask))
    values += (float(f'{value:.7g}') for value in with_image[mask])
    with_network += with_output[mask].tolist()
    examples.extend(images[mask][: _EXAMPLES - len(examples)])
    advance(int(mask.sum()))
  if not np.isfinite([*values, *with_network]).all():
    raise NumericalError('An SSIM is NaN or infinite; the classifier or the weights of the network are unusable.')
  grid = np.linspace(min(0.0, *values), 1.0, _GRID)
  return {
    'ssim': values,
    'mean': float(np.mean(values)),
    'mean_with_network': float(np.mean(with_network)),
    'below': float((np.array(values) < THRESHOLD).mean()),
    'grid': grid.tolist(),
    'density': density(np.array(values), grid).tolist(),
    'adversarial': figure_files.encoded(np.array(examples)),
  }


def density(ssim: np.ndarray, grid: np.ndarray) -> np.ndarray:
  """Returns a kernel estimate of the density of SSIMs [n] at the points of `grid`, which are at most 1.

  Raises:
    UserError: all SSIMs are equal.
  """
  from scipy.stats import gaussian_kde

  if np.ptp(ssim) == 0:
    raise UserError(f'All {len(ssim)} images have the same SSIM, so there is no density to draw; raise --num_images.')
  estimate = gaussian_kde(ssim)
  return estimate(grid) + estimate(2 - grid)


def _parser() -> argparse.ArgumentParser:
  parser = figure_files.parser(
    NAME,
    'Draws Figure 1: adversarial images, and densities of their SSIM, for several radii nu.',
    'examples:\n' + '\n'.join(__doc__.splitlines()[2:4]),
  )
  parser.add_argument('--workdir', required=True, metavar='RUN', help='working directory of a run of train')
  parser.add_argument('--nus', default=NUS, metavar='NUMBERS', help='radii; default: %(default)s')
  parser.add_argument(
    '--num_images', type=int, default=1000, metavar='N', help='use the first N images; default: %(default)s'
  )
  parser.add_argument('--split', default='test', metavar='NAME', help='test (the default), or validation: held out')
  parser.add_argument('--seed', type=int, default=0, help="seed of the adversary's draws; default: 0")
  parser.add_argument(
    '--config.FIELD', dest='_', metavar='VALUE', help='override attack.*, corruption_net.*, batch_size, data_dir'
  )
  parser.add_argument('--overwrite', action='store_true', help='measure known radii again')
  return parser


if __name__ == '__main__':
  cli.run(main)
