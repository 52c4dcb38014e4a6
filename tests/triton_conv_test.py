"""The Triton kernels against XLA's convolutions, in Pallas' interpreter: no GPU is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import per_example_conv
from adversarial_augment.per_example_conv import triton_conv

pytestmark = pytest.mark.usefixtures('quick_compile')

EXAMPLES = 3
# images that share a kernel, h, w, c, k, size of the kernel, padding
CASES = {
  'body': (1, 9, 7, 16, 32, 3, ((1, 1), (1, 1))),
  'several images, tiles of channels, more than one tile of pixels': (2, 13, 11, 64, 128, 3, ((1, 1), (1, 1))),
  'from three channels': (1, 9, 7, 3, 32, 3, ((1, 1), (1, 1))),
  'to 27 channels, which fill 32': (1, 6, 5, 64, 27, 5, ((2, 2), (2, 2))),
  'to three channels': (1, 12, 5, 64, 3, 5, ((2, 2), (2, 2))),
  'one by one': (1, 8, 8, 32, 16, 1, ((0, 0), (0, 0))),
  'uneven': (1, 10, 12, 16, 16, (2, 5), ((0, 2), (1, 3))),
}


def plain(x, w, pads):
  return jax.lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def values_and_gradients(form, x, w, g, pads):
  y, pull = jax.vjp(jax.vmap(lambda x, w: form(x, w, pads)), x, w)
  return (y, *pull(g.astype(y.dtype)))


def arrays(case, dtype):
  n, h, width, c, k, size, ((top, bottom), (left, right)) = case
  kh, kw = size if isinstance(size, tuple) else (size, size)
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=(EXAMPLES, *shape)), dtype)
  y = normal(n, h + top + bottom - kh + 1, width + left + right - kw + 1, k)
  return normal(n, h, width, c), normal(kh, kw, c, k), y


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
@pytest.mark.parametrize('dtype, tolerance', [('float32', 2e-6), ('bfloat16', 2e-2)])
def test_values_and_gradients_are_those_of_xla(case, dtype, tolerance):
  x, w, g = arrays(case, dtype)
  wide = lambda array: array.astype(jnp.float32)
  expected = values_and_gradients(plain, wide(x), wide(w), wide(g), case[-1])
  found = values_and_gradients(triton_conv.conv, x, w, g, case[-1])
  for one, other in zip(found, expected, strict=True):
    assert one.dtype == jnp.dtype(dtype)
    assert jnp.abs(wide(one) - other).max() <= tolerance * jnp.abs(other).max()


@pytest.mark.parametrize(
  'channels, outputs, stride, expected',
  [(64, 64, 1, True), (3, 64, 1, True), (64, 256, 1, True), (64, 64, 2, False), (48, 64, 1, False), (64, 20, 1, True)],
)
def test_convolutions_of_other_sizes_are_left_to_xla(channels, outputs, stride, expected):
  assert triton_conv.suits(channels, outputs, stride) == expected


@pytest.mark.parametrize('dtype, taken', [('bfloat16', 1), ('float32', 0)])
def test_a_gpu_takes_them_in_bfloat16_alone(monkeypatch, dtype, taken):
  calls = []
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(triton_conv, 'conv', lambda *arguments: calls.append(1) or plain(*arguments))
  x, w, _ = arrays(CASES['body'], dtype)
  expected = jax.vmap(lambda x, w: plain(x, w, CASES['body'][-1]))(x, w)
  np.testing.assert_array_equal(per_example_conv.per_example_conv(x[:, 0], w), expected[:, 0])
  assert len(calls) == taken
