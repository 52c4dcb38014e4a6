"""The files of an export: how each encodes a classifier, and the Python code that loads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import functools
import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

from adversarial_augment.errors import UserError

if TYPE_CHECKING:
  import jax

  from adversarial_augment.inference import Classifier

PLATFORMS = ('cpu', 'cuda', 'tpu')

_JAX_CODE = """\
from adversarial_augment.classifiers import CLASSIFIERS
from safetensors.numpy import load_file

trees = {{'params': {{}}, 'model_state': {{}}}}
for path, array in load_file({file!r}).items():
  tree, _, rest = path.partition('/')
  module, _, name = rest.rpartition('/')
  trees[tree].setdefault(module, {{}})[name] = array
network = CLASSIFIERS[{factory!r}]({num_classes}, {options})
logits, _ = network.apply(trees['params'], trees['model_state'], None, images, is_training=False)
"""

_EXPORT_CODE = """\
import jax.export  # needs the package flatbuffers

with open({file!r}, 'rb') as file:
  classify = jax.export.deserialize(bytearray(file.read())).call
logits = classify(images)  # float32 [n, h, w, 3], RGB in [0, 1]{sizes}
"""


class Encoded(NamedTuple):
  content: bytes
  code: str  # Python code that loads the file


class Format(NamedTuple):
  file: str
  encode: Callable[[Classifier, str, str], Encoded]  # classifier, file name, card as JSON; raises UserError


def _safetensors(classifier: Classifier, file: str, card: str) -> Encoded:
  import jax

  from adversarial_augment.classifiers import weight_files
  from adversarial_augment.training import recipe

  trees = jax.device_get((classifier.params, classifier.model_state))
  name, options = classifier.config.classifier.name, recipe.classifier_options(classifier.config)
  words = ', '.join(f'{name}={value!r}' for name, value in options.items())
  code = _JAX_CODE.format(file=file, factory=name, num_classes=classifier.num_classes, options=words)
  return Encoded(weight_files.encode(*trees, card), code)


def _torch(classifier: Classifier, file: str, card: str) -> Encoded:
  import jax
  from safetensors.numpy import save

  from adversarial_augment.exporting import torch_layout
  from adversarial_augment.training import recipe

  torch_layout.check(classifier.config)
  trees = jax.device_get((classifier.params, classifier.model_state))
  tensors = torch_layout.state_dict(*trees, **recipe.normalisation(classifier.config))
  code = torch_layout.code(classifier.config, classifier.num_classes, file)
  return Encoded(save(tensors, metadata={'format': 'pt', 'card': card}), code)


def _jax_export(classifier: Classifier, file: str, card: str) -> Encoded:
  import jax

  # XLA's padding of strided convolutions depends on whether sides are even.
  multiple_of = 8 if classifier.config.classifier.padding == 'same' else 1
  # Host arrays, because device arrays would tie the program to the device.
  function: Any = functools.partial(classifier.apply, *jax.device_get((classifier.params, classifier.model_state)))
  sizes = f', h and w multiples of {multiple_of}' if multiple_of > 1 else ''
  return Encoded(serialize(function, multiple_of=multiple_of), _EXPORT_CODE.format(file=file, sizes=sizes))


FORMATS = {
  'safetensors': Format('classifier.safetensors', _safetensors),
  'torch': Format('torch_state_dict.safetensors', _torch),
  'jax_export': Format('classifier.jax_export', _jax_export),
}


def serialize(function: Callable[[jax.Array], jax.Array], *, multiple_of: int = 1) -> bytes:
  """Serializes a function of float32 images [b, h, w, 3] for all `PLATFORMS`, with the arrays that it closes over.

  b, h and w may differ in every call; h and w must be multiples of `multiple_of`.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise UserError('jax.export needs the package flatbuffers; install it: pip install flatbuffers.')
  import jax
  from jax import export

  shape: Any = export.symbolic_shape(f'b, {multiple_of}*h, {multiple_of}*w, 3')
  images = jax.ShapeDtypeStruct(shape, 'float32')
  with _without_source():
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())


@contextmanager
def _without_source() -> Iterator[None]:
  """Keeps source file paths of this machine out of programs."""
  import jax

  name = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)
