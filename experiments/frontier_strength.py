"""How strong the adversaries of the frontier are: the loss that each adds, beside the SSIM that it leaves.

  python -m experiments.frontier_strength --workdir=runs/table1/laptop/frontier/nominal/seed1
  python -m experiments.frontier_strength --workdir=RUN --settings=ada_10_steps,fast_ada --num_images=4992
  python -m experiments.frontier_strength --workdir=RUN --variant=full --settings=fast_ada --num_images=64

The run held images out of its training; the adversaries attack them by the classifier's running statistics, without a
line search. `gain` is what a setting adds to the mean loss of its c(x), and `share` what it adds to that of a random
perturbation that leaves the same mean SSIM, as a part of what ten steps add. Standard errors are over images. With
--variant=full, the adversaries are those of the full setting: settings over all weights move the paper's corruption
network, and fast_ada its own; of the others, those without a radius there are refused.

Beside the settings of experiments.frontier, there are adversaries of one or two steps over all weights:
- start_batch, from the mean perturbation that two steps found for another batch (arXiv 1912.11969);
- start_mirrored, from what two steps found for the same image, mirrored, in place of the signs that an earlier epoch
  found with an older classifier (arXiv 2207.08859);
- gradient_frozen, two or four steps by the gradient of the classifier at the start (as arXiv 1905.00877 freezes all but
  a layer).
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import checks, cli, inference, results
from adversarial_augment import config as configs
from adversarial_augment.cli import progress
from adversarial_augment.storage import files
from adversarial_augment.types import Array, Dataset, Key, LogitsFn, PerturbationSet, PyTree
from experiments import figure1_ssim, figure_files, frontier, frontier_drawing

NAME = 'frontier_strength'
REFERENCE, REST, RANDOM = 'ada_10_steps', 'c(x)', 'fast_ada_random'
STARTS = tuple(f'start_{kind}_{number}' for kind in ('batch', 'mirrored') for number in (1, 2))
FROZEN = ('gradient_frozen_2', 'gradient_frozen_4')
VARIANTS = {'laptop': 'laptop', 'full': ''}  # of the configs
# Radii of the full setting at which the mean SSIM is that of its ten steps, 0.960; the settings have the laptop's.
FULL_RADII = {'fast_ada_random': 0.49, 'last_third_1_step_from_zero': 0.0186}
PERCENTS = tuple(range(0, 101, 2))  # of the images whose SSIM is below a percentile
_OF_TRAINING = {f'attack.{name}' for name in ('fraction', 'every', 'replay')}
_BATCH = 64


def main(argv: Sequence[str]) -> None:
  arguments = _parser().parse_args(argv)
  variant = checks.lookup(VARIANTS, arguments.variant, '--variant')
  known = settings(variant)
  names = known if arguments.settings is None else arguments.settings.split(',')
  for name in names:
    checks.lookup(dict.fromkeys(known), name, f'setting of --variant={arguments.variant}')
  figure_files.check_drawable()
  workdir = files.user_path(arguments.workdir, '--workdir')
  config = inference.read_config(workdir)
  images = figure1_ssim.images_of(config, 'validation')
  figure_files.check_num_images(arguments.num_images, _BATCH, images, multiple=_BATCH)
  images = images._replace(num_examples=arguments.num_images)
  path = figure_files.place(arguments.output, Path('runs') / NAME, NAME)
  names = [REST, RANDOM, REFERENCE, *names]
  found = measure(workdir, config, images, names, path, variant=variant, overwrite=arguments.overwrite)
  frontier_drawing.draw_densities(found, path.with_suffix('.png'))
  for name, values in found['settings'].items():
    numbers = f'accuracy {values["accuracy"]:.3f}  SSIM with c(x) {values["ssim_mean"]:.4f}'
    gain = f'gain {values["gain"]:.3f} ± {values["gain_error"]:.3f}  share {values["share"]:.3f}'
    print(f'  {name:<36} {gain}  {numbers}')
  print(f'wrote {path} and {path.with_suffix(".png").name}')


def settings(variant: str) -> list[str]:
  """Returns the adversaries that can be measured with a variant of the configs."""
  known = [*filter(is_of_its_own, frontier.SETTINGS), *STARTS, *FROZEN]
  if variant == 'laptop':
    return known
  fields = {name: frontier.SETTINGS[name].fields for name in known if name in frontier.SETTINGS}
  of_laptop = {name for name, of in fields.items() if 'attack.nu' in of or 'corruption_net.blocks' in of}
  return [name for name in known if name not in of_laptop or name in FULL_RADII]


def is_of_its_own(name: str) -> bool:
  """Returns whether a setting has an adversary of its own, not one of another setting on other images or steps."""
  setting = frontier.SETTINGS[name]
  is_plain = setting.config in ('ada_edsr', 'fast_ada') and not name.endswith(frontier_drawing.MINUTES)
  return is_plain and not setting.shares and not _OF_TRAINING & set(setting.fields)


def add_shares(settings: Mapping[str, Any]) -> None:
  """Adds to each setting what it adds to the loss that a random one adds, in parts of ten steps'."""
  random = settings[RANDOM]['gain']
  for one in settings.values():
    one['share'] = (one['gain'] - random) / (settings[REFERENCE]['gain'] - random)


def measure(
  workdir: Path, config: ConfigDict, images: Dataset, names: Sequence[str], path: Path, *, variant: str, overwrite: bool
) -> dict[str, Any]:
  """Returns the numbers of settings, c(x), a random one and ten steps among them; saves those of each once known."""
  from adversarial_augment.parallel import devices
  from adversarial_augment.run import summary

  devices.virtual_devices(1)
  devices.compilation_cache()
  classifier = inference.load_classifier(workdir)
  specs = {one: _spec(one, variant) for one in names}
  changed = {one: configs.differences(_spec(REST, variant), spec) for one, spec in specs.items()}
  origin = summary.provenance(config, {'validation': images}, NAME, workdir)
  versions = [origin['versions'][package] for package in ('adversarial_augment', 'jax')]
  about = inference.read_run(workdir).sha256, dict(images.provenance), images.num_examples, versions, variant
  conditions = results.digest(about)
  found = figure_files.known(path, conditions, overwrite) or {
    'figure': NAME,
    'conditions_sha256': conditions,
    'num_images': images.num_examples,
    'provenance': origin | {'command': figure_files.command(NAME)},
    'settings': {},
  }
  for name, one in [*found['settings'].items()]:
    if name in specs and one['attack'] != changed[name]:  # measured before it was changed
      del found['settings'][name]
  missing = [name for name in dict.fromkeys(names) if name not in found['settings']]
  with progress.images(len(missing) * images.num_examples) as advance:
    for name in missing:
      run = _corruptor(name, specs[name], classifier)
      parts = []
      for start in range(0, images.num_examples, _BATCH):
        batch = images.read(np.arange(start, start + _BATCH))
        parts.append(run(start, batch.images.astype(np.float32) / 255, batch.labels))
        advance(name, _BATCH)
      gains, correct, ssims = (np.concatenate(values) for values in zip(*parts, strict=True))
      found['settings'][name] = {
        'gain': float(gains.mean()),
        'gain_error': float(gains.std(ddof=1) / len(gains) ** 0.5),
        'accuracy': float(correct.mean()),
        'ssim_mean': float(ssims.mean()),
        'ssim_percentiles': [round(float(value), 6) for value in np.percentile(ssims, PERCENTS)],
        'attack': changed[name],
      }
      figure_files.write(path, found)
  add_shares(found['settings'])
  figure_files.write(path, found)
  return found


def _spec(name: str, variant: str) -> ConfigDict:
  """Returns the config of a setting; of what is no setting of the frontier, that of AdA."""
  setting = frontier.SETTINGS.get(name, frontier.Setting('ada_edsr'))
  radius = {'attack.nu': str(FULL_RADII[name])} if not variant and name in FULL_RADII else {}
  return configs.override(configs.load(f'configs/{setting.config}.py:{variant}'), {**setting.fields, **radius})


def _corruptor(name: str, spec: ConfigDict, classifier: inference.Classifier) -> Callable[..., Any]:
  """Returns (first index, images, labels) -> loss beyond that of c(x), whether right, SSIM with c(x), [n] each."""
  import jax
  import jax.numpy as jnp

  from adversarial_augment import attacks, ssim
  from adversarial_augment.attacks.losses import cross_entropy
  from adversarial_augment.training import builders

  of = configs.override(spec, {'attack.min_ssim': '-1'})
  rest = configs.override(of, {'attack.nu': '0', 'attack.num_steps': '0'})
  group = {'example': 1, 'group': of.attack.group, 'batch': None}[of.attack.beta_mode]
  network, phi = builders.load_network(of)
  ball = attacks.weight_ball(network.apply, nu=of.attack.nu)
  at_rest = builders.build(rest, 'ada').attack
  attack = at_rest if name == REST else builders.build(of, 'ada', group=group).attack
  assert at_rest is not None
  assert attack is not None

  @jax.jit
  def run(start: Array, images: Array, labels: Array) -> tuple[Array, ...]:
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(start + jnp.arange(len(images)))
    if name in (*STARTS, *FROZEN):
      moved = climbed(ball, phi, *name.split('_')[1:], classifier.logits_fn, keys, images, labels)
    else:
      moved = attack(keys, classifier.logits_fn, images, labels, phi).images
    unmoved = at_rest(keys, classifier.logits_fn, images, labels, phi).images
    logits = classifier.logits_fn(moved)
    gains = cross_entropy(logits, labels) - cross_entropy(classifier.logits_fn(unmoved), labels)
    return gains, logits.argmax(-1) == labels, ssim.ssim(unmoved, moved)

  return lambda *batch: jax.device_get(run(*batch))


def climbed(
  ball: PerturbationSet,
  phi: PyTree,
  kind: str,
  steps: str,
  logits_fn: LogitsFn,
  keys: Key,
  images: Array,
  labels: Array,
) -> Array:
  """Returns images after some sign steps of a kind, see `STARTS` and `FROZEN`: of an even number of images [n]."""
  import jax
  import jax.numpy as jnp

  from adversarial_augment.attacks.ascent import STEPS
  from adversarial_augment.attacks.losses import cross_entropy

  radii = ball.radii(phi)
  rule = STEPS['sign'](radii, 0.25)

  def climb(beta: PyTree, images: Array, labels: Array, steps: int, *, frozen: bool = False) -> tuple[PyTree, Array]:
    corrupt = ball.bound(phi, images, keys, beta)
    gradient_at = jax.grad(lambda moved: cross_entropy(logits_fn(moved), labels).sum())
    upwards = None
    for _ in range(steps):
      moved, pull_back = jax.vjp(corrupt, beta)
      upwards = upwards if frozen and upwards is not None else gradient_at(moved)
      move, _ = jax.vmap(rule.update)(*pull_back(upwards), jax.vmap(rule.init)(beta))
      beta = jax.vmap(lambda b, m: ball.project(radii, None, jax.tree.map(jnp.add, b, m)))(beta, move)
    return beta, corrupt(beta)

  beta = jax.vmap(lambda key, image: ball.init(key, phi, image))(keys, images)
  if kind == 'frozen':
    return climb(beta, images, labels, int(steps), frozen=True)[1]
  half = len(images) // 2
  if kind == 'mirrored':
    beta, _ = climb(beta, images[:, :, ::-1], labels, 2)
  else:  # each half starts from the mean of what two steps find for the other
    beta, _ = climb(beta, jnp.roll(images, half, 0), jnp.roll(labels, half, 0), 2)
    means = jax.tree.map(lambda b: b.reshape(2, half, *b.shape[1:]).mean(1).repeat(half, 0), beta)
    beta = jax.vmap(lambda mean: ball.project(radii, None, mean))(means)
  return climb(beta, images, labels, int(steps))[1]


def _parser() -> argparse.ArgumentParser:
  parser = figure_files.parser(
    NAME, __doc__.splitlines()[0], f'settings: those of experiments.frontier, {", ".join((*STARTS, *FROZEN))}'
  )
  parser.add_argument('--workdir', required=True, metavar='DIR', help='of a run with config.holdout')
  parser.add_argument('--settings', metavar='NAMES', help='separated by commas; default: all')
  parser.add_argument('--variant', default='laptop', metavar='NAME', help='laptop or full; default: laptop')
  parser.add_argument(
    '--num_images', type=int, default=512, metavar='N', help='the first held-out ones, a multiple of 64; default: 512'
  )
  parser.add_argument('--overwrite', action='store_true', help='replace the numbers of other images or another run')
  return parser


if __name__ == '__main__':
  cli.run(main)
