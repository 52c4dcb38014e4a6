"""Crop and flip: every placement, equally often, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from adversarial_augment import augmentations
from adversarial_augment.errors import UserError

NUM = 8100
BYTES = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)  # no pixel is black
IMAGE = (BYTES / 255).astype(np.float32)


def draws(augment, num=NUM, seed=0):
  keys = jax.random.split(jax.random.key(seed), num)
  return np.asarray(jax.jit(jax.vmap(lambda key: augment(key, jnp.asarray(IMAGE))))(keys))


def test_crops_are_the_81_windows_of_the_padded_image_equally_often():
  padded = np.pad(IMAGE, ((4, 4), (4, 4), (0, 0)))
  windows = {padded[i : i + 32, j : j + 32].tobytes(): 9 * i + j for i in range(9) for j in range(9)}
  assert len(windows) == 81
  counts = np.bincount([windows[crop.tobytes()] for crop in draws(augmentations.AUGMENTATIONS['pad_crop'])])
  assert counts.size == 81
  assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_flips_are_mirrors_half_the_time():
  flipped = draws(augmentations.AUGMENTATIONS['flip'], 1000)
  mirrored = (flipped == IMAGE[None, :, ::-1]).all((1, 2, 3))
  assert ((flipped == IMAGE[None]).all((1, 2, 3)) | mirrored).all()
  assert scipy.stats.binomtest(int(mirrored.sum()), 1000).pvalue > 1e-4


def test_a_chain_reaches_every_offset_with_both_flips():
  corners = {image[::31, ::31].tobytes() for image in draws(augmentations.chain(('pad_crop', 'flip')), 4000)}
  padded = np.pad(IMAGE, ((4, 4), (4, 4), (0, 0)))
  expected = set()
  for window in (padded[i : i + 32, j : j + 32] for i in range(9) for j in range(9)):
    expected |= {window[::31, ::31].tobytes(), window[::31, ::-31].tobytes()}
  assert corners == expected


def test_parts_of_a_chain_draw_independently():
  keys = jax.random.split(jax.random.key(3), 400)
  ramp = jnp.broadcast_to(jnp.arange(1.0, 33).reshape(1, 32, 1), (32, 32, 3))
  once, twice = (
    jax.vmap(lambda key, names=names: augmentations.chain(names)(key, ramp)[0, 0, 0])(keys)
    for names in (('flip',), ('flip', 'flip'))
  )
  both = jnp.stack([once == 32, twice == 32])  # whether it ends mirrored
  assert 0.35 < float(both[1].mean()) < 0.65
  assert abs(np.corrcoef(np.asarray(both, float))[0, 1]) < 0.2


def test_an_empty_chain_is_the_identity():
  np.testing.assert_array_equal(augmentations.chain(())(jax.random.key(0), IMAGE), IMAGE)


def test_bytes_survive_the_way_to_float_and_back():
  values = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal((values.astype(jnp.float32) / 255 * 255).round().astype(jnp.uint8), values)


def test_an_unknown_name_is_refused_with_the_closest():
  with pytest.raises(UserError, match="augmentation 'flop'.*Did you mean 'flip'"):
    augmentations.chain(('pad_crop', 'flop'))
