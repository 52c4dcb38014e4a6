"""Accuracy under l_p attacks: a suite on a data set and all devices, with every success checked again in float32."""

from collections.abc import Callable, Sequence
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import classifiers, inference, metrics, results, threefry
from adversarial_augment.attacks import inputs, suite_runner, suites, validity
from adversarial_augment.attacks.feature_distance import SELF, make_view
from adversarial_augment.attacks.restarts import attack_result
from adversarial_augment.attacks.suite_runner import Problem, Programs, Stage, SuiteState
from adversarial_augment.cli import progress
from adversarial_augment.evaluation.distances import Reference
from adversarial_augment.parallel import platforms, sharding
from adversarial_augment.storage import outcomes
from adversarial_augment.training import recipe
from adversarial_augment.types import Array, Dataset, Network, PyTree, TrainState

_CHECKED, _LONGER, _FAR = 32, 256, 128  # images of the validity checks, at most


class Classifier(NamedTuple):
  """What is attacked, and where. By running statistics, so that no image's result depends on its batch."""

  attacked: Network  # the classifier inside loops and `shard_map`, perhaps in bfloat16
  reference: Network  # the same function in float32, whose logits decide
  state: TrainState
  mesh: Mesh
  batch_size: int  # over all processes; the next larger one that divides over the devices is taken
  surrogate: 'Classifier | None' = None  # another one, whose adversarial images are tried on this one
  measure: Reference | None = None  # what measures perceptual distances; None: the classifier itself


def restore(config: ConfigDict, workdir: Path, test: Dataset, mesh: Mesh) -> tuple[Classifier, inference.Restored]:
  """Returns the classifier of a run, from its newest intact checkpoint."""
  restored = inference.restore(config, workdir, test.num_classes, test.image_shape, mesh)
  reference = recipe.build_classifier(config, test.num_classes, dtype=np.dtype('float32'))
  attacked = recipe.attacked_classifier(config, test.num_classes)
  return Classifier(attacked, reference, restored.state, mesh, config.batch_size), restored


def problem(dataset: Dataset, norm: str, epsilon: float) -> Problem:
  """Returns the images and labels of a data set on the host; raises UserError for out-of-range labels."""
  images, labels = dataset.read(np.arange(dataset.num_examples))
  inputs.check_labels(labels, dataset.num_examples, dataset.num_classes)
  return Problem(images.astype(np.float32) / 255, labels, norm, epsilon)


def programs(classifier: Classifier, stages: Sequence[Stage], attacked: Problem, *, seed: int = 0) -> Programs:
  """Makes the programs of a suite; each stage is compiled for one or two batch sizes, when it is reached.

  The random numbers of an image are a function of `seed`, its index, the stage and the restart.
  """
  on_devices, size = _SuitePrograms(classifier, stages, attacked, seed), classifier.mesh.size
  return Programs(
    attack=functools.partial(on_devices.attack, 'attacked'),
    margins=on_devices.margins,
    batch_size=-(-classifier.batch_size // size) * size,
    multiple=size,
    compile=functools.partial(on_devices.compile, 'attacked'),
    again=functools.partial(on_devices.attack, 'reference'),
    distances=on_devices.distances if attacked.norm in results.DISTANCES else None,
  )


def distance_of(classifier: Classifier, norm: str) -> suites.DistanceOf | None:
  """Returns the perceptual distance that `norm` names, of the variables of its network; None for l_p balls."""
  if norm not in results.DISTANCES:
    return None
  return (lambda frozen: SELF) if classifier.measure is None else classifier.measure.distance


class _SuitePrograms:
  """The programs of a suite on all devices; `network` is a field of `Classifier`. Arrays are on the host."""

  def __init__(self, classifier: Classifier, stages: Sequence[Stage], attacked: Problem, seed: int):
    self._classifier, self._stages, self._attacked, self._seed = classifier, stages, attacked, seed
    measure = None if classifier.measure is None else classifier.measure.variables
    self._variables = classifier.state.params, classifier.state.model_state
    self._frozen = sharding.replicate(classifier.mesh, measure)
    self._attack_step = jax.jit(platforms.for_mesh(classifier.mesh, self._attack), static_argnums=(0, 1))
    self._margins_step = jax.jit(platforms.for_mesh(classifier.mesh, self._margins))
    self._distances_step = jax.jit(platforms.for_mesh(classifier.mesh, self._distances))
    self._compiled: dict[tuple[str, int, int], Callable] = {}

  def attack(self, network: str, index: int, restart: int, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs a restart of a stage on the images `part`; returns what it finds, and which it takes for adversarial."""
    images, taken = self.compile(network, index, len(part))(*self._arguments(index, restart, part))
    return _to_host(images), _to_host(taken)

  def compile(self, network: str, index: int, size: int) -> Callable:
    """Returns the program of a stage for so many images."""
    name = network, index, size
    if name not in self._compiled:
      like = self._arguments(index, 0, np.zeros(size, np.int32))
      with progress.stage(f'compiling {self._stages[index].name} for {size} images'):
        self._compiled[name] = self._attack_step.lower(self._stages[index].attack.make, network, *like).compile()
    return self._compiled[name]

  def margins(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the margins of images, by the reference."""
    return _to_host(self._margins_step(*self._variables, *_shard(self._classifier.mesh, images, labels)))

  def distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the perceptual distance of each pair, by the reference."""
    arrays = _shard(self._classifier.mesh, images, others)
    return _to_host(self._distances_step(*self._variables, self._frozen, *arrays))

  def _arguments(self, index: int, restart: int, part: np.ndarray) -> tuple[PyTree, ...]:
    arrays = part.astype(np.int32), self._attacked.images[part], self._attacked.labels[part]
    return *self._variables, self._frozen, np.int32(index), np.int32(restart), *_shard(self._classifier.mesh, *arrays)

  def _attack(self, make, network, params, model_state, frozen, index, restart, examples, images, labels):
    def local(params, model_state, frozen, index, restart, examples, images, labels):
      key_of = lambda example: jax.random.fold_in(jax.random.fold_in(threefry.key(self._seed), example), index)
      logits_fn = classifiers.logits_fn(getattr(self._classifier, network), params, model_state)
      result = make(restart)(jax.vmap(key_of)(examples), logits_fn, images, labels, frozen)
      return result.images, result.metrics['success']

    return self._sharded(local, 5, params, model_state, frozen, index, restart, examples, images, labels)

  def _margins(self, params, model_state, images, labels):
    def local(params, model_state, images, labels):
      logits = classifiers.logits_fn(self._classifier.reference, params, model_state)(images)
      return attack_result(logits, images, labels).metrics['margin']

    return self._sharded(local, 2, params, model_state, images, labels)

  def _distances(self, params, model_state, frozen, images, others):
    def local(params, model_state, frozen, images, others):
      logits_fn = classifiers.logits_fn(self._classifier.reference, params, model_state)
      of = distance_of(self._classifier, self._attacked.norm)
      assert of is not None
      view = make_view(of(frozen), logits_fn)
      return view.between(view.locate(images), view.locate(others))

    return self._sharded(local, 3, params, model_state, frozen, images, others)

  def _sharded(self, local: Callable, num_whole: int, *arguments: PyTree) -> PyTree:
    """Calls `local` on every device, with the first arguments whole and its part of the others."""
    data, whole = PartitionSpec(sharding.AXIS), PartitionSpec()
    specs = tuple(whole if index < num_whole else data for index in range(len(arguments)))
    on_devices = jax.shard_map(local, mesh=self._classifier.mesh, in_specs=specs, out_specs=data, check_vma=False)
    return on_devices(*arguments)


def outcome(classifier: Classifier, suite: str, attacked: Problem, state: SuiteState, *, seed: int) -> dict[str, Any]:
  """Returns what a finished suite has found, recomputed from its final images, and whether it can be believed.

  Returns:
    Counts and accuracies before and after all attacks, the latter also of the final images rounded to 8 bits;
    `correct` and `robust`, which images these are, packed; the interval; of each stage the `survivors`, `seconds` and
    `compile_seconds`, summed over all starts; `flags`, names of `validity.FLAGS`; and `probes`, what further attacks
    found.
  """
  images, labels, norm, epsilon = attacked
  num_classes, n = num_classes_of(classifier, images), len(images)
  distance = distance_of(classifier, norm)
  stages = suites.stages(suite, norm=norm, epsilon=epsilon, num_classes=num_classes, distance=distance)
  parts = programs(classifier, (), attacked)
  right = lambda of: suite_runner.compute_margins(parts, of, labels) < 0
  rounded = np.round(state.images * 255).astype(np.float32) / 255
  correct, robust = right(images), right(state.images)
  num_correct, num_robust, num_rounded = int(correct.sum()), int(robust.sum()), int(right(rounded).sum())
  survivors = suite_runner.survivors(stages, state)
  flags = validity.of_classifier(_logits_fn(classifier), images[:_CHECKED], labels[:_CHECKED], state.images[:_CHECKED])
  flags += validity.of_outcome(
    num_images=n,
    num_correct=int((state.broken_in > 0).sum()),
    num_robust=int((state.broken_in == suite_runner.ALIVE).sum()),
    recomputed=(num_correct, num_robust),
    survivors=survivors,
    num_nan=int(state.num_nan),
  )
  probes = _probes(classifier, suite, attacked, state, num_classes, seed)
  flags += validity.of_probes(**probes)
  return {
    'num_images': n,
    'num_correct': num_correct,
    'num_robust': num_robust,
    'num_robust_uint8': num_rounded,
    'correct': outcomes.pack(correct),
    'robust': outcomes.pack(robust),
    'clean_accuracy': num_correct / n,
    'robust_accuracy': num_robust / n,
    'robust_accuracy_uint8': num_rounded / n,
    'interval': metrics.binomial_interval(num_robust, n),
    'stages': [stage.name for stage in stages],  # JSON files lose their order
    'survivors': survivors,
    'seconds': _by_stage(stages, state.seconds),
    'compile_seconds': _by_stage(stages, state.compile_seconds),
    'left_out': list(suites.left_out(suite, num_classes)),
    'flags': [name for name in validity.FLAGS if name in flags],
    'probes': probes,
  }


def _by_stage(stages: Sequence[Stage], seconds: np.ndarray) -> dict[str, float]:
  return {stage.name: round(float(value), 2) for stage, value in zip(stages, seconds, strict=True)}


def num_classes_of(classifier: Classifier, images: np.ndarray) -> int:
  """Returns how many logits there are."""
  return inputs.count_classes(_logits_fn(classifier), images[:1])


def _logits_fn(classifier: Classifier) -> Callable[[Array], Array]:
  """Returns two programs of one function, called in turn: a constant that tracing froze differs between them."""
  variables = jax.device_get((classifier.state.params, classifier.state.model_state))
  make = lambda: jax.jit(lambda variables, images: classifiers.logits_fn(classifier.reference, *variables)(images))
  programs = itertools.cycle([make(), make()])
  return lambda images: next(programs)(variables, images)


def _probes(
  classifier: Classifier, suite: str, attacked: Problem, state: SuiteState, num_classes: int, seed: int
) -> dict[str, int]:
  """Runs further attacks on some of the images; see `validity.of_probes`."""
  images, labels, norm, epsilon = attacked

  def left(stage: Stage, chosen: np.ndarray, radius: float, attacked_one: Classifier = classifier) -> int:
    if not len(chosen):
      return 0
    part = Problem(images[chosen], labels[chosen], norm, radius)
    parts = programs(attacked_one, (stage,), part, seed=seed + 1)
    if attacked_one is not classifier:  # what fools the surrogate is not made again
      parts = parts._replace(margins=programs(classifier, (), part).margins, again=None)
    probe = suite_runner.start(part, parts, 1)
    for _ in suite_runner.run(part, parts, (stage,), probe):
      pass
    return int((probe.broken_in == suite_runner.ALIVE).sum())

  alive = np.flatnonzero(state.broken_in[:_LONGER] == suite_runner.ALIVE)
  correct = np.flatnonzero(state.broken_in > 0)[:_FAR]
  distance = distance_of(classifier, norm)
  longer = suites.longer(suite, norm=norm, epsilon=epsilon, num_classes=num_classes, distance=distance)
  radius, far = suites.far(norm, images.shape[1:], distance)
  found = {
    'num_images': min(_LONGER, len(images)),
    'more_effort': len(alive) - left(longer, alive, epsilon),
    'num_far': len(correct),
    'far_left': left(far, correct, radius),
  }
  if square := suites.black_box(suite, norm=norm, epsilon=epsilon):
    found['by_square'] = len(alive) - left(square, alive, epsilon)
  if classifier.surrogate is not None:
    found['transferred'] = len(alive) - left(suites.transfer(norm, epsilon), alive, epsilon, classifier.surrogate)
  return found


def _shard(mesh: Mesh, *arrays: np.ndarray) -> tuple[Array, ...]:
  """Puts arrays that every process holds whole on the devices, in equal parts."""
  size = len(arrays[0]) // jax.process_count()
  own = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
  return sharding.shard_batch(mesh, tuple(array[own] for array in arrays))


def _to_host(array: Array) -> np.ndarray:
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))
