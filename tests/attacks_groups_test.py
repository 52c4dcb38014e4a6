"""Perturbations that several images share: each group of them, or the whole batch of all devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment.attacks.ascent import STEPS, ascend
from adversarial_augment.corruption_nets.edsr import edsr
from tests import linear_attack, tiny
from tests.linear_attack import IMAGES, KEYS, LABELS, PHI, TEMPLATE, linear_logits, linear_network, radius

NU = 0.1


def climb(images, labels, keys=None, *, group, num_steps, phi=PHI, logits_fn=linear_logits, **options):
  options = {'init': 'zero', 'step': 'l2', 'fraction': 0.25, 'axis_name': None, 'keep_best': False} | options
  ball = attacks.weight_ball(linear_network, nu=NU, init=options['init'])
  return ascend(
    ball, KEYS[: len(images)] if keys is None else keys, logits_fn, images, labels, phi,
    num_steps=num_steps, step=STEPS[options['step']], step_fraction=options['fraction'],
    keep_best=options['keep_best'], group=group, axis_name=options['axis_name'],
  )  # fmt: skip


def on_devices(num_devices, function):
  """Runs (images, labels, keys) -> tree under `shard_map`, all of them and the results split over the devices."""
  data = PartitionSpec('data')
  mesh = tiny.make_mesh(num_devices)
  return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(data,) * 3, out_specs=data, check_vma=False))


def numpy_ascent(group, num_steps, fraction=0.25):
  """Normalised ascent on the mean loss of each group in float64: betas and losses [6], norm of the first gradient."""
  sign = np.where(LABELS == 0, 1, -1)
  directions = linear_attack.ascent_directions(LABELS)
  betas, losses = {name: np.zeros((6, *PHI[name].shape)) for name in directions}, np.zeros(6)
  norms = []
  for start in range(0, 6, group):
    own = slice(start, start + group)
    beta = {name: np.zeros(PHI[name].shape) for name in directions}
    for i in range(num_steps + 1):
      corrupted = IMAGES[own].astype(float) @ (PHI['w'] + beta['w']) + PHI['b'] + beta['b']
      margin = 2 * sign[own] * np.einsum('nhwc,hwc->n', corrupted, TEMPLATE)
      weights = 2 / (1 + np.exp(margin)) / group
      gradient = {name: np.einsum('n,n...->...', weights, each[own]) for name, each in directions.items()}
      if i == 0:  # an entry of 'dead' adds to all channels, as all of b would
        norms.append(np.sqrt((gradient['w'] ** 2).sum() + (gradient['b'] ** 2).sum() + 4 * gradient['b'].sum() ** 2))
      if i < num_steps:
        for name, g in gradient.items():
          moved = beta[name] + fraction * radius(name) * g / np.linalg.norm(g)
          beta[name] = moved * min(1, radius(name) / np.linalg.norm(moved))
    losses[own] = np.log1p(np.exp(-margin))
    for name, value in beta.items():
      betas[name][own] = value
  return betas, losses, norms


def check_numpy(ascent, group, num_steps):
  betas, losses, norms = numpy_ascent(group, num_steps)
  np.testing.assert_allclose(ascent.loss_end, losses, rtol=1e-9)
  np.testing.assert_allclose(ascent.gradient_norm, norms, rtol=1e-9)
  for name, expected in betas.items():
    np.testing.assert_allclose(ascent.perturbations[name], expected[::group], atol=1e-9)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('group', [1, 2, 6])
def test_a_group_climbs_its_mean_loss_as_numpy_does(group):
  phi, images = tiny.to_default_float((PHI, IMAGES))
  check_numpy(jax.jit(functools.partial(climb, group=group, num_steps=6, phi=phi))(images, LABELS), group, 6)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('num_devices', [1, 3])
def test_a_batch_is_one_group_of_all_devices(num_devices):
  phi, images = tiny.to_default_float((PHI, IMAGES))
  run = functools.partial(climb, group=None, num_steps=6, phi=phi, axis_name='data')
  ascent = jax.device_get(on_devices(num_devices, run)(images, LABELS, KEYS))
  each = [jax.tree.map(lambda x, i=i: x[i : i + 1], ascent.perturbations) for i in range(num_devices)]
  for beta in each:
    own = ascent._replace(perturbations=beta, gradient_norm=ascent.gradient_norm[:1])
    check_numpy(own, 6, 6)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('group', [2, None])
def test_one_device_gives_what_eight_give(group):
  """From random starts, with logits that couple the images as batch statistics do, and with the best iterate."""
  rng = np.random.default_rng(3)
  images, labels = rng.uniform(size=(16, 12, 12, 3)), rng.integers(2, size=16).astype(np.int32)
  keys, phi = jax.random.split(jax.random.key(4), 16), tiny.to_default_float(PHI)

  def logits_fn(images):
    logits = linear_logits(images)
    return logits - 0.7 * jax.lax.pmean(logits.mean(0, keepdims=True), 'data')

  def run(images, labels, keys):
    options = {'init': 'ball', 'step': 'sign', 'axis_name': 'data', 'keep_best': True, 'fraction': 0.1}
    ascent = climb(images, labels, keys, group=group, num_steps=3, phi=phi, logits_fn=logits_fn, **options)
    return ascent._replace(perturbations=jax.tree.map(lambda b: b[:1], ascent.perturbations), gradient_norm=None)

  one, eight = (on_devices(n, run)(images, labels, keys) for n in (1, 8))
  assert (np.asarray(one.loss_end) != np.asarray(one.loss_start)).all()
  for name in ('images', 'loss_start', 'loss_end'):
    np.testing.assert_allclose(getattr(eight, name), getattr(one, name), atol=1e-9, err_msg=name)
  if group is None:
    spread = jax.tree.map(lambda b: float(np.ptp(b, axis=0).max()), eight.perturbations)
    assert max(jax.tree.leaves(spread)) == 0, 'all devices hold the same'


@functools.partial(jax.jit, static_argnames='group')
def risk(images, labels, keys, group):
  ascent = climb(images, labels, keys, group=group, num_steps=40, init='ball')
  return ascent.loss_end.mean()


def largest_risk(images, labels) -> float:
  """The mean over images of the largest loss in the ball: the margin falls by nu_i ||G_i|| for each block."""
  sign = np.where(labels == 0, 1, -1)
  score = np.einsum('nhwc,hwc->n', images.astype(float) @ PHI['w'] + PHI['b'], TEMPLATE)
  slopes = np.linalg.norm(np.einsum('nhwc,hwd->ncd', images.astype(float), TEMPLATE), axis=(1, 2))
  reach = radius('w', NU) * slopes + radius('b', NU) * np.linalg.norm(TEMPLATE.astype(float).sum((0, 1)))
  return float(np.log1p(np.exp(-2 * (sign * score - reach))).mean())


@pytest.mark.parametrize('seed', range(3))
def test_the_risk_of_groups_is_below_that_of_images_which_it_equals_for_groups_of_one(seed):
  rng = np.random.default_rng(seed)
  images = rng.uniform(size=(12, 12, 12, 3), high=rng.uniform(0.2, 3)).astype(np.float32)
  labels = rng.integers(2, size=12).astype(np.int32)
  keys = jax.random.split(jax.random.key(seed), 12)
  largest = largest_risk(images, labels)
  risks = {group: float(risk(images, labels, keys, group)) for group in (1, 2, 12)}
  assert risks[1] == pytest.approx(largest, rel=1e-5)
  for group in (2, 12):
    assert risks[group] < largest * (1 - 1e-4), risks


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('impl', ['map', 'im2col'])
@pytest.mark.parametrize('features', [4, 32])
def test_a_group_in_one_convolution_is_each_image_with_the_same_weights(impl, features):
  network = edsr(blocks=1, features=features, scale=1)
  rng = np.random.default_rng(6)
  images, head = rng.uniform(size=(4, 8, 8, 3)), rng.normal(size=(4, 8, 8, 3))
  draw = lambda scale, lead=(): lambda p: scale * rng.uniform(-1, 1, (*lead, *p.shape))
  shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float64))
  phi, betas = jax.tree.map(draw(0.2), shapes), jax.tree.map(draw(0.01, (2,)), shapes)
  ball = attacks.weight_ball(network.apply, nu=0.1, impl=impl)

  @jax.jit
  def both(betas):
    repeated = lambda betas: jax.tree.map(lambda b: jnp.repeat(b, 2, axis=0), betas)
    forms = {'groups': lambda x: x, 'images': repeated}
    value = lambda form: lambda betas: (head * ball.apply_batch(phi, images, form(betas))).sum()
    return {name: jax.value_and_grad(value(form))(betas) for name, form in forms.items()}

  got = both(betas)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got['groups'], got['images'])
  assert all(np.any(leaf) for leaf in jax.tree.leaves(got['groups'][1]))


def test_a_group_draws_its_noise_with_the_key_of_its_first_image():
  network = lambda phi, images, key: images + phi['b'].sum() + jax.random.normal(key, images.shape)
  ball = attacks.weight_ball(network, nu=NU, noisy=True)
  betas = jax.tree.map(lambda p: jnp.zeros((3, *p.shape)), PHI)
  noise = [jax.random.normal(jax.random.fold_in(KEYS[i], 2), (2, 12, 12, 3)) for i in (0, 2, 4)]
  expected = IMAGES + PHI['b'].sum() + np.concatenate(noise)
  np.testing.assert_allclose(ball.apply_batch(PHI, IMAGES, betas, KEYS), expected, atol=1e-5)


def test_metrics_are_those_of_images_and_the_best_iterate_is_of_the_group():
  """On a loss with hills to step over, so that the last iterate is often worse than the best."""
  identity = PHI | {'w': np.eye(3, dtype=np.float32), 'b': np.float32([0.01, -0.01, 0.02])}
  options = {'nu': 0.5, 'num_steps': 5, 'step_fraction': 0.6, 'group': 3}
  bumpy = lambda images: jnp.sin(40 * linear_logits(images))
  run = lambda keep_best: attacks.ada(linear_network, keep_best=keep_best, **options)
  last, best = jax.jit(lambda: [run(keep)(KEYS, bumpy, IMAGES, LABELS, identity) for keep in (False, True)])()
  for name, values in best.metrics.items():
    assert values.shape == (6,), name
  for name in ('gradient_norm', 'radius_fraction'):
    assert (np.asarray(best.metrics[name]).reshape(2, 3) == np.asarray(best.metrics[name])[::3, None]).all()
  means = lambda result: np.asarray(result.metrics['attack_loss_end']).reshape(2, 3).mean(1)
  assert (means(best) >= means(last) - 1e-6).all()
  assert (means(best) > means(last) + 1e-3).any()
