"""Attacks on a trained classifier, as `evaluate --attack` runs them: their results, on disk and on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
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

from adversarial_augment import inference, results
from adversarial_augment.attacks import suite_runner, suites, validity
from adversarial_augment.attacks.suite_runner import Problem, Stage, SuiteState
from adversarial_augment.classifiers import reorder_outputs
from adversarial_augment.cli import progress
from adversarial_augment.datasets import classes
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import reuse, robustness, sweep_file
from adversarial_augment.evaluation.attack_request import Ball, Request
from adversarial_augment.evaluation.robustness import Classifier
from adversarial_augment.parallel import processes, sharding
from adversarial_augment.storage import artifact, run_directory
from adversarial_augment.training import recipe
from adversarial_augment.types import Dataset

SUSPECT = 3  # exit code: a number that cannot be relied on, as one that became NaN
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
  about = reuse.source_of(config, workdir, test, restored)
  if request.surrogate is not None:
    surrogate, other = _surrogate(config, request.surrogate, test, mesh)
    classifier = classifier._replace(surrogate=surrogate)
    about['surrogate_sha256'] = other.sha256
  _say(f'{workdir}: step {restored.step:,}, checkpoint {restored.sha256[:12]}, on {test.name}')
  suspect = False
  for ball in request.balls:
    result = _attack_once(classifier, workdir, test, request, ball, about, overwrite)
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
      f"The surrogate '{workdir}' was trained on {other.dataset}, not on {config.dataset}; name a run of these classes."
    )
  known, remedy = inference.classes(workdir), 'name a run of these classes'
  outputs = classes.order(known, test, f"The surrogate '{workdir}'", remedy)
  other.precision, other.batch_size = config.precision, config.batch_size
  classifier, restored = _restore(other, workdir, test, mesh)
  if note := classes.note(known, test, 'the surrogate'):
    _say(note)
  if outputs is not None:
    params = reorder_outputs(classifier.state.params, outputs)
    classifier = classifier._replace(state=classifier.state._replace(params=params))
  return classifier, restored


def _attack_once(
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
  reuse.agreed(conditions, name)
  look = lambda: None if overwrite else _known(workdir, name, request, conditions)
  if known := processes.on_process_0(look):
    return known
  with contextlib.ExitStack() as stack:

    def hold() -> None:
      run_directory.create(folder)  # before anything is measured that has no place
      stack.enter_context(artifact.lock(folder, name=name))
      if overwrite:
        reuse.remove(folder / f'{name}.sweep')

    processes.on_process_0(hold)
    # Whoever held it may have written the result since.
    return processes.on_process_0(look) or _measure(classifier, folder / name, test, request, ball, about, conditions)


def _known(workdir: Path, name: str, request: Request, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the result that the run's folder holds, unless an attack that would replace it was stopped.

  Raises:
    UserError: as of `reuse.known`.
  """
  path = workdir / 'results' / f'{name}.json'
  if path.with_name(f'{name}.sweep').exists():
    return None
  surrogate = results.read(path).get('surrogate_sha256')
  if request.surrogate is None and surrogate:  # a result that was checked by more serves as well
    conditions = {**conditions, 'surrogate': surrogate}
  found = reuse.known(workdir, name, results.digest(conditions), conditions['checkpoint'])
  complete = not request.save_images or zipfile.is_zipfile(path.with_name(f'{name}.npz'))
  return found if complete else None


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
  state = _run_suite(classifier, attacked, request, unfinished, conditions)
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
      reuse.remove(images_path)  # they would be those of another result
    results.write(path, result)
    reuse.remove(unfinished)

  processes.on_process_0(write)
  return result


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


def _run_suite(
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
  keep, write = reuse.Periodic('attack'), lambda: sweep_file.write(path, state, conditions)
  keep(write)
  for index, remaining in _progress(attacked, programs, stages, state):
    if remaining is not None:
      _say(_stage_line(stages, state, index, remaining))
    keep(write)
  write()  # the checks that follow take a while, too
  return state


def _progress(
  attacked: Problem, programs: suite_runner.Programs, stages: Sequence[Stage], state: SuiteState
) -> Iterator[tuple[int, int | None]]:
  """Runs a suite from where `state` is to its end, and logs how far it is.

  Yields:
    After every batch its stage, and where the stage has ended how many images are left, else None.
  """
  logged, images = time.monotonic(), 0
  for index, restart, count in suite_runner.run(attacked, programs, stages, state):
    stage, now = stages[index], time.monotonic()
    images += count
    if count and now - logged >= _LINES:
      number, done = int(state.cursor[0]), int(state.cursor[1])
      total = int((state.broken_in >= number).sum())
      progress.log(
        f'  {stage.name}: restart {restart + 1} of {stage.attack.number}, {done:,} of {total:,} images  '
        f'{images / (now - logged):,.1f} images/s'
      )
      logged, images = now, 0
    ended = not count and restart == stage.attack.number - 1
    yield index, int((state.broken_in == suite_runner.ALIVE).sum()) if ended else None


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
  with artifact.storage_errors(f"write '{path}'"):
    artifact.replace(path, content.getvalue())


def _say(*messages: str) -> None:
  if jax.process_index() == 0:
    print('\n'.join(messages), flush=True)
