"""Trains a classifier with AdversarialAugment: python -m adversarial_augment.train --config=configs/ada_edsr.py

The path of a batch: `datasets` -> `sharding.shard_batch` -> `train_step` -> `loop`, which logs, saves and stops.
"""

from collections.abc import Callable
import functools
from pathlib import Path
import time
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import cli, datasets, report
from adversarial_augment import config as configs
from adversarial_augment.cli import progress
from adversarial_augment.config import command_line
from adversarial_augment.datasets import benchmarks, cifar10, classes, mixture, sampling
from adversarial_augment.errors import AdversarialAugmentError, UserError
from adversarial_augment.parallel import devices, launch
from adversarial_augment.preparation import deepaugment
from adversarial_augment.run.forecast import Forecast
from adversarial_augment.storage import files
from adversarial_augment.types import Dataset, TrainState


def main(argv: list[str]) -> None:
  arguments = command_line.parse_train(argv)
  processes = launch.find(arguments)
  with launch.together(processes) as shared:
    config = command_line.resolve_config(arguments, derived=_derived)
    if config is None:
      return
    with progress.stage('loading JAX'):
      from adversarial_augment.evaluation import evaluations
      from adversarial_augment.run import loop, tensorboard
      from adversarial_augment.training import recipe
    num_local = launch.share_of_batch(processes, config.batch_size)
    if processes is None:  # of several, process 0 alone looks at the workdir
      files.check_folder(arguments.workdir, '--workdir')
      loop.check_run(arguments.workdir, config, {})
    if config.dataset == 'embedded' and config.deepaugment.sets:
      deepaugment.make_embedded(config.data_dir, config.deepaugment.sets, max(2, config.deepaugment.copies or 1))
    with progress.stage(f'reading the images of {config.dataset}'):
      splits = _load(config)
      test_data = benchmarks.load(config.evals, config.dataset, config.data_dir, splits['test'])
    recipe.check_adversary(config, splits['train'].image_shape)
    evaluated = {'frost': evaluations.check_frost(config, test_data), **benchmarks.origins(test_data)}
    _check_start(config.init_from, arguments.workdir, splits['train'])
    if config.tensorboard:
      tensorboard.check_installed()
    about = {'data': _data(splits) | {split: data.provenance for split, data in splits.items()}, **evaluated}
    shared |= launch.facts('train', configs.to_json(config), about | {'weights': recipe.weights_sha256(config)})
  num_devices = devices.virtual_devices(num_local)
  if processes is None:
    loop.check_run(arguments.workdir, config, _data(splits))
    if num_devices is not None:
      recipe.check_parts(config, num_devices)
  devices.compilation_cache()
  train(config, arguments.workdir, splits, test_data)


def _derived(config: ConfigDict) -> list[str]:
  """Returns what follows from a config and the number of training images, as far as they are known."""
  from adversarial_augment.training import recipe

  note: list[str] = []
  count: int | None = None
  try:
    count = datasets.count(config.dataset, 'train', config.data_dir)
  except UserError as error:
    if config.dataset.partition(':')[0] == 'cifar10':
      count = cifar10.COUNTS['train']
    note = [f'# with the training images that there will be: {error}']
  known = None if count is None else count - config.holdout
  return ['', *recipe.derived(config, known), *note]


def _load(config: ConfigDict) -> dict[str, Dataset]:
  """Returns the splits 'train', 'test' and, with a holdout, 'validation'."""
  splits = {split: datasets.load(config.dataset, split, config.data_dir) for split in ('train', 'test')}
  copies = mixture.load(splits['train'], config.data_dir, config.deepaugment.sets, config.deepaugment.copies)
  if config.holdout:
    copies = [sampling.holdout(copy, config.holdout)[0] for copy in copies]  # of the same images
    splits['train'], splits['validation'] = sampling.holdout(splits['train'], config.holdout)
  if copies:
    splits['train'] = mixture.mix(splits['train'], copies, config.deepaugment.mix)
  return splits


def train(
  config: ConfigDict, workdir: Path, splits: dict[str, Dataset], test_data: benchmarks.Benchmarks | None = None
) -> TrainState:
  """Trains, or goes on with what `workdir` holds; evaluates, draws the figure, prints the closing table.

  Args:
    config: validated.
    workdir: made if missing.
    splits: 'train', 'test', and perhaps 'validation', on which the run is then evaluated while it goes on.
    test_data: what the evaluations read; None: `splits['test']` alone, corrupted in memory.

  Raises:
    AdversarialAugmentError: see loop.py and recipe.py.
  """
  import jax

  from adversarial_augment.evaluation import run_evaluation
  from adversarial_augment.parallel import sharding
  from adversarial_augment.run import loop, summary
  from adversarial_augment.training import recipe, train_step

  began = time.monotonic()
  mesh = sharding.data_mesh()
  with loop.open_run(workdir, config, _data(splits)) as stop:
    with progress.stage('making the networks', loop.tell):
      static, phi = recipe.build(config, splits['train'], mesh)
      phi = sharding.replicate(mesh, phi)
      init = lambda: train_step.init_state(static, splits['train'].image_shape)
      state = jax.jit(init, out_shardings=sharding.replicated(mesh))()
    state = loop.resume(workdir, state)
    if not int(state.step):
      state = _start_from(config.init_from, state, splits['train'])
    for line in summary.opening(config, static, splits, state, phi):
      loop.tell(line)
    evaluation = run_evaluation.Evaluation(
      config, workdir, static, splits, test_data or benchmarks.Benchmarks(splits['test']), began
    )
    read = _reader(static, splits['train'])
    step: Any = None  # a finished run needs none, and no forecast
    expected: Forecast | None = None
    if int(state.step) < static.num_steps:
      step = _compile(static, state, read, phi)
      expected = Forecast(
        static.num_steps,
        warmup_steps=static.warmup_steps if static.attack else 0,
        attacked=_time_attacked(static, state, step, read, phi),
        eval_every=config.eval_every,
        evaluation=evaluation.compile(state),
      )
    job = loop.Job(
      num_steps=static.num_steps,
      images_per_step=static.batch_size,
      keep_checkpoints=config.keep_checkpoints,
      tensorboard=config.tensorboard,
      step=lambda state, made, batch: step(state, made, *batch, phi),
      read=read,
      describe=lambda step, values: _line(step, values, static, splits['train']),
      evaluate=evaluation,
      dump=lambda step: _dump(static, splits['train'], step),
      forecast=expected,
    )
    state = loop.run(workdir, config, state, job, stop)
    if jax.process_index() == 0:
      try:
        with progress.stage('writing the report', loop.tell):
          page = report.report([workdir])
        print(f'  {"report":<20} {page}', flush=True)
      except AdversarialAugmentError as error:  # the training is done, and its results are written
        loop.tell(f'warning: no report: {error}')
    return state


def _data(splits: dict[str, Dataset]) -> dict[str, Any]:
  """Returns what data.json says of the data: the hash of each split, the size of an image, the names of the classes."""
  hashes = {split: dataset.provenance['sha256'] for split, dataset in splits.items() if 'sha256' in dataset.provenance}
  return hashes | {
    'image_shape': list(splits['train'].image_shape),
    'class_names': list(splits['train'].class_names),
  }


def _check_start(init_from: str | None, workdir: Path, dataset: Dataset) -> None:
  """Looks, before any device is touched, whether there is a run to start from; one that goes on needs none."""
  from adversarial_augment.storage import checkpoints

  if init_from is None or checkpoints.steps(workdir / 'checkpoints'):
    return
  folder = files.user_path(init_from, 'config.init_from')
  if not checkpoints.steps(folder / 'checkpoints'):
    raise UserError(f"No checkpoints in '{folder}' (config.init_from); name the workdir of a run that has saved some.")
  _outputs(init_from, dataset)


def _outputs(init_from: str, dataset: Dataset) -> tuple[list[int] | None, str]:
  """Returns which outputs of another run stand for the classes of a data set, None: in this order; and a note."""
  from adversarial_augment import inference

  known = inference.classes(files.user_path(init_from, 'config.init_from'))
  label = f"The classifier of '{init_from}' (config.init_from)"
  remedy = 'start from a run on the same classes, or leave config.init_from out'
  return classes.order(known, dataset, label, remedy), classes.note(known, dataset, f"'{init_from}'")


def _start_from(init_from: str | None, state: TrainState, dataset: Dataset) -> TrainState:
  """Takes parameters and statistics over from another run; the step and the optimiser start anew."""
  if init_from is None:
    return state
  from adversarial_augment import classifiers, inference
  from adversarial_augment.run import loop
  from adversarial_augment.storage import checkpoints

  folder = files.user_path(init_from, 'config.init_from')
  outputs, note = _outputs(init_from, dataset)
  step, state = checkpoints.restore_subtree(
    folder / 'checkpoints',
    state,
    ('params', 'model_state'),
    report=loop.tell,
    check=lambda manifest: inference.check_config(folder, manifest),
  )
  loop.tell(f"starting from the parameters of '{init_from}' after step {step}")
  if note:
    loop.tell(note)
  if outputs is None:
    return state
  return state._replace(params=classifiers.reorder_outputs(state.params, outputs))


def _reader(static: Any, dataset: Dataset) -> Callable[[int], Any]:
  """Returns step -> this step's images and labels as global arrays; a function of the step alone."""
  import jax

  from adversarial_augment.parallel import sharding

  def read(step: int) -> Any:
    index = sampling.indices(
      static.seed, step, dataset.num_examples, static.batch_size, jax.process_count(), jax.process_index()
    )
    return sharding.shard_batch(static.mesh, tuple(dataset.read(index)))

  return read


def _compile(static: Any, state: TrainState, read: Callable[[int], Any], phi: Any) -> Callable:
  from adversarial_augment.run import loop
  from adversarial_augment.training import train_step

  start = time.monotonic()
  loop.tell('compiling the train step...')
  lowered = train_step.jitted(static).lower(state, np.int32(0), *read(0), phi)
  files.crash_point('first_compile')
  compiled = lowered.compile()
  loop.tell(f'compiled in {time.monotonic() - start:.1f} s')
  return compiled


def _time_attacked(
  static: Any, state: TrainState, step: Callable, read: Callable[[int], Any], phi: Any
) -> float | None:
  """Returns the seconds of a step with the adversary, on a copy of the state; None where the first one has it."""
  import jax
  import jax.numpy as jnp

  from adversarial_augment.parallel import sharding
  from adversarial_augment.run import loop

  if static.attack is None or int(state.step) >= static.warmup_steps:
    return None

  @functools.partial(jax.jit, out_shardings=sharding.replicated(static.mesh))
  def after_warmup(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)._replace(step=jnp.full_like(state.step, static.warmup_steps))

  def seconds() -> float:
    tried = jax.block_until_ready(after_warmup(state))
    start = time.monotonic()
    jax.block_until_ready(step(tried, np.int32(static.warmup_steps), *batch, phi))
    return time.monotonic() - start

  batch = read(0)
  with progress.stage('timing a step with the adversary', loop.tell):
    return min(seconds() for _ in range(2))  # the first one takes longer: its memory is new


def _line(step: int, values: Any, static: Any, dataset: Dataset) -> dict[str, Any]:
  """Returns the line of metrics.jsonl; in the warm-up, what would be of the adversary is null."""
  epoch = step * static.batch_size / (dataset.epoch_size or dataset.num_examples)
  line: dict[str, Any] = {'step': step, 'epoch': epoch}
  names = {'ssim': 'ssim_mean'}
  own = ('loss', 'accuracy', 'learning_rate', 'jsd')
  attacked = step > static.warmup_steps
  return line | {names.get(name, name): value if attacked or name in own else None for name, value in values.items()}


def _dump(static: Any, dataset: Dataset, step: int) -> dict[str, Any]:
  index = sampling.indices(static.seed, step, dataset.num_examples, static.batch_size)
  images, labels = dataset.read(index)
  return {'images': images, 'labels': labels, 'index': index, 'seed': static.seed}


if __name__ == '__main__':
  cli.run(
    main,
    less_memory='lower config.batch_size, or set config.attack.batch_norm=running with a small '
    'config.attack.microbatch, or config.precision=bfloat16, in another --workdir; or end other programs on the device',
  )
