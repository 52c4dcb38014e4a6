"""Compares cheaper forms of AdA: mean corruption error against the cost of a training step.

  python -m experiments.frontier --scale=laptop                         # every setting, seed 1, on held-out images
  python -m experiments.frontier --scale=laptop --settings=ada_1_step,ada_10_steps
  python -m experiments.frontier --scale=laptop --split=test --settings=nominal,fast_ada --seeds=1,2,3

Missing runs are trained one after the other; stopped runs resume. On one core, a setting takes about ten minutes with
its evaluation, and forty with ten steps or at equal minutes: with the committed table, some five hours for all that are
left. With --scale=laptop, all fine-tune the classifier of their seed. Those of seeds 1 to 3, trained on CIFAR-10 after
a JPEG round trip, ship in experiments/starts, so that new settings compare with the committed ones; another one, or one
with other fields, is trained for 45 minutes, and shared with table1_corruptions. The settings see as many images as
nominal; those whose name ends in _equal_minutes get the time that this takes with ten steps instead, and their number
of epochs follows from the cost of their step.

The cost of a step is its time in nominal steps, both measured in turn, and its floating-point operations in those of a
nominal step. It is measured once, and kept in WORKDIR/SCALE/frontier/SETTING/cost.json. With --split=holdout, errors
are those on training images that no run has seen. Entries are added to those already in OUTPUT, where a result on test
images keeps one on held-out images as `holdout`. Runs from another start are not compared, and those with other fields
or images are refused: to repeat the study with your own, name an --output of your own.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import json
import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict
import msgspec
import numpy as np

from adversarial_augment import checks, cli, datasets, inference, metrics
from adversarial_augment import config as configs
from adversarial_augment.cli import progress
from adversarial_augment.config import command_line, published, tables
from adversarial_augment.datasets import sampling
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, files, untrusted
from adversarial_augment.types import Batch, Dataset
from experiments import figure_files, frontier_drawing, runs, table1_corruptions
from experiments.frontier_drawing import COSTS, MINUTES, Entries

ROUNDS = 21  # of a step and a nominal one, in turn
SCALES = ('laptop', 'gpu')  # whose corruption network has four blocks of 16 features
SPLITS = ('holdout', 'test')
STARTS = Path(__file__).parent / 'starts'  # of the committed results: seedN.safetensors
_PLACES = ('init_from', 'frost_dir')  # fields that may differ between entries of one config, beside `RESUMABLE`


class _Cost(msgspec.Struct):
  """The cost of a step of a config, in nominal steps."""

  cost_measured: Annotated[float, msgspec.Meta(gt=0)]
  cost_flop: Annotated[float, msgspec.Meta(gt=0)]
  config: dict[str, Any]


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
# c(x) from a random start, as ten steps over all weights of the small EDSR at the paper's radius do: on 256 held-out
# images, by experiments.frontier_strength. From beta = 0, a step leaves up to 0.001 less. fast_ada_random leaves what
# fast_ada does.
SETTINGS: dict[str, Setting] = {
  'nominal': Setting('nominal'),
  'augmix': Setting('augmix'),
  'fast_ada': Setting('fast_ada'),
  'fast_ada_augmix': Setting('fast_ada_augmix'),
  'fast_ada_random': Setting('fast_ada', {'attack.num_steps': '0', 'attack.init': 'ball', 'attack.nu': '0.18'}),
  'ada_10_steps': _ada(num_steps=10),
  'ada_5_steps': _ada(num_steps=5),
  'ada_2_steps': _ada(num_steps=2),
  'ada_1_step': _ada(num_steps=1),
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
for _nu in ('0.064', '0.09'):
  SETTINGS[f'fast_ada_augmix_nu_{_nu}'] = Setting('fast_ada_augmix', {'attack.nu': _nu})
for _every, _nu in (('2', '0.064'), ('4', '0.09')):  # the rarer, the stronger
  SETTINGS[f'fast_ada_augmix_every_{_every}'] = Setting('fast_ada_augmix', {'attack.every': _every, 'attack.nu': _nu})
for _name in (
  'nominal',
  'augmix',
  'ada_10_steps',
  'ada_augmix_10_steps',
  'fast_ada',
  'fast_ada_augmix',
  'fast_ada_augmix_every_2',
  'fast_ada_augmix_every_4',
):
  SETTINGS[_name + MINUTES] = SETTINGS[_name]


def main(argv: Sequence[str]) -> None:
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser().parse_args(rest)
  checks.lookup(dict.fromkeys(SCALES), arguments.scale, '--scale')
  checks.lookup(dict.fromkeys(SPLITS), arguments.split, '--split')
  scale = table1_corruptions.SCALES[arguments.scale]
  names = list(SETTINGS) if arguments.settings is None else arguments.settings.split(',')
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
  figure_files.check_drawable()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # this process shares a GPU with its trainings
  file = f'frontier_{arguments.scale}.json'
  table = runs.Table(arguments.output, file, frontier_drawing.texts, frontier_drawing.picture)
  root = files.user_path(arguments.workdir, '--workdir') / arguments.scale
  study = _Study(scale, root, fields)
  study.check(table.rows)
  for seed in seeds:
    for name in names:
      table.add(name, study.entry(name, seed, table.rows, arguments.split), str(seed))
  print(f'wrote {table.path}, .csv, .md and .png')


class _Study:
  """The runs of all settings at one scale."""

  def __init__(self, scale: table1_corruptions.Scale, root: Path, fields: Mapping[str, str]):
    self._scale, self._root, self._fields_of_all = scale, root, fields
    self._checked: set[str] = set()  # splits

  def check(self, table: Entries) -> None:
    """Checks that the entries of a table are of the runs that this study would make.

    Raises:
      UserError: one is of another config.
    """
    for name in filter(table.__contains__, SETTINGS):
      for seed, entry in table[name].items():
        wanted = self._spec(name, int(seed), self._length(name, table))
        if changed := _changes(entry['provenance']['config'], wanted):
          said = f"the table's entry of setting '{name}', seed {seed}, has another config ({'; '.join(changed)})"
          raise UserError(f'{said}; remove it, or name another --output.')

  def _check_images(self, table: Entries, split: str) -> None:
    """Raises UserError where errors here would be on other images or corruptions than those of a table."""
    known = [one for seeds in frontier_drawing.parts(table, split).values() for one in seeds.values()]
    if split in self._checked or not known:
      return
    there, here = frontier_drawing.images(known[0], split), _images(self._spec('nominal'), split)
    if changed := [f'{field}: {there[field]} -> {here[field]}' for field in here if here[field] != there[field]]:
      facts = f"the entries of the table on split '{split}' are of other images than these ({'; '.join(changed)})"
      raise UserError(f'{facts}; use theirs, or name another --output.')
    self._checked.add(split)

  def entry(self, name: str, seed: int, table: Entries, split: str) -> dict[str, Any]:
    """Returns the entry of a setting and seed, trained and measured if need be."""
    known = table.get(name, {}).get(str(seed), {})
    if known.get('split') == split or split in known:  # nothing is measured twice
      return known
    self._check_images(table, split)
    cost = self._cost(name, table)
    length, base = self._length(name, table), name.removesuffix(MINUTES)
    if base != name and length == SETTINGS[base].length:  # ten steps are as long at equal minutes, and trained once
      return self.entry(base, seed, table, split)
    fields = self._fields(name, seed, length)
    workdir = self._train(name, seed, fields)
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
    """Returns what a seed is fine-tuned from: the file that ships, if it is of the same config, or a run."""
    fields = {name: value for name, value in self._fields_of_start(seed).items() if name not in _PLACES}
    config = configs.override(configs.load(self._scale.start), fields)
    path = STARTS / f'seed{seed}.safetensors'
    is_its_own = path.is_file() and _config_of(path) in configs.all_sha256(config)
    return path if is_its_own else self._root / 'start' / f'seed{seed}'

  def _fields_of_start(self, seed: int) -> dict[str, str]:
    of_adversary = lambda name: name.startswith(('attack.', 'corruption_net.'))  # which a start does not have
    return {'seed': str(seed), **{name: value for name, value in self._fields_of_all.items() if not of_adversary(name)}}

  def _length(self, name: str, table: Entries) -> float:
    """Returns the length of the training of a setting, in that of its config."""
    if not name.endswith(MINUTES):
      return SETTINGS[name].length
    return self._cost('ada_10_steps', table)['cost_measured'] / self._cost(name, table)['cost_measured']

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

  def _spec(self, name: str, seed: int = 0, length: float | None = None) -> ConfigDict:
    """Returns the config of a run, by default of one whose step is measured."""
    fields = self._fields(name, seed, SETTINGS[name].length if length is None else length)
    return configs.override(configs.load(self._config(name)), fields)

  def _train(self, name: str, seed: int, fields: Mapping[str, str]) -> Path:
    flags = lambda fields: [f'--config.{field}={value}' for field, value in fields.items()]
    if self._scale.start is not None and not (start := self._start(seed)).is_file():
      runs.train(self._scale.start, start, flags(self._fields_of_start(seed)))
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
    images = _open(config, 'holdout')
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

  def _cost(self, name: str, table: Entries) -> dict[str, float]:
    """Returns the cost of a step of a setting: what the table or an earlier start has, or measured and kept."""
    base = name.removesuffix(MINUTES)
    if base == 'nominal':
      return dict.fromkeys(COSTS, 1.0)
    for entry in (one for of in (base, base + MINUTES) for one in table.get(of, {}).values()):
      return {field: entry[field] for field in COSTS}
    folder = self._root / 'frontier' / base
    with artifact.storage_errors(f"write in '{folder}'"):
      folder.mkdir(parents=True, exist_ok=True)
    path, config = folder / 'cost.json', self._spec(base)
    with artifact.lock(folder, name=path.name, wait=True):
      try:
        known = msgspec.convert(untrusted.read_json(path), _Cost) if path.exists() else None
      except (untrusted.Unusable, msgspec.ValidationError):
        raise UserError(f"'{path}' is not the cost of a step; remove it, so that it is measured again.") from None
      if known is None or _changes(known.config, config):
        known = _Cost(**self._measured_cost(base), config=json.loads(configs.to_json(config)))
        artifact.replace(path, msgspec.json.encode(known) + b'\n')
    return {field: getattr(known, field) for field in COSTS}

  def _measured_cost(self, name: str) -> dict[str, float]:
    """Returns the time and the FLOP of a step of a setting in those of a nominal one, as means over its run."""
    from adversarial_augment.parallel import devices
    from benchmarks import timing

    config, nominal = self._spec(name), self._spec('nominal')
    devices.virtual_devices(config.batch_size)
    devices.compilation_cache()
    spared = self._spec('augmix') if SETTINGS[name].config.endswith('augmix') else nominal
    always = configs.override(config, {'attack.every': '1', 'attack.warmup_epochs': '0'})
    with progress.stage(f'timing a step of {name}', progress.log):
      steps = {which: _step(one) for which, one in {'it': always, 'spared': spared, 'nominal': nominal}.items()}
      seconds = timing.interleave({which: run for which, (run, _) in steps.items()}, rounds=ROUNDS)
    flop = {which: flop for which, (_, flop) in steps.items()}
    return {
      'cost_measured': round(mean_cost(config, {which: one.wall for which, one in seconds.items()}), 3),
      'cost_flop': round(mean_cost(config, flop), 3),
    }


@functools.cache
def _config_of(path: Path) -> str:
  """Returns the hash of the config that a classifier in a file was trained with."""
  return inference.read_file(path).restored.config_sha256


def _changes(found: Mapping[str, Any], wanted: ConfigDict) -> list[str]:
  """Returns how a recorded config differs from another, but for places of files and fields that follow from them."""
  follow = [name for name in published.FOLLOWING if checks.flatten(wanted)[name] is None]
  differences = configs.differences({**tables.ADDED, **checks.flatten(found)}, wanted)
  return [one for one in differences if one.partition(':')[0] not in (*_PLACES, *follow)]


def mean_cost(config: ConfigDict, of: Mapping[str, float]) -> float:
  """Returns the cost of an update of a run, in nominal steps, as a mean over those with and without its adversary.

  `of` has the cost of a step with it ('it'), without it ('spared'), and of a nominal one ('nominal').
  """
  attack = config.attack
  share = (1 - attack.warmup_epochs / config.num_epochs) / attack.every
  return (share * of['it'] / attack.replay + (1 - share) * of['spared']) / of['nominal']


def _open(config: ConfigDict, split: str) -> Any:
  """Returns `bench.Images` of a split, with their corrupted forms; touches no device."""
  from adversarial_augment.evaluation import bench

  if split == 'holdout':
    return bench.Images(*_holdout(config.dataset, config.data_dir, config.holdout, config.frost_dir))
  config = configs.override(config, {'evals': 'clean,cifar10_c'})
  return bench.open_images(config, datasets.load(config.dataset, 'test', config.data_dir))


def _images(config: ConfigDict, split: str) -> dict[str, Any]:
  """Returns what tells the images of a split from others, see `frontier_drawing.images`."""
  opened = _open(config, split)
  about, number = {split: opened.dataset.provenance}, opened.dataset.num_examples
  entry = {
    'num_images': min(config.eval_images or number, number),
    'provenance': {'data': about, **opened.origins()['cifar10_c']},
  }
  return frontier_drawing.images(entry, split)


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
  table1_corruptions.add_flags(parser, SCALES, seeds='1')
  return parser


if __name__ == '__main__':
  cli.run(main)
