"""The platform that a program is compiled for: that of its mesh, whose devices this process need not have.

The fast form of a convolution, for example, differs between platforms, and `jax.default_backend()` only knows the
process that traces.
"""

from collections.abc import Callable, Iterator
import contextlib
from contextvars import ContextVar
import functools

import jax
from jax.sharding import Mesh

_current: ContextVar[str | None] = ContextVar('platform', default=None)


def of(mesh: Mesh) -> str:
  """Returns 'cpu', 'gpu' or 'tpu'."""
  platform = mesh.devices.flat[0].platform
  return 'gpu' if platform in ('cuda', 'rocm') else platform


def current() -> str:
  """Returns the platform of the program that is being traced; outside of `jit` and `tracing_for`, the default one."""
  return _current.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(mesh: Mesh) -> Iterator[None]:
  """Within the block, programs are traced for the platform of a mesh."""
  token = _current.set(of(mesh))
  try:
    yield
  finally:
    _current.reset(token)


def for_mesh(mesh: Mesh, function: Callable) -> Callable:
  """Returns a function that `jax.jit` traces for the platform of a mesh."""

  @functools.wraps(function)
  def traced(*args, **kwargs):
    with tracing_for(mesh):
      return function(*args, **kwargs)

  return traced
