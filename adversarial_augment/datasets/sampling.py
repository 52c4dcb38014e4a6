"""Which examples a step sees: a pure function of (seed, step), so that a resume needs only the step."""

from collections.abc import Iterator
import functools

import numpy as np

from adversarial_augment.errors import UserError
from adversarial_augment.types import Dataset

_HOLDOUT_STREAM = 2**64 - 1  # no epoch has this number


def num_steps(num_epochs: float, num_examples: int, batch_size: int) -> int:
  """Returns floor(num_epochs * num_examples / batch_size), the updates of a run (arXiv 2104.01086, section 4).

  Batches run across the ends of epochs, so only the rest of the whole run is dropped.
  """
  return int(num_epochs * num_examples / batch_size)


def indices(
  seed: int, step: int, num_examples: int, batch_size: int, num_processes: int = 1, process: int = 0
) -> np.ndarray:
  """Returns the examples of one step that one process reads.

  The permutations of epoch 0, 1, 2, ... are laid end to end; step s takes the s-th piece of `batch_size` of them.
  Process p of P takes the p-th of P equal pieces of that batch, so the global batch depends on neither P nor p.

  Args:
    seed: of the run, 0 <= seed < 2**64.
    step: counted from 0.
    num_examples: of the data set.
    batch_size: global, a multiple of `num_processes`.
    num_processes: processes that share the batch.
    process: 0 <= process < num_processes.

  Returns:
    int64 [batch_size / num_processes], each in [0, num_examples).

  Raises:
    UserError: an argument is out of range.
  """
  if num_examples < 1 or batch_size < 1 or step < 0:
    raise UserError(
      f'num_examples={num_examples} and batch_size={batch_size} must be at least 1, step={step} at least 0.'
    )
  if not 0 <= process < num_processes:
    raise UserError(f'process={process} must lie in [0, num_processes={num_processes}).')
  if batch_size % num_processes:
    raise UserError(f'batch_size={batch_size} must be a multiple of the {num_processes} processes.')
  missing = batch_size // num_processes
  position = step * batch_size + process * missing
  pieces = []
  while missing:  # one turn, or one more for each end of an epoch within the piece
    epoch, start = divmod(position, num_examples)
    pieces.append(_permutation(seed, epoch, num_examples)[start : start + missing])
    position += len(pieces[-1])
    missing -= len(pieces[-1])
  return np.concatenate(pieces)


def batches(num_examples: int, batch_size: int) -> Iterator[np.ndarray]:
  """Yields int64 indices 0, 1, 2, ... in pieces of `batch_size`; the last piece may be shorter."""
  for start in range(0, num_examples, batch_size):
    yield np.arange(start, min(start + batch_size, num_examples))


def holdout(dataset: Dataset, n: int, seed: int = 0) -> tuple[Dataset, Dataset]:
  """Returns the training set without `n` examples, in the original order, and those `n` as the validation set.

  The choice depends only on `seed`. Leave it at 0 instead of the seed of the run, so that runs with different seeds are
  validated on the same images, and fine-tuning never trains on the validation images of an earlier run.

  Args:
    dataset: the training split.
    n: 1 <= n < dataset.num_examples.
    seed: 0 <= seed < 2**64.

  Raises:
    UserError: n is out of range.
  """
  if not 1 <= n < dataset.num_examples:
    raise UserError(
      f'holdout={n} must be at least 1 and smaller than the {dataset.num_examples} examples of {dataset.name}.'
    )
  order = _permutation(seed, _HOLDOUT_STREAM, dataset.num_examples)

  def part(name: str, kept: np.ndarray) -> Dataset:
    provenance = dataset.provenance | {'holdout': {'part': name, 'examples_held_out': n, 'seed': seed}}
    return dataset._replace(
      num_examples=len(kept), read=lambda chosen: dataset.read(kept[chosen]), provenance=provenance
    )

  return part('train', np.sort(order[n:])), part('validation', np.sort(order[:n]))


@functools.lru_cache(maxsize=4)  # consecutive steps mostly share an epoch
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  if not 0 <= seed < 2**64:
    raise UserError(f'seed={seed} must lie in [0, 2**64).')
  # NumPy promises the raw stream of a bit generator for all versions, but not that of Generator.permutation.
  raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
  order = np.argsort(raw, kind='stable')
  order.setflags(write=False)  # it is cached
  return order
