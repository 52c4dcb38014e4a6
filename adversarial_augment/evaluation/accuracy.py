"""Accuracy on a data set, clean or under an adversary, from integer counts.

Batches are of one size: the last one is padded and masked, so that every image counts once.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from adversarial_augment import classifiers, metrics, threefry
from adversarial_augment.errors import NumericalError
from adversarial_augment.parallel import platforms, sharding
from adversarial_augment.storage import outcomes
from adversarial_augment.types import Array, Attack, Dataset, Network, PyTree, TrainState

Poll = Callable[[], None]  # called before every batch; may raise
AccuracyFn = Callable[[TrainState, Dataset, Poll], dict[str, Any]]  # state, images, poll -> result

CONFIDENCE_EDGES = np.linspace(0, 1, 16)  # of the bins of a reliability diagram
SSIM_EDGES = np.linspace(-1, 1, 201)
_KEY = 0  # evaluations draw from a fixed key: the adversary of an image is the same for every classifier and run


class EvalBatch(NamedTuple):
  """One batch on the devices; global arrays, sharded over the batch."""

  images: Array  # uint8 [n, h, w, c]
  labels: Array  # int32 [n]
  indices: Array  # int32 [n], of the examples in their data set
  mask: Array  # bool [n]; False is padding


def accuracy(
  classifier: Network, mesh: Mesh, batch_size: int, *, attack: Attack | None = None, phi: PyTree = None
) -> AccuracyFn:
  """Returns a function that measures accuracy with running statistics: no image's result depends on its batch.

  Args:
    classifier: under attack, one that is fast inside loops.
    mesh: the devices.
    batch_size: over all processes; rounded up to a multiple of the devices.
    attack: corrupts each image first, by its index in the data set; None is clean accuracy.
    phi: parameters of the corruption network.

  Returns:
    (state, dataset, poll) -> the fields of a result: counts, `accuracy` with its `interval`, `correct` (one bit for
    each image), `calibration` in the bins of `CONFIDENCE_EDGES`, and for an attack the means of its metrics and
    `ssim_histogram`. It is compiled once for all data sets of one image size.
  """
  program = _program(classifier, mesh, attack)

  def measure(state: TrainState, dataset: Dataset, poll: Poll) -> dict[str, Any]:
    totals: Any = None
    correct: list[np.ndarray] = []  # of the batches, in the order of the data set; padding comes last
    for batch in batches(dataset, mesh, batch_size):
      poll()
      sums, right = jax.device_get(program(state.params, state.model_state, phi, batch))
      correct.append(right)
      totals = jax.tree.map(_add, sums, jax.tree.map(np.zeros_like, sums) if totals is None else totals)
    return _result(totals, np.concatenate(correct)[: dataset.num_examples], dataset)

  return measure


def _program(classifier: Network, mesh: Mesh, attack: Attack | None) -> Callable:
  """Returns the jitted sums over one batch: (params, model_state, phi, batch) -> sums, which images are correct."""

  def local(params, model_state, phi, batch: EvalBatch) -> tuple[dict[str, Array], Array]:
    logits_fn = classifiers.logits_fn(classifier, params, model_state)
    dtype = next((leaf.dtype for leaf in jax.tree.leaves(params)), jnp.float32)
    images = batch.images.astype(dtype) / 255
    attack_metrics: dict[str, Array] = {}
    if attack is not None:
      keys = jax.vmap(functools.partial(jax.random.fold_in, threefry.key(_KEY)))(batch.indices)
      images, attack_metrics = attack(keys, logits_fn, images, batch.labels, phi)
    logits = logits_fn(images)
    correct = (logits.argmax(-1) == batch.labels) & batch.mask
    sums = _sums(logits, correct, batch.mask, attack_metrics)
    return jax.lax.psum(sums, sharding.AXIS), jax.lax.all_gather(correct, sharding.AXIS, tiled=True)

  data, whole = PartitionSpec(sharding.AXIS), PartitionSpec()
  specs = (whole, whole, whole, data)
  on_devices = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
  return jax.jit(platforms.for_mesh(mesh, on_devices))


def _sums(logits: Array, correct: Array, mask: Array, attack_metrics: dict[str, Array]) -> dict[str, Any]:
  """Returns the sums over the images of a batch that count, from which `_result` makes means."""
  confidence = jax.nn.softmax(logits).max(-1)
  binned = functools.partial(_binned, confidence, CONFIDENCE_EDGES)
  sums: dict[str, Any] = {
    'num_correct': correct.sum(),
    'num_images': mask.sum(),
    'calibration': {
      'count': binned(mask.astype(jnp.int32)),
      'num_correct': binned(correct.astype(jnp.int32)),
      'confidence': binned(jnp.where(mask, confidence, 0)),
    },
    'metrics': {name: jnp.where(mask, value, 0).sum() for name, value in attack_metrics.items()},
  }
  if 'ssim' in attack_metrics:
    sums['ssim_histogram'] = {'count': _binned(attack_metrics['ssim'], SSIM_EDGES, mask.astype(jnp.int32))}
  return sums


def _result(totals: Any, correct: np.ndarray, dataset: Dataset) -> dict[str, Any]:
  """Returns the fields of a result, from the sums over all batches and which images are correct."""
  if not np.isfinite(totals['calibration']['confidence']).all():
    raise NumericalError(
      f'The classifier gives logits that are NaN or infinite on {dataset.name}; train it again, '
      'for example with a lower learning rate.'
    )
  means = {name: float(value / totals['num_images']) for name, value in totals.pop('metrics').items()}
  result = jax.tree.map(lambda x: x.tolist(), totals) | means
  result['correct'] = outcomes.pack(correct)
  result['accuracy'] = result['num_correct'] / result['num_images']
  result['interval'] = metrics.binomial_interval(result['num_correct'], result['num_images'])
  bins = result['calibration']
  bins['ece'] = metrics.calibration(bins['count'], bins['num_correct'], bins['confidence'])
  bins['edges'] = CONFIDENCE_EDGES.tolist()
  if 'ssim_histogram' in result:
    result['ssim_histogram']['edges'] = SSIM_EDGES.tolist()
  result['origin'] = dataset.provenance.get('origin', 'unverified')
  return result


def batches(dataset: Dataset, mesh: Mesh, batch_size: int) -> Iterator[EvalBatch]:
  """Yields all examples in order; every process reads its equal part of each batch."""
  batch_size = -(-batch_size // mesh.size) * mesh.size
  size = batch_size // jax.process_count()
  for start in range(0, dataset.num_examples, batch_size):
    index = start + jax.process_index() * size + np.arange(size)
    mask = index < dataset.num_examples
    index = np.minimum(index, dataset.num_examples - 1)
    images, labels = dataset.read(index)
    yield EvalBatch(*sharding.shard_batch(mesh, (images, labels, index.astype(np.int32), mask)))


def _binned(values: Array, edges: np.ndarray, weights: Array) -> Array:
  """Sums the weights [n] over the equal bins that `edges` bound; what lies beyond goes to the last bin there."""
  number = len(edges) - 1
  index = jnp.floor((values - edges[0]) / (edges[-1] - edges[0]) * number).astype(jnp.int32)
  return jnp.zeros(number, weights.dtype).at[jnp.clip(index, 0, number - 1)].add(weights)


def _add(value: np.ndarray, total: np.ndarray) -> np.ndarray:
  return total + value.astype(np.int64 if value.dtype.kind in 'iu' else np.float64)
