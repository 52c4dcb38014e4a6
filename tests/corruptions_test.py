"""What all corruptions share: the same bytes whatever an image comes with, and refusals of bad input."""

import functools
import hashlib
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from adversarial_augment.corruptions import BAR_NAMES, CORRUPTIONS, EXTRA_NAMES, NAMES, corrupt
from adversarial_augment.errors import UserError
from tests.corruption_images import real_images

ALL = (*NAMES, *EXTRA_NAMES)
COUNT = 70  # three chunks, the last one not full


@functools.cache
def corrupted(name: str, severity: int) -> np.ndarray:
  return corrupt(real_images(COUNT), name, severity, seed=3)


def test_the_names_are_those_of_cifar10_c():
  assert len(NAMES) == 15
  assert len(EXTRA_NAMES) == 4
  assert len(BAR_NAMES) == 10
  assert CORRUPTIONS.keys() == {*ALL, *BAR_NAMES}


@pytest.mark.parametrize('name', [*ALL, *BAR_NAMES])
def test_a_subset_equals_the_same_rows_of_the_whole(name):
  whole = corrupted(name, 3)
  assert whole.shape == (COUNT, 32, 32, 3)
  assert whole.dtype == np.uint8
  rows = np.array([69, 5, 5, 33])
  np.testing.assert_array_equal(corrupt(real_images(COUNT)[rows], name, 3, seed=3, indices=rows), whole[rows])
  for row in (0, 41):
    np.testing.assert_array_equal(corrupt(real_images(COUNT)[row : row + 1], name, 3, 3, [row])[0], whole[row])


CHANCE = sorted(set(ALL) - {'defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate', 'jpeg_compression'}
                - {'gaussian_blur', 'saturate'})  # fmt: skip


@pytest.mark.parametrize('name', CHANCE)
def test_draws_differ_between_seeds_images_and_severities_and_names(name):
  images = np.repeat(real_images(1), 8, axis=0)
  first = corrupt(images, name, 2, seed=0)
  assert (first != corrupt(images, name, 2, seed=1)).any(axis=(1, 2, 3)).sum() >= 6
  assert len(np.unique(first, axis=0)) >= 6
  np.testing.assert_array_equal(first[5:], corrupt(images[5:], name, 2, 0, [5, 6, 7]))


def test_grey_levels_are_clipped_and_do_not_wrap():
  for level, far in ((255, 100), (0, 155)):
    noisy = corrupt(np.full((4, 32, 32, 3), level, np.uint8), 'gaussian_noise', 5)
    assert 0.4 < (noisy == level).mean() < 0.6
    assert not ((noisy == far) | (abs(noisy.astype(int) - level) > 150)).any()


def test_corruptions_of_one_family_draw_apart():
  grey = np.full((1, 32, 32, 3), 128, np.uint8)
  noise = [corrupt(grey, name, severity)[0].astype(int) - 128 for name, severity in (
      ('gaussian_noise', 5), ('speckle_noise', 5), ('gaussian_noise', 4),
  )]  # fmt: skip
  for other in noise[1:]:
    assert abs(np.corrcoef(noise[0].ravel(), other.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize('name', sorted(set(ALL) - {'pixelate', 'jpeg_compression'}))
def test_the_draws_of_an_image_follow_from_seed_name_severity_and_index(name):
  """The parts, which are held against oracles, put together by hand."""
  corruption, images, seed, severity, indices = CORRUPTIONS[name], real_images(2), 5, 4, (17, 3)
  number = ['gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur',
            'snow', 'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
            'speckle_noise', 'gaussian_blur', 'spatter', 'saturate'].index(name)  # fmt: skip
  constants = corruption.constants(severity, (32, 32))
  found = corrupt(images, name, severity, seed, indices)
  for image, index, result in zip(images, indices, found, strict=True):
    key = jax.random.key(seed, impl='threefry2x32')
    for part in (number, severity, index):
      key = jax.random.fold_in(key, part)
    draws = jax.jit(corruption.draw, static_argnums=1)(key, (32, 32), constants)
    levels = np.asarray(jax.jit(corruption.apply)(image.astype(np.float32), draws, constants))
    expected = np.clip(levels, 0, 255).astype(np.uint8).astype(int)
    assert abs(result - expected).max() <= 1
    assert (result == expected).mean() > 0.99


def test_the_same_seed_gives_the_same_bytes_in_every_version():
  """Shot noise is made of integers alone."""
  ramp = np.arange(32 * 32 * 3, dtype=np.int64).reshape(1, 32, 32, 3) % 256
  noisy = corrupt(np.repeat(ramp, 2, axis=0).astype(np.uint8), 'shot_noise', 2, seed=3, indices=[0, 7])
  digest = hashlib.sha256(noisy.tobytes()).hexdigest()
  assert digest == '1e4b0ab5e65613d171ce08fa321b479e073ed72032fcfe542e643b31eb669909'


PROGRAM = """
import sys
import numpy as np
import jax
jax.config.update('jax_num_cpu_devices', int(sys.argv[1]))
from adversarial_augment.corruptions import CORRUPTIONS, corrupt
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **{name: corrupt(images, name, 4, seed=1) for name in CORRUPTIONS})
"""


def test_devices_and_settings_of_jax_change_nothing(tmp_path):
  settings = {'JAX_ENABLE_X64': '1', 'JAX_DEFAULT_PRNG_IMPL': 'rbg', 'JAX_THREEFRY_PARTITIONABLE': '0'}
  assert jax.device_count() == 8
  np.save(tmp_path / 'images.npy', real_images(COUNT))
  subprocess.run(
    [sys.executable, '-c', PROGRAM, '1', tmp_path / 'images.npy', tmp_path / 'one.npz'],
    check=True,
    env=os.environ | settings,
  )
  with np.load(tmp_path / 'one.npz') as one:
    assert set(one) == CORRUPTIONS.keys()
    for name in CORRUPTIONS:
      np.testing.assert_array_equal(one[name], corrupt(real_images(COUNT), name, 4, seed=1), name)


def test_images_of_other_sizes():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 40, 57, 3), dtype=np.uint8)
  for name in ALL:
    assert corrupt(images, name, 5).shape == images.shape


@pytest.mark.parametrize(
  'change, message',
  [
    ({'name': 'gausian_noise'}, "Unknown corruption 'gausian_noise'.* Did you mean 'gaussian_noise'?"),
    ({'severity': 0}, 'severity=0 must be an integer from 1 to 5'),
    ({'severity': 6}, 'severity=6 must'),
    ({'severity': True}, 'severity=True must'),
    ({'severity': 1.5}, 'severity=1.5 must'),
    ({'severity': '1'}, "severity='1' must"),
    ({'severity': [1]}, r'severity=\[1\] must'),
    ({'seed': -1}, 'seed=-1 must be an integer from 0'),
    ({'seed': 2**31}, 'seed=2147483648 must'),
    ({'seed': 0.5}, 'seed=0.5 must'),
    ({'seed': True}, 'seed=True must'),
    ({'severity': 3.0}, 'severity=3.0 must'),
    ({'severity': np.ones(2, int)}, 'severity=array.* must'),
    ({'name': None}, "Unknown corruption 'None'"),
    ({'images': np.zeros((2, 3, 32, 32), np.uint8)}, r'shape \[2, 3, 32, 32\]; they must be uint8 \[n, h, w, 3\]'),
    ({'images': np.zeros((2, 32, 32, 3), np.float32)}, 'images are float32 of .* must be uint8'),
    ({'images': np.zeros((32, 32, 3), np.uint8)}, r'must be uint8 \[n'),
    ({'images': np.zeros((2, 32, 31, 3), np.uint8)}, 'h and w at least 32'),
    ({'images': np.zeros((0, 32, 32, 3), np.uint8)}, 'n at least 1'),
    ({'indices': [0]}, 'indices must be 2 integers'),
    ({'indices': [0, -1]}, 'indices must be 2 integers from 0'),
    ({'indices': [0.0, 1.0]}, 'indices must be 2 integers'),
    ({'indices': [0, 2**31]}, 'indices must be 2 integers'),
  ],
)
def test_bad_input_is_named(change, message):
  arguments = {'images': np.zeros((2, 32, 32, 3), np.uint8), 'name': 'fog', 'severity': 1} | change
  with pytest.raises(UserError, match=message) as caught:
    corrupt(**arguments)
  assert '\n' not in str(caught.value)
