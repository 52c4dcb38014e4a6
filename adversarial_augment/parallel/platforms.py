"""The platform that a program is made for: that of its mesh, whose devices need not be those of this process.

The fast form of a convolution, say, is another one on each platform, and `jax.default_backend()` knows only of the
process that traces.
"""

from collections.abc import Callable, Sequence
import contextlib
from contextvars import ContextVar
import functools

import jax
from jax.sharding import Mesh, Sharding

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


def jit(
  mesh: Mesh,
  function: Callable,
  *,
  static_argnums: int | Sequence[int] = (),
  donate_argnums: int | Sequence[int] = (),
  out_shardings: Sharding | None = None,
  compiler_options: dict[str, bool] | None = None,
) -> jax.stages.Wrapped:
  """Returns `jax.jit` of a function, traced for the platform of a mesh.

  Args:
    mesh: the devices.
    function: to compile.
    static_argnums: positions of arguments that are constants of the program.
    donate_argnums: positions of arguments whose buffers it may reuse.
    out_shardings: where all results live; None leaves it to the compiler.
    compiler_options: of XLA.
  """

  @functools.wraps(function)
  def traced(*args, **kwargs):
    with made_for(mesh):
      return function(*args, **kwargs)

  return jax.jit(
      traced, static_argnums=static_argnums, donate_argnums=donate_argnums, out_shardings=out_shardings,
      compiler_options=compiler_options,
  )  # fmt: skip
