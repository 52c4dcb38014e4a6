"""Threefry keys, and JAX's normal draws in a form that is fast on CPUs, for the adversary's random start.

On CPUs, `jax.random` runs Threefry as a loop. That compiles quickly but spends most of its time copying the loop's
state. Here the twenty rounds are unrolled, so that hashing, bits and normal numbers are one fused operation.
"""

import math

import jax
import jax.numpy as jnp

_NAME = 'threefry2x32'
_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def threefry_2x32(key: tuple[jax.Array, jax.Array], x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the hash of pairs of words: Threefry-2x32 with 20 rounds (Salmon et al. 2011, section 4.2).

  Args:
    key: two words, uint32 [].
    x: first words, uint32 of any shape.
    y: second words, likewise.
  """
  keys = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
  x, y = x + keys[0], y + keys[1]
  for i in range(5):
    for distance in _ROTATIONS[i % 2]:
      x = x + y
      y = x ^ (y << distance | y >> 32 - distance)
    x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
  return x, y


def key(seed: int | jax.Array) -> jax.Array:
  """Returns the Threefry key of a seed, whatever JAX_DEFAULT_PRNG_IMPL says."""
  return jax.random.key(seed, impl=_NAME)


def own(keys: jax.Array) -> jax.Array:
  """Converts keys [...] of any kind to Threefry keys; Threefry keys stay as they are.

  With other kinds, the draws of `vmap` for an example depend on its position in the batch.
  """
  if not jax.dtypes.issubdtype(keys.dtype, jax.dtypes.prng_key) or str(jax.random.key_impl(keys)) == _NAME:
    return keys
  return jax.random.wrap_key_data(jax.random.key_data(keys)[..., :2], impl=_NAME)


def normal(key: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
  """Returns `jax.random.normal(key, (size,), dtype)` of a Threefry key, bit for bit; float32 or float64."""
  limits = jnp.finfo(dtype)
  counts = jax.lax.iota(jnp.uint32, size)
  high, low = threefry_2x32(tuple(jax.random.key_data(key)), jnp.zeros_like(counts), counts)
  bits = high ^ low if limits.bits == 32 else high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64)
  # The mantissa of a number in [1, 2).
  one = jnp.ones((), dtype).view(bits.dtype)
  uniform = (bits >> limits.bits - limits.nmant | one).view(dtype) - 1
  least = jnp.nextafter(jnp.array(-1, dtype), jnp.array(0, dtype))
  return math.sqrt(2) * jax.lax.erf_inv(jnp.maximum(least, uniform * (1 - least) + least))
