"""A function of images, with its parameters, serialized by `jax.export`: it runs without this package."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from adversarial_augment.errors import UserError

PLATFORMS = ('cpu', 'cuda', 'tpu')

_CODE = """\
import jax.export  # needs the package flatbuffers

with open({file!r}, 'rb') as file:
  classify = jax.export.deserialize(bytearray(file.read())).call
logits = classify(images)  # float32 [n, h, w, 3], RGB in [0, 1]{sizes}
"""


def code(file: str, multiple_of: int) -> str:
  """Returns the Python code that loads the output of `serialize` from `file`."""
  sizes = f', h and w multiples of {multiple_of}' if multiple_of > 1 else ''
  return _CODE.format(file=file, sizes=sizes)


def serialize(function: Callable[[jax.Array], jax.Array], *, multiple_of: int = 1) -> bytes:
  """Serializes `function` for all `PLATFORMS`, whatever devices this machine has.

  Args:
    function: float32 images [b, h, w, 3] -> an array; arrays that it closes over become part of the program.
    multiple_of: h and w must be multiples of it; they and b may differ in every call.

  Raises:
    UserError: the package flatbuffers is not installed.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise UserError('jax.export needs the package flatbuffers; install it: pip install flatbuffers.')
  from jax import export

  shape: Any = export.symbolic_shape(f'b, {multiple_of}*h, {multiple_of}*w, 3')
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  with _without_source():
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())


@contextmanager
def _without_source() -> Iterator[None]:
  """Keeps source file paths of this machine out of programs."""
  name = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)
