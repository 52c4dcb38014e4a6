"""AutoAttack as a library: exact on linear classifiers, checked at its border, compiled once."""

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment.attacks import suites
from adversarial_augment.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compile')

NUM, CLASSES = 30, 5
RNG = np.random.default_rng(0)
WEIGHTS = (RNG.normal(size=(48, CLASSES)) / 10).astype(np.float32)
IMAGES = RNG.uniform(0.3, 0.7, (NUM, 4, 4, 3)).astype(np.float32)  # no ball below reaches the edges of the box
LOGITS = (IMAGES.reshape(NUM, 48).astype(np.float64) - 0.5) @ WEIGHTS
LABELS = np.where(np.arange(NUM) % 10 == 0, (LOGITS.argmax(-1) + 1) % CLASSES, LOGITS.argmax(-1))
KEYS = jax.random.split(jax.random.key(0), NUM)


def linear(images):
  return (images.reshape(len(images), 48) - 0.5) @ WEIGHTS


def radii(dual: int) -> np.ndarray:
  """Returns the distance of each image to the nearest other class: a margin over the dual norm of its slope."""
  found = np.full(NUM, np.inf)
  for i, label in enumerate(LABELS):
    for other in set(range(CLASSES)) - {int(label)}:
      slope = np.linalg.norm(WEIGHTS[:, other].astype(np.float64) - WEIGHTS[:, label], dual)
      found[i] = min(found[i], (LOGITS[i, label] - LOGITS[i, other]) / slope)
  return found


@pytest.mark.parametrize('norm, dual', [('linf', 1), ('l2', 2)])
def test_the_robust_accuracy_of_a_linear_classifier_is_exact(norm, dual):
  distances = radii(dual)
  epsilon = float(np.median(distances))  # half of the images, and not at one of them: NUM is even
  result = attacks.autoattack(norm=norm, epsilon=epsilon, batch_size=8)(KEYS, linear, IMAGES, LABELS)
  success, stage = (np.asarray(result.metrics[name]) for name in ('success', 'stage'))
  np.testing.assert_array_equal(success, distances <= epsilon)
  np.testing.assert_array_equal(stage == 0, distances <= 0)
  np.testing.assert_array_equal(stage == -1, distances > epsilon)
  wrong = (np.asarray(result.images, np.float64).reshape(NUM, 48) - 0.5) @ WEIGHTS
  np.testing.assert_array_equal(wrong.argmax(-1) != LABELS, success)
  delta = np.asarray(result.images, np.float64).reshape(NUM, 48) - IMAGES.reshape(NUM, 48)
  lengths = np.linalg.norm(delta, np.inf if norm == 'linf' else 2, axis=1)
  assert (lengths <= epsilon * (1 + 1e-6) + 1e-7).all()
  np.testing.assert_array_equal(np.asarray(result.images)[stage == 0], IMAGES[stage == 0])


def test_what_is_compiled_serves_the_next_call():
  traced = []

  def logits_fn(images):
    traced.append(images.shape)
    return linear(images)

  attack = attacks.autoattack(norm='linf', epsilon=0.001)
  first = attack(KEYS[:4], logits_fn, IMAGES[:4], LABELS[:4])
  traced.clear()
  second = attack(KEYS[:4], logits_fn, IMAGES[:4], LABELS[:4])
  assert len(traced) <= 2  # the check of the logits' shape, and whether it is still the same function
  np.testing.assert_array_equal(first.images, second.images)


class Model:
  """An object with weights, as of other frameworks."""

  __hash__ = None

  def __init__(self, weights):
    self.weights = weights

  def __call__(self, images):
    return (images.reshape(len(images), 48) - 0.5) @ self.weights


def test_weights_that_have_changed_since_are_attacked():
  model, held = Model(WEIGHTS), {'weights': WEIGHTS}
  closure = lambda images: (images.reshape(len(images), 48) - 0.5) @ held['weights']
  attack = attacks.autoattack(norm='linf', epsilon=0.0)
  right = LOGITS.argmax(-1) == LABELS
  for logits_fn in (model, closure):
    for _ in range(2):
      model.weights = held['weights'] = WEIGHTS
      np.testing.assert_array_equal(attack(KEYS, logits_fn, IMAGES, LABELS).metrics['success'], ~right)
      model.weights = held['weights'] = -WEIGHTS
      reverse = attack(KEYS, logits_fn, IMAGES, LABELS).metrics['success']
      np.testing.assert_array_equal(reverse, (-LOGITS).argmax(-1) != LABELS)


FEW = {
  'pgd': {'num_steps': 3},
  'apgd': {'num_steps': 3},
  'fab': {'num_steps': 3, 'num_targets': 4},
  'square': {'num_queries': 20},
  'multitargeted': {'num_steps': 3, 'num_targets': 4},
}  # steps


@pytest.mark.parametrize('name', FEW)
def test_every_form_of_radius_and_labels_gives_the_same(name):
  make = lambda epsilon: getattr(attacks, name)(norm='linf', epsilon=epsilon, **FEW[name])
  few = KEYS[:6], linear, IMAGES[:6]
  wanted = make(0.01)(*few, LABELS[:6]).images
  for epsilon, labels in (
    (fractions.Fraction(1, 100), LABELS[:6]),
    (np.float64(0.01), LABELS[:6].tolist()),
    (0.01, LABELS[:6].astype(np.uint8)),
  ):
    np.testing.assert_array_equal(make(epsilon)(*few, labels).images, wanted)


@pytest.mark.parametrize('name', FEW)
def test_labels_of_8_bits_reach_beyond_255_classes(name):
  """Class 3 + 256 wins: an attack that took it for class 3 would call a wrong answer right."""
  logits_fn = lambda images: images.mean((1, 2, 3))[:, None] * jax.nn.one_hot(259, 300)[None] * 0.1
  attack = getattr(attacks, name)(norm='linf', epsilon=0.01, **FEW[name])
  found = attack(KEYS[:2], logits_fn, IMAGES[:2], np.full(2, 3, np.uint8))
  assert found.metrics['success'].all()
  np.testing.assert_allclose(found.metrics['margin'], 0.1 * found.images.mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize('dtype', [np.float16, jnp.bfloat16, np.uint8])
@pytest.mark.parametrize('name', FEW)
def test_images_of_few_digits_are_refused_under_jit_too(name, dtype):
  attack = getattr(attacks, name)(norm='linf', epsilon=0.1)
  with pytest.raises(UserError, match='they must be float32 or float64'):
    jax.jit(lambda images: attack(KEYS, linear, images, LABELS).images)(jnp.asarray(IMAGES).astype(dtype))


def test_what_jax_cannot_trace_is_named():
  with pytest.raises(UserError, match='cannot be traced by JAX') as caught:
    attacks.pgd(norm='linf', epsilon=0.1)(KEYS, lambda images: np.asarray(images).sum((1, 2)), IMAGES, LABELS)
  assert '\n' not in str(caught.value)


def short(images):
  return linear(images)[:, 0]


@pytest.mark.parametrize('changes, message', [
  ({'images': IMAGES * 255}, r'run from .* to .*\[0, 1\]'),
  ({'images': IMAGES - 0.5}, r'\[0, 1\]'),
  ({'images': np.where(IMAGES > 0.69, np.nan, IMAGES)}, r'\[0, 1\]'),
  ({'images': (IMAGES * 255).astype(np.uint8)}, 'images are uint8'),
  ({'images': IMAGES.astype(np.float16)}, 'images are float16'),
  ({'images': IMAGES[0]}, 'must be float32 or float64'),
  ({'labels': LABELS + 1}, 'labels hold 5; with 5 logits they must be from 0 to 4'),
  ({'labels': LABELS - 5}, 'labels hold -'),
  ({'labels': LABELS.astype(np.float32)}, 'must be integers'),
  ({'labels': LABELS[:3]}, 'one for each image'),
  ({'labels': np.eye(CLASSES, dtype=int)[LABELS]}, 'one for each image'),
  ({'keys': KEYS[:3]}, 'one typed key for each image'),
  ({'keys': jax.random.key(0)}, 'one typed key for each image'),
  ({'keys': np.zeros(NUM, np.uint32)}, 'one typed key for each image'),
  ({'logits_fn': short}, r'logits_fn gives float32 of shape \[30\]'),
  ({'logits_fn': lambda x: linear(x)[:3]}, r'of shape \[3, 5\] for 30 images'),
  ({'logits_fn': lambda x: linear(x)[:, :1]}, 'at least 2 classes'),
  ({'logits_fn': lambda x: linear(x).argmax(-1, keepdims=True)}, 'must give floats'),
  ({'logits_fn': lambda x: (linear(x), {})}, 'gives a tuple'),
])  # fmt: skip
@pytest.mark.parametrize('name', [*FEW, 'autoattack'])
def test_what_is_no_input_is_refused(name, changes, message):
  arguments = {'keys': KEYS, 'logits_fn': linear, 'images': IMAGES, 'labels': LABELS} | changes
  with pytest.raises(UserError, match=message) as caught:
    getattr(attacks, name)(norm='linf', epsilon=0.1)(*arguments.values())
  assert '\n' not in str(caught.value)


NO_ATTACK = [
  (attacks.autoattack, {'norm': 'lin'}, "Unknown norm 'lin'.*Did you mean 'linf'"),
  (attacks.autoattack, {'epsilon': 8}, 'did you mean 8/255'),
  (attacks.autoattack, {'epsilon': -1}, 'epsilon=-1'),
  (attacks.autoattack, {'epsilon': 10**400}, 'must be a finite number'),
  (attacks.autoattack, {'version': 'plu'}, "Unknown version 'plu'.*Did you mean 'plus'"),
  (attacks.autoattack, {'batch_size': 0}, 'batch_size=0'),
  (functools.partial(suites.stages, 'autoatack'), {}, "Unknown attack 'autoatack'.*Did you mean 'autoattack"),
  (functools.partial(suites.stages, 'pgd'), {'norm': 'l1'}, "Unknown norm 'l1'"),
  (functools.partial(suites.stages, 'pgd'), {'epsilon': float('nan')}, 'epsilon=nan'),
  (functools.partial(suites.stages, 'pgd'), {'num_classes': 1}, 'num_classes=1'),
]


@pytest.mark.parametrize('make, options, message', NO_ATTACK)
def test_what_is_no_attack_is_refused(make, options, message):
  of_suites = {} if make is attacks.autoattack else {'num_classes': 10}
  with pytest.raises(UserError, match=message):
    make(**{'norm': 'linf', 'epsilon': 0.1} | of_suites | options)


def test_it_cannot_be_traced():
  attack = functools.partial(attacks.autoattack(norm='linf', epsilon=0.1), KEYS, linear)
  with pytest.raises(UserError, match='cannot be traced'):
    jax.jit(attack)(jnp.asarray(IMAGES), jnp.asarray(LABELS))


# Suites.


def restarts_of(suite: str, num_classes: int = 10) -> dict[str, int]:
  found = suites.stages(suite, norm='linf', epsilon=0.1, num_classes=num_classes)
  return {stage.name: stage.attack.number for stage in found}


def test_the_suites_are_those_of_the_papers():
  assert restarts_of('autoattack') == {'apgd-ce': 1, 'apgd-t': 9, 'fab-t': 9, 'square': 1}
  assert restarts_of('autoattack_plus') == {'apgd-ce': 5, 'apgd-dlr': 5, 'apgd-t': 9, 'fab-t': 45, 'square': 1}
  assert restarts_of('paper') == {'apgd-ce': 5, 'apgd-dlr': 5, 'multitargeted': 180, 'square': 1}
  assert restarts_of('multitargeted') == {'multitargeted': 180}
  assert restarts_of('pgd') == {'pgd': 5}


def test_of_few_classes_all_others_are_targets_and_losses_that_need_more_are_left_out():
  assert restarts_of('autoattack', 4) == {'apgd-ce': 1, 'apgd-t': 3, 'fab-t': 3, 'square': 1}
  assert restarts_of('autoattack', 3) == {'apgd-ce': 1, 'fab-t': 2, 'square': 1}
  assert restarts_of('paper', 3) == {'apgd-ce': 5, 'apgd-dlr': 5, 'multitargeted': 40, 'square': 1}
  assert restarts_of('paper', 2) == {'apgd-ce': 5, 'multitargeted': 20, 'square': 1}
  assert suites.left_out('paper', 2) == ('apgd-dlr',)
  assert suites.left_out('autoattack', 3) == ('apgd-t',)
  assert suites.left_out('autoattack_plus', 10) == ()
