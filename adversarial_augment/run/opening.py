"""A run's folder when a command starts: what may resume in it, and from which state."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from adversarial_augment import checks, results
from adversarial_augment import config as configs
from adversarial_augment.cli import environment, progress, signals
from adversarial_augment.errors import CheckpointError, UserError, show
from adversarial_augment.parallel import processes
from adversarial_augment.run import segments
from adversarial_augment.storage import artifact, checkpoints, run_directory, untrusted
from adversarial_augment.types import TrainState


@contextmanager
def open_run(workdir: Path, config: ConfigDict, data: Mapping[str, Any] | None = None) -> Iterator[signals.Stop]:
  """Makes the run's directory, locks it, compares it with that of an earlier start, and listens to signals.

  `data` is what the run is made on, as JSON: the hash of each split, and more; it is kept in data.json.
  """
  with ExitStack() as stack:

    def prepare() -> None:
      run_directory.create(workdir)
      stack.enter_context(artifact.lock(workdir))
      if note := check_run(workdir, config, data or {}):
        progress.log(note)
      checkpoints.try_to_save(workdir / 'checkpoints')
      artifact.write_json(workdir / 'config.json', json.loads(configs.to_json(config)))
      artifact.write_json(workdir / 'data.json', dict(data or {}))
      artifact.write_json(workdir / 'environment.json', environment.settings())

    processes.on_process_0(prepare)
    kept = 'the last checkpoint is kept' if checkpoints.steps(workdir / 'checkpoints') else 'no step has been made'
    yield stack.enter_context(signals.listen(jax.process_count() > 1, kept))


def check_run(workdir: Path, config: ConfigDict, data: Mapping[str, Any], shown: str = '') -> str:
  """Checks, if `workdir` holds a run, that it can resume with this config and these data; touches no device.

  Messages call the folder `shown`. Returns a note on a run that an older version began, or ''.
  """
  if not checkpoints.steps(workdir / 'checkpoints'):
    _check_not_lost(workdir, config.checkpoint_every)
    return ''
  path = workdir / 'config.json'
  old = _recorded(path, ', the config of the checkpoints beside it')
  added = configs.unknown_to(old)
  for difference in _differences(workdir, checks.flatten(old) | added, config, data):
    raise UserError(f"'{shown or workdir}' holds a run {difference}.", remedy='workdir')
  return configs.note(path, added) if added else ''


def _check_not_lost(workdir: Path, checkpoint_every: int) -> None:
  """Refuses to start over a run whose checkpoints are gone: one that has ended, or was long enough for two of them."""
  lines = results.read_log(workdir / 'metrics.jsonl', ())
  last_step = lines[-1]['step'] if lines else 0
  if (workdir / 'results' / 'train.json').exists() or 0 < 2 * checkpoint_every <= last_step:
    raise CheckpointError(
      f"'{workdir}' holds a run of {last_step:,} steps and none of its checkpoints; bring them back.", remedy='workdir'
    )


def _differences(
  workdir: Path, recorded: Mapping[str, Any], config: ConfigDict, data: Mapping[str, Any]
) -> Iterator[str]:
  """Yields what differs from the run of that folder, with the way out."""
  if changed := configs.differences(recorded, json.loads(configs.to_json(config))):
    yield f'with another config ({"; ".join(changed)}); use that config'
  # Runs of older versions may lack these two files, or have less in data.json.
  path = workdir / 'data.json'
  old = _recorded(path) if path.exists() else {}
  if changed := [name for name in data if old.get(name, data[name]) != data[name]]:
    yield f'on other data ({", ".join(changed)} in data.json); use that data'
  path, new = workdir / 'environment.json', environment.settings()
  old = _recorded(path) if path.exists() else new
  for name in sorted({**old, **new}):
    if old.get(name) != new.get(name):
      was, now = (f'{name}={show(one[name])}' if name in one else f'{name} unset' for one in (old, new))
      yield f'with {was}, and now there is {now}, which changes its numbers; set the variable as it was'


def _recorded(path: Path, what: str = '') -> dict[str, Any]:
  """Returns a JSON object that an earlier start has written; a UserError where it is damaged or missing."""
  try:
    found = untrusted.read_json(path)
    if not isinstance(found, dict):
      raise ValueError('no JSON object')
    return found
  except (OSError, ValueError) as error:
    raise UserError(f"Cannot read '{path}'{what} ({error}); repair it.", remedy='workdir') from error


def check_manifest(manifest: Mapping[str, Any], config: ConfigDict, place: str) -> None:
  """Raises UserError if a checkpoint in `place` is not of a run of this config."""
  if manifest['config_sha256'] not in configs.all_sha256(config):
    raise UserError(
      f"Checkpoint {manifest['step']} in '{place}' is of another run: its config has the hash "
      f'{manifest["config_sha256"][:12]}, that of this run {configs.sha256(config)[:12]}; move it away.',
      remedy='workdir',
    )


def resume(workdir: Path, state: TrainState) -> TrainState:
  """Returns the state of the newest good checkpoint, or `state` if there is none, and cuts log and segments back to it.

  Warns of lines of the log that are missing or duplicated; the run goes on without them.
  """
  path, folder = workdir / 'metrics.jsonl', workdir / 'checkpoints'
  logged: list[list[int]] = []  # on process 0

  def check(manifest: Mapping[str, Any]) -> None:
    config = configs.from_json((workdir / 'config.json').read_text(), 'config.json')  # as `open_run` has written it
    check_manifest(manifest, config, str(folder))
    logged[:] = manifest.get('log', ())

  with progress.stage('reading the newest checkpoint', progress.log):
    restored = checkpoints.restore_newest(folder, state, report=progress.log, check=check)
  step, state = restored or (0, state)
  checkpoints.remove_unfinished(folder)

  def cut() -> None:
    kept, doubled = run_directory.truncate_log(path, step)
    if missing := sorted(set(run_directory.steps_of(logged)).difference(kept)):
      progress.log(f"warning: '{path}' is missing {run_directory.in_words(missing)}; the curves have a gap there.")
    if doubled:
      steps = run_directory.in_words(sorted(set(doubled)))
      progress.log(f"warning: '{path}' had duplicates of {steps}; the first lines are kept.")

  def settle() -> str:
    cut()
    return segments.begin(workdir, step)

  resized = processes.on_process_0(settle)
  if step:
    progress.log(f'resuming from step {step}{resized}')
  return state
