"""The promises of the adversary on the small EDSR that ships, against a fitted classifier and a trained one."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adversarial_augment import attacks, corruption_nets, datasets, per_example_conv, ssim, train
from adversarial_augment import config as configs
from adversarial_augment.attacks import trees
from adversarial_augment.attacks.ascent import STEPS, ascend
from adversarial_augment.corruption_nets.edsr import edsr
from adversarial_augment.parallel import platforms, sharding
from adversarial_augment.training import recipe as recipes
from adversarial_augment.training import step_memory, train_step
from tests import linear_attack, tiny

SMALL = 'edsr_4x16_x1'
NUM = 64


def edges() -> np.ndarray:
  """Images at the edges of the range: black, white, one colour, saturated noise."""
  rng = np.random.default_rng(1)
  one_colour = np.broadcast_to(np.float32([0.2, 0.5, 0.9]), (32, 32, 3))
  saturated = rng.integers(0, 2, (32, 32, 3)).astype(np.float32)
  return np.stack([np.zeros((32, 32, 3), np.float32), np.ones((32, 32, 3), np.float32), one_colour, saturated])


@functools.cache
def examples() -> tuple[np.ndarray, np.ndarray]:
  images, labels = tiny.dataset(NUM).read(np.arange(NUM))
  images = images.astype(np.float32) / 255
  return np.concatenate([images[: NUM - 4], edges()]), labels


def pooled(images):
  flat = images.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 48)
  return flat, flat.mean(-1, keepdims=True) ** 2


@functools.cache
def fitted() -> np.ndarray:
  images, labels = tiny.dataset(NUM).read(np.arange(NUM))
  flat = np.concatenate([*pooled(images / 255.0), np.ones((NUM, 1))], -1)
  return np.linalg.solve(flat.T @ flat + 1e-3 * np.eye(flat.shape[1]), flat.T @ (8 * np.eye(10)[labels] - 4))


def trained_logits(images):
  """A frozen classifier whose logits of an image do not depend on the others."""
  weights = jnp.asarray(fitted(), images.dtype)
  return jnp.concatenate([*pooled(images), jnp.ones((images.shape[0], 1), images.dtype)], -1) @ weights


@functools.cache
def small_edsr():
  return corruption_nets.load('edsr', SMALL)


@jax.jit
def _climb(keys, images, labels, phi, nu):
  ball = attacks.weight_ball(small_edsr()[0].apply, nu=nu)
  return ascend(ball, keys, trained_logits, images, labels, phi, num_steps=3, step=STEPS['sign'], step_fraction=0.25)


def climb(keys, images, labels, nu):
  """One compilation for every nu."""
  return _climb(keys, images, labels, small_edsr()[1], nu)


pull_back = jax.jit(functools.partial(ssim.correct, min_ssim=0.3, root='strict'))


def check_feasible(clean, ascent, nu) -> None:
  """P17 in float64 NumPy, on the recorded perturbations."""
  _, phi = small_edsr()
  for beta, block in zip(jax.tree.leaves(ascent.perturbations), jax.tree.leaves(phi), strict=True):
    norms = np.linalg.norm(np.asarray(beta, float).reshape(len(beta), -1), axis=1)
    assert norms.max() <= nu * np.linalg.norm(np.asarray(block, float)) * (1 + 1e-6)
  searched = pull_back(clean, ascent.images)
  assert float(searched.ssim_after.min()) >= 0.3 - 1e-4
  for images in (np.asarray(ascent.images), np.asarray(searched.images)):
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1


def keys_of(index) -> jax.Array:
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(7)))(jnp.asarray(index))


@pytest.mark.parametrize('nu', [0.0, 1e-6, 0.015, 0.1, 1.0, 100.0])
def test_every_example_is_in_the_corruption_set_and_its_loss_rises(nu):
  images, labels = examples()
  ascent = climb(keys_of(np.arange(NUM)), images, labels, np.float32(nu))
  check_feasible(images, ascent, np.float32(nu))
  if nu == 0:
    assert not any(np.any(beta) for beta in jax.tree.leaves(ascent.perturbations))
    network, phi = small_edsr()
    alone = lambda phi, image: network.apply(phi, image[None])[0]
    shared = jax.tree.map(lambda p: jnp.broadcast_to(p, (NUM, *p.shape)), phi)
    np.testing.assert_array_equal(ascent.images, jax.jit(per_example_conv.over_examples(alone))(shared, images))
    np.testing.assert_allclose(ascent.images, jax.jit(network.apply)(phi, images), atol=1e-5)
  else:
    fractions = np.stack(jax.tree.leaves(jax.vmap(trees.block_norms)(ascent.perturbations)), -1)
    limits = np.float32(nu) * np.stack(jax.tree.leaves(trees.block_norms(small_edsr()[1])))
    assert (np.median(fractions / limits, axis=1) > 0.5).all()
  if nu in (0.015, 0.1):
    real = slice(NUM - 4)  # without the edges
    assert (np.asarray(trained_logits(images[real])).argmax(-1) == labels[real]).mean() > 0.85  # trained
    assert (ascent.loss_end > ascent.loss_start)[real].mean() >= 0.95
    assert (ascent.gradient_norm > 0)[real].all()


def test_an_example_does_not_depend_on_the_others():
  images, labels = examples()
  keys = keys_of(np.arange(NUM))
  whole = climb(keys, images, labels, np.float32(0.015))
  order = np.random.default_rng(2).permutation(NUM)
  permuted = climb(keys[order], images[order], labels[order], np.float32(0.015))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a)[order], b), whole, permuted)
  others = images.copy()
  others[1:] = 1 - others[1:]
  changed = climb(keys, others, labels, np.float32(0.015))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), whole, changed)
  assert (np.asarray(whole.images)[1:] != np.asarray(changed.images)[1:]).any((1, 2, 3)).all()


@pytest.mark.parametrize(
  'num_devices, batch_norm',
  [(1, 'batch'), *(pytest.param(8, name, marks=pytest.mark.slow) for name in ('batch', 'running'))],
)
def test_the_attack_is_alive_from_the_first_step_on(tmp_path, num_devices, batch_norm):
  """On a fresh classifier, in the stage of the train step that runs sharded; a smaller EDSR compiles faster."""
  phi_file = linear_attack.smallest_edsr(tmp_path)
  _, recipe, phi, state = tiny.make(num_devices, attack__batch_norm=batch_norm, corruption_net__weights=phi_file)
  images, labels = tiny.batch(recipe, 0)
  corrupt = jax.jit(lambda *arrays: train_step.corrupt(recipe, *arrays))
  corrupted, metrics = corrupt(keys_of(np.arange(8)), images, labels, state, phi)
  assert (np.asarray(metrics['gradient_norm']) > 0).all()
  assert (np.asarray(metrics['radius_fraction']) > 0.5).all()
  start, end = (np.asarray(metrics[f'attack_loss_{when}']) for when in ('start', 'end'))
  # With batch statistics the images share one loss: its sum is what is maximised.
  assert (end > start).all() if batch_norm == 'running' else end.sum() > start.sum()
  assert np.min(corrupted) >= 0
  assert np.max(corrupted) <= 1


def test_memory_grows_with_the_images_at_a_time():
  network, phi = small_edsr()
  ball = attacks.weight_ball(network.apply, nu=0.015)
  sizes = [step_memory.attack_bytes(ball, phi, trained_logits, (32, 32, 3), n) for n in (1, 4)]
  assert 3 * sizes[0] < sizes[1] < 4.1 * sizes[0]
  assert sizes[0] > 3 * 4 * optax.tree.size(phi)  # three copies of beta, in bytes


@pytest.mark.slow
@pytest.mark.parametrize('nu', [1e-6, 0.015, 1.0])
def test_ten_thousand_examples_are_in_the_corruption_set(nu):
  images, labels = examples()
  for start in range(0, 10_000, NUM):
    shift = start % 29
    moved = np.roll(images, shift, axis=(1, 2))[:, :: 1 if start % 2 else -1]
    ascent = climb(keys_of(start + np.arange(NUM)), moved, labels, np.float32(nu))
    check_feasible(moved, ascent, np.float32(nu))


def problem_in_float64():
  """A small EDSR, its parameters, images, labels, and a classifier of mean colours, all in float64."""
  network = edsr(blocks=2, features=3, scale=2)
  images, labels = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 12, 12, 3))), jnp.array([0, 1])
  phi = tiny.to_default_float(network.init(jax.random.key(0), images))
  scales = jnp.array([[100.0, 80.0, 60.0]])  # lest a shift of the whole image has a gradient of rounding errors alone
  return network, phi, images, labels, lambda images: images.reshape(2, 3, -1).mean(-1) * scales


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_the_attack_is_the_same_in_the_form_of_each_platform():
  network, phi, images, labels, logits_fn = problem_in_float64()

  def computed_for(platform):
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    attack = attacks.ada(network.apply, nu=0.1, num_steps=2, root=None)
    program = lambda phi: attack(keys_of(np.arange(2)), logits_fn, images, labels, phi)
    with platforms.tracing_for(mesh):
      return '2,4,3,3,3,3' in str(jax.make_jaxpr(program)(phi)), jax.jit(program)(phi)

  (stacked_on_cpus, expected), *others = (computed_for(platform) for platform in ('cpu', 'tpu', 'cuda'))
  assert [stacked_on_cpus, *(stacked for stacked, _ in others)] == [False, False, True]  # four weights of two images
  for _, got in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, expected)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('step', ['sign', pytest.param('sign_l2', marks=pytest.mark.slow)])
def test_an_ascent_over_stacked_blocks_is_that_over_the_blocks(step):
  network, phi, images, labels, logits_fn = problem_in_float64()

  def climbed(stacked):
    ball = attacks.weight_ball(network.apply, nu=0.1, stacked=stacked)
    options = {'num_steps': 2, 'step': STEPS[step], 'step_fraction': 0.25}
    return ascend(ball, keys_of(np.arange(2)), logits_fn, images, labels, phi, **options)

  expected, got = jax.jit(lambda: (climbed(False), climbed(True)))()
  assert len(got.perturbations) < len(jax.tree.leaves(phi)) == len(jax.tree.leaves(expected.perturbations))
  blocks = jax.vmap(trees.Stacks(phi).unstack)(got.perturbations)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
  jax.tree.map(close, got._replace(perturbations=blocks), expected)


@pytest.fixture(scope='module')
def splits():
  return {split: datasets.load('embedded', split, None) for split in ('train', 'test')}


@pytest.fixture(scope='module')
def trained(splits, tmp_path_factory):
  short = {'num_steps': '150', 'evals': '', 'checkpoint_every': '0'}
  config = configs.override(configs.load('configs/nominal.py:quickstart'), short)
  return jax.device_get(train.train(config, tmp_path_factory.mktemp('nominal') / 'run', splits))


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [1, 8])
@pytest.mark.parametrize('batch_norm', ['batch', 'running'])
def test_the_loss_rises_on_nearly_all_real_images(trained, splits, num_devices, batch_norm):
  attack = {'nu': '0.015', 'num_steps': '10', 'warmup_epochs': '0', 'batch_norm': batch_norm}
  changes = {'batch_size': '256'} | {f'attack.{name}': value for name, value in attack.items()}
  config = configs.override(configs.load('configs/ada_edsr.py:quickstart'), changes)
  mesh = tiny.make_mesh(num_devices)
  recipe, phi = recipes.build(config, splits['train'], mesh)
  state, phi = sharding.replicate(mesh, trained), sharding.replicate(mesh, phi)
  corrupt = jax.jit(lambda *arrays: train_step.corrupt(recipe, *arrays))
  batch = sharding.shard_batch(mesh, tuple(splits['test'].read(np.arange(256))))
  corrupted, metrics = corrupt(jax.random.split(jax.random.key(1), 256), *batch, state, phi)
  assert (metrics['attack_loss_end'] > metrics['attack_loss_start']).mean() >= 0.95
  assert (np.asarray(metrics['gradient_norm']) > 0).all()
  assert np.median(metrics['radius_fraction']) > 0.5
  assert np.min(corrupted) >= 0
  assert np.max(corrupted) <= 1
