"""Trains a classifier with AdversarialAugment: python -m adversarial_augment.train --config=configs/ada_edsr.py

The path of a batch: `datasets` -> `sharding.shard_batch` -> `train_step` -> `loop`, which logs, saves and stops.
"""

from collections.abc import Callable
import contextlib
import functools
import os
from pathlib import Path
import shlex
import time
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from adversarial_augment import cli, datasets, inference, report, results
from adversarial_augment import config as configs
from adversarial_augment.cli import progress
from adversarial_augment.config import command_line, published, rules
from adversarial_augment.config.fields import spell
from adversarial_augment.datasets import classes, mixture, sampling
from adversarial_augment.errors import AdversarialAugmentError, UserError
from adversarial_augment.parallel import devices, launch
from adversarial_augment.preparation import deepaugment
from adversarial_augment.run import supervisor
from adversarial_augment.storage import artifact, files
from adversarial_augment.types import Dataset, TrainState

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from adversarial_augment.evaluation.bench import Images


def main(argv: list[str]) -> int | None:
  arguments = command_line.parse_train(argv)
  if arguments.max_restarts:
    command = command_line.unsupervised('train', argv)
    return supervisor.run(command, arguments.workdir, arguments.max_restarts)
  processes = launch.find(arguments)
  with launch.together(processes) as shared:  # what fails here fails on all processes, so that none waits
    complete = functools.partial(_complete, workdir=arguments.workdir)
    config = command_line.resolve_config(arguments, derived=_derived, complete=complete)
    if config is None:
      return None
    count = launch.number(processes)
    rules.check_batch(config.batch_size, count, 'processes of the run')
    with progress.stage('loading JAX'):
      from adversarial_augment.evaluation import milestones  # noqa: F401  (and with it all the rest)
      from adversarial_augment.run import mirroring
      from adversarial_augment.training import builders
    start = mirroring.fetch(arguments, config) if launch.is_first(processes) else None
    if processes is None:  # of several, process 0 alone looks at the workdir
      _check_workdir(config, arguments.workdir, {})
    splits, test = _load(config)
    about = _check(config, arguments.workdir, splits, test)
    shared |= launch.facts('train', configs.to_json(config), about)
  num_devices = devices.virtual_devices(config.batch_size // count)
  if processes is None:
    _check_workdir(config, arguments.workdir, _data(config, splits))
    if num_devices is not None:
      builders.check_parts(config, num_devices)
  mirroring.compilation_cache(arguments)
  with mirroring.copying(arguments, config, start, config.keep_checkpoints) as saved:
    train(config, arguments.workdir, splits, test, saved)
  return None


def _complete(config: ConfigDict, workdir: Path) -> ConfigDict:
  """Returns a config with the fields that follow from the run in `workdir`, from `init_from`, or from the data set."""
  with contextlib.suppress(UserError):  # what cannot be read is reported where it is needed
    recorded = inference.read_config(workdir)
    if (recorded.dataset, recorded.init_from) == (config.dataset, config.init_from):
      return configs.follow(config, recorded)
  source = None
  if config.init_from is not None:
    with contextlib.suppress(UserError):
      source = inference.find_source(inference.run_folder(config.init_from, 'config.init_from')).config
  return configs.follow(config, source)


def _derived(config: ConfigDict) -> list[str]:
  """Returns what follows from a config and the number of training images, as far as they are known."""
  from adversarial_augment.training import recipe

  note: list[str] = []
  count: int | None = None
  try:
    count = datasets.count(config.dataset, 'train', config.data_dir)
  except UserError as error:
    if known := published.find(config.dataset):
      count = known.num_train
    note = [f'# with the training images that there will be: {error}']
  left = None if count is None else count - config.holdout
  return ['', *recipe.derived(config, left), *note]


def _load(config: ConfigDict) -> tuple[dict[str, Dataset], 'Images']:
  """Returns the splits 'train', 'test' and, with a holdout, 'validation'; and all that the evaluations read."""
  from adversarial_augment.evaluation import bench

  if config.dataset == 'embedded' and config.deepaugment.sets:
    deepaugment.make_embedded(config.data_dir, config.deepaugment.sets, max(2, config.deepaugment.copies or 1))
  with progress.stage(f'reading the images of {config.dataset}'):
    splits = _load_splits(config)
    return splits, bench.open_images(config, splits['test'])


def _load_splits(config: ConfigDict) -> dict[str, Dataset]:
  splits = {split: datasets.load(config.dataset, split, config.data_dir) for split in ('train', 'test')}
  copies = mixture.load(splits['train'], config.data_dir, config.deepaugment.sets, config.deepaugment.copies)
  if config.holdout:
    copies = [sampling.holdout(copy, config.holdout)[0] for copy in copies]  # of the same images
    splits['train'], splits['validation'] = sampling.holdout(splits['train'], config.holdout)
  if copies:
    splits['train'] = mixture.mix(splits['train'], copies, config.deepaugment.mix)
  return splits


def _check_workdir(config: ConfigDict, workdir: Path, data: dict[str, Any]) -> None:
  """Checks that a run can begin or resume in a folder; without `data`, whatever they are."""
  from adversarial_augment.run import opening

  files.check_folder(workdir, '--workdir')
  opening.check_run(workdir, config, data)


def _check(config: ConfigDict, workdir: Path, splits: dict[str, Dataset], test: 'Images') -> dict[str, Any]:
  """Checks what can be checked before any device is touched; returns what must be equal on all processes."""
  from adversarial_augment.run import run_log
  from adversarial_augment.training import builders

  builders.check_adversary(config, splits['train'].image_shape)
  _check_start(config, workdir)
  if config.tensorboard:
    run_log.check_tensorboard()
  origins = {split: dataset.provenance for split, dataset in splits.items()}
  return {'data': _data(config, splits) | origins, **test.origins(), 'weights': builders.weights_sha256(config)}


def train(
  config: ConfigDict,
  workdir: Path,
  splits: dict[str, Dataset],
  test: 'Images | None' = None,
  saved: Callable[[int], None] = lambda step: None,
) -> TrainState:
  """Trains, or resumes what `workdir` holds; evaluates, draws the figure, prints the closing table.

  `splits` are 'train', 'test', and perhaps 'validation', on which the run is then evaluated between steps. `test` is
  what the closing evaluations read; by default `splits['test']` alone, corrupted in memory. `saved` is called with the
  step of each checkpoint.
  """
  import jax

  from adversarial_augment.evaluation import bench
  from adversarial_augment.evaluation.milestones import Milestones
  from adversarial_augment.parallel import processes, sharding
  from adversarial_augment.run import loop, opening, summary, train_job
  from adversarial_augment.training import recipe as recipes
  from adversarial_augment.training import train_step

  began, mesh, dataset = time.monotonic(), sharding.data_mesh(), splits['train']
  with opening.open_run(workdir, config, _data(config, splits)) as stop:
    with progress.compiling(), progress.stage('making the networks', progress.log):
      recipe, phi = recipes.build(config, dataset, mesh)
      phi = sharding.replicate(mesh, phi)
      init = functools.partial(train_step.init_state, recipe, dataset.image_shape)
      state = jax.jit(init, out_shardings=sharding.replicated(mesh))()
    state = opening.resume(workdir, state)
    if not int(state.step) and config.init_from is not None:
      state, origin = _start_from(config, state, dataset, mesh)
      processes.on_process_0(lambda: artifact.write_json(workdir / results.START, origin))
    for line in summary.opening(config, recipe, splits, state, phi):
      progress.log(line)
    test = test or bench.open_images(config, splits['test'], prepared=False)
    milestones = Milestones(config, workdir, recipe, splits, test, began)
    with progress.compiling():
      job = train_job.make(config, recipe, dataset, state, phi, milestones, milestones.compile)
    state = loop.run(workdir, config, state, job._replace(saved=saved), stop)
    if jax.process_index() == 0:
      _report(workdir)
    return state


def _report(workdir: Path) -> None:
  try:
    with progress.stage('writing the report', progress.log):
      page = report.report([workdir])
    print(f'  {"report":<20} {page}', flush=True)
  except AdversarialAugmentError as error:  # the training is done, and its results are written
    progress.log(f'warning: no report: {error}')


def _data(config: ConfigDict, splits: dict[str, Dataset]) -> dict[str, Any]:
  """Returns what data.json says of the data: the hash of each split, the size of an image, the names of the classes.

  And the hash of the network that a perceptual adversary measures distances by, if there is one.
  """
  from adversarial_augment.evaluation import distances

  hashes = {split: dataset.provenance['sha256'] for split, dataset in splits.items() if 'sha256' in dataset.provenance}
  reference = distances.of_training(config)
  measured = {} if reference is None else {'distance_from': reference.sha256}
  images = splits['train']
  return hashes | measured | {'image_shape': list(images.image_shape), 'class_names': list(images.class_names)}


def _check_start(config: ConfigDict, workdir: Path) -> None:
  """Checks what there is to start from; a run that resumes needs nothing."""
  from adversarial_augment.storage import checkpoints

  if config.init_from is not None and not checkpoints.steps(workdir / 'checkpoints'):
    _source(config)


def _source(config: ConfigDict) -> 'inference.Source':
  """Returns the classifier of `init_from`; raises UserError unless its network is that of this run."""
  from adversarial_augment.training import recipe

  path = inference.run_folder(config.init_from, 'config.init_from')
  try:
    source = inference.find_source(path)
  except UserError as error:
    of_pytorch = os.path.isfile(path) and (path.suffix != '.safetensors' or 'PyTorch' in str(error))
    convert = shlex.join(['python', '-m', 'adversarial_augment.convert', 'classifier', f'--from={path}'])
    hint = f' A file of PyTorch is converted first: {convert} --output=FILE.safetensors' if of_pytorch else ''
    raise UserError(f"config.init_from='{config.init_from}': {error}{hint}") from error
  theirs, ours = (
    {f'classifier.{name}': value for name, value in (dict(one.classifier) | recipe.resolved(one)).items()}
    for one in (source.config, config)
  )
  # How fast running statistics follow is a matter of training.
  if other := [name for name in ours if theirs[name] != ours[name] and name != 'classifier.batch_norm_decay']:
    flags = ' '.join(f'--{spell(theirs, name)}' for name in other)
    raise UserError(
      f"config.init_from='{config.init_from}' is another network: it has {spell(theirs, *other)}, and this run "
      f'{spell(ours, *other)}; set {flags}, or start from another one.'
    )
  return source


def _start_from(config: ConfigDict, state: TrainState, dataset: Dataset, mesh: 'Mesh') -> tuple[TrainState, dict]:
  """Takes parameters and statistics from `init_from`; the step and the optimiser start anew.

  The head too is new where it stands for other classes. Returns the state, and where it comes from, as JSON.
  """
  from adversarial_augment import classifiers
  from adversarial_augment.parallel import processes

  source = _source(config)
  known, name = source.classes, config.init_from
  if not processes.all_have(source.origin.get('file_sha256', '00')):
    raise UserError(f"The processes have different files config.init_from='{name}'; give all the same one.")
  restored = source.restore(mesh)
  params = restored.state.params
  other = classes.difference(known, dataset)
  outputs = None if other else classes.order(known, dataset, f"'{name}'", '')
  if other:
    head = {module: leaves for module, leaves in state.params.items() if module.endswith('/head')}
    params = {**params, **head}
  elif outputs is not None:
    params = classifiers.reorder_outputs(params, outputs)
  if other:
    log = f"the body of '{name}' after step {restored.step}, with a new head for {dataset.num_classes} classes"
    progress.log(f"starting from {log}: '{name}' and '{dataset.name}' have different classes, {other}")
  else:
    progress.log(f"starting from the parameters of '{name}' after step {restored.step}")
    if note := classes.note(known, dataset, f"'{name}'"):
      progress.log(note)
  origin = {
    **source.origin,
    'step': restored.step,
    'checkpoint_sha256': restored.sha256,
    'config_sha256': restored.config_sha256,
    'head': 'new' if other else 'taken over' if outputs is None else 'taken over, outputs matched by name',
  }
  return state._replace(params=params, model_state=restored.state.model_state), origin


if __name__ == '__main__':
  cli.run(
    main,
    less_memory='lower config.batch_size, or set config.attack.batch_norm=running with a small '
    'config.attack.microbatch, or config.precision=bfloat16, in another --workdir; or end other programs on the device',
  )
