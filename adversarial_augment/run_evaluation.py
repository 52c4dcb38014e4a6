"""The evaluations of a run: which split, which file, what is known already, and the closing table."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import itertools
import json
from pathlib import Path
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from adversarial_augment import checkpoints, files, processes, recipe, run_directory, sharding, summary
from adversarial_augment.evaluators import accuracy
from adversarial_augment.run_log import Patience, tell
from adversarial_augment.types import Dataset, TrainState

Poll = Callable[[], None]


class _Enough(Exception):
  """Leaves an evaluation after its first batch."""


class Evaluation:
  """What the loop calls to evaluate: between steps on the validation set, at the end on the test set."""

  def __init__(
    self, config: ConfigDict, workdir: Path, static: recipe.Recipe, splits: dict[str, Dataset], began: float
  ):
    """Builds the adversary of the evaluation.

    Args:
      config: of the run.
      workdir: of the run.
      static: of the run.
      splits: 'train', 'test', and perhaps 'validation'.
      began: `time.monotonic()` at the start of the program.
    """
    self._config, self._workdir, self._static, self._splits, self._began = config, workdir, static, splits, began
    self._between = 'validation' if 'validation' in splits else 'test'
    self._attack, self._phi = None, {}
    if 'ada' in config.evals or static.attack is not None:  # a run with an adversary shows it, evaluated or not
      attack, phi, _ = recipe.build_attack(config, static.mesh, static.classifier, splits['test'].image_shape)
      self._attack, self._phi = attack, sharding.replicate(static.mesh, phi)
    self._evaluators = functools.cache(self._make_evaluators)  # built once: each would compile anew

  def __call__(self, state: TrainState, step: int, poll: Poll) -> None:
    """Evaluates, unless the results of this very state are there; writes and prints them.

    Args:
      state: to evaluate.
      step: updates made so far; the last one closes the run.
      poll: called before every batch; may raise.

    Raises:
      StorageError: the results cannot be written.
    """
    last = step == self._static.num_steps
    path = self._workdir / 'results' / ('train.json' if last else f'eval_{step}.json')
    sha256 = checkpoints.state_sha256(state)
    result = processes.on_process_0(lambda: _read(path))
    known = result.get('state_sha256') == sha256 and set(result.get('evals', ())) == set(self._config.evals)
    if not known:
      result = self._measure(state, step, 'test' if last else self._between, sha256, poll)
      Patience().attempt(step, lambda: processes.on_process_0(lambda: _write(path, result)), final=True)
    lines = summary.evals(result)
    if last:
      figure = processes.on_process_0(lambda: self._draw(state, anew=not known))
      lines = summary.closing(result, self._workdir, figure)
    if jax.process_index() == 0:
      print('\n'.join(lines), flush=True)

  def compile(self, state: TrainState) -> None:
    """Evaluates one batch, so that no compilation keeps a later evaluation from noticing a signal."""
    tell('compiling the evaluation...')
    for evaluator in self._evaluators(self._between).values():
      batches = itertools.count()

      def poll(batches: Iterator[int] = batches) -> None:
        if next(batches):
          raise _Enough

      with contextlib.suppress(_Enough):
        evaluator(state, poll)

  def _make_evaluators(self, split: str) -> dict[str, Callable[[TrainState, Poll], dict[str, Any]]]:
    adversary: dict[str, Any] = {'clean': {}, 'ada': {'attack': self._attack, 'phi': self._phi}}
    static = self._static
    dataset = self._splits[split]
    dataset = dataset._replace(num_examples=min(dataset.num_examples, self._config.eval_images or dataset.num_examples))
    make = functools.partial(accuracy, static.attacked_classifier, dataset, static.mesh, static.batch_size)
    return {name: make(**adversary[name]) for name in self._config.evals}

  def _measure(self, state: TrainState, step: int, split: str, sha256: str, poll: Poll) -> dict[str, Any]:
    tell(f'evaluating on the {split} set...')
    evals = {name: evaluator(state, poll) for name, evaluator in self._evaluators(split).items()}
    return {
      'step': step,
      'state_sha256': sha256,
      'split': split,
      'evals': evals,
      'command': ' '.join(['python -m adversarial_augment.train', *sys.argv[1:]]),
      'seconds': round(time.monotonic() - self._began, 1),  # of this start of the run
      **summary.provenance(self._config, self._static, self._splits),
    }

  def _draw(self, state: TrainState, anew: bool) -> str | None:
    """The figure of the last state; one that is there already stays, unless the results are new too."""
    path = self._workdir / 'figures' / 'ada_examples.png'
    if anew or not path.with_name('training_curves.png').exists():
      return summary.draw(path, self._config, self._static, self._splits['test'], state, self._attack, self._phi)
    return str(path) if path.exists() else None


def _read(path: Path) -> dict[str, Any]:
  """The results in a file; {} where there is none that can be read."""
  try:
    result = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return result if isinstance(result, dict) else {}


def _write(path: Path, result: dict[str, Any]) -> None:
  with files.storage_errors(f"write '{path}'"):
    path.parent.mkdir(exist_ok=True)
  run_directory.write_json(path, result)
