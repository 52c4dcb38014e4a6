"""What a run says of itself: the opening lines, the provenance of its results, the closing table and the figure."""

from collections.abc import Iterator, Mapping
import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from adversarial_augment import attacks, classifiers, corruption_nets, metrics, results, threefry
from adversarial_augment import config as configs
from adversarial_augment.cli import environment, progress
from adversarial_augment.config import adversaries
from adversarial_augment.config.evaluations import EVALUATIONS, Evaluation
from adversarial_augment.config.fields import spell
from adversarial_augment.corruption_nets import weights
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import platforms
from adversarial_augment.storage import artifact, sharing
from adversarial_augment.training import builders, step_memory
from adversarial_augment.training import recipe as recipes
from adversarial_augment.training.recipe import Recipe
from adversarial_augment.types import Attack, Dataset, PyTree, TrainState

_EXAMPLES = 8


def opening(
  config: ConfigDict, recipe: Recipe, splits: Mapping[str, Dataset], state: TrainState, phi: PyTree
) -> Iterator[str]:
  """Yields what is about to happen."""
  devices, data = jax.devices(), splits['train']
  origin = data.provenance.get('origin', 'unverified')
  yield f'devices: {len(devices)} x {devices[0].platform} in {jax.process_count()} process(es); JAX {jax.__version__}'
  yield from _precision(config, recipe)
  sizes = ', '.join(f'{split} {dataset.num_examples:,}' for split, dataset in splits.items())
  yield f'data: {data.name} ({origin}), {sizes} images of {data.image_shape}, {data.num_classes} classes'
  if 'deepaugment' in data.provenance:
    mixed = data.provenance['deepaugment']
    copies = ', '.join(f'{name} x {count}' for name, count in mixed['copies'].items())
    yield f'DeepAugment: copies {copies}, mixed by {mixed["mix"]}; an epoch is {data.epoch_size:,} images'
  yield f'classifier: {config.classifier.name}-{config.classifier.depth}, {optax.tree.size(state.params):,} parameters'
  yield 'for these images: ' + spell({f'classifier.{name}': value for name, value in recipes.resolved(config).items()})
  if config.freeze != 'none':
    heads = [leaves for name, leaves in state.params.items() if name.endswith('/head')]
    statistics = 'with' if recipe.frozen_statistics else 'but for'
    yield f'frozen: the body, {statistics} its running statistics; {optax.tree.size(heads):,} parameters are trained'
  if config.attack.name in adversaries.ADVERSARIES:
    yield f'adversary: {_network(config, phi)}{adversaries.find(config.attack).strength(config.attack)}'
    yield from _departures(config, recipe)
  if recipe.attack is not None:
    yield from _memory(config, recipe, step_memory.estimate(config, recipe, state, phi, data.image_shape))
  if 'augmix_all_ops' in {*config.augment.before, *config.augment.after}:
    yield 'warning: operations of augmix_all_ops are like brightness, contrast and saturate of the test corruptions'
  yield f'steps: {int(state.step):,} of {recipe.num_steps:,} made, {recipe.batch_size} images each'
  if warning := recipes.too_few_steps(config, recipe.num_steps, data.epoch_size or data.num_examples):
    yield warning


def _precision(config: ConfigDict, recipe: Recipe) -> Iterator[str]:
  """Yields what the networks compute in, where it is not plain 32 bits."""
  asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  rounded = {'gpu': 'TF32, where the card has it,', 'tpu': 'bfloat16'}.get(platforms.of(recipe.mesh))
  if config.precision != 'float32':
    yield f'precision: {config.precision} in the networks, float32 elsewhere'
  elif asked is not None:
    yield f'precision: float32, products as JAX_DEFAULT_MATMUL_PRECISION={asked} has them'
  elif rounded:
    yield f'precision: float32, products rounded to {rounded} unless JAX_DEFAULT_MATMUL_PRECISION=highest'


def _network(config: ConfigDict, phi: PyTree) -> str:
  """Returns what the adversary moves the weights of; nothing where it moves pixels."""
  if not adversaries.moves_weights(config.attack):
    return ''
  phi = phi.phi if isinstance(phi, attacks.Hull) else phi
  network = corruption_nets.label(config.corruption_net.name, configs.network_sizes(config)).replace('_', ' ')
  return f'{network}, {optax.tree.size(phi):,} parameters in {len(jax.tree.leaves(phi))} blocks, '


def _departures(config: ConfigDict, recipe: Recipe) -> Iterator[str]:
  """Yields in what the adversary is not that of Eq. 3 (arXiv 2104.01086)."""
  attack, local = config.attack, recipe.batch_size // recipe.mesh.size
  if departure := adversaries.ADVERSARIES[attack.name].departure:
    yield f'departs from Eq. 3: {departure} (attack.name={attack.name})'
  count = attacks.attacked_images(attack.fraction, local)
  if count < local:
    yield (
      f'departs from Eq. 3: {count} of the {local} images on each device are attacked, the others stay clean '
      f'(attack.fraction={attack.fraction:g})'
    )
  if attack.beta_mode != 'example':
    sharing = f'{attack.group} images' if attack.beta_mode == 'group' else 'all attacked images of a batch'
    yield f'departs from Eq. 3: {sharing} share a perturbation (attack.beta_mode={attack.beta_mode})'
  if attack.moved != 'all':
    yield f'departs from Eq. 1: only a part of the weights moves (attack.moved={attack.moved})'
  if recipe.every > 1:
    yield f'departs from Eq. 3: one of {recipe.every} steps has the adversary (attack.every={recipe.every})'
  if recipe.replay is not None:
    yield (
      f'departs from Eq. 3: {attack.replay} updates on each batch, each by the gradient that moves the perturbations, '
      f'and no line search (attack.replay={attack.replay})'
    )
  if recipe.growth_steps:
    yield (
      f'departs from Eq. 3: the radius grows over {recipe.growth_steps:,} steps '
      f'(attack.growth_epochs={attack.growth_epochs:g})'
    )


def _memory(config: ConfigDict, recipe: Recipe, needed: int) -> Iterator[str]:
  """Yields the estimate of a step's memory, and what to change where it will not fit."""
  images = builders.training_split(config, recipe.mesh.size).at_a_time
  yield f'memory: about {needed / 1e9:.2f} GB on each device, with {images} images under attack at a time'
  limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 0)
  if jax.default_backend() == 'cpu':
    limit = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // jax.local_device_count()
  if 0 < limit < needed:
    smaller = {'attack.batch_norm': 'running', 'attack.microbatch': max(1, int(images * limit / needed / 2))}
    yield (
      f'warning: a device has {limit / 1e9:.2f} GB; lower {spell(config, "batch_size")}, or set {spell(smaller)} '
      f'(the latter must divide {recipe.batch_size})'
    )


def provenance(config: ConfigDict, splits: Mapping[str, Dataset], program: str, workdir: Path) -> dict[str, Any]:
  """Returns where a result of `program` comes from; paths are relative to `workdir`, see sharing.py."""
  about = {
    'data': {split: {'name': data.name, **data.provenance} for split, data in splits.items()},
    'weights': _weights(config),
    'seed': config.seed,
    'config': json.loads(configs.to_json(config)),
    'config_sha256': configs.sha256(config),
    'versions': environment.versions(),
    'environment': environment.settings(),
    'git': _revision(),
    'command': sharing.command(f'adversarial_augment.{program}', sys.argv[1:], workdir),
    'devices': {'kind': jax.devices()[0].device_kind, 'count': jax.device_count(), 'processes': jax.process_count()},
  }
  if start := results.load_start(workdir):
    about['init_from'] = start
  return sharing.relative(about, workdir)


def _revision() -> str | None:
  """Returns the commit of the checkout that the code runs from, with '+' where files were changed; None outside one."""
  git = lambda *words: subprocess.run(
    ['git', '-C', str(Path(__file__).parent), *words], capture_output=True, text=True, check=True, timeout=10
  ).stdout.strip()
  try:
    git('ls-files', '--error-unmatch', Path(__file__).name)
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--untracked-files=no') else '')
  except (OSError, subprocess.SubprocessError):  # no git, or installed elsewhere
    return None


def _weights(config: ConfigDict) -> dict[str, Any] | None:
  """Returns the origin of phi; None for a run that has nothing to do with an adversary."""
  if not builders.has_network(config):
    return None
  path = corruption_nets.find(builders.weights_of(config))
  _, origin = weights.load(path)
  known = {name: origin.get(name) for name in ('network', 'data', 'steps', 'command')}
  return {'file': path.name, 'sha256': artifact.sha256_of(path), **known}


def evals(result: Mapping[str, Any]) -> list[str]:
  """Returns the lines of all evaluations of a file of results."""
  return [line for name in result['evals'] for line in evaluation(name, result['evals'][name], result)]


def evaluation(name: str, values: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
  """Returns the lines of one evaluation; `result` has its `split` and `config`."""
  entry = EVALUATIONS[name]
  if entry.corruptions:
    return _corruption_lines(entry, values)
  if entry.parts:
    return [_accuracy_line(f'{entry.title} {part}', values[part], 'images') for part in entry.parts]
  lines = [_accuracy_line(entry.title, values, f'{result["split"]} images')]
  if entry.under_attack:
    attack = result['config']['attack']
    lines += [
      f'  {"":<20} {adversaries.ADVERSARIES["ada"].strength(attack)}, running statistics, fixed seed',
      f'  {"mean SSIM":<20} {values["ssim"]:.4f}  (before the line search, {values["num_images"]:,} images)',
    ]
  return lines


def _accuracy_line(label: str, values: Mapping[str, Any], what: str) -> str:
  return f'  {label:<20} {values["accuracy"]:.4f}  ({values["num_correct"]:,} of {values["num_images"]:,} {what})'


def _corruption_lines(entry: Evaluation, values: Mapping[str, Any]) -> list[str]:
  """Returns the errors in percent, a line for each corruption and a column for each severity."""
  table = {name: (values['error'][name], values['corruption_error'][name]) for name in entry.corruptions}
  table[entry.mean_label] = values['severity_error'], values[entry.mean_error]
  low, high = (100 * bound for bound in values['interval'])
  width = max(20, *map(len, table))
  subset = f' (of {values["subset_of"]:,}, evenly spaced)' if 'subset_of' in values else ''
  return [
    f'  {"error in %, severity":<{width}}'
    + ''.join(f'{severity:7}' for severity in metrics.SEVERITIES)
    + f'{"mean":>8}',
    *(
      f'  {label:<{width}}' + ''.join(f'{100 * error:7.2f}' for error in errors) + f'{100 * mean:8.2f}'
      for label, (errors, mean) in table.items()
    ),
    f'  {"":<{width}} {entry.mean_label} {100 * values[entry.mean_error]:.2f} %, '
    f'95 % interval {low:.2f} to {high:.2f}; {values["num_images"]:,} images a cell{subset}, {values["origin"]}'
    + (f'; frost: {values["frost"]}' if values.get('frost') else ''),
  ]


def closing(result: Mapping[str, Any], workdir: Path, figure: str | None) -> list[str]:
  """Returns the closing table."""
  data = result['data']['train']
  origin = data.get('origin', 'unverified')
  lines = [f'after {result["step"]:,} steps on {data["name"]} ({origin}), seed {result["seed"]}:', *evals(result)]
  files: dict[str, Path | str] = {'results': workdir / 'results' / 'train.json', 'curves': workdir / 'metrics.jsonl'}
  files |= {'checkpoints': workdir / 'checkpoints'} | ({'examples': figure} if figure else {})
  return lines + [f'  {name:<20} {path}' for name, path in files.items()]


def draw(
  path: Path,
  config: ConfigDict,
  recipe: Recipe,
  dataset: Dataset,
  state: TrainState,
  attack: Attack | None,
  phi: PyTree,
) -> str | None:
  """Draws the curves of the run, and to `path` the first images of `dataset` before and after the attack (Figure 1a).

  Returns the path, or None without an adversary or without Matplotlib, an extra.
  """
  if importlib.util.find_spec('matplotlib') is None:
    progress.log("no figure: Matplotlib is not installed; install the extra 'plots': pip install matplotlib.")
    return None
  from adversarial_augment.reporting import figures

  try:
    figures.training_curves(path.with_name('training_curves.png'), path.parent.parent / 'metrics.jsonl')
  except UserError as error:  # lines of the log are lost, and the rest of the run is not
    progress.log(f'warning: no curves: {error}')
  if attack is None:
    return None
  images, labels = dataset.read(np.arange(min(_EXAMPLES, dataset.num_examples)))
  clean, attacked, ssim, seen = _attacked_examples(recipe, state, attack, phi, images, labels)
  named = lambda labels: [dataset.class_names[i] if dataset.class_names else str(i) for i in labels]
  title = f'{_shown(config)}, step {int(state.step)}'
  figures.ada_examples(path, clean, attacked, ssim, named(labels), (named(seen[0]), named(seen[1])), title)
  return str(path)


def _attacked_examples(
  recipe: Recipe, state: TrainState, attack: Attack, phi: PyTree, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns images before and after an attack, their SSIM, and what the classifier takes them for, before and after."""
  params, model_state, phi = jax.device_get((state.params, state.model_state, phi))
  clean = jnp.asarray(images, jax.tree.leaves(params)[0].dtype) / 255

  @jax.jit
  def corrupt(params, model_state, phi, clean, labels):
    logits_fn = classifiers.logits_fn(recipe.classifier, params, model_state)
    keys = jax.vmap(lambda i: jax.random.fold_in(threefry.key(0), i))(jnp.arange(clean.shape[0]))
    result = attack(keys, logits_fn, clean, labels, phi)
    seen = jnp.stack([logits_fn(x).argmax(-1) for x in (clean, result.images)])
    return result.images, result.metrics['ssim'], seen

  corrupted, ssim, seen = corrupt(params, model_state, phi, clean, jnp.asarray(labels))
  return np.asarray(clean), np.asarray(corrupted), np.asarray(ssim), np.asarray(seen)


def _shown(config: ConfigDict) -> str:
  """Returns the adversary of the picture: of the training, if it moves pixels; otherwise AdA through the network."""
  known = adversaries.ADVERSARIES.get(config.attack.name)
  if known and known.moves == 'pixels':
    return known.strength(config.attack)
  shown = builders.EVALUATED
  trained = f' (trained with {config.attack.name})' if known and config.attack.name != shown else ''
  return f'{config.corruption_net.name}, AdA, {adversaries.ADVERSARIES[shown].strength(config.attack)}{trained}'
