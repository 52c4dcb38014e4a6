"""Free replay: several updates on a batch, of which each moves classifier and perturbations by one gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adversarial_augment import attacks, threefry
from adversarial_augment import config as configs
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.errors import UserError
from adversarial_augment.training import builders
from tests import tiny

FIELDS = {'attack__nu': '0.1', 'attack__num_steps': '1', 'attack__min_ssim': '-1'}
pytestmark = pytest.mark.usefixtures('quick_compile')


def assert_close(one, other, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


@pytest.mark.slow
@pytest.mark.parametrize(('step', 'direction'), [('sign', jnp.sign), ('sgd', lambda gradient: gradient)])
def test_two_updates_are_those_of_a_plain_loop(step, direction):
  """An oracle without devices, whose gradients by parameters and perturbations are taken one after the other."""
  with jax.enable_x64(True):
    config, recipe, phi, state = tiny.make(attack__replay='2', attack__step=step, **FIELDS)
    found, (metrics,) = tiny.run(recipe, phi, state, 1)
    images, labels = tiny.batch(recipe, 0)
    network, _ = builders.load_network(config)
    step_key = jax.random.fold_in(threefry.key(recipe.seed), 0)
    keys = jnp.stack([jax.random.fold_in(step_key, index) for index in range(len(images))])
    before, attack, _ = (jnp.stack([jax.random.split(key, 3)[part] for key in keys]) for part in range(3))
    views = jnp.stack(
      [recipe.before(key, image.astype(jnp.float64) / 255) for key, image in zip(before, images, strict=True)]
    )
    ball = attacks.weight_ball(network.apply, nu=0.1, noisy=True)
    radii, own = ball.radii(phi), threefry.own(attack)
    betas = [ball.init(key, phi, image) for key, image in zip(own, views, strict=True)]
    size = 0.25 * float(np.median([float(radius) for radius in jax.tree.leaves(radii)]))
    losses = []
    for _ in range(2):

      def loss_of(params, betas, state=state):
        moved = [
          network.apply(jax.tree.map(jnp.add, phi, beta), view[None]) for beta, view in zip(betas, views, strict=True)
        ]
        logits, updated = recipe.classifier.apply(
          params, state.model_state, step_key, jnp.concatenate(moved), is_training=True
        )
        return cross_entropy(logits, labels).sum() / len(labels), updated

      (loss, updated), down = jax.value_and_grad(loss_of, has_aux=True)(state.params, betas)
      up, _ = jax.grad(loss_of, argnums=1, has_aux=True)(state.params, betas)
      losses.append(float(loss))
      change, opt_state = recipe.optimizer.update(down, state.opt_state, state.params)
      opt_state = optax.tree.set(opt_state, count=0)
      state = state._replace(params=optax.apply_updates(state.params, change), model_state=updated, opt_state=opt_state)
      betas = [
        ball.project(radii, None, jax.tree.map(lambda b, g: b + size * direction(len(labels) * g), beta, g))
        for beta, g in zip(betas, up, strict=True)
      ]
    assert_close(found.params, state.params, rtol=1e-9, atol=1e-9)
    assert_close(found.model_state, state.model_state, rtol=1e-9, atol=1e-9)
    assert [float(metrics[name]) for name in ('attack_loss_start', 'attack_loss_end')] == pytest.approx(
      losses, abs=1e-9
    )
    assert (int(found.step), int(optax.tree.get(found.opt_state, 'count'))) == (1, 1)


@pytest.mark.slow
def test_one_and_two_devices_make_the_same_updates():
  with jax.enable_x64(True):
    found = []
    for devices in (1, 2):
      _, recipe, phi, state = tiny.make(devices, attack__replay='3', attack__moved='last_third', **FIELDS)
      found.append(tiny.run(recipe, phi, state, 2)[0].params)
  assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_loss_of_a_classifier_that_does_not_learn_rises():
  _, recipe, phi, state = tiny.make(attack__replay='3', optimizer__learning_rate='0', **FIELDS)
  after, (metrics,) = tiny.run(recipe, phi, state, 1)
  assert int(after.step) == 1
  assert metrics['attack_loss_end'] > metrics['attack_loss_start'] + 1e-3


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'attack.num_steps': '2'}, 'attack.num_steps=2 cannot go with config.attack.replay=2.*num_steps=1'),
    ({'attack.min_ssim': '0.3'}, 'attack.min_ssim=0.3 cannot go with .*replay=2.*min_ssim=-1'),
    ({'augment.after': 'augmix'}, 'augment.after=augmix cannot go with .*replay=2.*augment.after='),
    ({'attack.every': '2'}, 'attack.every=2 cannot go with .*replay=2'),
    ({'attack.name': 'none'}, 'attack.replay=2 cannot go with .*name=none, but only with ada; set .*replay=1'),
    ({'attack.replay': '0'}, 'attack.replay=.*0.* must be'),
    ({'optimizer.head_learning_rate': '0.1', 'init_from': 'x'}, 'head_learning_rate=0.1 cannot go with .*replay=2'),
  ],
)
def test_what_does_not_go_with_free_replay_is_refused(fields, said):
  own = {'attack.replay': '2', 'attack.num_steps': '1', 'attack.min_ssim': '-1'}
  with pytest.raises(UserError, match=said):
    configs.validate(configs.override(configs.base_config(), own | fields))
