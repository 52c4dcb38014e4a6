"""Compares cheaper forms of AdA: mean corruption error against the cost of a training step.

  python -m experiments.frontier --scale=laptop                         # every setting, seed 0, on held-out images
  python -m experiments.frontier --scale=laptop --settings=ada_1_step,ada_10_steps
  python -m experiments.frontier --scale=laptop --split=test --settings=nominal,fast_ada --seeds=0,1,2

Missing runs are trained one after the other; stopped runs resume. On one core, a setting takes about ten minutes with
its evaluation, and forty with ten steps. With --scale=laptop, all fine-tune the start of their seed, which they share
with table1_corruptions; --starts=experiments/starts takes the starts of the committed results, so that it need not be
trained for 45 minutes first, and new entries compare with those. The settings see as many images as nominal; those
whose name ends in _equal_minutes get the time that this takes with ten steps instead, and their number of epochs
follows from the cost of their step.

The cost of a step is its time in nominal steps, both measured in turn, and its floating-point operations in those of a
nominal step. It is measured once, and kept in WORKDIR/SCALE/frontier/SETTING/cost.json. With --split=holdout, errors
are those on training images that no run has seen. Entries are added to those already in OUTPUT, where a result on test
images keeps one on held-out images as `holdout`. Runs from another start are not compared: to repeat the study with
starts of your own, name an --output of your own.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import checks, cli, datasets, inference, metrics
from adversarial_augment import config as configs
from adversarial_augment.cli import progress
from adversarial_augment.config import command_line, tables
from adversarial_augment.datasets import sampling
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, files, untrusted
from adversarial_augment.types import Batch, Dataset
from experiments import figure_files, frontier_drawing, runs, table1_corruptions
from experiments.frontier_drawing import COSTS, MINUTES, Table

ROUNDS = 21  # of a step and a nominal one, in turn
SCALES = ('laptop', 'gpu')  # whose corruption network has four blocks of 16 features
SPLITS = ('holdout', 'test')
_PLACES = ('init_from', 'frost_dir')  # fields that may differ between entries of one config, beside `RESUMABLE`


class Setting(NamedTuple):
  config: str  # of configs/
  fields: Mapping[str, str] = {}  # that it changes there
  length: float = 1.0  # of the training, in that of the config
  shares: Mapping[str, float] = {}  # fields in epochs, as shares of the training


def _ada(augmix: bool = False, tiny: bool = False, length: float = 1.0, shares: Mapping[str, float] = {}, **fields):
  changed = {f'attack.{name}': str(value) for name, value in {'measure_end': 'false', **fields}.items()}
  network = {'corruption_net.blocks': '2', 'corruption_net.features': '8'} if tiny else {}
  return Setting('ada_augmix' if augmix else 'ada_edsr', changed | network, length, shares)


def _free(updates: int) -> Setting:
  """Free replay, whose updates on each batch make up for its fewer batches."""
  return _ada(num_steps=1, min_ssim=-1, replay=updates, length=1 / updates)


_LATE = {'attack.warmup_epochs': 0.5}  # the adversary is there in the second half of the training

# The radii of parts of the weights, and of the network of two blocks of eight features, give a mean SSIM of 0.991 with
# c(x), as ten steps over all weights of the small EDSR at the paper's radius do: experiments.frontier_strength on 256
# held-out images, from the start of seed 0. Over all weights of that network, the radius is the paper's.
SETTINGS: dict[str, Setting] = {
  'nominal': Setting('nominal'),
  'augmix': Setting('augmix'),
  'fast_ada': Setting('fast_ada'),
  'fast_ada_augmix': Setting('fast_ada_augmix'),
  'ada_10_steps': _ada(num_steps=10),
  'ada_5_steps': _ada(num_steps=5),
  'ada_2_steps': _ada(num_steps=2),
  'ada_1_step': _ada(num_steps=1),
  'ada_random': _ada(num_steps=0),
  'ada_1_step_from_zero': _ada(num_steps=1, init='zero'),
  'ada_1_step_group_4': _ada(num_steps=1, beta_mode='group', group=4),
  'ada_2_steps_quarter': _ada(num_steps=2, fraction=0.25),
  'ada_2_steps_late': _ada(num_steps=2, shares=_LATE),
  'ada_2_steps_growing': _ada(num_steps=2, shares={'attack.growth_epochs': 1}),
  'last_third_2_steps': _ada(num_steps=2, moved='last_third', nu=0.0341),
  'last_third_1_step': _ada(num_steps=1, moved='last_third', nu=0.0347),
  'last_third_1_step_from_zero': _ada(num_steps=1, moved='last_third', nu=0.0347, init='zero'),
  'last_third_1_step_half': _ada(num_steps=1, moved='last_third', nu=0.0347, fraction=0.5),
  'last_third_1_step_every_2': _ada(num_steps=1, moved='last_third', nu=0.0347, every=2),
  'tail_2_steps': _ada(num_steps=2, moved='tail', nu=0.049),
  'tail_1_step': _ada(num_steps=1, moved='tail', nu=0.0514),
  'biases_2_steps': _ada(num_steps=2, moved='biases', nu=34),
  'biases_1_step': _ada(num_steps=1, moved='biases', nu=39),
  'scales_2_steps': _ada(num_steps=2, moved='scales', nu=0.0615),
  'scales_1_step': _ada(num_steps=1, moved='scales', nu=0.0701),
  'edsr_2x8_2_steps': _ada(tiny=True, num_steps=2, nu=0.0193),
  'edsr_2x8_1_step': _ada(tiny=True, num_steps=1, nu=0.0193),
  'edsr_2x8_1_step_from_zero': _ada(tiny=True, num_steps=1, nu=0.0193, init='zero'),
  'edsr_2x8_last_third_1_step': _ada(tiny=True, num_steps=1, moved='last_third', nu=0.0427),
  'edsr_2x8_tail_1_step': _ada(tiny=True, num_steps=1, moved='tail', nu=0.0538),
  'free_2': _free(2),
  'free_4': _free(4),
  'ada_augmix_10_steps': _ada(augmix=True, num_steps=10),
  'augmix_last_third_1_step_from_zero': _ada(augmix=True, num_steps=1, moved='last_third', nu=0.0347, init='zero'),
  'augmix_last_third_1_step_from_zero_late': _ada(
    augmix=True, num_steps=1, moved='last_third', nu=0.0347, init='zero', shares=_LATE
  ),
}
for _name in ('nominal', 'augmix', 'ada_10_steps', 'ada_augmix_10_steps', 'fast_ada', 'fast_ada_augmix'):
  SETTINGS[_name + MINUTES] = SETTINGS[_name]


def main(argv: Sequence[str]) -> None:
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser().parse_args(rest)
  checks.lookup(dict.fromkeys(SCALES), arguments.scale, '--scale')
  checks.lookup(dict.fromkeys(SPLITS), arguments.split, '--split')
  scale = table1_corruptions.SCALES[arguments.scale]
  names = arguments.settings.split(',') if arguments.settings else list(SETTINGS)
  for name in names:
    checks.lookup(SETTINGS, name, 'setting')
  seeds = table1_corruptions.seeds(arguments.seeds)
  own = {field for name in names for field in (*SETTINGS[name].fields, *SETTINGS[name].shares)}
  for name in overrides:
    if name in (
      'seed',
      'init_from',
      'num_epochs',
      'num_steps',
      'optimizer.warmup_epochs',
      'evals',
      *scale.fields,
      *own,
    ):
      raise UserError(f'config.{name} is set by the experiment; omit it.')
  fields = {**scale.fields, **overrides}
  if arguments.split == 'holdout' and not configs.override(configs.load('configs/nominal.py'), fields).holdout:
    raise UserError(f'--split=holdout: runs of --scale={arguments.scale} hold out no images; set --config.holdout.')
  starts = _starts(arguments.starts, scale, seeds)
  figure_files.check_drawable()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # this process shares a GPU with its trainings
  name = f'frontier_{arguments.scale}.json'
  table = runs.Table(arguments.output, name, frontier_drawing.texts, frontier_drawing.picture)
  root = files.user_path(arguments.workdir, '--workdir') / arguments.scale
  study = _Study(scale, root, fields, starts)
  for seed in seeds:
    for name in names:
      table.add(name, study.entry(name, seed, table.rows, arguments.split), str(seed))
  print(f'wrote {table.path}, .csv, .md and .png')


def _starts(folder: str | None, scale: table1_corruptions.Scale, seeds: Sequence[int]) -> Mapping[int, Path]:
  """Returns the files of the classifiers from which seeds start; none where they are to be trained."""
  if folder is None:
    return {}
  if scale.start is None:
    raise UserError(f"--starts='{folder}': runs of this scale start from scratch; omit it.")
  found = {seed: files.user_path(folder, '--starts') / f'seed{seed}.safetensors' for seed in seeds}
  for seed, path in found.items():
    if not path.is_file():
      raise UserError(f"--starts='{folder}' has no {path.name}; name other --seeds, or omit it to train seed {seed}'s.")
  return found


class _Study:
  """The runs of all settings at one scale."""

  def __init__(
    self, scale: table1_corruptions.Scale, root: Path, fields: Mapping[str, str], starts: Mapping[int, Path] = {}
  ):
    self._scale, self._root, self._fields_of_all, self._starts = scale, root, fields, starts

  def entry(self, name: str, seed: int, table: Table, split: str) -> dict[str, Any]:
    """Returns the entry of a setting and seed, trained and measured if need be.

    Raises:
      UserError: the table has one of another config.
    """
    known, cost, base = table.get(name, {}).get(str(seed), {}), self._cost(name, table), name.removesuffix(MINUTES)
    length = SETTINGS[name].length
    if name != base:
      length = self._cost('ada_10_steps', table)['cost_measured'] / cost['cost_measured']
    fields = self._fields(name, seed, length)
    if known:
      wanted = configs.override(configs.load(self._config(name)), fields)
      if changed := _changes(known['provenance']['config'], wanted):
        said = f"the table's entry of setting '{name}', seed {seed}, has another config ({'; '.join(changed)})"
        raise UserError(f'{said}; remove it, or name another --output.')
    if known.get('split') == split or split in known:  # nothing is measured twice
      return known
    workdir = self._train(base if length == SETTINGS[name].length else name, seed, fields)
    errors = self._errors_on_test(workdir) if split == 'test' else self._errors_on_holdout(workdir)
    closing = runs.result(workdir, 'train')
    entry = errors | {
      'split': split,
      **cost,
      'images_seen': closing['step'] * closing['config']['batch_size'] * int(fields.get('attack.replay', 1)),
      'minutes': round(runs.minutes(workdir), 2),
      'command': closing['command'],
    }
    if split == 'holdout':
      return known | {'holdout': entry} if known else entry
    return entry | ({'holdout': known} if known else {})

  def _config(self, name: str) -> str:
    return f'configs/{SETTINGS[name].config}.py' + (f':{self._scale.variant}' if self._scale.variant else '')

  def _start(self, seed: int) -> Path:
    return self._starts.get(seed, self._root / 'start' / f'seed{seed}')

  def _fields(self, name: str, seed: int, length: float) -> dict[str, str]:
    """Returns the fields of a run that its config does not have, by its length in that of the config."""
    setting, spec = SETTINGS[name], configs.load(self._config(name))
    epochs = length * spec.num_epochs
    fields = {'seed': str(seed), **self._fields_of_all, 'evals': 'clean', **setting.fields}
    if self._scale.start is not None:
      fields['init_from'] = str(self._start(seed))
    if length != 1:  # a shorter run keeps the shape of a longer one
      fields |= {
        'num_epochs': f'{epochs:.4g}',
        'optimizer.warmup_epochs': f'{length * spec.optimizer.warmup_epochs:.4g}',
      }
    return fields | {field: f'{share * epochs:.4g}' for field, share in setting.shares.items()}

  def _train(self, name: str, seed: int, fields: Mapping[str, str]) -> Path:
    flags = lambda fields: [f'--config.{field}={value}' for field, value in fields.items()]
    if self._scale.start is not None and seed not in self._starts:
      runs.train(self._scale.start, self._start(seed), flags({'seed': str(seed), **self._fields_of_all}))
    workdir = self._root / 'frontier' / name / f'seed{seed}'
    runs.train(self._config(name), workdir, flags(fields))
    return workdir

  def _errors_on_test(self, workdir: Path) -> dict[str, Any]:
    runs.start('adversarial_augment.evaluate', f'--workdir={workdir}', '--evals=clean,cifar10_c')
    clean, corrupted = (runs.result(workdir, name) for name in ('clean', 'cifar10_c'))
    if clean['checkpoint_sha256'] != corrupted['checkpoint_sha256']:
      raise UserError(f"the results in '{workdir}' are from several checkpoints; evaluate it again with --overwrite.")
    return {
      'clean_error': 1 - clean['accuracy'],
      **{field: corrupted[field] for field in ('mce', 'corruption_error', 'num_images', 'origin')},
      'provenance': corrupted['provenance'] | {'checkpoint_sha256': clean['checkpoint_sha256']},
    }

  def _errors_on_holdout(self, workdir: Path) -> dict[str, Any]:
    from adversarial_augment.evaluation import bench
    from adversarial_augment.parallel import devices, sharding
    from adversarial_augment.run import summary
    from adversarial_augment.training import recipe

    config = inference.read_config(workdir)
    devices.virtual_devices(config.batch_size)
    devices.compilation_cache()
    mesh = sharding.data_mesh()
    images = bench.Images(*_holdout(config.dataset, config.data_dir, config.holdout, config.frost_dir))
    held_out = images.dataset
    restored = inference.restore(config, workdir, held_out.num_classes, held_out.image_shape, mesh)
    classifier = recipe.attacked_classifier(config, held_out.num_classes)
    measure = bench.Bench(config, classifier, mesh, images, None, {}).measure
    clean, corrupted = (measure(name, restored.state, lambda: None) for name in ('clean', 'cifar10_c'))
    provenance = summary.provenance(config, {'holdout': held_out}, '', workdir)
    return {
      'clean_error': 1 - clean['accuracy'],
      **{field: corrupted[field] for field in ('mce', 'corruption_error', 'num_images', 'origin')},
      'provenance': provenance
      | images.origins()['cifar10_c']
      | {'checkpoint_sha256': restored.sha256, 'command': figure_files.command('frontier')},
    }

  def _cost(self, name: str, table: Table) -> dict[str, float]:
    """Returns the cost of a step of a setting: what the table or an earlier start has, or measured and kept."""
    base = name.removesuffix(MINUTES)
    if base == 'nominal':
      return dict.fromkeys(COSTS, 1.0)
    for entry in (one for of in (base, base + MINUTES) for one in table.get(of, {}).values()):
      return {field: entry[field] for field in COSTS}
    folder = self._root / 'frontier' / base
    with artifact.storage_errors(f"write in '{folder}'"):
      folder.mkdir(parents=True, exist_ok=True)
    path, config = folder / 'cost.json', self._config_of_step(base)
    with artifact.lock(folder, name=path.name, wait=True):
      known = untrusted.read_json(path) if path.exists() else {}
      if 'config' not in known or _changes(known['config'], config):
        known = self._measured_cost(base) | {'config': json.loads(configs.to_json(config))}
        artifact.replace(path, (json.dumps(known) + '\n').encode())
    return {field: known[field] for field in COSTS}

  def _config_of_step(self, name: str) -> ConfigDict:
    return configs.override(configs.load(self._config(name)), self._fields(name, 0, SETTINGS[name].length))

  def _measured_cost(self, name: str) -> dict[str, float]:
    """Returns the time and the FLOP of a step of a setting in those of a nominal one, as means over its run."""
    from adversarial_augment.parallel import devices
    from benchmarks import timing

    config, nominal = self._config_of_step(name), self._config_of_step('nominal')
    devices.virtual_devices(config.batch_size)
    devices.compilation_cache()
    spared = self._config_of_step('augmix') if SETTINGS[name].config.endswith('augmix') else nominal
    always = configs.override(config, {'attack.every': '1', 'attack.warmup_epochs': '0'})
    with progress.stage(f'timing a step of {name}', progress.log):
      steps = {which: _step(one) for which, one in {'it': always, 'spared': spared, 'nominal': nominal}.items()}
      seconds = timing.interleave({which: run for which, (run, _) in steps.items()}, rounds=ROUNDS)
    flop = {which: flop for which, (_, flop) in steps.items()}
    return {
      'cost_measured': round(mean_cost(config, {which: one.wall for which, one in seconds.items()}), 3),
      'cost_flop': round(mean_cost(config, flop), 3),
    }


def _changes(found: Mapping[str, Any], wanted: ConfigDict) -> list[str]:
  """Returns how a recorded config differs from another, but for places of files."""
  differences = configs.differences({**tables.ADDED, **checks.flatten(found)}, wanted)
  return [one for one in differences if one.partition(':')[0] not in _PLACES]


def mean_cost(config: ConfigDict, of: Mapping[str, float]) -> float:
  """Returns the cost of an update of a run, in nominal steps, as a mean over those with and without its adversary.

  `of` has the cost of a step with it ('it'), without it ('spared'), and of a nominal one ('nominal').
  """
  attack = config.attack
  share = (1 - attack.warmup_epochs / config.num_epochs) / attack.every
  return (share * of['it'] / attack.replay + (1 - share) * of['spared']) / of['nominal']


@functools.lru_cache(maxsize=1)
def _holdout(dataset: str, data_dir: str, count: int, frost_dir: str | None) -> tuple[Dataset, dict[str, Any]]:
  """Returns the images that runs have held out, and their corrupted forms in memory, made when they are read first."""
  from adversarial_augment.evaluation import corrupted

  images = sampling.holdout(datasets.load(dataset, 'train', data_dir), count)[1]
  forms, made = corrupted.in_memory(images, metrics.NAMES, frost_dir), {}

  def read(name: str, severity: int, index: np.ndarray) -> np.ndarray:
    if (name, severity) not in made:
      made[name, severity] = forms.read(name, severity, np.arange(images.num_examples))
    return made[name, severity][index]

  whole = images.read(np.arange(images.num_examples))
  images = images._replace(read=lambda index: Batch(whole.images[index], whole.labels[index]))
  return images, {'clean': None, 'cifar10_c': forms._replace(read=read)}


def _step(config: ConfigDict) -> tuple[Callable[[], Any], int]:
  """Returns a compiled train step of a config, as a function without arguments, and its FLOP."""
  from adversarial_augment import per_example_conv
  from adversarial_augment.parallel import sharding
  from adversarial_augment.planning import operations
  from adversarial_augment.training import recipe as recipes
  from adversarial_augment.training import train_step

  images, mesh = datasets.load(config.dataset, 'train', config.data_dir), sharding.data_mesh()
  recipe, phi = recipes.build(config, images, mesh)
  plain, _ = recipes.build(config, images, mesh, conv=per_example_conv.conv)
  state = sharding.replicate(mesh, train_step.init_state(recipe, images.image_shape))
  phi = sharding.replicate(mesh, phi)
  batch = sharding.shard_batch(mesh, tuple(images.read(np.arange(config.batch_size))))
  flop = operations.flop(train_step.traced(plain, phi, images.image_shape).jaxpr.jaxpr)
  compiled = train_step.jitted(recipe).lower(state, np.int32(0), *batch, phi).compile()
  made = 0

  def run() -> Any:
    nonlocal state, made
    state, values = compiled(state, np.int32(made), *batch, phi)
    made += 1
    return values

  return run, flop


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(
    prog='python -m experiments.frontier',
    description=__doc__.splitlines()[0],
    epilog=f'settings: {", ".join(SETTINGS)}',
  )
  parser.add_argument('--settings', metavar='NAMES', help='separated by commas; default: all')
  parser.add_argument('--split', default='holdout', metavar='NAME', help='holdout or test; default: holdout')
  parser.add_argument('--starts', metavar='DIR', help='of seedN.safetensors to start from; default: they are trained')
  table1_corruptions.add_flags(parser, SCALES)
  return parser


if __name__ == '__main__':
  cli.run(main)
