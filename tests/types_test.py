"""The number of images that named tuples of images have, and that they stay named tuples."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, datasets, ssim
from adversarial_augment.types import AttackResult, Batch
from tests import tiny


def test_len_is_the_number_of_images():
  dataset = datasets.load('embedded', 'test', '')
  assert len(dataset) == dataset.num_examples > 100
  assert len(dataset.read(np.arange(5))) == 5
  assert len(tiny.dataset()._replace(num_examples=3)) == 3
  images, labels = dataset.read(np.arange(4))
  logits_fn = lambda images: images.reshape(4, -1)[:, :10]
  result = attacks.pgd(norm='linf', epsilon=0.1, num_steps=1)(
    jax.random.split(jax.random.key(0), 4), logits_fn, images / np.float32(255), labels
  )
  assert len(result) == 4
  assert len(ssim.correct(result.images, result.images, min_ssim=0.3, root='strict')) == 4


VALUES = (
  tiny.dataset(),
  Batch(np.zeros((7, 2)), np.zeros(7)),
  AttackResult(jnp.zeros((7, 2)), {'success': jnp.zeros(7)}),
  ssim.Corrected(*4 * [jnp.zeros((7, 2))]),
)


@pytest.mark.parametrize('value', VALUES, ids=lambda value: type(value).__name__)
def test_they_are_named_tuples(value):
  kind = type(value)
  assert [*value] == [getattr(value, name) for name in value._fields]
  assert type(value._replace()) is kind
  assert type(copy.copy(value)) is kind
  assert kind(*value)._fields == value._fields


def test_they_go_through_jax():
  result = AttackResult(jnp.zeros((7, 2)), {'success': jnp.ones(7)})
  assert len(jax.jit(lambda r: r)(result)) == 7
  assert len(jax.vmap(lambda r: r)(result)) == 7
  assert len(jax.tree.map(lambda x: x[:3], result)) == 3
  assert len(pickle.loads(pickle.dumps(Batch(np.zeros((7, 2)), np.zeros(7))))) == 7
