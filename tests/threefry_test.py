"""The hash against the published vectors, the draws against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import threefry

# Random123's known answers for threefry2x32 with 20 rounds (kat_vectors): counter, key, hash.
KNOWN = [
  ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
  ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
  ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize('counter, key, expected', KNOWN)
def test_hash_gives_the_known_answers(counter, key, expected):
  found = threefry.threefry_2x32(tuple(map(jnp.uint32, key)), *map(jnp.uint32, counter))
  assert tuple(map(int, found)) == expected


@pytest.mark.parametrize('size', [1, 7, 2**14])
@pytest.mark.parametrize('seed', [0, 1, 2**31])
def test_draws_are_those_of_jax(seed, size):
  key = jax.random.key(seed)
  drawn = jax.jit(threefry.normal, static_argnums=(1, 2))(key, size, jnp.float32)
  np.testing.assert_array_equal(drawn, jax.random.normal(key, (size,)))


@pytest.mark.usefixtures('x64')
def test_draws_of_float64_are_those_of_jax():
  keys = jax.random.split(jax.random.key(3), 5)
  drawn = jax.jit(jax.vmap(lambda key: threefry.normal(key, 1000, jnp.float64)))(keys)
  np.testing.assert_array_equal(drawn, jax.vmap(lambda key: jax.random.normal(key, (1000,), jnp.float64))(keys))
