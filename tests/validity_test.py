"""Validity: classifiers that fool attacks are named for what they do, and honest ones are left alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import classifiers
from adversarial_augment.attacks import validity
from adversarial_augment.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compile')

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(24, 8, 8, 3)).astype(np.float32)
WEIGHTS = (RNG.normal(size=(192, 6)) / 4).astype(np.float32)
HIDDEN = [(RNG.normal(size=shape) / 6).astype(np.float32) for shape in ((192, 64), (64, 6))]


def linear(images):
  return (images.reshape(len(images), -1) - 0.5) @ WEIGHTS


def hidden(images, activation=jax.nn.relu):
  return activation((images.reshape(len(images), -1) - 0.5) @ HIDDEN[0]) @ HIDDEN[1]


def batch_normalised(images, training):
  features = (images.reshape(len(images), -1) - 0.5) @ HIDDEN[0]
  if training:
    features = (features - features.mean(0, keepdims=True)) / jnp.sqrt(features.var(0, keepdims=True) + 1e-3)
  return jax.nn.relu(features) @ HIDDEN[1]


DRAWS = (jax.random.key(i) for i in itertools.count())  # a state in Python, as of a framework's generators


def dropout(images):
  features = jax.nn.relu((images.reshape(len(images), -1) - 0.5) @ HIDDEN[0])
  return (features * jax.random.bernoulli(next(DRAWS), 0.5, features.shape)) @ HIDDEN[1]


def randomly_shifted(images):
  return hidden(jnp.roll(images, jax.random.randint(next(DRAWS), (), 0, 8), axis=2))


def noisy_decision(images):
  decided = jax.nn.one_hot(hidden(images).argmax(-1), 6)
  return decided + 0.1 * jax.random.normal(next(DRAWS), decided.shape)


def masked(logits_fn):
  """As heads of more outputs than classes do."""
  return lambda x: jnp.concatenate([logits_fn(x), jnp.full((len(x), 6), -1e9)], axis=-1)


def rounded_by_place(logits_fn):
  """As other orders of sums do: the last digits of logits depend on the place in the batch."""
  return lambda x: logits_fn(x) * (1 + 1e-7 * jnp.arange(len(x)))[:, None]


PLANTED = {
  'dropout, some classes masked': (masked(dropout), 'stochastic_logits'),
  'batch statistics, some classes masked': (masked(lambda x: batch_normalised(x, True)), 'batch_dependence'),
  'dropout': (dropout, 'stochastic_logits'),
  'batch statistics': (lambda x: batch_normalised(x, True), 'batch_dependence'),
  'softmax': (lambda x: jax.nn.softmax(hidden(x)), 'probabilities'),
  'softmax in half precision': (lambda x: jax.nn.softmax(hidden(x).astype(jnp.bfloat16)), 'probabilities'),
  'large logits': (lambda x: 1e4 * hidden(x), 'vanishing_gradients'),
  'quantised': (lambda x: hidden(jnp.round(x * 7) / 7), 'zero_gradients'),
  'stop_gradient': (lambda x: hidden(jax.lax.stop_gradient(x)), 'zero_gradients'),
  'noisy decision': (noisy_decision, 'stochastic_logits'),
  'constant': (lambda x: jnp.zeros((len(x), 6)) + jnp.arange(6.0)[None], 'zero_gradients'),
  'random shift': (randomly_shifted, 'stochastic_logits'),
  'NaN': (lambda x: jnp.where(x[:, :1, 0, 0] > 0.9, jnp.nan, linear(x)), 'nan'),
}


def resnet():
  network = classifiers.CLASSIFIERS['preact_resnet'](6, depth=10, width=4)
  params, state = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), is_training=True)
  return jax.jit(lambda images: network.apply(params, state, None, images, is_training=False)[0])


HONEST = {
  'last digits': lambda: rounded_by_place(hidden),
  'last digits of what cancels': lambda: lambda x: hidden(x) + 1e-6 * jnp.arange(len(x))[:, None],
  'last digits of large logits': lambda: rounded_by_place(lambda x: 100 + 1e-3 * hidden(x)),
  'some classes masked': lambda: masked(hidden),
  'linear': lambda: linear,
  'relu': lambda: hidden,
  'tanh': lambda: lambda x: hidden(x, jnp.tanh),
  'running statistics': lambda: lambda x: batch_normalised(x, False),
  'resnet': resnet,
}


def labels_of(logits_fn):
  """Two of three are right."""
  found = np.asarray(logits_fn(IMAGES)).argmax(-1)
  return np.where(np.arange(len(IMAGES)) % 3 == 0, (found + 1) % 6, found)


@pytest.mark.parametrize('name', PLANTED)
def test_a_planted_defect_is_named(name):
  logits_fn, flag = PLANTED[name]
  found = validity.of_classifier(logits_fn, IMAGES, labels_of(logits_fn))
  assert flag in found
  # Noise and a constant have no gradients either, or a spread of nothing.
  assert set(found) <= {flag, 'zero_gradients'}


@pytest.mark.parametrize('name', HONEST)
def test_an_honest_classifier_has_no_flag(name):
  logits_fn = HONEST[name]()
  assert validity.of_classifier(logits_fn, IMAGES, labels_of(logits_fn)) == ()
  assert validity.of_classifier(jax.jit(logits_fn), IMAGES, labels_of(logits_fn)) == ()


def test_draws_that_depend_on_the_place_in_the_batch_are_found():
  noise = jax.random.normal(jax.random.key(0), (48, 6))
  found = validity.of_classifier(lambda x: linear(x) + noise[: len(x)], IMAGES, np.zeros(24, int))
  assert found == ('batch_dependence',)
  alone = validity.of_classifier(PLANTED['batch statistics'][0], IMAGES[:1], np.zeros(1, int))  # one image is enough
  assert 'batch_dependence' in alone


def test_gradients_that_are_infinite_only_where_attacks_end_are_found():
  infinite_at_0 = lambda x: linear(x) + jnp.sqrt(x).sum((1, 2, 3))[:, None] * WEIGHTS[:1]
  inner, labels = np.clip(IMAGES, 0.1, 0.9), np.zeros(24, int)
  assert validity.of_classifier(infinite_at_0, inner, labels) == ()
  corners = np.where(inner > 0.5, 1, 0).astype(np.float32)
  assert validity.of_classifier(infinite_at_0, inner, labels, corners) == ('nan',)
  assert validity.of_classifier(linear, inner, labels, corners) == ()


COUNTS = {'num_images': 1000, 'num_correct': 900, 'num_robust': 500, 'recomputed': (900, 500)}


@pytest.mark.parametrize('changes, flags', [
  ({'survivors': {'apgd-ce': 600, 'square': 500}}, ('square_beats_white_box',)),
  ({'survivors': {'apgd-ce': 503, 'square': 500}}, ('square_beats_white_box',)),
  ({'survivors': {'apgd-ce': 502, 'square': 500}}, ()),
  ({'survivors': {'square': 500}}, ()),  # alone it beats nobody
  ({'survivors': {'apgd-ce': 600, 'fab-t': 500, 'square': 500}}, ()),
  ({'survivors': {'apgd-ce': 500}, 'num_nan': 1}, ('nan',)),
  ({'survivors': {'apgd-ce': 500}, 'recomputed': (900, 501)}, ('stochastic_logits',)),
  ({'survivors': {'apgd-ce': 500}, 'recomputed': (899, 500)}, ('stochastic_logits',)),
  ({'survivors': {'apgd-ce': 500}, 'num_correct': 499, 'recomputed': (499, 500)}, ('robust_above_clean',)),
])  # fmt: skip
def test_counts_that_cannot_be_are_flagged(changes, flags):
  assert validity.of_outcome(**COUNTS | changes) == flags


@pytest.mark.parametrize('counts, flags', [
  ({'more_effort': 5}, ()),
  ({'more_effort': 6}, ('more_effort_helps',)),
  ({'num_images': 10, 'more_effort': 1}, ()),  # one image proves nothing
  ({'far_left': 1}, ()),
  ({'far_left': 2}, ('large_epsilon',)),
  ({'num_far': 50, 'far_left': 1}, ('large_epsilon',)),
  ({'num_far': 0}, ()),  # nothing was right
  ({'transferred': 2}, ()),
  ({'transferred': 3}, ('transfer_beats_white_box',)),
  ({'by_square': 2}, ()),
  ({'by_square': 3}, ('square_beats_white_box',)),
])  # fmt: skip
def test_probes_that_succeed_too_well_or_not_enough_are_flagged(counts, flags):
  assert validity.of_probes(**{'num_images': 1000, 'more_effort': 0, 'num_far': 100, 'far_left': 0} | counts) == flags


def test_what_is_no_input_is_refused():
  with pytest.raises(UserError, match='normalise inside logits_fn'):
    validity.of_classifier(linear, IMAGES * 255, np.zeros(24, int))
  with pytest.raises(UserError, match=r'attacked has shape \[3, 8, 8, 3\]'):
    validity.of_classifier(linear, IMAGES, np.zeros(24, int), IMAGES[:3])
