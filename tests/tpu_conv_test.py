"""The TPU kernels against XLA's convolutions, in Pallas' interpreter; and compiled, where there is a TPU's compiler."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import per_example_conv
from adversarial_augment.corruption_nets.edsr import edsr
from adversarial_augment.per_example_conv import tpu_conv

pytestmark = pytest.mark.usefixtures('quick_compile')

EXAMPLES = 2
SAME = ((1, 1), (1, 1))
# images that share a kernel, h, w, c, k, size of the kernel, padding
CASES = {
  'body': (1, 6, 32, 64, 64, 3, SAME),
  'several images': (3, 5, 16, 32, 32, 3, SAME),
  'small network': (1, 8, 32, 16, 16, 3, SAME),
  'from three channels': (1, 7, 9, 3, 64, 3, SAME),
  'to three channels': (1, 9, 32, 64, 3, 5, ((2, 2), (2, 2))),
  'to many channels': (1, 4, 16, 64, 256, 3, SAME),
  'one by one': (2, 7, 9, 64, 48, 1, ((0, 0), (0, 0))),
  'valid': (1, 9, 7, 20, 24, 3, ((0, 0), (0, 0))),
  'uneven': (1, 10, 12, 16, 16, (2, 5), ((0, 2), (1, 3))),
  'more zeros than the kernel reaches': (1, 6, 5, 8, 16, 3, ((2, 3), (0, 4))),
}


def plain(x, w, b, pads, relu):
  y = jax.lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  y += b.reshape(1, 1, 1, -1)
  return jax.nn.relu(y) if relu else y


def kernels(x, w, b, pads, relu):
  return tpu_conv.conv(x, w, b, pads, relu=relu)


def values_and_gradients(form, x, w, b, g, pads, relu):
  @jax.jit
  def evaluate(x, w, b, g):
    y, pull = jax.vjp(jax.vmap(lambda x, w, b: form(x, w, b, pads, relu)), x, w, b)
    return (y, *pull(g.astype(y.dtype)))

  return evaluate(x, w, b, g)


def arrays(case):
  """In numbers that bfloat16 has, so that products are those of the oracle."""
  n, h, width, c, k, size, ((top, bottom), (left, right)) = case
  kh, kw = size if isinstance(size, tuple) else (size, size)
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=(EXAMPLES, *shape)), jnp.bfloat16)
  gradient = normal(n, h + top + bottom - kh + 1, width + left + right - kw + 1, k)
  return normal(n, h, width, c), normal(kh, kw, c, k), normal(k), gradient


def largest_error(found, expected):
  wide = lambda array: array.astype(jnp.float32)
  return float(jnp.abs(wide(found) - wide(expected)).max() / jnp.abs(wide(expected)).max())


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
@pytest.mark.parametrize('dtype, relu, tolerance', [('float32', True, 2e-6), ('bfloat16', False, 1e-2)])
def test_values_and_gradients_are_those_of_xla(case, dtype, relu, tolerance):
  operands = arrays(case)
  expected = values_and_gradients(plain, *(a.astype(jnp.float32) for a in operands), case[-1], relu)
  found = values_and_gradients(kernels, *(a.astype(dtype) for a in operands), case[-1], relu)
  for one, other in zip(found, expected, strict=True):
    assert one.dtype == jnp.dtype(dtype)
    assert largest_error(one, other) <= tolerance


def test_float32_is_rounded_to_bfloat16_before_products():
  x, w, b = jnp.full((1, 1, 4, 4, 8), 1 + 2**-12), jnp.ones((1, 1, 1, 8, 8)), jnp.zeros((1, 8))
  y = jax.vmap(lambda x, w, b: kernels(x, w, b, ((0, 0), (0, 0)), False))(x, w, b)
  np.testing.assert_array_equal(y, jnp.full_like(y, 8))


def test_a_chain_of_layers_may_keep_pixels_side_by_side():
  x, w, b, _ = (a.astype(jnp.float32) for a in arrays(CASES['body']))
  packed = tpu_conv.side_by_side(x[0], 3, 64)
  assert packed.shape == (1, 6, 16, 128)
  twice = lambda x: kernels(kernels(x, w[0], b[0], SAME, True), w[1], b[1], SAME, False)
  np.testing.assert_array_equal(twice(packed).reshape(x[0].shape), twice(x[0]))


@pytest.mark.parametrize(
  'images, kernel, dtype, stride, pads, expected',
  [
    ((1, 32, 32, 64), (3, 3, 64, 64), 'float32', 1, SAME, True),
    ((1, 32, 32, 64), (3, 3, 64, 256), 'bfloat16', 1, SAME, True),
    ((1, 32, 16, 128), (3, 3, 64, 64), 'float32', 1, SAME, True),  # two pixels side by side
    ((1, 32, 16, 128), (3, 3, 64, 64), 'float32', 1, ((0, 0), (0, 0)), False),
    ((1, 32, 32, 64), (3, 3, 64, 64), 'float64', 1, SAME, False),
    ((1, 32, 32, 64), (3, 3, 64, 64), 'float32', 2, SAME, False),
    ((1, 32, 32, 64), (3, 3, 64, 64), 'float32', 1, ((3, 0), (1, 1)), False),
    ((1, 32, 32, 64), (3, 3, 64, 64), 'float32', 1, ((-1, 1), (1, 1)), False),
    ((1, 224, 224, 64), (3, 3, 64, 64), 'float32', 1, SAME, False),  # does not fit into fast memory
  ],
)
def test_other_convolutions_are_left_to_xla(images, kernel, dtype, stride, pads, expected):
  assert tpu_conv.suits(images, kernel, dtype, stride, pads) == expected


@pytest.mark.parametrize('precision, taken', [('default', True), ('bfloat16', True), ('highest', False)])
def test_products_of_another_precision_are_left_to_xla(precision, taken):
  with jax.default_matmul_precision(precision):
    assert tpu_conv.suits((1, 32, 32, 64), (3, 3, 64, 64), jnp.float32, 1, SAME) == taken
    assert tpu_conv.suits((1, 32, 32, 64), (3, 3, 64, 64), jnp.bfloat16, 1, SAME)


@pytest.mark.parametrize('platform, taken', [('tpu', True), ('gpu', False), ('cpu', False)])
def test_tpus_alone_take_them(monkeypatch, platform, taken):
  monkeypatch.setattr(per_example_conv, 'platforms', SimpleNamespace(current=lambda: platform))
  x, w, b, _ = (a.astype(jnp.float32) for a in arrays(CASES['small network']))
  layer = lambda x, w, b: per_example_conv.layer(per_example_conv.example_conv, x, w, b, relu=True)
  for function, arguments in ((layer, (x, w, b)), (per_example_conv.example_conv, (x, w))):
    assert ('pallas_call' in str(jax.make_jaxpr(jax.vmap(function))(*arguments))) == taken
  ours = jax.vmap(layer)(x, w, b)
  assert largest_error(ours, plain_layer(x, w, b)) <= 1e-2


def plain_layer(x, w, b):
  return jax.vmap(lambda x, w, b: plain(x, w, b, SAME, True))(x, w, b)


def test_a_layer_of_any_other_form_is_that_form_and_a_bias(monkeypatch):
  monkeypatch.setattr(per_example_conv, 'platforms', SimpleNamespace(current=lambda: 'tpu'))
  x, w, b, _ = (a[0].astype(jnp.float32) for a in arrays(CASES['small network']))
  options = []

  def form(images, kernel, **given):
    options.append(given)
    return per_example_conv.conv(images, kernel, **given)

  y = per_example_conv.layer(form, x, w, b, relu=True, stride=2)
  np.testing.assert_array_equal(y, jax.nn.relu(per_example_conv.conv(x, w, stride=2) + b.reshape(1, 1, 1, -1)))
  assert options == [{'stride': 2, 'padding': 'SAME'}]
  assert per_example_conv.side_by_side(x, form) is x


@pytest.mark.parametrize('width', [32, 12])  # 32 pixels keep side by side through the body, 12 do not
def test_edsr_is_the_same_function_in_this_form(monkeypatch, width):
  rounded = lambda x: x + jax.lax.stop_gradient(x.astype(jnp.bfloat16).astype(x.dtype) - x)
  form = lambda images, kernel, **given: per_example_conv.conv(rounded(images), rounded(kernel), **given)
  oracle, network = (edsr(blocks=1, features=16, scale=1, **conv) for conv in ({'conv': form}, {}))
  images = jax.random.uniform(jax.random.key(1), (1, 6, width, 3))
  phi = network.init(jax.random.key(0), images)
  weights = jax.random.normal(jax.random.key(2), images.shape)

  def evaluate(phi, images, network=network):
    return jax.value_and_grad(lambda phi, x: (network.apply(phi, x) * weights).sum(), (0, 1))(phi, images)

  expected = jax.jit(lambda phi, x: evaluate(phi, x, oracle))(phi, images)
  monkeypatch.setattr(per_example_conv, 'platforms', SimpleNamespace(current=lambda: 'tpu'))
  program = jax.jit(evaluate).trace(phi, images)
  assert str(program.jaxpr).count('pallas_call') == 10  # five layers, forward and backward
  found = program.lower().compile()(phi, images)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert largest_error(one, other) <= 1e-2  # gradients are rounded, too


COMPILE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from adversarial_augment import per_example_conv
from adversarial_augment.parallel import platforms
from tests import tpu_conv_test

devices = topologies.get_topology_desc(topology_name=sys.argv[1], platform='tpu').devices
mesh = Mesh(np.array(devices), ('data',))
for (n, h, w, c, k, size, pads) in tpu_conv_test.CASES.values():
  for dtype in (jnp.float32, jnp.bfloat16):
    size = size if isinstance(size, tuple) else (size, size)
    def layer(x, w, b):
      y, pull = jax.vjp(jax.vmap(lambda x, w, b: per_example_conv.layer(
          per_example_conv.example_conv, x, w, b, relu=True, padding=pads)), x, w, b)
      return y, pull(y)
    spec = PartitionSpec('data')
    mapped = jax.shard_map(layer, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    array = lambda *shape: jax.ShapeDtypeStruct((len(devices), *shape), dtype, sharding=NamedSharding(mesh, spec))
    program = jax.jit(platforms.for_mesh(mesh, mapped)).lower(array(n, h, w, c), array(*size, c, k), array(k)).compile()
    print(program.as_text().count('custom_call_target="tpu_custom_call"'))
"""


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="needs the TPU's compiler: pip install libtpu")
@pytest.mark.parametrize(
  'topology', ['v5e:2x2', *(pytest.param(name, marks=pytest.mark.slow) for name in ('v4:2x2x1', 'v6e:2x2'))]
)
def test_the_tpu_compiler_takes_every_case(topology):
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  found = subprocess.run(
    [sys.executable, '-c', COMPILE, topology], env=environment, capture_output=True, text=True, check=False
  )
  assert found.returncode == 0, found.stderr
  assert found.stdout.split() == ['2'] * (2 * len(CASES))
