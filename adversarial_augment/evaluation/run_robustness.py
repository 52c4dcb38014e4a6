"""Attacks on a trained classifier, as `evaluate --attack` runs them: what is known, what goes on, files, lines."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import io
from pathlib import Path
import time
from typing import Any
import zipfile

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import inference
from adversarial_augment.attacks import suite_runner, suites, validity
from adversarial_augment.attacks.suite_runner import Problem, Stage, SuiteState
from adversarial_augment.classifiers import reorder_outputs
from adversarial_augment.datasets import classes
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.evaluation import robustness, sweep_file
from adversarial_augment.evaluation.robustness import Classifier
from adversarial_augment.evaluation.robustness_flags import Ball, Request
from adversarial_augment.parallel import processes, sharding
from adversarial_augment.run import summary
from adversarial_augment.run.run_log import tell
from adversarial_augment.storage import files, results, run_directory
from adversarial_augment.training import recipe
from adversarial_augment.types import Dataset

SUSPECT = 3  # exit code: a number that is none to rely on, as one that became NaN

_SECONDS = 2  # between writes of the state, at least
_SHARE = 0.05  # of the time that those writes may take
_LINES = 10  # seconds between lines of progress


def run(config: ConfigDict, workdir: Path, test: Dataset, request: Request, *, overwrite: bool = False) -> int:
  """Attacks the newest good checkpoint of a run within every ball asked for; writes and prints what is left.

  Args:
    config: of the run, perhaps with another precision, data set or batch size.
    workdir: of the run.
    test: the images to attack.
    request: the attacks.
    overwrite: whether to attack anew where `workdir` has results of the same name, or an unfinished attack.

  Returns:
    The exit code: `SUSPECT` where a result has a flag, unless the request allows it.

  Raises:
    UserError: there is no checkpoint, something that is not to be replaced, or another process that attacks it.
    StorageError: the results cannot be written.
  """
  mesh = sharding.data_mesh()
  classifier, restored = _restore(config, workdir, test, mesh)
  provenance = summary.provenance(config, {'test': test}, 'evaluate', workdir)
  provenance['config_sha256'] = restored.config_sha256
  about = {'step': restored.step, 'checkpoint_sha256': restored.sha256, 'provenance': provenance}
  if request.surrogate is not None:
    surrogate, other = _surrogate(config, request.surrogate, test, mesh)
    classifier = classifier._replace(surrogate=surrogate)
    about['surrogate_sha256'] = other.sha256
  _say(f'{workdir}: step {restored.step:,}, checkpoint {restored.sha256[:12]}, on {test.name}')
  suspect = False
  for ball in request.balls:
    result = _find(classifier, workdir, test, request, ball, about, overwrite)
    _say(*lines(result))
    suspect |= bool(result['flags'])
  _say(f'  {"results":<20} {workdir / "results"}')
  return SUSPECT if suspect and not request.allow_suspect else 0


def _restore(config: ConfigDict, workdir: Path, test: Dataset, mesh: Mesh) -> tuple[Classifier, inference.Restored]:
  restored = inference.restore(config, workdir, test.num_classes, test.image_shape, mesh)
  reference = recipe.build_classifier(config, test.num_classes, dtype=np.dtype('float32'))
  attacked = recipe.attacked_classifier(config, test.num_classes)
  return Classifier(attacked, reference, restored.state, mesh, config.batch_size), restored


def _surrogate(config: ConfigDict, workdir: Path, test: Dataset, mesh: Mesh) -> tuple[Classifier, inference.Restored]:
  """Returns the classifier of another run, on the same classes, in the precision of this one."""
  other = inference.read_config(workdir)
  if other.dataset != config.dataset:
    raise UserError(
      f"--surrogate='{workdir}' was trained on {other.dataset}, not on {config.dataset}; name a run of these classes."
    )
  known, remedy = inference.classes(workdir), 'name a run of these classes'
  outputs = classes.order(known, test, f"The classifier of --surrogate='{workdir}'", remedy)
  other.precision, other.batch_size = config.precision, config.batch_size
  classifier, restored = _restore(other, workdir, test, mesh)
  if note := classes.note(known, test, 'the surrogate'):
    _say(note)
  if outputs is not None:
    params = reorder_outputs(classifier.state.params, outputs)
    classifier = classifier._replace(state=classifier.state._replace(params=params))
  return classifier, restored


def _find(
  classifier: Classifier,
  workdir: Path,
  test: Dataset,
  request: Request,
  ball: Ball,
  about: Mapping[str, Any],
  overwrite: bool,
) -> dict[str, Any]:
  """Returns the result within one ball: what the run's folder knows, or measured and written."""
  name, folder = results.robustness_name(request.suite, ball.norm, ball.text), workdir / 'results'
  conditions = _conditions(test, request, ball, about)
  if not processes.all_have(results.digest(conditions)):
    raise UserError('The processes have different images or versions; give all of them the same files.')
  look = lambda: None if overwrite else _known(workdir, name, request, conditions)
  if known := processes.on_process_0(look):
    return known
  with contextlib.ExitStack() as stack:

    def hold() -> None:
      run_directory.create(folder)  # before anything is measured that has no place
      stack.enter_context(run_directory.lock(folder, name=name))
      if overwrite:
        _remove(folder / f'{name}.sweep')

    processes.on_process_0(hold)
    # Whoever held it may have written the result since.
    return processes.on_process_0(look) or _measure(classifier, folder / name, test, request, ball, about, conditions)


def _known(workdir: Path, name: str, request: Request, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the result that is there; None where there is none, or an attack that would replace it was stopped.

  Raises:
    UserError: the same checkpoint has one of other conditions, or it contradicts itself.
  """
  path = workdir / 'results' / f'{name}.json'
  if path.with_name(f'{name}.sweep').exists():
    return None
  known = results.read(path)
  if request.surrogate is None and 'surrogate_sha256' in known:  # a result that was checked by more serves as well
    conditions = {**conditions, 'surrogate': known['surrogate_sha256']}
  if known.get('conditions_sha256') == results.digest(conditions):
    there = not request.save_images or zipfile.is_zipfile(path.with_name(f'{name}.npz'))
    return results.load(workdir, name) if there else None
  if known.get('checkpoint_sha256') == conditions['checkpoint']:
    raise UserError(
      f"'{path}' holds what other images, seeds, precisions, surrogates or versions gave for this checkpoint; "
      'replace it with --overwrite.'
    )
  return None


def _measure(
  classifier: Classifier,
  place: Path,
  test: Dataset,
  request: Request,
  ball: Ball,
  about: Mapping[str, Any],
  conditions: Mapping[str, Any],
) -> dict[str, Any]:
  """Attacks within one ball, or goes on with that; writes `place`.json, and .npz where images are asked for."""
  path, images_path, unfinished = (place.with_name(f'{place.name}.{kind}') for kind in ('json', 'npz', 'sweep'))
  attacked = robustness.problem(test, ball.norm, ball.epsilon)
  _say(f'{request.suite}, {ball.norm}, epsilon {ball.text}, {test.num_examples:,} images, seed {request.seed}')
  state = _sweep(classifier, attacked, request, unfinished, conditions)
  _say('  checking whether the result is valid...')
  found = robustness.outcome(classifier, request.suite, attacked, state, seed=request.seed)
  result = found | {
    'eval': place.name,
    'attack': request.suite,
    'norm': ball.norm,
    'epsilon': ball.epsilon,
    'epsilon_text': ball.text,
    'split': 'test',
    'seed': request.seed,
    'origin': test.provenance.get('origin', 'unverified'),
    'conditions_sha256': results.digest(conditions),
    **about,
  }

  def write() -> None:
    if request.save_images:
      _write_images(images_path, attacked, state)
    else:
      _remove(images_path)  # they would be those of another result
    results.write(path, result)
    _remove(unfinished)

  processes.on_process_0(write)
  return result


def _remove(path: Path) -> None:
  with files.storage_errors(f"remove '{path}'"):
    path.unlink(missing_ok=True)


def _conditions(test: Dataset, request: Request, ball: Ball, about: Mapping[str, Any]) -> dict[str, Any]:
  """Returns all that decides the outcome, by names that a user understands."""
  origin = about['provenance']
  surrogate = {'surrogate': about['surrogate_sha256']} if 'surrogate_sha256' in about else {}
  return (
    surrogate
    | origin.get('environment', {})
    | {
      'attack': request.suite,
      'norm': ball.norm,
      'epsilon': ball.epsilon,
      'seed': request.seed,
      'number of images': test.num_examples,
      'data set': results.digest(dict(test.provenance)),
      'checkpoint': about['checkpoint_sha256'],
      'precision': origin['config']['precision'],
      'version': ', '.join(f'{name} {origin["versions"][name]}' for name in ('adversarial_augment', 'jax')),
    }
  )


def _sweep(
  classifier: Classifier,
  attacked: Problem,
  request: Request,
  path: Path,
  conditions: Mapping[str, Any],
) -> SuiteState:
  """Runs a suite, or resumes it from a file; shows what is left after each stage."""
  num_classes = robustness.num_classes_of(classifier, attacked.images)
  stages = suites.stages(request.suite, norm=attacked.norm, epsilon=attacked.epsilon, num_classes=num_classes)
  if left_out := suites.left_out(request.suite, num_classes):
    _say(f'  left out: {", ".join(left_out)}, for {num_classes} classes are too few')
  programs = robustness.programs(classifier, stages, attacked, seed=request.seed)
  state = suite_runner.start(attacked, programs, len(stages))
  clean = int((state.broken_in > 0).sum())
  if known := sweep_file.read(path, state, conditions):
    state = known
  n = len(attacked.images)
  _say(f'  {"clean accuracy":<20} {clean / n:.4f}  ({clean:,} of {n:,})')
  for index, left in enumerate(suite_runner.survivors(stages, state).values()):
    _say(_stage_line(stages, state, index, left))
  _pursue(attacked, programs, stages, state, lambda: sweep_file.write(path, state, conditions))
  return state


def _pursue(
  attacked: Problem,
  programs: suite_runner.Programs,
  stages: Sequence[Stage],
  state: SuiteState,
  keep: Callable[[], None],
) -> None:
  """Runs a suite from where `state` is to its end; says how far it is, and keeps it at once and every few seconds."""

  def kept() -> tuple[float, float]:
    began = time.monotonic()
    try:
      keep()
    except StorageError as error:
      tell(f'warning: {error} The attack goes on; a stop would lose it.')
    return time.monotonic(), time.monotonic() - began

  told, images = time.monotonic(), 0
  written, took = kept()
  for index, inner, count in suite_runner.run(attacked, programs, stages, state):
    stage, now = stages[index], time.monotonic()
    images += count
    if count and now - told >= _LINES:
      number, left = int(state.cursor[0]), int(state.cursor[1])
      total = int((state.broken_in >= number).sum())
      tell(
        f'  {stage.name}: restart {inner + 1} of {stage.restarts.number}, {left:,} of {total:,} images  '
        f'{images / (now - told):,.1f} images/s'
      )
      told, images = now, 0
    if not count and inner == stage.restarts.number - 1:
      _say(_stage_line(stages, state, index, int((state.broken_in == suite_runner.ALIVE).sum())))
    if now - written >= max(_SECONDS, took / _SHARE):
      written, took = kept()
  keep()  # the checks that follow take a while, too


def _stage_line(stages: Sequence[Stage], state: SuiteState, index: int, left: int) -> str:
  seconds, compiling = state.seconds[index], state.compile_seconds[index]
  return f'  {"after " + stages[index].name:<20} {left:,} left  {seconds:,.1f} s, compiling {compiling:,.1f} s'


def lines(result: Mapping[str, Any]) -> list[str]:
  """Returns the closing lines of a result."""
  low, high = result['interval']
  flags = result['flags']
  warning = f'  UNRELIABLE: {", ".join(flags)}' if flags else ''
  return [
    f'  {"robust accuracy":<20} {result["robust_accuracy"]:.4f}  ({result["num_robust"]:,} of '
    f'{result["num_images"]:,}; 95 % interval {low:.4f} to {high:.4f}){warning}',
    f'  {"in 8 bits":<20} {result["robust_accuracy_uint8"]:.4f}  ({result["attack"]}, {result["norm"]}, epsilon '
    f'{result["epsilon_text"]}; clean {result["clean_accuracy"]:.4f})',
    *(f'  {"":<20} {flag}: {validity.FLAGS[flag]}' for flag in flags if flag in validity.FLAGS),
  ]


def _write_images(path: Path, attacked: Problem, state: SuiteState) -> None:
  """Writes the strongest image of each example, float32 in [0, 1], with its label and whether it is broken."""
  content = io.BytesIO()
  broken = state.broken_in < suite_runner.ALIVE
  np.savez_compressed(content, images=state.images, labels=attacked.labels, broken=broken, margins=state.margins)
  with files.storage_errors(f"write '{path}'"):
    files.replace(path, content.getvalue())


def _say(*messages: str) -> None:
  if jax.process_index() == 0:
    print('\n'.join(messages), flush=True)
