"""Accuracy: every image once, whatever the batch and the devices, with keys that belong to the image."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import metrics
from adversarial_augment.errors import NumericalError
from adversarial_augment.evaluation.accuracy import accuracy
from adversarial_augment.storage import outcomes
from adversarial_augment.types import AttackResult, Batch, Dataset, TrainState
from tests import tiny

NUM, CLASSES = 21, 5
BYTES = np.random.default_rng(0).integers(0, 256, (NUM, 4, 4, 3), dtype=np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(48, CLASSES)).astype(np.float32)
LOGITS = (BYTES.reshape(NUM, 48) / 255.0 - 0.5) @ WEIGHTS
# The last image is right: padding repeats it, and must not count.
LABELS = np.where(np.arange(NUM) % 4 == 0, LOGITS.argmax(-1), 4).astype(np.int32)
CORRECT = int((LOGITS.argmax(-1) == LABELS).sum())
STATE = TrainState(jnp.zeros((), jnp.int32), {'w': WEIGHTS}, {}, ())


def dataset(num=NUM) -> Dataset:
  return Dataset('some', num, CLASSES, (4, 4, 3), lambda index: Batch(BYTES[:num][index], LABELS[:num][index]),
                 {'origin': 'own'})  # fmt: skip


def apply(params, model_state, key, images, *, is_training):
  assert not is_training
  return (images.reshape(images.shape[0], 48) - 0.5) @ params['w'], model_state


CLASSIFIER = SimpleNamespace(init=None, apply=apply)
ignore = lambda: None


@pytest.mark.parametrize('num_devices, batch_size', [(1, 1), (1, 7), (1, 64), (2, 7), (8, 1), (8, 8), (8, 32)])
def test_every_image_counts_once(num_devices, batch_size):
  evaluate = accuracy(CLASSIFIER, tiny.make_mesh(num_devices), batch_size)
  result = evaluate(STATE, dataset(), ignore)
  assert 0 < CORRECT < NUM
  assert (result['num_correct'], result['num_images'], result['accuracy']) == (CORRECT, NUM, CORRECT / NUM)
  assert isinstance(result['num_correct'], int)
  assert result['interval'] == metrics.binomial_interval(CORRECT, NUM)
  assert result['origin'] == 'own'
  np.testing.assert_array_equal(outcomes.unpack(result['correct'], NUM), LOGITS.argmax(-1) == LABELS)


def test_the_reliability_bins_hold_every_image_once():
  result = accuracy(CLASSIFIER, tiny.make_mesh(2), 8)(STATE, dataset(), ignore)['calibration']
  confidence = (np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)).max(-1)
  right, edges = LOGITS.argmax(-1) == LABELS, np.linspace(0, 1, 16)
  np.testing.assert_array_equal(result['count'], np.histogram(confidence, edges)[0])
  np.testing.assert_array_equal(result['num_correct'], np.histogram(confidence[right], edges)[0])
  np.testing.assert_allclose(result['edges'], edges)
  assert sum(result['confidence']) == pytest.approx(confidence.sum(), rel=1e-5)
  bins = [(confidence >= low) & (confidence < high) for low, high in itertools.pairwise(edges)]
  gaps = [bin.mean() * abs(right[bin].mean() - confidence[bin].mean()) for bin in bins if bin.any()]
  assert result['ece'] == pytest.approx(sum(gaps), rel=1e-5)
  assert result['ece'] > 0


def test_similarities_are_counted_in_bins():
  values = np.linspace(-1, 1, NUM, dtype=np.float32)
  measure = lambda keys, logits_fn, images, labels, frozen: AttackResult(images, {'ssim': frozen[labels]})
  labelled = Dataset('some', NUM, NUM, (4, 4, 3), lambda index: Batch(BYTES[index], index.astype(np.int32)), {})
  evaluate = accuracy(CLASSIFIER, tiny.make_mesh(2), 8, attack=measure, phi=jnp.asarray(values))
  result = evaluate(STATE, labelled, ignore)
  assert result['ssim'] == pytest.approx(0, abs=1e-6)
  histogram = result['ssim_histogram']
  assert len(histogram['edges']) == 201
  assert sum(histogram['count']) == NUM
  assert (histogram['count'][0], histogram['count'][-1]) == (1, 1)
  centres = (np.array(histogram['edges'][1:]) + histogram['edges'][:-1]) / 2
  found = np.repeat(centres, histogram['count'])
  np.testing.assert_allclose(found, values, atol=0.0101)


def attack(keys, logits_fn, images, labels, frozen=None):
  """Inverts the images whose key says so."""
  draw = jax.vmap(jax.random.uniform)(keys)
  inverted = jnp.where((draw < frozen['share'])[:, None, None, None], 1 - images, images)
  right = logits_fn(inverted).argmax(-1) == labels
  return AttackResult(inverted, {'draw': draw, 'right': right.astype(jnp.float32)})


def attacked(num_devices, batch_size, share, num=NUM):
  phi = {'share': jnp.float32(share)}
  mesh = tiny.make_mesh(num_devices)
  return accuracy(CLASSIFIER, mesh, batch_size, attack=attack, phi=phi)(STATE, dataset(num), ignore)


def test_under_attack_the_corrupted_images_count():
  untouched, inverted = attacked(1, 8, 0.0), attacked(1, 8, 1.0)
  assert untouched['accuracy'] == CORRECT / NUM
  # The logits of 1 - x are the negatives of those of x.
  assert inverted['num_correct'] == int((LOGITS.argmin(-1) == LABELS).sum())
  assert inverted['right'] == pytest.approx(inverted['accuracy'])


def test_the_adversary_of_an_image_depends_on_its_index_alone():
  """Means of the attack's metrics are over the images and not the padding, and alike for every batch and mesh."""
  results = [attacked(devices, size, 0.5) for devices, size in ((1, 4), (1, 32), (8, 8))]
  for result in results:
    assert result['num_correct'] == results[0]['num_correct']
    assert result['draw'] == pytest.approx(results[0]['draw'], rel=1e-6)
  key = jax.random.key(0)
  draws = np.array([float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(NUM)])
  assert results[0]['draw'] == pytest.approx(draws.mean(), rel=1e-6)
  right = np.where(draws < 0.5, LOGITS.argmin(-1), LOGITS.argmax(-1)) == LABELS
  assert results[0]['accuracy'] == right.mean()


def test_logits_that_are_no_numbers_are_no_result():
  broken = STATE._replace(params={'w': WEIGHTS * np.nan})
  with pytest.raises(NumericalError, match='logits that are NaN or infinite on some'):
    accuracy(CLASSIFIER, tiny.make_mesh(1), 8)(broken, dataset(), ignore)


def test_poll_is_called_before_every_batch_and_may_stop_it():
  evaluate = accuracy(CLASSIFIER, tiny.make_mesh(1), 8)
  calls = []
  evaluate(STATE, dataset(), lambda: calls.append(1))
  assert len(calls) == 3

  def stop():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    evaluate(STATE, dataset(), stop)
