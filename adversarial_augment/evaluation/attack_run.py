"""`evaluate --attack`: attacks a trained classifier within l_p balls, shows survivors, and writes the results."""

from collections.abc import Mapping, Sequence
import contextlib
import io
from pathlib import Path
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
from adversarial_augment.evaluation import distances, reuse, robustness, unfinished
from adversarial_augment.evaluation.attack_request import Ball, Request
from adversarial_augment.evaluation.robustness import Classifier
from adversarial_augment.parallel import processes, sharding
from adversarial_augment.storage import artifact, run_directory
from adversarial_augment.types import Dataset

_SELF_BOUNDED = f'  {"":<20} in its own distance, which is another one for each classifier: not for comparisons'
SUSPECT = 3  # exit code: a number that cannot be relied on, as one that became NaN


def run(config: ConfigDict, workdir: Path, test: Dataset, request: Request, *, overwrite: bool = False) -> int:
  """Attacks the newest intact checkpoint of a run within every ball; returns the exit code."""
  mesh = sharding.data_mesh()
  classifier, restored = robustness.restore(config, workdir, test, mesh)
  about = reuse.source_of(config, workdir, test, restored)
  _say(f'{workdir}: step {restored.step:,}, checkpoint {restored.sha256[:12]}, on {test.name}')
  return attack(config, workdir, classifier, test, request, about, overwrite=overwrite)


def attack(
  config: ConfigDict,
  workdir: Path,
  classifier: Classifier,
  test: Dataset,
  request: Request,
  about: Mapping[str, Any],
  *,
  overwrite: bool = False,
) -> int:
  """Attacks a classifier within every ball; returns the exit code. `about` is the origin of the results."""
  if request.surrogate is not None:
    surrogate, other = _surrogate(config, request.surrogate, test, classifier.mesh)
    classifier = classifier._replace(surrogate=surrogate)
    about = {**about, 'surrogate_sha256': other.sha256}
  if request.balls[0].norm == 'alexnet':
    measure = distances.load(request.distance_from, distances.FLAG, 'float32')
    classifier = classifier._replace(measure=measure)
  suspect = False
  for ball in request.balls:
    result = _Attack(classifier, workdir / 'results', test, request, ball, about).result(overwrite)
    _say(*_closing_lines(result))
    suspect |= bool(result['flags'])
  _say(f'  {"results":<20} {workdir / "results"}')
  return SUSPECT if suspect and not request.allow_suspect else 0


def _surrogate(config: ConfigDict, workdir: Path, test: Dataset, mesh: Mesh) -> tuple[Classifier, inference.Restored]:
  """Returns the classifier of another run, on the same classes, in the precision of this one."""
  other = inference.read_config(workdir)
  if other.dataset != config.dataset:
    raise UserError(
      f"The surrogate '{workdir}' was trained on {other.dataset}, not on {config.dataset}; name a run of these classes."
    )
  known = inference.classes(workdir)
  outputs = classes.order(known, test, f"The surrogate '{workdir}'", 'name a run of these classes')
  other.precision, other.batch_size = config.precision, config.batch_size
  classifier, restored = robustness.restore(other, workdir, test, mesh)
  if note := classes.note(known, test, 'the surrogate'):
    _say(note)
  if outputs is not None:
    params = reorder_outputs(classifier.state.params, outputs)
    classifier = classifier._replace(state=classifier.state._replace(params=params))
  return classifier, restored


class _Attack:
  """One suite within one ball, with its files in the results folder of a run."""

  def __init__(
    self, classifier: Classifier, folder: Path, test: Dataset, request: Request, ball: Ball, about: Mapping[str, Any]
  ):
    self._classifier, self._test, self._request, self._ball, self._about = classifier, test, request, ball, about
    self._folder, self._name = folder, results.robustness_name(request.suite, ball.norm, ball.text)
    self._result, self._images, self._state = (folder / f'{self._name}.{kind}' for kind in ('json', 'npz', 'sweep'))
    self._distance = self._what_measures()
    self._conditions = self._what_determines_the_result()

  def _what_measures(self) -> dict[str, Any]:
    """Returns what the result says of a perceptual distance; {} for l_p balls."""
    if self._ball.norm not in results.DISTANCES:
      return {}
    if (measure := self._classifier.measure) is None:
      return {'distance': {'network': 'self', 'self_bounded': True}}
    about = {'network': self._ball.norm, 'self_bounded': False, 'file': measure.file, 'sha256': measure.sha256}
    return {'distance': about}

  def _what_determines_the_result(self) -> dict[str, Any]:
    origin, surrogate = self._about['provenance'], self._about.get('surrogate_sha256')
    versions = origin['versions']
    suite = suites.SUITES[self._request.suite]  # older results are of a perceptual one without its last stage
    measured = {'distance': results.digest(self._distance), 'stages': suite} if self._distance else {}
    return origin.get('environment', {}) | ({'surrogate': surrogate} if surrogate else {}) | measured | {
      'attack': self._request.suite,
      'norm': self._ball.norm,
      'epsilon': self._ball.epsilon,
      'seed': self._request.seed,
      'number of images': self._test.num_examples,
      'data set': results.digest(dict(self._test.provenance)),
      'checkpoint': self._about['checkpoint_sha256'],
      'precision': origin['config']['precision'],
      'version': ', '.join(f'{name} {versions[name]}' for name in ('adversarial_augment', 'jax')),
    }  # fmt: skip

  def result(self, overwrite: bool) -> dict[str, Any]:
    """Returns what the folder has, or attacks and writes."""
    reuse.agreed(self._conditions, self._name)
    look = lambda: None if overwrite else self._known()
    if known := processes.on_process_0(look):
      return known
    with contextlib.ExitStack() as stack:

      def hold() -> None:
        run_directory.create(self._folder)  # before anything is measured that has no place
        stack.enter_context(artifact.lock(self._folder, name=self._name))
        if overwrite:
          unfinished.remove(self._state)

      processes.on_process_0(hold)
      return processes.on_process_0(look) or self._measure()  # another process may have written it since

  def _known(self) -> dict[str, Any] | None:
    """Returns the result that the folder has, unless an attack that would replace it was stopped."""
    if self._state.exists():
      return None
    conditions, found = self._conditions, results.read(self._result)
    if found.get('checkpoint_sha256') == conditions['checkpoint']:
      artifact.check_same(
        self._result, {'distance': found.get('distance')}, {'distance': self._distance.get('distance')}
      )
    surrogate = found.get('surrogate_sha256')
    if self._request.surrogate is None and surrogate:  # a result with more checks serves as well
      conditions = {**conditions, 'surrogate': surrogate}
    known = reuse.known(self._folder.parent, self._name, results.digest(conditions), conditions['checkpoint'])
    complete = not self._request.save_images or zipfile.is_zipfile(self._images)
    return known if complete else None

  def _measure(self) -> dict[str, Any]:
    request, ball, test = self._request, self._ball, self._test
    attacked = robustness.problem(test, ball.norm, ball.epsilon)
    _say(f'{request.suite}, {ball.norm}, epsilon {ball.text}, {test.num_examples:,} images, seed {request.seed}')
    state = self._run_suite(attacked)
    _say('  checking whether the result is valid...')
    result = robustness.outcome(self._classifier, request.suite, attacked, state, seed=request.seed) | {
      'eval': self._name,
      'attack': request.suite,
      'norm': ball.norm,
      'epsilon': ball.epsilon,
      'epsilon_text': ball.text,
      'split': 'test',
      'seed': request.seed,
      'origin': test.provenance.get('origin', 'unverified'),
      'conditions_sha256': results.digest(self._conditions),
      **self._distance,
      **self._about,
    }

    def write() -> None:
      if request.save_images:
        _write_images(self._images, attacked, state)
      else:
        unfinished.remove(self._images)  # they would be those of another result
      results.write(self._result, result)
      unfinished.remove(self._state)

    processes.on_process_0(write)
    return result

  def _run_suite(self, attacked: Problem) -> SuiteState:
    """Runs or resumes the suite; shows what is left after each stage."""
    suite, n = self._request.suite, len(attacked.images)
    num_classes = robustness.num_classes_of(self._classifier, attacked.images)
    norm, epsilon = attacked.norm, attacked.epsilon
    distance = robustness.distance_of(self._classifier, norm)
    stages = suites.stages(suite, norm=norm, epsilon=epsilon, num_classes=num_classes, distance=distance)
    if left_out := suites.left_out(suite, num_classes):
      _say(f'  left out, because {num_classes} classes are too few: {", ".join(left_out)}')
    programs = robustness.programs(self._classifier, stages, attacked, seed=self._request.seed)
    state = suite_runner.start(attacked, programs, len(stages))
    clean = int((state.broken_in > 0).sum())
    state = unfinished.read_suite(self._state, state, self._conditions) or state
    _say(f'  {"clean accuracy":<20} {clean / n:.4f}  ({clean:,} of {n:,})')
    for index, left in enumerate(suite_runner.survivors(stages, state).values()):
      _say(_stage_line(stages, state, index, left))
    keep, write = unfinished.Periodic('attack'), lambda: unfinished.write_suite(self._state, state, self._conditions)
    keep(write)
    lines = _lines_of_restart(state)
    for index, restart, count in suite_runner.run(attacked, programs, stages, state):
      name, number = stages[index].name, stages[index].attack.number
      lines.advance(f'{name}, restart {restart + 1} of {number}', count)
      if not count:  # the restart has ended
        lines = _lines_of_restart(state)
        if restart == number - 1:
          _say(_stage_line(stages, state, index, int((state.broken_in == suite_runner.ALIVE).sum())))
      keep(write)
    write()  # the checks that follow take a while, too
    return state


def _lines_of_restart(state: SuiteState) -> progress.Lines:
  """Returns what reports the progress of a restart, on the images that are left."""
  number, done = state.cursor
  return progress.Lines(int((state.broken_in >= number).sum() - done), progress.log)


def _stage_line(stages: Sequence[Stage], state: SuiteState, index: int, left: int) -> str:
  seconds, compiling = state.seconds[index], state.compile_seconds[index]
  return f'  {"after " + stages[index].name:<20} {left:,} left  {seconds:,.1f} s, compiling {compiling:,.1f} s'


def _closing_lines(result: Mapping[str, Any]) -> list[str]:
  (low, high), flags = result['interval'], result['flags']
  warning = f'  UNRELIABLE: {", ".join(flags)}' if flags else ''
  return [
    f'  {"robust accuracy":<20} {result["robust_accuracy"]:.4f}  ({result["num_robust"]:,} of '
    f'{result["num_images"]:,}; 95 % interval {low:.4f} to {high:.4f}){warning}',
    f'  {"in 8 bits":<20} {result["robust_accuracy_uint8"]:.4f}  ({result["attack"]}, {result["norm"]}, epsilon '
    f'{result["epsilon_text"]}; clean {result["clean_accuracy"]:.4f})',
    *([_SELF_BOUNDED] if result['norm'] == 'self' else []),
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
