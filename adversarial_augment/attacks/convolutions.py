"""Convolutions of any function, in forms that XLA's CPU backend runs fast inside loops.

Outside loops XLA reorders the axes of a convolution to NHWC and HWIO, which its fast routine needs. Inside the loops of
an attack it does not, and JAX's gradient of a convolution is one with other axes: several times slower (a hundred times
for NCHW). So the program of an attack is rewritten after all gradients have been taken: each of its convolutions,
however deep in jit, scan, while, cond, remat or custom gradients, becomes one of those axes.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp

from adversarial_augment.parallel import platforms
from adversarial_augment.per_example_conv import columnwise, input_gradient
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

_CHANNELS, _BLOCKS = 16, 16  # of a block of groups at least, in a convolution at most
_KEPT = (
  'window_strides', 'padding', 'lhs_dilation', 'rhs_dilation', 'batch_group_count', 'precision',
  'preferred_element_type',
)  # fmt: skip


def fast_in_loops(attack: Attack) -> Attack:
  """Returns the same attack, whose convolutions are fast inside its loops on CPUs; elsewhere it stays as it is."""

  @functools.wraps(attack)
  def rewritten(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    if platforms.current() != 'cpu':
      return attack(keys, logits_fn, images, labels, frozen)
    arguments = keys, images, labels, frozen
    program = lambda keys, images, labels, frozen: attack(keys, logits_fn, images, labels, frozen)
    closed, result = jax.make_jaxpr(program, return_shape=True)(*arguments)
    leaves = core.jaxpr_as_fun(_rewrite(closed))(*jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(result), leaves)

  return rewritten


def _rewrite(value: Any) -> Any:
  """Returns a parameter of an operation, with the convolutions of the programs in it replaced."""
  if isinstance(value, core.Jaxpr):  # since JAX 0.12.0.1, closed ones too
    return value.replace(eqns=[_replaced(equation) for equation in value.eqns])
  if isinstance(value, core.ClosedJaxpr):
    return value.replace(jaxpr=_rewrite(value.jaxpr))
  return type(value)(map(_rewrite, value)) if type(value) in (tuple, list) else value


def _replaced(equation: core.JaxprEqn) -> core.JaxprEqn:
  if equation.primitive.name != 'conv_general_dilated':
    return equation.replace(params={name: _rewrite(value) for name, value in equation.params.items()})
  convolve = jax.jit(functools.partial(_convolve, equation.params))
  (call,) = jax.make_jaxpr(convolve)(*(operand.aval for operand in equation.invars)).eqns
  return call.replace(invars=equation.invars, outvars=equation.outvars)


def _convolve(params: Mapping[str, Any], x: Array, w: Array) -> Array:
  """Returns `conv_general_dilated` of any axes and groups."""
  (batch, channels, *where), (outputs, inputs, *taps), out = params['dimension_numbers']
  # The barrier keeps XLA from taking the transpositions into the convolution.
  x, w = jax.lax.optimization_barrier((x.transpose(batch, *where, channels), w.transpose(*taps, inputs, outputs)))
  groups = params['feature_group_count']
  parts = [(x, w)]
  if groups > 1:
    joined = _joined_groups(groups, w.shape[-2])
    blocks = _blocks(w, groups, joined)
    parts = [*zip(*(jnp.split(array, groups // joined, -1) for array in (x, blocks)), strict=True)]
  y = jnp.concatenate([_dense(params, *part) for part in parts], -1)
  order = (out[0], *out[2:], out[1])  # of y's axes
  return y.transpose([order.index(axis) for axis in range(y.ndim)])


def _joined_groups(groups: int, channels: int) -> int:
  """Returns how many groups one dense convolution takes: XLA's grouped ones are slow, and few channels are too."""
  fits = lambda number: groups % number == 0 and number * channels >= _CHANNELS and groups // number <= _BLOCKS
  return next((number for number in range(1, groups) if fits(number)), groups)


def _blocks(w: Array, groups: int, joined: int) -> Array:
  """Returns [..., joined * c, k] of the kernels [..., c, k] of groups: those of a block on its diagonal, and zeros."""
  *taps, channels, outputs = w.shape
  w = w.reshape(-1, 1, channels, groups // joined, joined, outputs // groups)
  diagonal = jnp.eye(joined, dtype=w.dtype)[None, :, None, None, :, None]
  return (w * diagonal).reshape(*taps, joined * channels, outputs)


def _dense(params: Mapping[str, Any], x: Array, w: Array) -> Array:
  """Returns the convolution of NHWC with HWIO, or of other numbers of spatial axes in that order, without groups."""
  strides, dilations = set(params['window_strides']), set(params['lhs_dilation'])
  regular = x.ndim == 4 and len(strides) == len(dilations) == 1 and set(params['rhs_dilation']) == {1}
  if regular and params['batch_group_count'] == 1 and params['preferred_element_type'] in (None, x.dtype):
    (stride,), (dilation,) = strides, dilations
    if dilation == 1:
      return columnwise(x, w, stride, params['padding'])
    if stride == 1:  # the gradient of a strided convolution
      return _gradient(x, w, dilation, params['padding'])
  letters = 'ABDEFG'[: x.ndim - 2]
  axes = f'N{letters}C', f'{letters}IO', f'N{letters}C'
  return jax.lax.conv_general_dilated(x, w, dimension_numbers=axes, **{name: params[name] for name in _KEPT})


def _gradient(g: Array, w: Array, stride: int, pads: Sequence[tuple[int, int]]) -> Array:
  """Returns the convolution of g with stride - 1 zeros between its pixels: the gradient of one with that stride."""
  size = [
    (length - 1) * stride + 1 + sum(pad) - (taps - 1)
    for length, pad, taps in zip(g.shape[1:3], pads, w.shape, strict=False)
  ]
  low, left = (taps - 1 - pad[0] for pad, taps in zip(pads, w.shape, strict=False))
  shape = (len(g), *size, w.shape[-1])
  return input_gradient(shape, w[::-1, ::-1].swapaxes(2, 3), g, stride, ((low, 0), (left, 0)))
