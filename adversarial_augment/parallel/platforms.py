"""The platform that a program is made for: that of its mesh, whose devices need not be those of this process.

The fast form of a convolution, say, is another one on each platform, and `jax.default_backend()` knows only of the
process that traces.
"""

from collections.abc import Callable
import contextlib
from contextvars import ContextVar
import functools
from typing import Any

import jax
from jax.sharding import Mesh

_current: ContextVar[str | None] = ContextVar('platform', default=None)


def of(mesh: Mesh) -> str:
  """Returns 'cpu', 'gpu' or 'tpu'."""
  platform = mesh.devices.flat[0].platform
  return 'gpu' if platform in ('cuda', 'rocm') else platform


def current() -> str:
  """Returns the platform of the program that is being traced: the default one outside of `jit` and `made_for`."""
  return _current.get() or jax.default_backend()


@contextlib.contextmanager
def made_for(mesh: Mesh):
  """What is traced within is made for the platform of a mesh."""
  token = _current.set(of(mesh))
  try:
    yield
  finally:
    _current.reset(token)


def jit(mesh: Mesh, function: Callable, **options: Any) -> jax.stages.Wrapped:
  """Returns `jax.jit` of a function, made for the platform of a mesh; `options` are those of `jax.jit`."""

  @functools.wraps(function)
  def traced(*args, **kwargs):
    with made_for(mesh):
      return function(*args, **kwargs)

  return jax.jit(traced, **options)
