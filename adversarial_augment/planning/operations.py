"""FLOP of a traced program over all devices: two per multiplication of its products and convolutions."""

import math
from typing import Any

from jax.extend import core


def flop(jaxpr: core.Jaxpr) -> int:
  """Returns the FLOP of a program; a loop of unknown length counts once, a conditional as its most expensive branch."""
  return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: core.JaxprEqn) -> int:
  name, params = equation.primitive.name, equation.params
  shapes = [getattr(value.aval, 'shape', ()) for value in (*equation.invars[:2], *equation.outvars[:1])]
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    return 2 * math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
  if name == 'conv_general_dilated':
    kernel = shapes[1]
    return 2 * math.prod(shapes[2]) * math.prod(kernel) // kernel[params['dimension_numbers'].rhs_spec[0]]
  inside = [flop(jaxpr) for jaxpr in _programs(params)]
  if name == 'cond':
    return max(inside)
  repeats = 1
  if name == 'scan':
    repeats = params['length']
  elif name == 'shard_map':
    repeats = params['mesh'].size
  elif name == 'pallas_call':
    repeats = math.prod(params['grid_mapping'].grid)
  return repeats * sum(inside)


def _programs(value: Any) -> list[core.Jaxpr]:
  """Returns the programs in the parameters of an operation."""
  value = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
  if isinstance(value, core.Jaxpr):
    return [value]
  members = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
  return [jaxpr for member in members for jaxpr in _programs(member)]
