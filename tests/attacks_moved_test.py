"""AdA that moves a part of the weights: what moves, by how much, and what is computed once for all steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, corruption_nets
from adversarial_augment.attacks import hoisting
from adversarial_augment.attacks.ascent import STEPS, ascend
from adversarial_augment.corruption_nets.cae import cae
from adversarial_augment.corruption_nets.edsr import edsr
from adversarial_augment.errors import UserError
from tests import linear_attack, oracle
from tests.linear_attack import IMAGES, KEYS, LABELS, PHI, TEMPLATE, linear_logits, linear_network, radius

NU = 0.1
pytestmark = pytest.mark.usefixtures('quick_compile')

TAIL = ('edsr/body_out', 'edsr/out')


def best(moved):
  """Returns the change of w [6, 3, 3] and of b [6, 3] that raises each loss most, in float64."""
  directions = linear_attack.ascent_directions(LABELS)
  unit = lambda g: g / np.sqrt((g**2).sum(tuple(range(1, g.ndim)), keepdims=True))
  w, b = np.zeros((6, 3, 3)), np.zeros((6, 3))
  if moved == 'scales':
    phi = PHI['w'].astype(float)
    per_channel = phi / np.linalg.norm(phi, axis=0)
    w = per_channel * (radius('w', NU) * unit(np.einsum('nck,ck->nk', directions['w'], per_channel)))[:, None]
  elif moved == ('w',):
    w = radius('w', NU) * unit(directions['w'])
  else:
    b = radius('b', NU) * unit(directions['b'])
  return w, b


@pytest.mark.parametrize('moved', ['biases', 'scales', ('w',)], ids=str)
def test_the_ascent_ends_at_the_best_point_of_the_balls_that_move(moved):
  found = ascend(
    attacks.weight_ball(linear_network, nu=NU, init='zero', moved=moved), KEYS, linear_logits, IMAGES, LABELS, PHI,
    num_steps=5, step=STEPS['l2'], step_fraction=0.25,
  )  # fmt: skip
  w, b = best(moved)
  images = np.einsum('nhwc,nck->nhwk', IMAGES.astype(float), PHI['w'] + w) + (PHI['b'] + b)[:, None, None]
  np.testing.assert_allclose(found.images, images, atol=1e-5)
  score = np.where(LABELS == 0, 1, -1) * np.einsum('nhwc,hwc->n', images, TEMPLATE)
  np.testing.assert_allclose(found.loss_end, np.log1p(np.exp(-2 * score)), rtol=1e-5)


def test_signs_on_the_last_layers_of_edsr_equal_a_plain_ascent():
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    phi = jax.tree.map(
      lambda p: rng.uniform(-0.2, 0.2, p.shape),
      jax.eval_shape(edsr(blocks=2, features=4, scale=1).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))),
    )
    images, labels, head = rng.uniform(size=(3, 12, 12, 3)), np.array([0, 1, 2]), rng.normal(size=(432, 3))
    logits_fn = lambda images: images.reshape(len(images), -1) @ head
    attack = attacks.ada(
      edsr(blocks=2, features=4, scale=1).apply, nu=NU, num_steps=3, init='zero', moved=TAIL, root=None
    )
    got = jax.jit(lambda: attack(jax.random.split(jax.random.key(0), 3), logits_fn, images, labels, phi).images)()

    norm = lambda x: np.sqrt((x**2).sum())
    radii = jax.tree.map(lambda p: NU * norm(p), {name: phi[name] for name in TAIL})
    size = 0.25 * np.median(jax.tree.leaves(radii))

    def corrupt(beta, image):
      moved = {name: jax.tree.map(jnp.add, phi[name], beta[name]) for name in TAIL}
      return oracle.edsr_x1({**phi, **moved}, image, 2)

    for i, image in enumerate(images):
      loss = lambda beta, i=i, image=image: -jax.nn.log_softmax(logits_fn(corrupt(beta, image)[None]))[0, labels[i]]
      beta = jax.tree.map(jnp.zeros_like, {name: phi[name] for name in TAIL})
      for _ in range(3):
        beta = jax.tree.map(lambda b, g: b + size * jnp.sign(g), beta, jax.grad(loss)(beta))
        beta = jax.tree.map(lambda b, r: b * jnp.minimum(1, r / norm(b)), beta, radii)
      np.testing.assert_allclose(got[i], corrupt(beta, image), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
  ('moved', 'stacked'),
  [('biases', False), ('scales', True), (('cae/d_block_3/conv_1', 'cae/d_up_conv_3/conv'), True)],
  ids=str,
)
def test_what_is_computed_once_changes_nothing_for_groups_and_noise(moved, stacked):
  network = cae(features=4)
  phi = network.init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)))
  assert isinstance(moved, str) or set(moved) < set(phi)
  ball = attacks.weight_ball(network.apply, nu=NU, moved=moved, noisy=True, stacked=stacked)
  images = np.float32(np.random.default_rng(0).uniform(size=(4, 16, 16, 3)))
  keys = jax.random.split(jax.random.key(2), 4)
  u = jax.vmap(lambda key, image: ball.init(key, phi, image))(keys[::2], images[::2])
  whole = ball.apply_batch(phi, images, u, keys)
  np.testing.assert_allclose(ball.bound(phi, images, keys, u)(u), whole, atol=1e-5)
  assert abs(whole - ball.apply_batch(phi, images, jax.tree.map(jnp.zeros_like, u), keys)).max() > 1e-4
  norms = attacks.trees.block_norms(jax.tree.map(lambda x: x[0], u), ball.radii(phi))
  inside = jax.tree.map(lambda n, r: np.all(n <= r * (1 + 1e-5)), norms, ball.radii(phi))
  assert all(jax.tree.leaves(inside))


def test_only_what_moves_is_left_for_the_loop():
  def function(moving, fixed, shared):
    return jnp.tanh(fixed @ shared['a']) @ (shared['b'] + moving)

  a, b, image = (np.float32(np.random.default_rng(i).normal(size=(3, 3))) for i in range(3))
  parts = hoisting.parts(function, b, image, {'a': a, 'b': b})
  (value,) = parts.before(image, {'a': a, 'b': b})
  np.testing.assert_allclose(value, np.tanh(image @ a), rtol=1e-6)
  np.testing.assert_allclose(parts.after(2 * b, [value], {'a': a, 'b': b}), np.tanh(image @ a) @ (3 * b), rtol=1e-5)
  left = [equation.primitive.name for equation in jax.make_jaxpr(parts.after)(b, [value], {'a': a, 'b': b}).eqns]
  assert sorted(set(left) - {'jit'}) == ['add', 'dot_general']


@pytest.mark.parametrize(
  ('name', 'sizes', 'third', 'tail'),
  [
    ('edsr', {'blocks': 16, 'features': 64, 'scale': 4}, 13, ('edsr/up_0', 'edsr/up_1', 'edsr/out')),
    ('edsr', {'blocks': 4, 'features': 16, 'scale': 1}, 4, ('edsr/out',)),
    ('cae', {'features': 16}, 7, None),
    ('vqvae', {'features': 16, 'codes': 512}, None, None),
  ],
)
def test_the_ends_of_networks(name, sizes, third, tail):
  modules = corruption_nets.shapes(name, sizes)
  found = {end: corruption_nets.last_layers(name, sizes, end) for end in corruption_nets.ENDS}
  assert all(module in modules for names in found.values() for module in names)
  assert tail is None or found['tail'] == tail
  assert third is None or len(found['last_third']) == third
  assert found['last_third'][-len(found['tail']) :] == found['tail']


@pytest.mark.parametrize(
  ('moved', 'said'),
  [
    (('edsr/nothing',), "no block for 'edsr/nothing' in moved"),
    (('w', 'wrong'), "no block for 'wrong' in moved"),
    ('half', "Unknown moved 'half'; known: all, biases, scales"),
  ],
)
def test_what_does_not_exist_is_refused(moved, said):
  with pytest.raises(UserError, match=said):
    attacks.weight_ball(linear_network, nu=NU, moved=moved).radii(PHI)
