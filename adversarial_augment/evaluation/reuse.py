"""Results that a run's folder has: shown again under the same conditions, and not replaced unasked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from adversarial_augment import inference, results
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.errors import ArtifactError, StorageError, UserError
from adversarial_augment.evaluation import unfinished
from adversarial_augment.evaluation.accuracy import Poll
from adversarial_augment.evaluation.bench import Bench
from adversarial_augment.parallel import processes
from adversarial_augment.run import summary
from adversarial_augment.run.retries import Retries
from adversarial_augment.storage import run_directory
from adversarial_augment.types import Dataset, TrainState


def source_of(config: ConfigDict, workdir: Path, test: Dataset, restored: inference.Restored) -> dict[str, Any]:
  """Returns the origin of all results of `evaluate`: step, checkpoint and provenance."""
  provenance = summary.provenance(config, {'test': test}, 'evaluate', workdir)
  provenance['config_sha256'] = restored.config_sha256  # of the run
  return {'step': restored.step, 'checkpoint_sha256': restored.sha256, 'provenance': provenance}


def agreed(conditions: Any, what: str) -> str:
  """Returns the hash of the conditions of a result; raises UserError if processes have different ones."""
  sha256 = results.digest(conditions)
  if not processes.all_have(sha256):
    raise UserError(f'The processes have different images, weights or versions for {what}; give all the same files.')
  return sha256


def known(
  workdir: Path, name: str, conditions: str, checkpoint: str, *, protected: bool = True
) -> dict[str, Any] | None:
  """Returns the result in the run's folder, if its conditions have this hash; on one process.

  If `protected`, a result of this checkpoint under other conditions is an error; otherwise it may be replaced.
  """
  path = workdir / 'results' / f'{name}.json'
  found = results.read(path)
  if found.get('conditions_sha256') == conditions:
    return results.load(workdir, name)
  if protected and found.get('checkpoint_sha256') == checkpoint:
    raise ArtifactError(
      f"'{path}' has a result of this checkpoint for other images, settings or versions", path, remedy='use or replace'
    )
  return None


def measure_once(
  bench: Bench,
  name: str,
  state: TrainState,
  workdir: Path,
  about: Mapping[str, Any],
  poll: Poll = lambda: None,
  *,
  overwrite: bool = False,
  protected: bool = False,
) -> dict[str, Any]:
  """Returns the result of one evaluation of the test set: what the run's folder has, or measured and written.

  `about` are `step`, `checkpoint_sha256` and `provenance` of the result; `protected` is as in `known`.
  """
  folder, origin = workdir / 'results', about['provenance']
  conditions = conditions_of(bench, name, about)
  look = lambda: known(workdir, name, conditions, about['checkpoint_sha256'], protected=protected)
  if not overwrite and (found := processes.on_process_0(look)):
    return found
  images = bench.origin(name)
  seed = images.get('corruptions', origin)['seed']  # of the corruptions; else of the run
  processes.on_process_0(lambda: run_directory.create(folder))  # before anything is measured that has no place
  partial = folder / f'{name}.partial'
  cells = unfinished.Cells(partial, conditions)
  result = {'eval': name, 'split': 'test', 'seed': seed, **about, 'conditions_sha256': conditions}
  result |= bench.measure(name, state, poll, cells.known, cells.keep)
  result['provenance'] = {**origin, **images}

  def write() -> None:
    results.write_evaluation(folder, name, result)
    unfinished.remove(partial)

  try:
    Retries().attempt(about['step'], lambda: processes.on_process_0(write), final=True)
  except StorageError:  # then it is at least printed
    if jax.process_index() == 0:
      print('\n'.join(summary.evaluation(name, result, {'split': 'test', 'config': origin['config']})), flush=True)
    raise
  return result


def conditions_of(bench: Bench, name: str, about: Mapping[str, Any]) -> str:
  """Returns the hash of all that determines the result of an evaluation, equal on all processes."""
  origin = about['provenance']
  made_by = {package: origin['versions'][package] for package in ('adversarial_augment', 'jax')}
  made_by |= origin.get('environment', {})
  weights = origin['weights'] if EVALUATIONS[name].under_attack else None
  return agreed([name, about['checkpoint_sha256'], bench.conditions(name), weights, made_by], name)
