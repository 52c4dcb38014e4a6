"""Trains a classifier with AdversarialAugment: python -m adversarial_augment.train --config=configs/ada_edsr.py

The path of a batch: `datasets` -> `sharding.shard_batch` -> `train_step` -> `loop`, which logs, saves and stops.
"""

from collections.abc import Callable
import json
from pathlib import Path
import sys
import time
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import cli, datasets
from adversarial_augment.datasets import sampling
from adversarial_augment.types import Dataset, TrainState


def main(argv: list[str]) -> None:
  arguments = cli.parse_train(argv)
  config = cli.resolve_config(arguments)
  if config is None:
    return
  splits = _load(config)
  from adversarial_augment import recipe

  recipe.check_files(config)
  processes = cli.distributed(arguments)
  cli.virtual_devices(config.batch_size // processes)
  cli.compilation_cache()
  train(config, arguments.workdir, splits)


def _load(config: ConfigDict) -> dict[str, Dataset]:
  """Returns the splits 'train', 'test' and, with a holdout, 'validation'."""
  splits = {split: datasets.load(config.dataset, split, config.data_dir) for split in ('train', 'test')}
  if config.holdout:
    splits['train'], splits['validation'] = sampling.holdout(splits['train'], config.holdout)
  return splits


def train(config: ConfigDict, workdir: Path, splits: dict[str, Dataset]) -> TrainState:
  """Trains, or goes on with what `workdir` holds; evaluates, draws the figure, prints the closing table.

  Args:
    config: validated.
    workdir: made if missing.
    splits: 'train', 'test', and perhaps 'validation', on which the run is then evaluated while it goes on.

  Raises:
    AdversarialAugmentError: see loop.py and recipe.py.
  """
  import jax

  from adversarial_augment import loop, recipe, sharding, summary, train_step

  mesh = sharding.data_mesh()
  with loop.open_run(workdir, config):
    static, phi = recipe.build(config, splits['train'], mesh)
    phi = sharding.replicate(mesh, phi)
    init = jax.jit(lambda: train_step.init_state(static, splits['train'].image_shape), out_shardings=sharding.replicated(mesh))
    state = _start_from(config.init_from, init())
    state = loop.resume(workdir, state)
    for line in summary.opening(config, static, splits, state, phi):
      loop.tell(line)
    evaluate = _evaluator(config, workdir, static, splits)
    step = _compile(static, state, read := _reader(static, splits['train']), phi)
    job = loop.Job(
        num_steps=static.num_steps,
        images_per_step=static.batch_size,
        keep_checkpoints=config.keep_checkpoints,
        tensorboard=config.tensorboard,
        step=lambda state, batch: step(state, *batch, phi),
        read=read,
        describe=lambda step, values: _line(step, values, static, splits['train'].num_examples),
        evaluate=evaluate,
        dump=lambda step, path: _dump(static, splits['train'], step, path),
    )
    return loop.run(workdir, config, state, job)


def _start_from(init_from: str | None, state: TrainState) -> TrainState:
  """Takes parameters and statistics over from another run; the step and the optimiser start anew."""
  if init_from is None:
    return state
  from adversarial_augment import checkpoints, loop

  folder = Path(init_from).expanduser() / 'checkpoints'
  step, state = checkpoints.restore_subtree(folder, state, ('params', 'model_state'), report=loop.tell)
  loop.tell(f"starting from the parameters of '{init_from}' after step {step}")
  return state


def _reader(static: Any, dataset: Dataset) -> Callable[[int], Any]:
  """Returns step -> this step's images and labels as global arrays; a function of the step alone."""
  import jax

  from adversarial_augment import sharding

  def read(step: int) -> Any:
    index = sampling.indices(
        static.seed, step, dataset.num_examples, static.batch_size, jax.process_count(), jax.process_index()
    )
    return sharding.shard_batch(static.mesh, tuple(dataset.read(index)))

  return read


def _compile(static: Any, state: TrainState, read: Callable[[int], Any], phi: Any) -> Callable:
  import jax

  from adversarial_augment import loop, sharding, train_step

  start = time.monotonic()
  whole = sharding.replicated(static.mesh)
  jitted = jax.jit(
      lambda state, images, labels, phi: train_step.train_step(static, state, images, labels, phi),
      donate_argnums=0,
      out_shardings=whole,
  )
  loop.tell('compiling the train step...')
  compiled = jitted.lower(state, *read(0), phi).compile()
  loop.tell(f'compiled in {time.monotonic() - start:.1f} s')
  return compiled


def _line(step: int, values: Any, static: Any, num_examples: int) -> dict[str, Any]:
  """Returns the line of metrics.jsonl; in the warm-up without an adversary, there is nothing of it to report."""
  line: dict[str, Any] = {'step': step, 'epoch': step * static.batch_size / num_examples}
  names = {'ssim': 'ssim_mean'}
  own = ('loss', 'accuracy', 'learning_rate')
  attacked = step > static.warmup_steps
  return line | {names.get(name, name): value for name, value in values.items() if attacked or name in own}


def _dump(static: Any, dataset: Dataset, step: int, path: Path) -> None:
  index = sampling.indices(static.seed, step, dataset.num_examples, static.batch_size)
  images, labels = dataset.read(index)
  np.savez(path, images=images, labels=labels, index=index, step=step, seed=static.seed)


def _evaluator(config: ConfigDict, workdir: Path, static: Any, splits: dict[str, Dataset]) -> Callable:
  """Returns what the loop calls to evaluate: between steps on the validation set, at the end on the test set."""
  import jax

  from adversarial_augment import checkpoints, loop, recipe, run_directory, sharding, summary
  from adversarial_augment.evaluators import accuracy

  attack, phi = None, {}
  if 'ada' in config.evals:
    attack, phi, _ = recipe.build_attack(config, static.mesh, static.classifier, splits['test'].image_shape)
    phi = sharding.replicate(static.mesh, phi)
  command = 'python -m adversarial_augment.train ' + ' '.join(sys.argv[1:])

  def measure(state: TrainState, split: str, poll: Callable[[], None]) -> dict[str, Any]:
    make = lambda **adversary: accuracy(
        static.attacked_classifier, splits[split], static.mesh, static.batch_size, **adversary
    )
    known = {'clean': make(), 'ada': make(attack=attack, phi=phi)}
    return {name: known[name](state, poll) for name in config.evals}

  def evaluate(state: TrainState, step: int, poll: Callable[[], None]) -> None:
    last = step == static.num_steps
    split = 'test' if last or 'validation' not in splits else 'validation'
    path = workdir / 'results' / ('train.json' if last else f'eval_{step}.json')
    sha256 = checkpoints.state_sha256(state)
    done = json.loads(path.read_text()) if path.exists() else {}
    if done.get('state_sha256') != sha256 or list(done.get('evals', [])) != list(config.evals):
      loop.tell(f'evaluating on the {split} set...')
      done = {
          'step': step, 'state_sha256': sha256, 'split': split, 'command': command,
          'evals': measure(state, split, poll), **summary.provenance(config, static, splits),
      }  # fmt: skip
      if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        run_directory.write_json(path, done)
    figure = summary.draw(config, workdir, static, splits['test'], state, attack, phi) if last and attack else None
    lines = summary.closing(done, workdir, figure) if last else summary.evals(done)
    if jax.process_index() == 0:
      print('\n'.join(lines), flush=True)

  return evaluate


if __name__ == '__main__':
  cli.run(main)
