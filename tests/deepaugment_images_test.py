"""DeepAugment's images: whose weights they share, and that their bytes depend on nothing else that is made."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adversarial_augment import deepaugment
from tests.deepaugment_oracle import params_of

N = 70
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 12, 3), np.uint8)
SETTINGS = deepaugment.Settings('edsr', seed=3)


@pytest.fixture(scope='module')
def whole() -> dict[str, np.ndarray]:
  """All images through each network, made in one go."""
  all_of = lambda net: deepaugment.generate(IMAGES, np.arange(N), 1, params_of(net), SETTINGS._replace(net=net))
  return {net: all_of(net) for net in deepaugment.NETS}


@pytest.mark.parametrize('net', deepaugment.NETS)
def test_any_subset_gives_the_same_bytes(whole, net):
  assert whole[net].dtype == np.uint8
  assert whole[net].shape == IMAGES.shape
  settings, params = SETTINGS._replace(net=net), params_of(net)
  for indices in (np.arange(13, 46), np.array([2]), np.arange(1, N, 7)):
    made = deepaugment.generate(IMAGES[indices], indices, 1, params, settings)
    np.testing.assert_array_equal(made, whole[net][indices])


def test_another_number_of_devices_gives_the_same_bytes(whole, monkeypatch):
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[1:3])
  made = deepaugment.generate(IMAGES[:20], np.arange(20), 1, params_of('edsr'), SETTINGS)
  np.testing.assert_array_equal(made, whole['edsr'][:20])


def test_settings_of_the_calling_program_do_not_matter(whole, x64):
  with jax.default_prng_impl('rbg'), jax.threefry_partitionable(False):
    made = deepaugment.generate(IMAGES[:20], np.arange(20), 1, params_of('edsr'), SETTINGS)
  np.testing.assert_array_equal(made, whole['edsr'][:20])


@pytest.mark.parametrize('number, settings', [(1, SETTINGS._replace(seed=4)), (0, SETTINGS)])
def test_another_seed_or_copy_gives_other_images(whole, number, settings):
  made = deepaugment.generate(IMAGES, np.arange(N), number, params_of('edsr'), settings)
  assert (made != whole['edsr']).any((1, 2, 3)).mean() > 0.9


@pytest.mark.parametrize('net, scale', [('edsr', 'published'), ('cae', 'native32')])
def test_as_it_was_meant_and_at_the_published_scale(whole, net, scale):
  settings = SETTINGS._replace(net=net, scale=scale, bug_compatible=False)
  made = deepaugment.generate(IMAGES[:16], np.arange(16), 1, params_of(net), settings)
  assert made.shape == IMAGES[:16].shape
  assert (made != whole[net][:16]).any()
  again = deepaugment.generate(IMAGES[3:5], np.arange(3, 5), 1, params_of(net), settings)
  np.testing.assert_array_equal(again, made[3:5])


def test_equal_images_in_one_run_differ_by_their_features_alone():
  images = np.repeat(IMAGES[:1], 40, 0)
  firsts = deepaugment.first_of_run(3, 1, 40)
  made = deepaugment.generate(images, np.arange(40), 1, params_of('edsr'), SETTINGS)
  longest = np.bincount(firsts).argmax()
  run = made[firsts == longest]
  assert len(run) > 5
  kinds = {image.tobytes() for image in run}
  assert 1 < len(kinds) < len(run), 'some have random masks, those without any are equal'


def test_weights_are_drawn_anew_for_5_percent_of_the_images():
  n = 20_000
  firsts = np.stack([deepaugment.first_of_run(0, copy, n) for copy in range(5)])
  assert (firsts[:, 0] == 0).all()
  assert (firsts <= np.arange(n)).all()
  anew = firsts[:, 1:] == np.arange(1, n)
  assert stats.binomtest(int(anew.sum()), anew.size, 0.05).pvalue > 1e-3
  assert (firsts[:, 1:][~anew] == firsts[:, :-1][~anew]).all(), 'the others keep those of the image before'
  assert len({row.tobytes() for row in firsts}) == 5
  np.testing.assert_array_equal(deepaugment.first_of_run(0, 2, 100), firsts[2, :100])


def test_weights_come_from_the_pristine_ones_and_leave_them_alone():
  params = params_of('edsr')
  before = copy.deepcopy(params)
  one = deepaugment.damaged_weights(params, SETTINGS, 0, 7)
  deepaugment.damaged_weights(params, SETTINGS, 0, 8)
  again = deepaugment.damaged_weights(params, SETTINGS, 0, 7)
  for module, layer in before.items():
    for name, array in layer.items():
      np.testing.assert_array_equal(params[module][name], array)
      np.testing.assert_array_equal(one[module][name], again[module][name])
  same = [module for module in params if one[module]['w'] is params[module]['w']]
  assert 0 < len(same) < len(params)


def test_through_a_network_and_back_to_size():
  image = IMAGES[0]
  key = jax.random.key(0)
  np.testing.assert_array_equal(deepaugment._through(lambda x, key: x, image, key, 'native32'), image)
  flat = np.full((8, 12, 3), 77, np.uint8)
  np.testing.assert_array_equal(deepaugment._through(lambda x, key: x, flat, key, 'published'), flat)
  larger = deepaugment._through(lambda x, key: x.repeat(2, 0).repeat(2, 1) + 0.6, image, key, 'native32')
  np.testing.assert_array_equal(larger, np.minimum(image.astype(int), 255))  # truncated
  sizes = []
  deepaugment._through(lambda x, key: sizes.append(x.shape) or x, image, key, 'published')
  assert sizes == [(32, 48, 3)]
  beyond = deepaugment._through(lambda x, key: jnp.where(x > 100, 1e4, -1e4), image, key, 'native32')
  np.testing.assert_array_equal(beyond, np.where(image > 100, 255, 0))


def test_made_with_names_what_the_bytes_depend_on():
  about = deepaugment.made_with()
  assert about.keys() == {'adversarial_augment', 'deepaugment', 'platform', 'jax', 'numpy', 'scipy'}
  assert about['platform'] == 'cpu'
  assert about['deepaugment'] == deepaugment.VERSION
