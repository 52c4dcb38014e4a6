"""Attacks on l_p balls: bounds, exactness on linear classifiers, independence of images and devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment.attacks import suites
from adversarial_augment.attacks.apgd import checkpoints
from adversarial_augment.attacks.restarts import ranked_target
from adversarial_augment.errors import UserError
from tests import boxed_linear, patch_classifier, tiny
from tests.boxed_linear import SHAPE
from tests.lp_ball_test import assert_within, hard_images

pytestmark = pytest.mark.usefixtures('quick_compile')

NUM, NUM_CLASSES = 300, 5
# No ball below reaches the edges of the box.
LINEAR, *KNOWN = boxed_linear.problem(NUM_CLASSES, NUM, low=0.3, high=0.7, balanced=False)
WEIGHTS, IMAGES, LABELS, LOGITS = KNOWN
LABELS[::10] = (LABELS[::10] + 1) % NUM_CLASSES  # a tenth is misclassified already
KEYS = boxed_linear.keys(NUM)
EPSILONS = {norm: boxed_linear.quantile_epsilon(norm, 0.5, *KNOWN) for norm in ('linf', 'l2')}
ATTACKS = {
  'pgd': attacks.pgd,
  'pgd_margin': functools.partial(attacks.pgd, loss='margin', start='none'),
  'pgd_dlr': functools.partial(attacks.pgd, loss='dlr', restarts=2),
  'apgd_ce': functools.partial(attacks.apgd, loss='ce'),
  'apgd_dlr': functools.partial(attacks.apgd, loss='dlr'),
  'apgd_t': functools.partial(attacks.apgd, loss='targeted', num_targets=4),
  'multitargeted': functools.partial(attacks.multitargeted, num_targets=4, restarts=1),
  'fab': functools.partial(attacks.fab, num_targets=4),
  'square': lambda num_steps=100, **ball: attacks.square(num_queries=num_steps, **ball),
}
EVERY = [(name, norm) for name in ATTACKS for norm in ('linf', 'l2')]
EXACT = [(name, norm) for name, norm in EVERY if name != 'square']
MIXED = [
  ('pgd', 'linf'), ('apgd_ce', 'l2'), ('apgd_t', 'linf'), ('multitargeted', 'l2'), ('fab', 'linf'), ('fab', 'l2'),
  ('square', 'linf'), ('square', 'l2'),
]  # fmt: skip


MOST = [pair if pair in MIXED else pytest.param(*pair, marks=pytest.mark.slow) for pair in EVERY]


@functools.partial(jax.jit, static_argnames=('name', 'norm', 'epsilon', 'num_steps', 'logits_fn'))
def run(name, norm, epsilon, keys, images, labels, num_steps=None, logits_fn=LINEAR):
  options = {} if num_steps is None else {'num_steps': num_steps}
  return ATTACKS[name](norm=norm, epsilon=epsilon, **options)(keys, logits_fn, images, labels)


def waves(images):
  """A classifier of five classes without symmetry, whose ascents are no straight lines."""
  return jnp.sin(4 * LINEAR(jnp.sin(3 * images))) + LINEAR(images)


@pytest.mark.parametrize('name, norm', EXACT)
def test_linear_classifiers_are_broken_exactly_where_they_can_be(name, norm):
  epsilon = EPSILONS[norm]
  reachable = boxed_linear.best_margins(norm, epsilon, *KNOWN)
  robust = (reachable < 0).mean()
  assert 0.1 < robust < 0.9
  result = run(name, norm, epsilon, KEYS, IMAGES, LABELS)
  success, margins = (np.asarray(result.metrics[metric]) for metric in ('success', 'margin'))
  assert abs((1 - success.mean()) - robust) <= 0.01
  assert (margins <= reachable + 1e-4).all()  # no attack does what nobody can
  assert_within(norm, epsilon, IMAGES, result.images)
  logits = LOGITS + np.einsum('khwc,nhwc->nk', WEIGHTS, np.asarray(result.images, float) - IMAGES)
  right = logits[np.arange(NUM), LABELS].copy()
  logits[np.arange(NUM), LABELS] = -np.inf
  np.testing.assert_allclose(logits.max(1) - right, margins, atol=1e-5)
  np.testing.assert_array_equal(success, margins >= 0)
  wrong = boxed_linear.best_margins(norm, 0.0, *KNOWN) > 0  # before the attack
  assert 0 < wrong.sum() < NUM
  np.testing.assert_array_equal(np.asarray(result.images)[wrong], IMAGES[wrong])
  assert success[wrong].all()


@pytest.mark.parametrize('name, norm', MOST)
@pytest.mark.parametrize('far', [False, True])
def test_adversarial_images_of_any_image_are_within_the_bounds(name, norm, far):
  epsilon = {'linf': (4 / 255, 1.0), 'l2': (0.5, 20.0)}[norm][far]
  images = hard_images(SHAPE)
  for labels in (np.zeros(len(images), np.int32), np.asarray(waves(images)).argmax(1).astype(np.int32)):
    result = run(name, norm, epsilon, KEYS[: len(images)], images, labels, num_steps=12, logits_fn=waves)
    assert_within(norm, epsilon, images, result.images)


@pytest.mark.parametrize('name, norm', MOST)
def test_a_radius_of_zero_returns_the_images(name, norm):
  images = hard_images(SHAPE)
  labels = np.asarray(waves(images)).argmax(1).astype(np.int32)
  result = run(name, norm, 0.0, KEYS[: len(images)], images, labels, num_steps=5, logits_fn=waves)
  np.testing.assert_array_equal(np.asarray(result.images).view(np.int32), images.view(np.int32))
  black = 5  # all of its logits are equal: a tie, and so broken already
  np.testing.assert_array_equal(np.flatnonzero(result.metrics['success']), [black])


@pytest.mark.parametrize('name, norm', MIXED)
def test_logits_that_are_nan_are_no_right_answer_and_give_feasible_images(name, norm):
  nan = lambda images: LINEAR(images) * jnp.where(images.mean((1, 2, 3)) > 0.5, jnp.nan, 1)[:, None]
  images, labels = IMAGES[:20], LABELS[:20]
  result = run(name, norm, 0.1, KEYS[:20], images, labels, num_steps=8, logits_fn=nan)
  assert_within(norm, 0.1, images, result.images)
  success, margins = np.asarray(result.metrics['success']), np.asarray(result.metrics['margin'])
  assert not np.isnan(margins).any()
  wrong = np.isnan(nan(result.images)).any(-1)
  assert 0 < wrong.sum() <= success.sum()
  assert (success & np.isinf(margins))[wrong].all()


@pytest.mark.parametrize('name, norm', [pair for pair in MIXED if pair in EXACT])  # Square needs more queries
def test_an_image_that_can_be_driven_into_nan_is_not_robust(name, norm):
  """Where the best logit leads by less than .3 they are all NaN, which no clean image is."""
  leads = lambda logits: jnp.ptp(jax.lax.top_k(logits, 2)[0], axis=-1)
  band = lambda images: jnp.where((leads(LINEAR(images)) < 0.3)[:, None], jnp.nan, LINEAR(images))
  (chosen,) = np.nonzero(np.asarray(leads(LINEAR(IMAGES[:200]))) >= 0.3)
  images, labels = IMAGES[chosen][:20], LABELS[chosen][:20]
  epsilon = {'linf': 0.1, 'l2': 0.5}[norm]
  banded, plain = (
    run(name, norm, epsilon, KEYS[:20], images, labels, num_steps=8, logits_fn=fn).metrics['success']
    for fn in (band, LINEAR)
  )
  assert np.sum(banded) >= np.sum(plain) > 5


@pytest.mark.parametrize('name, norm', MOST)
def test_images_keep_their_precision_where_64_bits_are_on(name, norm):
  with jax.enable_x64(True):
    for dtype in (np.float32, np.float64):
      images = IMAGES[:4].astype(dtype)
      result = ATTACKS[name](norm=norm, epsilon=0.1, num_steps=3)(KEYS[:4], LINEAR, images, LABELS[:4])
      assert result.images.dtype == dtype
      assert_within(norm, 0.1, images, result.images)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_in_the_ball_that_proves_nothing_robust_every_image_can_become_any_other(norm):
  """An honest classifier of mean brightness, of two classes: a white image leaves its own only near black."""
  bright = lambda images: jnp.stack([0.4 - images.mean((1, 2, 3)), images.mean((1, 2, 3)) - 0.4], -1)
  shades = np.linspace(0, 1, 20, dtype=np.float32)
  images = np.broadcast_to(shades.reshape(-1, 1, 1, 1), (20, 4, 4, 3)).copy()
  _, stage = suites.far(norm, images.shape[1:])
  labels = np.asarray(bright(images)).argmax(-1)
  assert stage.attack.make(0)(KEYS[:20], bright, images, labels).metrics['success'].all()


SOME = slice(1, 17)  # 16 images, of which one is misclassified


@pytest.mark.parametrize('name, norm', MIXED)
def test_results_of_an_image_depend_on_it_and_its_key_alone(name, norm):
  epsilon = {'linf': 0.03, 'l2': 0.3}[norm]
  attack = functools.partial(run, name, norm, epsilon, num_steps=4, logits_fn=waves)
  keys, images = KEYS[SOME], IMAGES[SOME]
  labels = np.asarray(waves(images)).argmax(1).astype(np.int32)
  whole = attack(keys, images, labels)
  alone = attack(keys[3:4], images[3:4], labels[3:4])
  np.testing.assert_allclose(alone.images, whole.images[3:4], atol=1e-4)
  order = np.random.default_rng(0).permutation(16)
  permuted = attack(keys[order], images[order], labels[order])
  np.testing.assert_allclose(permuted.images, np.asarray(whole.images)[order], atol=1e-4)
  other = attack(keys.at[3].set(jax.random.key(99)), images, labels)
  moved = np.abs(np.asarray(other.images) - whole.images).max((1, 2, 3)) > 1e-3
  # The first start of FAB is the image itself, so that it draws nothing.
  np.testing.assert_array_equal(np.flatnonzero(moved), [] if name == 'fab' else [3])

  mesh, data = tiny.make_mesh(8), PartitionSpec('data')
  local = lambda keys, images, labels: ATTACKS[name](norm=norm, epsilon=epsilon, num_steps=4)(
    keys, waves, images, labels
  )
  sharded = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(data,) * 3, out_specs=data, check_vma=False))
  spread = sharded(keys, images, labels)
  np.testing.assert_allclose(spread.images, whole.images, atol=1e-4)
  np.testing.assert_array_equal(spread.metrics['success'], whole.metrics['success'])


def test_more_restarts_never_hurt():
  labels = np.asarray(waves(IMAGES)).argmax(1).astype(np.int32)
  of = lambda restarts: attacks.apgd(norm='linf', epsilon=0.01, num_steps=6, restarts=restarts)
  counts = [int(of(restarts)(KEYS, waves, IMAGES, labels).metrics['success'].sum()) for restarts in (1, 2, 6)]
  assert counts == sorted(counts)
  assert counts[0] < counts[2]


def test_checkpoints_are_those_of_the_paper():
  assert checkpoints(100).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
  assert checkpoints(1000)[:3].tolist() == [220, 410, 570]
  assert checkpoints(1).tolist() == [1]


def test_steps_halve_where_a_ridge_is_stepped_over():
  """Steps of 2 epsilon jump across the top of -5 |sum - 24.3|, mostly to 1.5 below; only halved ones come near it."""
  ridge = lambda images: jnp.stack([5 * jnp.abs(images.sum((1, 2, 3)) - 24.3), 0 * images.sum((1, 2, 3))], -1)
  images = np.full((20, 4, 4, 3), 0.5, np.float32)
  attack = attacks.apgd(norm='linf', epsilon=0.05)
  margins = attack(KEYS[:20], ridge, images, np.zeros(20, int)).metrics['margin']
  assert (np.asarray(margins) > -0.06).all()


def test_targets_are_all_others_in_the_order_of_the_logits():
  logits = np.float32([[0, 3, 2, 1], [5, 1, 2, 3], [np.inf, 1, np.inf, 0], [np.nan, 1, 2, 3]])
  labels = np.array([1, 1, 2, 0])
  rank = jax.jit(lambda rank: ranked_target(logits, labels, rank, 3))
  np.testing.assert_array_equal(np.stack([rank(i) for i in range(3)], 1), [[2, 3, 0], [0, 3, 2], [0, 1, 3], [3, 2, 1]])


@pytest.mark.parametrize('attack, number', [
  (attacks.pgd(norm='linf', epsilon=0.1, restarts=3), 3),
  (attacks.apgd(norm='l2', epsilon=0.1, restarts=5), 5),
  (attacks.apgd(norm='linf', epsilon=0.1, loss='targeted'), 9),
  (attacks.apgd(norm='linf', epsilon=0.1, loss='targeted', num_targets=4, restarts=2), 8),
  (attacks.multitargeted(norm='linf', epsilon=0.1, num_targets=4, restarts=20), 80),
  (attacks.fab(norm='linf', epsilon=0.1, num_targets=3, restarts=2), 6),
  (attacks.square(norm='linf', epsilon=0.1, restarts=3), 3),
])  # fmt: skip
def test_numbers_of_restarts(attack, number):
  assert attack.number == number


@pytest.mark.parametrize('name, options, message', [
  ('pgd', {'epsilon': 8}, '8/255'),
  ('pgd', {'norm': 'l3'}, 'linf'),
  ('pgd', {'loss': 'cross_entropi'}, "Did you mean 'cross_entropy'"),
  ('pgd', {'step': 'sing'}, "Did you mean 'sign'"),
  ('pgd', {'start': 'randon'}, "Did you mean 'random'"),
  ('pgd', {'restarts': 0}, 'restarts=0'),
  ('pgd', {'step_size': 0.0}, 'step_size=0.0'),
  ('apgd', {'epsilon': -1}, 'at least 0'),
  ('apgd', {'loss': 'dir'}, "Did you mean 'dlr'"),
  ('multitargeted', {'num_steps': 2.5}, 'num_steps=2.5'),
  ('multitargeted', {'learning_rate': -1.0}, 'learning_rate=-1.0'),
  ('fab', {'norm': 'l3'}, "Unknown norm 'l3'"),
  ('fab', {'epsilon': 8}, 'epsilon=8'),
  ('fab', {'num_targets': 0}, 'num_targets=0 of attacks.fab'),
  ('fab', {'restarts': 0}, 'restarts=0 of attacks.fab'),
  ('fab', {'num_steps': -1}, 'num_steps=-1 of attacks.fab'),
  ('square', {'norm': 'l1'}, "Unknown norm 'l1'"),
  ('square', {'epsilon': -0.1}, 'epsilon=-0.1'),
  ('square', {'num_queries': 0}, 'num_queries=0 of attacks.square'),
  ('square', {'restarts': 0}, 'restarts=0 of attacks.square'),
  ('square', {'p_init': 0.0}, 'p_init=0.0 of attacks.square'),
  ('square', {'p_init': 1.5}, 'p_init=1.5 of attacks.square'),
])  # fmt: skip
def test_wrong_options_are_refused(name, options, message):
  with pytest.raises(UserError, match=message):
    getattr(attacks, name)(**{'norm': 'linf', 'epsilon': 0.1} | options)


@pytest.mark.parametrize('attack, num_classes, message', [
  (attacks.apgd(norm='linf', epsilon=0.1, loss='dlr'), 2, "'dlr' needs at least 3 classes"),
  (attacks.pgd(norm='linf', epsilon=0.1, loss='dlr'), 2, "'dlr' needs at least 3 classes"),
  (attacks.apgd(norm='linf', epsilon=0.1, loss='targeted', num_targets=2), 3, 'at least 4 classes'),
  (attacks.apgd(norm='linf', epsilon=0.1, loss='targeted'), 5, 'set it to 4'),
  (attacks.multitargeted(norm='linf', epsilon=0.1), 2, 'set it to 1'),
  (attacks.fab(norm='l2', epsilon=0.1, num_targets=2), 2, 'num_targets=2 must be less .* classes, 2; set it to 1'),
])  # fmt: skip
def test_too_few_classes_are_refused(attack, num_classes, message):
  few = lambda images: LINEAR(images)[:, :num_classes]
  with pytest.raises(UserError, match=message):
    attack(KEYS[:4], few, IMAGES[:4], np.zeros(4, int))


@pytest.mark.parametrize('num_classes', [2, 3])
def test_two_and_three_classes_are_enough_for_the_others(num_classes):
  few = lambda images: LINEAR(images)[:, :num_classes]
  labels = np.asarray(few(IMAGES)).argmax(1).astype(np.int32)
  options = {'norm': 'linf', 'epsilon': 0.3}
  for attack in (attacks.apgd(**options), attacks.multitargeted(**options, num_targets=num_classes - 1, restarts=1)):
    result = jax.jit(lambda k, x, y, a=attack: a(k, few, x, y))(KEYS, IMAGES, labels)
    assert np.asarray(result.metrics['success']).all()


@pytest.mark.slow
@pytest.mark.parametrize('norm, epsilon', [('linf', 1 / 255), ('linf', 8 / 255), ('l2', 0.5)])
def test_targeted_attacks_are_as_strong_as_each_other_and_no_weaker_than_the_rest(norm, epsilon):
  """On a small classifier trained against PGD."""
  num, allowed = 512, 0.005 * 512  # images
  logits_fn = functools.partial(patch_classifier.logits_fn, patch_classifier.trained(0, 'linf', 8 / 255))
  images, labels = patch_classifier.digits('test', num)

  def num_robust(make, **options):
    attack = make(norm=norm, epsilon=epsilon, **options)
    run = jax.jit(lambda keys, images, labels: attack(keys, logits_fn, images, labels))
    return num - int(np.asarray(run(boxed_linear.keys(num, 5), images, labels).metrics['success']).sum())

  targeted = num_robust(attacks.apgd, loss='targeted')
  multitargeted = num_robust(attacks.multitargeted, restarts=1)
  others = num_robust(attacks.pgd), num_robust(attacks.apgd), num_robust(attacks.apgd, loss='dlr')
  assert num / 5 < targeted < num
  assert abs(targeted - multitargeted) <= allowed
  assert max(targeted, multitargeted) <= min(others) + allowed
  assert others[1] <= others[0] + allowed
