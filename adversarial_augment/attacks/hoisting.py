"""Splits a function into what can be computed before a loop over some of its arguments, and the rest."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun

from adversarial_augment.types import Array, PyTree

_SHARED, _FIXED, _MOVING = range(3)


class Parts(NamedTuple):
  """`function(moving, fixed, shared)`, as `after(moving, before(fixed, shared), shared)`."""

  before: Callable[[PyTree, PyTree], list[Array]]
  after: Callable[[PyTree, list[Array], PyTree], PyTree]


def parts(function: Callable[[PyTree, PyTree, PyTree], PyTree], moving: PyTree, fixed: PyTree, shared: PyTree) -> Parts:
  """Parts a function; the arguments here may be shapes.

  Args:
    function: of arrays alone: it is traced.
    moving: what changes; only what it reaches is left to `after`.
    fixed: what does not change, such as images. What `before` returns depends on it, so that `vmap` over `fixed` gives
      every value the mapped axis.
    shared: what does not change and both parts take, such as parameters. What depends on it alone is computed twice.
  """
  closed, shape = jax.make_jaxpr(function, return_shape=True)(moving, fixed, shared)
  jaxpr, treedef = closed.jaxpr, jax.tree.structure(shape)
  counts = [len(jax.tree.leaves(one)) for one in (moving, fixed, shared)]
  movers, fixtures = jaxpr.invars[: counts[0]], jaxpr.invars[counts[0] : sum(counts[:2])]
  sharers = jaxpr.invars[sum(counts[:2]) :]
  levels = dict.fromkeys([*sharers, *jaxpr.constvars], _SHARED) | dict.fromkeys(fixtures, _FIXED)
  levels |= dict.fromkeys(movers, _MOVING)
  level = lambda atoms: max((levels[atom] for atom in atoms if not isinstance(atom, Literal)), default=_SHARED)
  for equation in jaxpr.eqns:
    levels |= dict.fromkeys(equation.outvars, level(equation.invars))
  of = lambda *wanted: [equation for equation in jaxpr.eqns if level(equation.invars) in wanted]
  read = [atom for equation in of(_MOVING) for atom in equation.invars] + jaxpr.outvars
  cut = [*dict.fromkeys(atom for atom in read if not isinstance(atom, Literal) and levels[atom] == _FIXED)]

  def program(inputs: list[Var], equations: list, outputs: list) -> Callable[..., list[Array]]:
    names = jaxpr.debug_info.with_unknown_names()  # those of the whole function's arguments
    part = jaxpr.replace(invars=inputs, eqns=equations, outvars=outputs, debug_info=names)
    return jaxpr_as_fun(ClosedJaxpr(part, closed.consts))

  first = program([*fixtures, *sharers], of(_SHARED, _FIXED), cut)
  rest = program([*movers, *cut, *sharers], of(_SHARED, _MOVING), jaxpr.outvars)
  return Parts(
    before=lambda fixed, shared: first(*jax.tree.leaves((fixed, shared))),
    after=lambda moving, values, shared: jax.tree.unflatten(treedef, rest(*jax.tree.leaves((moving, values, shared)))),
  )
