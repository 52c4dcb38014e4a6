"""The files of an export: how each encodes a classifier, and the Python code that loads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import importlib.util
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from adversarial_augment.errors import UserError

if TYPE_CHECKING:
  import jax
  import numpy as np

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
logits = classify(images)  # float32 [n, h, w, 3], RGB in [0, 1]{sizes}; jax.grad works
"""

_ONNX_CODE = """\
import onnxruntime

session = onnxruntime.InferenceSession({file!r})
(logits,) = session.run(None, {{'images': images}})  # float32 [n, 3, h, w], RGB in [0, 1]
"""


class Encoded(NamedTuple):
  content: bytes
  code: str  # Python code that loads the file
  about: dict[str, Any]  # what else the card says of it: the layout of images, their types, packages, name for audit


class Format(NamedTuple):
  files: tuple[str, ...]
  encode: Callable[[Classifier, dict[str, Any]], dict[str, Encoded]]  # classifier, card; raises UserError
  package: str = ''  # that it needs, beside those of every installation
  extra: str = ''  # that installs it
  when_named: bool = False  # whether it is left out of an export of all formats

  def check(self) -> None:
    """Raises UserError where the package is missing."""
    if self.package and importlib.util.find_spec(self.package) is None:
      raise UserError(
        f'{self.files[-1]} needs the package {self.package}, of the extra [{self.extra}]; install it: pip install '
        f'{self.package}.'
      )


def _safetensors(classifier: Classifier, card: dict[str, Any]) -> dict[str, Encoded]:
  import jax

  from adversarial_augment.classifiers import weight_files
  from adversarial_augment.training import recipe

  file = FORMATS['safetensors'].files[0]
  params, model_state = jax.device_get((classifier.params, classifier.model_state))
  name, options = classifier.config.classifier.name, recipe.classifier_options(classifier.config)
  words = ', '.join(f'{name}={value!r}' for name, value in options.items())
  code = _JAX_CODE.format(file=file, factory=name, num_classes=classifier.num_classes, options=words)
  content = weight_files.encode(params, model_state, _text(card))
  return {file: Encoded(content, code, _about('nhwc', file, 'adversarial_augment'))}


def _torch(classifier: Classifier, card: dict[str, Any]) -> dict[str, Encoded]:
  from safetensors.numpy import save

  from adversarial_augment.exporting import torch_layout
  from adversarial_augment.training import recipe

  source = torch_layout.source(
    classifier.config,
    classifier.num_classes,
    classifier.class_names,
    recipe.normalisation(classifier.config),
    card['title'],
    classifier.checkpoint_sha256,
  )
  weights = save(_tensors(classifier), metadata={'format': 'pt', 'card': _text(card)})
  about = _about('nchw', f'{torch_layout.FILE}:load', 'torch', types=('float32', 'uint8'))
  # Names that are no text, such as those of folders in another encoding, are escaped, which a string literal allows.
  text = source.encode('utf-8', 'backslashreplace')
  code = 'from classifier_torch import load\n\nclassifier = load()\n'
  return {torch_layout.FILE: Encoded(text, code, about), torch_layout.WEIGHTS: Encoded(weights, code, about)}


def _onnx(classifier: Classifier, card: dict[str, Any]) -> dict[str, Encoded]:
  from adversarial_augment.exporting import onnx_layout

  file = FORMATS['onnx'].files[0]
  content = onnx_layout.encode(classifier.config, _tensors(classifier), card['title'], _text(card))
  about = _about('nchw', None, 'onnxruntime', gradients=False)
  return {file: Encoded(content, _ONNX_CODE.format(file=file), about)}


def _jax_export(classifier: Classifier, card: dict[str, Any]) -> dict[str, Encoded]:
  import jax

  from adversarial_augment import classifiers
  from adversarial_augment.training import recipe

  file = FORMATS['jax_export'].files[0]
  name, options = classifier.config.classifier.name, recipe.classifier_options(classifier.config)
  # XLA's padding of strided convolutions depends on whether sides are even.
  multiple_of = 8 * options['stem_stride'] if options['padding'] == 'same' else 1
  network = classifiers.CLASSIFIERS[name](classifier.num_classes, conv=_conv, **options)
  # Host arrays, because device arrays would tie the program to the device.
  function = classifiers.logits_fn(network, *jax.device_get((classifier.params, classifier.model_state)))
  sizes = f', h and w multiples of {multiple_of}' if multiple_of > 1 else ''
  code = _EXPORT_CODE.format(file=file, sizes=sizes)
  return {file: Encoded(serialize(function, multiple_of=multiple_of), code, _about('nhwc', file, 'jax', 'flatbuffers'))}


def _robustbench(classifier: Classifier, card: dict[str, Any]) -> dict[str, Encoded]:
  from adversarial_augment.exporting import robustbench

  encode = lambda claim: f'{json.dumps(claim, indent=2, allow_nan=False)}\n'.encode()
  claims = {name: Encoded(encode(claim), robustbench.code(), {}) for name, claim in robustbench.claims(card).items()}
  return {**_torch(classifier, card), **claims}


FORMATS = {
  'safetensors': Format(('classifier.safetensors',), _safetensors),
  'torch': Format(('classifier_torch.py', 'torch_state_dict.safetensors'), _torch),
  'onnx': Format(('classifier.onnx',), _onnx, 'onnx', 'onnx'),
  'jax_export': Format(('classifier.jax_export',), _jax_export, 'flatbuffers', 'export'),
  'robustbench': Format(
    (
      'classifier_torch.py',
      'torch_state_dict.safetensors',
      'robustbench_corruptions.json',
      'robustbench_Linf.json',
      'robustbench_L2.json',
    ),
    _robustbench,
    when_named=True,
  ),
}


def _text(card: dict[str, Any]) -> str:
  return json.dumps(card, sort_keys=True, allow_nan=False)


def _about(
  layout: str, audited: str | None, *packages: str, types: tuple[str, ...] = ('float32',), gradients: bool = True
) -> dict[str, Any]:
  """Returns what a card says of a file that holds the classifier."""
  about = {'layout': layout, 'images': types, 'normalisation': 'inside', 'gradients': gradients, 'needs': packages}
  return about | ({'audit_model': audited} if audited else {})


def _tensors(classifier: Classifier) -> dict[str, np.ndarray]:
  import jax

  from adversarial_augment.exporting import torch_layout
  from adversarial_augment.training import recipe

  params, model_state = jax.device_get((classifier.params, classifier.model_state))
  return torch_layout.state_dict(params, model_state, **recipe.normalisation(classifier.config))


def _conv(x: jax.Array, w: jax.Array, *, stride: int, padding: Any) -> jax.Array:
  """Convolves as usual, but so that the gradient of a stride of 2 exists where sides are symbols.

  It pads by a constant, as JAX demands, if sides are even; so odd ones get a row or column of zeros.
  """
  import jax.numpy as jnp

  from adversarial_augment import per_example_conv

  size = w.shape[0]
  if stride == 2 and (padding != 'SAME' or size == 1):
    for axis in (1, 2):
      side = x.shape[axis]
      rest = (*x.shape[:axis], 2 * ((side + 1) // 2) - side, *x.shape[axis + 1 :])
      x = jnp.concatenate([x, jnp.zeros(rest, x.dtype)], axis)
    padding = [(size // 2, 0)] * 2
  return per_example_conv.conv(x, w, stride=stride, padding=padding)


def serialize(function: Callable[[jax.Array], jax.Array], *, multiple_of: int = 1) -> bytes:
  """Serializes a function of float32 images [b, h, w, 3] and its gradient for all `PLATFORMS`, with its arrays.

  b, h and w may differ in every call; h and w must be multiples of `multiple_of`.
  """
  FORMATS['jax_export'].check()
  import jax
  from jax import export

  shape: Any = export.symbolic_shape(f'b, {multiple_of}*h, {multiple_of}*w, 3')
  images = jax.ShapeDtypeStruct(shape, 'float32')
  with _without_source():
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize(vjp_order=1))


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
