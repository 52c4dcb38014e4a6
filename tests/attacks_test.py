"""The adversary: closed forms on a linear network, and its promises on the small EDSR that ships."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, corruption_nets, per_example_conv, ssim, train_step, trees
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.attacks.pgd import pgd
from adversarial_augment.attacks.steps import STEPS
from adversarial_augment.corruption_nets import weights
from adversarial_augment.corruption_nets.edsr import edsr
from adversarial_augment.errors import UserError
from tests import tiny

RNG = np.random.default_rng(0)
PHI = {'w': np.float32(RNG.normal(size=(3, 3))), 'b': np.float32(RNG.normal(size=3)), 'dead': np.zeros(4, np.float32)}
IMAGES = np.float32(RNG.uniform(size=(6, 12, 12, 3)))
LABELS = np.array([0, 1, 0, 1, 1, 0], np.int32)
TEMPLATE = np.float32(RNG.normal(size=(12, 12, 3)) / 50)
KEYS = jax.random.split(jax.random.key(0), 6)
LONG = 60  # steps; one compilation of each rule serves several tests


def linear_network(phi, images):
  """A 1x1 convolution; 'dead' takes part with a gradient, and its norm is zero."""
  return images @ phi['w'] + phi['b'].reshape(1, 1, 1, 3) + phi['dead'].sum()


def linear_logits(images):
  """Two classes, so that the loss of either is monotone in one linear function of the image."""
  score = jnp.einsum('nhwc,hwc->n', images, TEMPLATE)
  return jnp.stack([score, -score], axis=-1)


@functools.partial(jax.jit, static_argnames=('step', 'num_steps', 'init', 'keep_best'))
def climb(labels, *, step, num_steps, fraction, nu=0.1, init='ball', keep_best=False):
  ball = attacks.weight_ball(linear_network, nu=nu, init=init)
  return pgd(
    ball, KEYS, linear_logits, IMAGES, labels, PHI,
    num_steps=num_steps, step=STEPS[step], step_fraction=fraction, keep_best=keep_best,
  )  # fmt: skip


def ascent_directions(labels) -> dict[str, np.ndarray]:
  """The gradient of the wrong class's margin in each block, per image, by hand: constant over the ball."""
  wrong = np.where(labels == 0, -1.0, 1.0)[:, None, None]
  return {
    'w': wrong * np.einsum('nhwc,hwd->ncd', IMAGES.astype(float), TEMPLATE),
    'b': wrong[:, 0] * np.broadcast_to(TEMPLATE.astype(float).sum((0, 1)), (6, 3)),
  }


def radius(block, nu=0.1) -> float:
  return nu * float(np.linalg.norm(PHI[block].astype(float)))


def test_radii_are_relative_to_each_block():
  radii = attacks.weight_ball(linear_network, nu=0.015).radii(PHI)
  assert radii['w'] == pytest.approx(0.015 * np.linalg.norm(PHI['w']), rel=1e-6)
  assert radii['b'] == pytest.approx(0.015 * np.linalg.norm(PHI['b']), rel=1e-6)
  assert radii['dead'] == 0


def test_one_l2_step_of_the_radius_reaches_the_maximum_of_a_linear_loss():
  ascent = climb(LABELS, step='l2', num_steps=1, fraction=1.0, init='zero')
  for block, direction in ascent_directions(LABELS).items():
    flat = direction.reshape(6, -1)
    best = radius(block) * flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(ascent.perturbations[block]).reshape(6, -1), best, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('step', ['sign', 'sign_l2'])
def test_sign_steps_end_at_the_rescaled_sign_of_the_gradient(step):
  ascent = climb(LABELS, step=step, num_steps=LONG, fraction=0.25)
  for block, direction in ascent_directions(LABELS).items():
    flat, beta = direction.reshape(6, -1), np.asarray(ascent.perturbations[block], float).reshape(6, -1)
    np.testing.assert_allclose(np.linalg.norm(beta, axis=1), radius(block), rtol=1e-5)
    reached = (beta * flat).sum(1)
    expected = radius(block) * np.abs(flat).sum(1) / np.sqrt(flat.shape[1])
    np.testing.assert_allclose(reached, expected, rtol=0.01)


@pytest.mark.parametrize('step', list(STEPS))
def test_every_step_climbs_towards_the_maximum(step):
  ascent = climb(LABELS, step=step, num_steps=LONG, fraction=0.25 if step != 'sgd' else 100.0)
  start, end = np.asarray(ascent.loss_start), np.asarray(ascent.loss_end)
  assert (end > start).all()
  reached = {
    block: (np.asarray(ascent.perturbations[block], float) * direction).reshape(6, -1).sum(1)
    / (radius(block) * np.linalg.norm(direction.reshape(6, -1), axis=1))
    for block, direction in ascent_directions(LABELS).items()
  }
  least = 0.99 if step in ('l2', 'sgd') else 0.6  # signs reach ||G||_1 / (sqrt(n) ||G||_2) of it
  assert all((share > least).all() for share in reached.values()), reached


def test_the_loss_is_that_of_the_closed_form():
  ascent = climb(LABELS, step='l2', num_steps=1, fraction=1.0, init='zero')
  for which, perturbations in ((ascent.loss_start, None), (ascent.loss_end, ascent.perturbations)):
    phi = {name: np.broadcast_to(value, (6, *value.shape)).astype(float) for name, value in PHI.items()}
    if perturbations is not None:
      phi = {name: value + np.asarray(perturbations[name], float) for name, value in phi.items()}
    corrupted = np.einsum('nhwc,ncd->nhwd', IMAGES, phi['w']) + phi['b'][:, None, None]
    margin = 2 * np.einsum('nhwc,hwc->n', corrupted, TEMPLATE) * np.where(LABELS == 0, 1, -1)
    np.testing.assert_allclose(which, np.log1p(np.exp(-margin)), rtol=1e-4)


@pytest.mark.parametrize('step', list(STEPS))
def test_blocks_of_norm_zero_do_not_move(step):
  ascent = climb(LABELS, step=step, num_steps=LONG, fraction=0.25)
  assert not np.any(ascent.perturbations['dead'])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ascent))


def test_the_labels_are_those_attacked():
  towards, away = (climb(labels, step='l2', num_steps=LONG, fraction=0.25) for labels in (LABELS, 1 - LABELS))
  products = (np.asarray(towards.perturbations['w']) * np.asarray(away.perturbations['w'])).sum((1, 2))
  assert (products < 0).all()


def test_the_step_is_a_quarter_of_the_median_radius():
  phi = {str(i): np.float32([scale, 0, 0]) for i, scale in enumerate((1.0, 3.0, 5.0, 11.0))}  # median 4
  radii = attacks.weight_ball(lambda phi, images: images, nu=0.5).radii(phi)
  rule = STEPS['sign'](radii, 0.25)
  move, _ = rule.update(jax.tree.map(lambda p: jnp.array([2.0, -3.0, 0.0]), phi), rule.init(phi))
  for leaf in jax.tree.leaves(move):
    np.testing.assert_allclose(leaf, [0.5, -0.5, 0.0], rtol=1e-6)


@pytest.mark.parametrize('step', ['l2', 'sign_l2'])
def test_per_block_steps_have_the_length_of_their_own_block(step):
  radii = {'a': jnp.float32(2.0), 'b': jnp.float32(0.1), 'zero': jnp.float32(0.0)}
  gradient = {'a': jnp.array([3.0, 4.0]), 'b': jnp.zeros(3), 'zero': jnp.ones(2)}
  rule = STEPS[step](radii, 0.25)
  move, _ = rule.update(gradient, rule.init(gradient))
  assert float(jnp.linalg.norm(move['a'])) == pytest.approx(0.5)
  assert not np.any(move['b'])
  assert not np.any(move['zero'])


def test_adam_is_that_of_numpy_with_a_state_of_each_image():
  ascent = climb(LABELS, step='adam', num_steps=2, fraction=0.01, init='zero', nu=1.0)
  size = 0.01 * np.median([radius('w', 1.0), radius('b', 1.0)])

  def gradient(beta):
    corrupted = np.einsum('nhwc,ncd->nhwd', IMAGES, PHI['w'] + beta['w']) + (PHI['b'] + beta['b'])[:, None, None]
    margin = 2 * np.einsum('nhwc,hwc->n', corrupted, TEMPLATE) * np.where(LABELS == 0, 1, -1)
    weight = 2 / (1 + np.exp(margin))
    return {name: weight.reshape(-1, *[1] * (d.ndim - 1)) * d for name, d in ascent_directions(LABELS).items()}

  beta = {'w': np.zeros((6, 3, 3)), 'b': np.zeros((6, 3))}
  first = second = {name: 0.0 for name in beta}
  for t in (1, 2):
    g = gradient(beta)
    first = {name: 0.9 * first[name] + 0.1 * g[name] for name in beta}
    second = {name: 0.999 * second[name] + 0.001 * g[name] ** 2 for name in beta}
    for name in beta:
      move = (first[name] / (1 - 0.9**t)) / (np.sqrt(second[name] / (1 - 0.999**t)) + 1e-9)
      beta[name] = beta[name] + size * move
  for name, expected in beta.items():
    np.testing.assert_allclose(ascent.perturbations[name], expected, rtol=1e-3, atol=1e-5)


def test_the_best_iterate_is_never_worse_than_the_last():
  """On a loss with a hill to step over: large steps overshoot, and the last iterate is often worse."""
  bumpy = lambda images: jnp.sin(40 * jnp.einsum('nhwc,hwc->n', images, TEMPLATE))[:, None] * jnp.array([[1.0, -1.0]])
  ball = attacks.weight_ball(linear_network, nu=0.5)
  run = lambda keep_best: pgd(
    ball, KEYS, bumpy, IMAGES, LABELS, PHI,
    num_steps=5, step=STEPS['sign'], step_fraction=0.6, keep_best=keep_best,
  )  # fmt: skip
  last, best = jax.jit(lambda: (run(False), run(True)))()
  assert (np.asarray(best.loss_end) >= np.asarray(last.loss_end) - 1e-6).all()
  assert (np.asarray(best.loss_end) > np.asarray(last.loss_end) + 1e-3).any()
  np.testing.assert_allclose(cross_entropy(bumpy(best.images), LABELS), best.loss_end, rtol=1e-5, atol=1e-5)
  moved = [jax.tree.map(lambda p, b, i=i: p + b[i], PHI, best.perturbations) for i in range(6)]
  again = [linear_network(phi, IMAGES[i : i + 1])[0] for i, phi in enumerate(moved)]
  np.testing.assert_allclose(best.images, again, atol=1e-5)


def test_cross_entropy_is_finite_and_in_float32():
  logits = jnp.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], jnp.bfloat16)
  losses = cross_entropy(logits, jnp.array([1, 2]))
  assert losses.dtype == jnp.float32
  np.testing.assert_allclose(losses, [np.float32(logits[0, 0]) * 2, np.log(3)], rtol=1e-5)


def clipped_network(phi, images):
  return jnp.clip(linear_network(phi, images), 0, 1)


@functools.partial(jax.jit, static_argnames='microbatch')
def run_ada(nu, microbatch=None):
  identity = {'w': np.eye(3, dtype=np.float32), 'b': np.float32([0.01, -0.01, 0.02]), 'dead': PHI['dead']}
  attack = attacks.ada(clipped_network, nu=nu, num_steps=4)
  attack = attacks.in_microbatches(attack, microbatch) if microbatch else attack
  return attack(KEYS, linear_logits, IMAGES, LABELS, identity)


def test_parts_of_a_batch_give_what_the_batch_gives():
  whole, parts = run_ada(0.015), run_ada(0.015, microbatch=2)
  np.testing.assert_allclose(parts.images, whole.images, atol=1e-6)
  for name, value in whole.metrics.items():
    np.testing.assert_allclose(parts.metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_severe_corruptions_are_pulled_back_and_reported():
  mild, severe = run_ada(0.015), run_ada(30.0)
  assert not np.any(mild.metrics['ssim_corrected'])
  assert float(mild.metrics['ssim'].min()) > 0.9
  corrected = np.asarray(severe.metrics['ssim_corrected'])
  np.testing.assert_array_equal(corrected, np.asarray(severe.metrics['ssim']) < 0.3)
  assert corrected.mean() > 0
  assert not np.any(severe.metrics['ssim_below_min'])
  assert float(ssim.ssim(IMAGES, severe.images).min()) >= 0.3 - 1e-4
  for name, value in severe.metrics.items():
    assert value.shape == (6,), name
    assert np.isfinite(value).all(), name


def test_a_network_of_zeros_is_refused():
  zeros = jax.tree.map(np.zeros_like, PHI)
  with pytest.raises(UserError, match='load trained weights'):
    attacks.ada(linear_network)(KEYS, linear_logits, IMAGES, LABELS, zeros)


@pytest.mark.parametrize('options, word', [({'step': 'sing'}, "'sign'"), ({'root': 'strikt'}, "'strict'")])
def test_unknown_rules_are_refused(options, word):
  with pytest.raises(UserError, match=f'Did you mean {word}'):
    attacks.ada(linear_network, **options)


# The small EDSR that ships, against a classifier fitted by least squares.

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
def _ascend(keys, images, labels, phi, nu):
  ball = attacks.weight_ball(small_edsr()[0].apply, nu=nu)
  return pgd(ball, keys, trained_logits, images, labels, phi, num_steps=3, step=STEPS['sign'], step_fraction=0.25)


def ascend(keys, images, labels, nu):
  """One compilation for every nu."""
  return _ascend(keys, images, labels, small_edsr()[1], nu)


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


@pytest.mark.parametrize('nu', [0.0, 1e-6, 0.015, 1.0, 100.0])
def test_every_example_is_in_the_corruption_set(nu):
  images, labels = examples()
  ascent = ascend(keys_of(np.arange(NUM)), images, labels, np.float32(nu))
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


@pytest.mark.parametrize('nu', [0.015, 0.1])
def test_the_loss_rises_on_a_trained_classifier(nu):
  images, labels = examples()
  images, labels = images[: NUM - 4], labels[: NUM - 4]
  clean = np.asarray(trained_logits(jnp.asarray(images)).argmax(-1) == labels)
  assert clean.mean() > 0.85  # trained
  padded = ascend(keys_of(np.arange(NUM)), *examples(), np.float32(nu))
  start, end, gradients = (np.asarray(x)[: NUM - 4] for x in (padded.loss_start, padded.loss_end, padded.gradient_norm))
  assert (end > start).mean() >= 0.95
  assert (gradients > 0).all()


def test_an_example_does_not_depend_on_the_others():
  images, labels = examples()
  keys = keys_of(np.arange(NUM))
  whole = ascend(keys, images, labels, np.float32(0.015))
  order = np.random.default_rng(2).permutation(NUM)
  permuted = ascend(keys[order], images[order], labels[order], np.float32(0.015))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a)[order], b), whole, permuted)
  others = images.copy()
  others[1:] = 1 - others[1:]
  changed = ascend(keys, others, labels, np.float32(0.015))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), whole, changed)
  assert (np.asarray(whole.images)[1:] != np.asarray(changed.images)[1:]).any((1, 2, 3)).all()


@pytest.mark.parametrize('num_devices, batch_norm', [(1, 'batch'), (8, 'batch'), (8, 'running')])
def test_the_attack_is_alive_from_the_first_step_on(tmp_path, num_devices, batch_norm):
  """On a fresh classifier, in the stage of the train step that runs sharded; a smaller EDSR compiles faster."""
  sizes = {'name': 'edsr', 'blocks': 1, 'features': 4, 'scale': 1}
  weights.save(tmp_path / 'phi.safetensors', random_edsr(), {'network': sizes})
  _, static, phi, state = tiny.make(
    num_devices, attack__batch_norm=batch_norm, corruption_net__weights=str(tmp_path / 'phi.safetensors')
  )
  images, labels = tiny.batch(static, 0)
  corrupt = jax.jit(lambda *arrays: train_step.corrupt(static, *arrays))
  corrupted, metrics = corrupt(keys_of(np.arange(8)), images, labels, state, phi)
  assert (np.asarray(metrics['gradient_norm']) > 0).all()
  assert (np.asarray(metrics['radius_fraction']) > 0.5).all()
  start, end = (np.asarray(metrics[f'attack_loss_{when}']) for when in ('start', 'end'))
  # With batch statistics the images share one loss: its sum is what is maximised.
  assert (end > start).all() if batch_norm == 'running' else end.sum() > start.sum()
  assert np.min(corrupted) >= 0
  assert np.max(corrupted) <= 1


def random_edsr():
  network = edsr(blocks=1, features=4, scale=1)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
  rng = np.random.default_rng(5)
  return jax.tree.map(lambda p: np.float32(rng.uniform(-0.2, 0.2, p.shape)), shapes)


def test_memory_grows_with_the_images_at_a_time():
  network, phi = small_edsr()
  sizes = [attacks.attack_bytes(network.apply, phi, trained_logits, (32, 32, 3), n) for n in (1, 4)]
  assert 3 * sizes[0] < sizes[1] < 4.1 * sizes[0]
  assert sizes[0] > 3 * 4 * trees.count(phi)  # three copies of beta, in bytes


@pytest.mark.slow
@pytest.mark.parametrize('nu', [1e-6, 0.015, 1.0])
def test_ten_thousand_examples_are_in_the_corruption_set(nu):
  images, labels = examples()
  for start in range(0, 10_000, NUM):
    shift = start % 29
    moved = np.roll(images, shift, axis=(1, 2))[:, :: 1 if start % 2 else -1]
    ascent = ascend(keys_of(start + np.arange(NUM)), moved, labels, np.float32(nu))
    check_feasible(moved, ascent, np.float32(nu))
