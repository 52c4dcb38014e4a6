"""Tests of the order of examples."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from adversarial_augment.datasets import sampling
from adversarial_augment.errors import UserError
from adversarial_augment.types import Batch, Dataset


@given(
  seed=st.integers(0, 2**64 - 1),
  num_examples=st.integers(1, 40),
  size=st.integers(1, 9),
  num_processes=st.integers(1, 4),
  steps=st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_batches_are_consecutive_pieces_of_whole_epochs(seed, num_examples, size, num_processes, steps):
  batch_size = size * num_processes
  stream = np.concatenate([sampling.indices(seed, s, num_examples, batch_size) for s in range(steps)])
  assert stream.dtype == np.int64
  assert len(stream) == steps * batch_size
  for start in range(0, len(stream) - num_examples + 1, num_examples):
    assert sorted(stream[start : start + num_examples]) == list(range(num_examples))  # each example once an epoch
  tail = stream[len(stream) // num_examples * num_examples :]
  assert len(set(tail)) == len(tail)
  for step in range(steps):  # any step on its own, cut for any number of processes
    parts = [
      sampling.indices(seed, step, num_examples, batch_size, num_processes, process) for process in range(num_processes)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), stream[step * batch_size : (step + 1) * batch_size])


def test_seeds_and_epochs_have_different_orders():
  orders = [tuple(sampling.indices(seed, epoch, 50, 50)) for seed in range(20) for epoch in range(20)]
  assert len(set(orders)) == 400


def test_order_is_unbiased():
  # The example at the first place, over 3,000 epochs of 6: chi-squared with 5 degrees of freedom, 99.99 % below 25.7.
  first = [sampling.indices(7, epoch, 6, 6)[0] for epoch in range(3000)]
  counts = np.bincount(first, minlength=6)
  assert ((counts - 500) ** 2 / 500).sum() < 25.7


def test_order_is_the_documented_one():
  # Pinned, so that an old run can always be resumed: argsort of the raw Philox stream under key (seed, epoch).
  assert sampling.indices(0, 0, 8, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
  assert sampling.indices(0, 1, 8, 8).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
  assert sampling.indices(1, 0, 8, 8).tolist() == [3, 5, 2, 7, 0, 6, 1, 4]


def test_returned_indices_may_be_changed():
  sampling.indices(0, 0, 10, 10)[:] = 0
  assert sorted(sampling.indices(0, 0, 10, 10)) == list(range(10))


@pytest.mark.parametrize(
  'epochs, examples, batch, expected',
  [(300, 50_000, 256, 58_593), (5, 50_000, 256, 976), (0.5, 10, 4, 1), (1, 3, 4, 0)],
)
def test_num_steps(epochs, examples, batch, expected):
  assert sampling.num_steps(epochs, examples, batch) == expected


@pytest.mark.parametrize(
  'arguments, named',
  [
    ((0, 0, 10, 9, 2, 0), 'batch_size=9'),
    ((0, 0, 10, 8, 2, 2), 'process=2'),
    ((0, -1, 10, 8), 'step=-1'),
    ((0, 0, 0, 8), 'num_examples=0'),
    ((0, 0, 10, 0), 'batch_size=0'),
    ((-1, 0, 10, 8), 'seed=-1'),
  ],
)
def test_bad_arguments(arguments, named):
  with pytest.raises(UserError, match=named):
    sampling.indices(*arguments)


def test_batches_cover_everything_in_order():
  pieces = list(sampling.batches(10, 4))
  assert [len(piece) for piece in pieces] == [4, 4, 2]
  assert np.concatenate(pieces).tolist() == list(range(10))


def _numbers(n: int) -> Dataset:
  images, labels = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n, dtype=np.int32)
  return Dataset('numbers', n, n, (1, 1, 1), lambda i: Batch(images[i], labels[i]), {'origin': 'own'})


@given(n=st.integers(2, 60), data=st.data())
@settings(deadline=None)
def test_holdout_divides_the_examples(n, data):
  size = data.draw(st.integers(1, n - 1))
  train, validation = sampling.holdout(_numbers(n), size)
  assert (train.num_examples, validation.num_examples) == (n - size, size)
  kept = set(train.read(np.arange(n - size)).labels)
  aside = set(validation.read(np.arange(size)).labels)
  assert not kept & aside
  assert kept | aside == set(range(n))
  assert train.provenance['origin'] == 'own'
  assert train.provenance['holdout'] == {'part': 'train', 'examples_held_out': size, 'seed': 0}


def test_holdout_depends_on_its_seed_alone():
  def chosen(seed: int) -> list[int]:
    return sampling.holdout(_numbers(200), 50, seed)[1].read(np.arange(50)).labels.tolist()

  assert chosen(0) == chosen(0)
  assert chosen(0) != chosen(1)
  assert chosen(0) == sorted(chosen(0))


@pytest.mark.parametrize('n', [0, -1, 10, 11])
def test_holdout_out_of_range(n):
  with pytest.raises(UserError, match=f'holdout={n} '):
    sampling.holdout(_numbers(10), n)
