"""Convolutions of a user's function inside the loops of attacks: the same numbers, in forms that CPUs run fast."""

import functools

import haiku as hk
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks
from adversarial_augment.attacks import suites
from adversarial_augment.attacks.convolutions import fast_in_loops
from adversarial_augment.types import AttackResult

KEYS, LABELS = jax.random.split(jax.random.key(0), 2), jnp.array([0, 1])

# Axes, shape of the kernel, options of the convolution, of images [2, 12, 12, 6] or what the axes make of them.
CASES = {
  'plain': ('NHWC', (3, 3, 6, 5), {}),
  'one pixel': ('NHWC', (1, 1, 6, 5), {}),
  'NCHW': ('NCHW', (3, 3, 6, 5), {}),
  'valid': ('NHWC', (5, 2, 6, 20), {'padding': 'VALID'}),
  'stride': ('NHWC', (3, 3, 6, 5), {'window_strides': (2, 2)}),
  'stride of one pixel': ('NHWC', (1, 1, 6, 5), {'window_strides': (2, 2)}),
  'stride, padded': ('NHWC', (4, 3, 6, 5), {'window_strides': (3, 3), 'padding': ((2, 0), (1, 3))}),
  'stride, cropped': ('NHWC', (3, 3, 6, 5), {'window_strides': (2, 2), 'padding': ((-1, 1), (0, -2))}),
  'strides': ('NCHW', (3, 3, 6, 5), {'window_strides': (2, 1)}),
  'dilated': ('NHWC', (3, 3, 6, 5), {'rhs_dilation': (2, 2)}),
  'dilated, strided': ('NHWC', (3, 3, 6, 5), {'rhs_dilation': (2, 1), 'window_strides': (2, 2)}),
  'transposed': ('NHWC', (3, 3, 6, 5), {'lhs_dilation': (2, 2), 'padding': ((2, 1), (0, 3))}),
  'transposed, far': ('NHWC', (2, 2, 6, 5), {'lhs_dilation': (3, 3), 'padding': ((4, 5), (3, 0))}),
  'transposed, strided': ('NHWC', (3, 3, 6, 5), {'lhs_dilation': (2, 2), 'window_strides': (3, 3)}),
  'groups': ('NHWC', (3, 3, 3, 8), {'feature_group_count': 2}),
  'groups, strided, NCHW': ('NCHW', (3, 3, 2, 9), {'feature_group_count': 3, 'window_strides': (2, 2)}),
  'depthwise': ('NHWC', (3, 3, 1, 12), {'feature_group_count': 6}),
  'depthwise, strided': ('NHWC', (3, 3, 1, 6), {'feature_group_count': 6, 'window_strides': (2, 2)}),
  'depthwise, dilated': ('NHWC', (3, 3, 1, 6), {'feature_group_count': 6, 'rhs_dilation': (2, 2)}),
}


def looped(function):
  """An attack of two steps along the gradient, which is its loop; its margins are the function's values."""

  def attack(keys, logits_fn, images, labels, frozen=None):
    gradient = jax.grad(lambda images: (logits_fn(images) ** 2).sum())
    images = jax.lax.fori_loop(0, 2, lambda _, x: x + 1e-3 * gradient(x), images)
    return AttackResult(images, {'value': logits_fn(images)})

  return fast_in_loops(attack), attack


def convolutions(jaxpr):
  """Yields all convolutions of a program, also of the programs inside it."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'conv_general_dilated':
      yield equation
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: isinstance(v, core.Jaxpr)):
      if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        yield from convolutions(getattr(value, 'jaxpr', value))


def is_fast(equation):
  n = len(equation.invars[0].aval.shape)
  spatial = range(1, n - 1)
  axes = (0, n - 1, *spatial), (n - 1, n - 2, *(axis - 1 for axis in spatial)), (0, n - 1, *spatial)
  return tuple(equation.params['dimension_numbers']) == axes and equation.params['feature_group_count'] == 1


def check_fast(function, *arguments):
  found = list(convolutions(jax.make_jaxpr(function)(*arguments).jaxpr))
  assert found
  slow = [equation.params for equation in found if not is_fast(equation)]
  assert not slow


def check_same_and_fast(function, x):
  """An attack on a function gives the same numbers, and all of its convolutions have fast axes."""
  fast, plain = (jax.jit(lambda x, one=one: one(KEYS, function, x, LABELS)) for one in looped(function))
  found, expected = fast(x), plain(x)
  np.testing.assert_allclose(found.images, expected.images, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found.metrics['value'], expected.metrics['value'], rtol=1e-4, atol=1e-4)
  check_fast(fast, x)


@pytest.mark.parametrize('name', CASES)
def test_numbers_stay_and_axes_become_fast(name):
  axes, shape, options = CASES[name]
  padding = ((1, 1), (1, 1)) if 'lhs_dilation' in options else 'SAME'
  options = {'window_strides': (1, 1), 'padding': padding} | options
  x, w = jax.random.uniform(jax.random.key(1), (2, 12, 12, 6)), jax.random.normal(jax.random.key(2), shape)
  kernel_axes = 'HWIO'
  if axes == 'NCHW':
    x, w, kernel_axes = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), 'OIHW'
  numbers = axes, kernel_axes, axes
  check_same_and_fast(lambda x: jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options), x)


@pytest.mark.parametrize('number', (1, 3), ids='{}D'.format)
def test_other_numbers_of_spatial_axes(number):
  letters = 'XYZ'[:number]
  x = jax.random.uniform(jax.random.key(1), (2, 4, *(6,) * number))
  w = jax.random.normal(jax.random.key(2), (*(3,) * number, 2, 4))
  options = {'dimension_numbers': (f'NC{letters}', f'{letters}IO', f'NC{letters}'), 'feature_group_count': 2}
  check_same_and_fast(lambda x: jax.lax.conv_general_dilated(x, w, (2,) * number, 'SAME', **options), x)


KERNEL = jax.random.normal(jax.random.key(3), (6, 6, 3, 3)) / 8


def nchw(x):
  """Three channels, twice, as NCHW with a kernel OIHW."""
  return jax.lax.conv_general_dilated(x, KERNEL, (1, 1), 'SAME')


@jax.custom_vjp
def custom_vjp(x):
  return nchw(x)


custom_vjp.defvjp(lambda x: (nchw(x), x), lambda x, g: (2 * nchw(x) * g,))


@jax.custom_jvp
def custom_jvp(x):
  return nchw(x)


custom_jvp.defjvp(lambda x, t: (nchw(*x), 3 * nchw(*t)))

NESTED = {
  'jit': jax.jit(nchw),
  'remat': jax.checkpoint(nchw),
  'scan': lambda x: jax.lax.scan(lambda x, _: (nchw(x), None), x, length=2)[0],
  'cond': lambda x: jax.lax.cond(x.sum() > 0, nchw, jnp.tanh, x),
  'custom_vjp': custom_vjp,
  'custom_jvp': custom_jvp,
  'vmap': jax.vmap(lambda x: nchw(x[None])[0]),
  'vmap over kernels': lambda x: jax.vmap(lambda k: jax.lax.conv(x, k, (1, 1), 'SAME'))(jnp.stack([KERNEL] * 2)).sum(0),
  'while, before the gradient is stopped': lambda x: x * jax.lax.stop_gradient(
    jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, nchw(s[1])), (0, x))[1]
  ),
  'remat of scan of jit': jax.checkpoint(lambda x: jax.lax.scan(lambda x, _: (jax.jit(nchw)(x), None), x, length=2)[0]),
}  # fmt: skip


@pytest.mark.parametrize('name', NESTED)
def test_convolutions_are_found_wherever_they_are(name):
  check_same_and_fast(NESTED[name], jax.random.uniform(jax.random.key(1), (2, 6, 8, 8)))


@functools.cache
def haiku_network():
  """A user's classifier with what convolutions come with: strides, groups, dilation, NCHW, batch norm, pooling."""

  def forward(images):
    x = hk.Conv2D(8, 3, stride=2)((images - 0.5) / 0.25)
    x = jax.nn.relu(hk.LayerNorm(-1, True, True)(x))
    x = hk.Conv2D(8, 3, feature_group_count=2)(x)
    x = hk.remat(hk.Conv2D(8, 3, rate=2))(x)
    x = hk.DepthwiseConv2D(1, 3)(x)
    x = hk.Conv2D(8, 3, stride=2, data_format='NCHW')(x.transpose(0, 3, 1, 2))
    x = hk.Conv2DTranspose(4, 3, stride=2, data_format='NCHW')(jax.nn.gelu(x))
    return hk.Linear(4)(x.mean((2, 3)))

  network = hk.without_apply_rng(hk.transform(forward))
  images = jax.random.uniform(jax.random.key(4), (2, 12, 12, 3))
  params = jax.jit(network.init)(jax.random.key(5), images)
  return lambda images: network.apply(params, images), images


def recolour(phi, images):
  return jnp.clip(images * phi['w'][0], 0, 1)


ATTACKS = {
  'pgd': functools.partial(attacks.pgd, num_steps=2),
  'apgd': functools.partial(attacks.apgd, num_steps=2),
  'apgd, targeted': functools.partial(attacks.apgd, num_steps=2, loss='targeted', num_targets=2),
  'fab': functools.partial(attacks.fab, num_steps=2, num_targets=2),
  'square': functools.partial(attacks.square, num_queries=3),
  'multitargeted': functools.partial(attacks.multitargeted, num_steps=2, num_targets=2, restarts=1),
  'lp': lambda norm, epsilon: attacks.lp(norm=norm, epsilon=epsilon, num_steps=2),
  'ada': lambda norm, epsilon: attacks.ada(recolour, num_steps=2),
}


@pytest.mark.parametrize('name', ATTACKS)
def test_every_attack_runs_a_function_of_the_user_fast(name):
  logits_fn, images = haiku_network()
  attack = ATTACKS[name](norm='linf', epsilon=8 / 255)
  phi = {'w': jnp.ones(3)} if name == 'ada' else None
  check_fast(lambda images: attack(KEYS, logits_fn, images, LABELS, phi), images)


def test_autoattack_runs_it_fast():
  logits_fn, images = haiku_network()
  compiled = suites._compile(logits_fn, np.asarray(images), None)
  stages = suites.stages('autoattack', norm='linf', epsilon=8 / 255, num_classes=4)
  assert len(stages) == 4
  for stage in stages:
    numbers = np.int32(0), np.int32(0)
    check_fast(functools.partial(compiled.attack_batch, stage.attack.make), *numbers, KEYS, images, LABELS)


def test_attacks_inside_other_transforms():
  logits_fn, images = haiku_network()
  attack = attacks.pgd(norm='linf', epsilon=8 / 255, num_steps=2)
  expected = jax.jit(lambda images: attack(KEYS, logits_fn, images, LABELS).images)(images)
  mapped = jax.vmap(lambda images: attack(KEYS, logits_fn, images, LABELS).images)(jnp.stack([images, images]))
  np.testing.assert_allclose(mapped, jnp.stack([expected, expected]), atol=1e-6)
  mesh = jax.make_mesh((1,), ('batch',), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
  spec = jax.sharding.PartitionSpec('batch')
  for one, check_vma in ((attack, False), (looped(logits_fn)[0], False), (looped(logits_fn)[0], True)):
    local = lambda keys, images, labels, one=one: one(keys, logits_fn, images, labels).images
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=check_vma)
    check_fast(sharded, KEYS, images, LABELS)
    if one is attack:
      np.testing.assert_allclose(jax.jit(sharded)(KEYS, images, LABELS), expected, atol=1e-6)
  slope = jax.jit(jax.grad(lambda scale: attack(KEYS, lambda x: scale * logits_fn(x), images, LABELS).images.sum()))
  assert jnp.isfinite(slope(1.0))
