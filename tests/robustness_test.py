"""Robust accuracy of a classifier on a data set: exact counts, whatever the devices and batches, and never a lie."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment.attacks import suite_runner, suites
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import robustness
from adversarial_augment.storage import outcomes
from adversarial_augment.types import Batch, Dataset, TrainState
from tests import tiny

pytestmark = pytest.mark.usefixtures('quick_compile')

NUM, CLASSES = 37, 2
RNG = np.random.default_rng(0)
BYTES = RNG.integers(80, 176, (NUM, 4, 4, 3), dtype=np.uint8)  # the ball does not reach the edges of the box
WEIGHTS = RNG.normal(size=(48, CLASSES)).astype(np.float32)
LOGITS = (BYTES.reshape(NUM, 48) / 255 - 0.5) @ WEIGHTS.astype(np.float64)
LABELS = np.where(np.arange(NUM) % 6 == 0, (LOGITS.argmax(-1) + 1) % CLASSES, LOGITS.argmax(-1)).astype(np.int32)
STATE = TrainState(jnp.zeros((), jnp.int32), {'w': WEIGHTS}, {}, ())
DATASET = Dataset('some', NUM, CLASSES, (4, 4, 3), lambda index: Batch(BYTES[index], LABELS[index]), {})


# The l_inf distance of each image to the other class.
LEADS = (LOGITS[:, 0] - LOGITS[:, 1]) * np.where(LABELS == 0, 1, -1)
DISTANCES = LEADS / np.abs(WEIGHTS[:, 0].astype(np.float64) - WEIGHTS[:, 1]).sum()
EPSILON = float(np.sort(DISTANCES)[20:22].mean())  # at none of the images
ROBUST, CORRECT = int((DISTANCES > EPSILON).sum()), int((DISTANCES > 0).sum())


def network(change=lambda logits: logits):
  def apply(params, model_state, key, images, *, is_training):
    assert not is_training
    return change((images.reshape(images.shape[0], 48) - 0.5) @ params['w']), model_state

  return SimpleNamespace(init=None, apply=apply)


def classifier(attacked=None, reference=None, num_devices=1, batch_size=16):
  mesh = tiny.make_mesh(num_devices)
  return robustness.Classifier(attacked or network(), reference or attacked or network(), STATE, mesh, batch_size)


def attack(target: robustness.Classifier, suite: str = 'pgd'):
  problem = robustness.problem(DATASET, 'linf', EPSILON)
  stages = suites.stages(suite, norm='linf', epsilon=EPSILON, num_classes=CLASSES)
  programs = robustness.programs(target, stages, problem)
  state = suite_runner.start(problem, programs, len(stages))
  for _ in suite_runner.run(problem, programs, stages, state):
    pass
  return problem, state


def outcome(target: robustness.Classifier, suite: str = 'pgd'):
  """Returns the result of a suite, and its state."""
  problem, state = attack(target, suite)
  return robustness.outcome(target, suite, problem, state, seed=0), state


@pytest.mark.parametrize('num_devices, batch_size', [(1, 16), (1, 64), (2, 7), (8, 16)])
def test_counts_are_those_of_the_closed_form_on_any_devices(num_devices, batch_size):
  assert 10 < ROBUST < CORRECT - 10
  _, state = attack(classifier(num_devices=num_devices, batch_size=batch_size))
  np.testing.assert_array_equal(state.broken_in == suite_runner.ALIVE, DISTANCES > EPSILON)
  np.testing.assert_array_equal(state.broken_in > 0, DISTANCES > 0)


def test_images_are_the_same_on_any_devices_and_in_any_batch():
  (_, one), (_, eight) = attack(classifier()), attack(classifier(num_devices=8, batch_size=32))
  np.testing.assert_array_equal(one.broken_in, eight.broken_in)
  np.testing.assert_allclose(one.images, eight.images, atol=1e-6)


def test_an_honest_classifier_is_measured_without_a_flag():
  found, state = outcome(classifier())
  assert found['flags'] == []
  assert (found['num_images'], found['num_correct'], found['num_robust']) == (NUM, CORRECT, ROBUST)
  assert (found['clean_accuracy'], found['robust_accuracy']) == (CORRECT / NUM, ROBUST / NUM)
  assert found['survivors'] == {'pgd': ROBUST}
  np.testing.assert_array_equal(outcomes.unpack(found['correct'], NUM), DISTANCES > 0)
  np.testing.assert_array_equal(outcomes.unpack(found['robust'], NUM), DISTANCES > EPSILON)
  rounded = np.round(state.images.astype(np.float64) * 255) / 255
  right = ((rounded.reshape(NUM, 48) - 0.5) @ WEIGHTS).argmax(-1) == LABELS
  assert found['num_robust_uint8'] == right.sum()
  low, high = found['interval']
  assert low < ROBUST / NUM < high
  assert found['probes'] == {'num_images': NUM, 'more_effort': 0, 'num_far': CORRECT, 'far_left': 0, 'by_square': 0}


def test_what_the_attacked_copy_says_does_not_count():
  """It takes every image for broken, as bfloat16 may take a few; they are attacked through the classifier itself."""
  _, state = attack(classifier(network(lambda logits: 0 * logits), network()))
  np.testing.assert_array_equal(state.broken_in == suite_runner.ALIVE, DISTANCES > EPSILON)


def test_a_classifier_that_nothing_moves_is_found_out():
  found, _ = outcome(classifier(network(lambda logits: 0 * logits + 3 * jnp.arange(float(CLASSES))[None])))
  assert found['flags'] == ['zero_gradients', 'large_epsilon']
  assert found['robust_accuracy'] == found['clean_accuracy'] == (LABELS == CLASSES - 1).mean()
  assert found['probes']['far_left'] == found['num_correct']


@jax.custom_jvp
def misleading(logits):
  return logits


@misleading.defjvp
def _(primals, tangents):
  return primals[0], -tangents[0]


@pytest.mark.slow
def test_square_finds_out_gradients_that_mislead():
  assert 'square_beats_white_box' in outcome(classifier(network(misleading)), 'autoattack')[0]['flags']


@pytest.mark.parametrize('probe, flag, surrogate', [
  ('by_square', 'square_beats_white_box', False),  # beside a suite without it
  ('transferred', 'transfer_beats_white_box', True),
])  # fmt: skip
def test_probes_find_out_gradients_that_mislead(probe, flag, surrogate):
  found, state = outcome(classifier(network(misleading))._replace(surrogate=classifier() if surrogate else None))
  left = int((state.broken_in == suite_runner.ALIVE).sum())
  assert flag in found['flags']
  assert 5 < found['probes'][probe] <= left - ROBUST
  assert not surrogate or found['probes'][probe] == left - ROBUST


def test_an_honest_classifier_has_nothing_to_fear_from_another_one():
  found, _ = outcome(classifier()._replace(surrogate=classifier(network(jnp.tanh))))
  assert found['flags'] == []
  assert found['probes']['transferred'] == 0


def test_an_attack_that_stopped_too_early_is_found_out():
  target = classifier()
  problem, state = attack(target)
  state.broken_in[:] = np.where(state.broken_in == 0, 0, suite_runner.ALIVE)  # as if it had found nothing
  state.images[:] = problem.images
  found = robustness.outcome(target, 'pgd', problem, state, seed=0)
  assert found['flags'] == ['square_beats_white_box', 'more_effort_helps']
  assert found['probes']['more_effort'] == CORRECT - ROBUST


def test_logits_that_are_nan_are_found_out():
  found, _ = outcome(classifier(network(lambda logits: jnp.where(logits[:, :1] > 0, jnp.nan, logits))))
  assert 'nan' in found['flags']
  assert found['num_correct'] == ((LOGITS.argmax(-1) == LABELS) & (LOGITS[:, 0] <= 0)).sum() > 0


def test_labels_out_of_range_are_refused():
  wrong = DATASET._replace(read=lambda index: Batch(BYTES[index], LABELS[index] + 1))
  with pytest.raises(UserError, match='labels hold 2'):
    robustness.problem(wrong, 'linf', EPSILON)
