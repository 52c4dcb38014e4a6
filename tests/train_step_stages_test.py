"""The order of the stages (appendix A of the paper), and the loss of AugMix on three views."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from adversarial_augment import augmentations, ssim
from adversarial_augment.training import train_step
from adversarial_augment.types import AttackResult
from tests import tiny


def noting(seen, name, function):
  def noted(*args, **kwargs):
    seen.append(name)
    return function(*args, **kwargs)

  return noted


def test_the_stages_have_the_papers_order(monkeypatch):
  seen: list[str] = []
  for name, augment in augmentations.AUGMENTATIONS.items():
    monkeypatch.setitem(augmentations.AUGMENTATIONS, name, noting(seen, name, augment))
  monkeypatch.setattr(ssim, 'correct', noting(seen, 'line search', ssim.correct))
  _, recipe, phi, state = tiny.make(augment__after='augmix')
  recipe = recipe._replace(
    attack=noting(seen, 'AdA', recipe.attack),
    classifier=recipe.classifier._replace(apply=noting(seen, 'classifier', recipe.classifier.apply)),
  )
  jax.eval_shape(lambda *args: train_step.train_step(recipe, *args), state, 0, *tiny.batch(recipe, 0), phi)
  assert seen == ['pad_crop', 'flip', 'AdA', 'line search', 'augmix', 'classifier']


@pytest.mark.parametrize('jsd', [0.0, 12.0])
def test_each_stage_gets_what_the_one_before_gave(jsd):
  _, recipe, _, state = tiny.make(attack__name='none')
  images, labels = tiny.batch(recipe, 0)
  recipe = recipe._replace(
    before=lambda key, image: image + 1,
    attack=lambda keys, logits_fn, images, labels, phi: AttackResult(2 * images, {'spoilt': images[:, 0, 0, 0]}),
    after=lambda key, image: image + jax.random.uniform(key),
    jsd=jsd,
  )
  keys = jax.random.split(jax.random.key(0), 8)
  views, metrics = train_step.corrupt(recipe, keys, images, labels, state, {})
  clean = np.asarray(images, np.float64) / 255 + 1
  np.testing.assert_allclose(metrics['spoilt'], clean[:, 0, 0, 0], atol=1e-5)
  added = np.asarray(views) - 2 * clean[:, None]
  assert added.shape == (8, 3 if jsd else 1, 32, 32, 3)
  assert np.ptp(added, axis=(2, 3, 4)).max() < 1e-5  # one number for a view
  draws = added[:, 1:, 0, 0, 0] if jsd else added[:, :, 0, 0, 0]
  assert np.unique(draws.round(4)).size == draws.size  # a key for every view
  assert draws.min() > 0
  if jsd:
    np.testing.assert_allclose(added[:, 0], 0, atol=1e-5)


@pytest.mark.usefixtures('x64')
def test_the_loss_of_trades_is_that_of_the_clean_image_and_the_divergence_from_it():
  _, recipe, _, state = tiny.make(attack__name='none')
  images, labels = tiny.batch(recipe, 0)
  darker = lambda keys, logits_fn, images, labels, phi: AttackResult(images / 2, {'met': images[:, 0, 0, 0]})
  recipe = recipe._replace(before=lambda key, image: image, attack=darker, trades=6.0)
  keys = jax.random.split(jax.random.key(0), 8)
  views, _ = train_step.corrupt(recipe, keys, images, labels, state, {})
  clean = np.asarray(images, np.float64) / 255
  np.testing.assert_allclose(views, np.stack([clean, clean / 2], 1), atol=1e-12)
  whole = jnp.concatenate([views[:, 0], views[:, 1]])
  logits, _ = recipe.classifier.apply(state.params, state.model_state, None, whole, is_training=True)
  p, q = scipy.special.softmax(np.asarray(logits), -1).reshape(2, 8, -1)
  divergence = scipy.special.rel_entr(p, q).sum(-1).mean()
  assert divergence > 1e-6
  _, (metrics,) = tiny.run(recipe, {}, state, 1)
  assert metrics['kl'] == pytest.approx(divergence, rel=1e-9)
  cross_entropy = -np.log(p[np.arange(8), np.asarray(labels)]).mean()
  assert metrics['loss'] == pytest.approx(cross_entropy + 6 * divergence, rel=1e-9)
  assert metrics['accuracy'] == (p.argmax(-1) == np.asarray(labels)).mean()


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_the_loss_on_three_views_and_the_update_are_those_of_augmix_on_one_device_also_on_four():
  options = {'attack__name': 'none', 'augment__after': 'augmix', 'augment__jsd': '12'}
  _, recipe, _, state = tiny.make(1, **options)
  step_key = jax.random.fold_in(jax.random.key(recipe.seed), 0)
  keys = jax.vmap(lambda index: jax.random.fold_in(step_key, index))(jnp.arange(8))
  images, labels = tiny.batch(recipe, 0)
  views, _ = jax.jit(lambda *args: train_step.corrupt(recipe, *args))(keys, images, labels, state, {})
  whole = jnp.concatenate([views[:, 0], views[:, 1], views[:, 2]])  # the order in AugMix's code

  def loss_of(params):
    logits, model_state = recipe.classifier.apply(params, state.model_state, None, whole, is_training=True)
    log_p = jax.nn.log_softmax(logits).reshape(3, 8, -1)
    log_m = jnp.log(jnp.clip(jnp.exp(log_p).mean(0), 1e-7, 1))
    terms = [(jnp.exp(log_p[i]) * (log_p[i] - log_m)).sum() / 8 for i in range(3)]
    return -log_p[0][jnp.arange(8), labels].mean() + 12 * sum(terms) / 3, (logits, model_state)

  (loss, (logits, model_state)), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(state.params)
  updates, _ = recipe.optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  p = scipy.special.softmax(np.asarray(logits).reshape(3, 8, -1), -1)
  divergence = scipy.special.rel_entr(p, p.mean(0, keepdims=True)).sum(-1).mean()
  _, recipe, phi, state = tiny.make(4, **options)
  end, (metrics,) = tiny.run(recipe, phi, state, 1)
  assert metrics['loss'] == pytest.approx(float(loss), abs=1e-9)
  assert metrics['jsd'] == pytest.approx(float(divergence), rel=1e-6)
  assert metrics['accuracy'] == (np.asarray(logits)[:8].argmax(-1) == np.asarray(labels)).mean()
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
  jax.tree.map(close, (end.params, end.model_state), (params, model_state))
