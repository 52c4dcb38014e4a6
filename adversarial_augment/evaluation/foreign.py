"""Classifiers that were made elsewhere: loaded, identified by a hash, and put in the form that evaluations take."""

from collections.abc import Callable, Mapping, Sequence
import functools
import importlib.util
import inspect
import itertools
from pathlib import Path
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
import numpy as np

from adversarial_augment import config as configs
from adversarial_augment import inference
from adversarial_augment.checks import did_you_mean
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import audit_request
from adversarial_augment.parallel import sharding
from adversarial_augment.storage import artifact, state_arrays, untrusted
from adversarial_augment.types import Array, Network, PyTree, TrainState

_MAX_EXPORT = 1 << 33  # bytes
# Attributes of a model that say what the flags say.
_ATTRIBUTES = {'mean': 'mean', 'std': 'std', 'layout': 'layout', 'size': 'image_size', 'classes': 'class_names'}
OF_JAX = 'a function of JAX'  # kind of a model
_EXPORTS = ('classifier.safetensors', 'classifier.jax_export')


class Input(NamedTuple):
  """What a model takes: (images - mean) / std of images [n, h, w, 3] in [0, 1], resized, with its axes in order."""

  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  layout: str = 'nhwc'
  size: tuple[int, int] | None = None  # None: that of the images

  def prepare(self, images: Array) -> Array:
    """Returns images as the model takes them."""
    if self.size is not None and self.size != images.shape[1:3]:
      images = jax.image.resize(images, (len(images), *self.size, images.shape[-1]), 'bilinear')
    mean, std = (jnp.array(values, images.dtype).reshape(1, 1, 1, -1) for values in (self.mean, self.std))
    images = (images - mean) / std
    return jnp.moveaxis(images, -1, 1) if self.layout == 'nchw' else images


class Form(NamedTuple):
  """A way to run a model."""

  run: Callable[[PyTree, Array], Array]  # (weights, images as the model takes them) -> logits [n, k]
  weights: PyTree = {}
  one_device: bool = False  # whether it runs on the first device alone


class Model(NamedTuple):
  """A classifier that was made elsewhere."""

  name: str  # such as FILE.py:NAME
  kind: str  # what it is made with
  takes: Input
  class_names: tuple[str, ...]  # of its outputs; () if unknown
  call: Callable[[Any], Any]  # images as it takes them -> logits, for a try outside of other programs
  forward: Form  # the fastest
  attacked: Callable[[], Form | None]  # with gradients; None: it has none
  hashes: dict[str, str]  # of the file, if there is one, and of the weights

  def about(self) -> dict[str, Any]:
    """Returns what decides its logits, as results record it."""
    return {'model': self.name, 'kind': self.kind, **self.hashes, **self.takes._asdict(), 'classes': self.class_names}


def network(form: Form, takes: Input) -> Network:
  """Returns a model as a network whose weights are its state."""

  def apply(params: PyTree, weights: PyTree, key: Any, images: Array, *, is_training: bool) -> tuple[Array, PyTree]:
    assert not is_training
    return form.run(weights, takes.prepare(images)).astype(images.dtype), weights

  return SimpleNamespace(init=None, apply=apply)


def place(form: Form) -> tuple[Mesh, TrainState]:
  """Returns the devices that a model runs on, and its weights on them."""
  mesh = sharding.data_mesh()
  if form.one_device:
    first = jax.local_devices()[:1]
    mesh = jax.make_mesh((1,), (sharding.AXIS,), axis_types=(AxisType.Auto,), devices=first)
  weights = sharding.replicate(mesh, form.weights)
  return mesh, TrainState(step=jnp.zeros((), jnp.int32), params={}, model_state=weights, opt_state=None)


def load(spec: str, given: Mapping[str, Any], image_shape: Sequence[int]) -> Model:
  """Returns the model of `--model`.

  Args:
    spec: FILE.py:NAME, an artefact of jax.export, or a file or folder of `export`. FILE.py is run, because it is the
      user's own; nothing that another file holds is.
    given: what the model takes, by the names of `audit_request.CHECKS`; its attributes say what is None.
    image_shape: of the images of the data set, [h, w, 3].

  Raises:
    UserError: there is no such model, or its file cannot be used.
  """
  path, name = audit_request.split(spec)
  if name:
    sha256 = _sha256_of(path)  # before it runs
    return adopt(_execute(path, name), given, image_shape, f'{path.name}:{name}', {'file_sha256': sha256})
  if path.is_dir():
    inside = [path / file for file in _EXPORTS if (path / file).exists()]
    if not inside:
      raise UserError(f"'{path}' holds no {' or '.join(_EXPORTS)}; name an export, or a model as FILE.py:NAME.")
    path = inside[0]
  return (_of_safetensors if path.suffix == '.safetensors' else _of_jax_export)(path, given)


def _sha256_of(path: Path) -> str:
  with artifact.storage_errors(f"read '{path}'"):
    return artifact.sha256_of(path)


def _execute(path: Path, name: str) -> Any:
  """Returns what a Python file has under a name; calls classes, and functions without arguments."""
  spec = importlib.util.spec_from_file_location(f'audited_{path.stem}', path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # where pickles and dataclasses look
  sys.path.insert(0, str(path.parent.absolute()))  # as if Python had started the file
  with configs.explained(path):
    spec.loader.exec_module(module)
    if not hasattr(module, name):
      raise UserError(f"there is no '{name}' in it.{did_you_mean(name, vars(module))}")
    found = getattr(module, name)
    for _ in range(2):  # a function may return a class
      if isinstance(found, type) or (inspect.isfunction(found) and _takes_nothing(found)):
        found = found()
  return found


def _takes_nothing(function: Callable) -> bool:
  parameters = inspect.signature(function).parameters.values()
  return all(one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)


def adopt(
  model: Any, given: Mapping[str, Any], image_shape: Sequence[int], name: str, hashes: Mapping[str, str]
) -> Model:
  """Returns a torch.nn.Module or a function of JAX as a model; `given` and `image_shape` are as in `load`."""
  torch = sys.modules.get('torch')  # a module of it has imported it
  is_torch = torch is not None and isinstance(model, torch.nn.Module)
  if not callable(model) or hasattr(model, 'init_with_output'):  # which modules of Flax have
    hint = 'it must be a torch.nn.Module or a function of JAX, images -> logits'
    if hasattr(model, 'apply') and hasattr(model, 'init'):
      hint = 'its parameters are missing; name a function such as lambda images: model.apply(variables, images)'
    raise UserError(f'{name} is of type {type(model).__name__}; {hint}.')
  values: dict[str, Any] = {}
  for flag, check in audit_request.CHECKS.items():
    values[flag], found = given.get(flag), getattr(model, _ATTRIBUTES[flag], None)
    # Tensors are parts of a model that normalises by itself.
    if values[flag] is None and found is not None and not hasattr(found, 'dtype') and not callable(found):
      values[flag] = check(found, f'{name}: the attribute {_ATTRIBUTES[flag]}')
  if values['layout'] is None and getattr(model, 'channels_last', None) is True:
    values['layout'] = 'nhwc'
  classes = values.pop('classes') or ()
  takes = Input(layout='nchw' if is_torch else 'nhwc')
  takes = takes._replace(**{flag: value for flag, value in values.items() if value is not None})
  shape = jax.eval_shape(takes.prepare, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)).shape
  make = _of_torch if is_torch else _of_function
  kind, call, forward, attacked, sha256 = make(model, shape)
  return Model(name, kind, takes, classes, call, forward, attacked, {**hashes, 'weights_sha256': sha256})


def _of_function(function: Callable, shape: tuple[int, ...]) -> tuple:
  # A function of its own for each: JAX remembers what it traced, and what tracing froze would not be seen.
  make = lambda: jax.jit(lambda images: function(images))
  programs = itertools.cycle([make(), make()])
  form = Form(lambda weights, images: function(images))
  return OF_JAX, lambda images: next(programs)(images), form, lambda: form, ''


def identified(model: Model, image_shape: Sequence[int]) -> Model:
  """Returns a model with the hash of its weights; those of a function are the arrays that it closes over."""
  if model.hashes['weights_sha256']:
    return model
  run = lambda images: model.forward.run(model.forward.weights, model.takes.prepare(images))
  traced = jax.make_jaxpr(run)(jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
  arrays = {str(index): np.asarray(array) for index, array in enumerate(_constants(traced))}
  return model._replace(hashes={**model.hashes, 'weights_sha256': state_arrays.hash_arrays(arrays)})


def _constants(traced: Any) -> list[Any]:
  """Returns the arrays that a traced function and those that it calls close over."""
  found = list(getattr(traced, 'consts', ()))
  for equation in getattr(traced, 'jaxpr', traced).eqns:
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        found += _constants(inner) if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr') else []
  return found


def _of_torch(module: Any, shape: tuple[int, ...]) -> tuple:
  """PyTorch itself runs a module where no gradient is needed; under attack, JAX does, if torchax translates it."""
  import torch

  from adversarial_augment import pytorch

  module.eval()
  tensors = module.state_dict()
  device = next((tensor.device for tensor in tensors.values()), torch.device('cpu'))

  def call(images: Any) -> Any:
    with torch.inference_mode():
      logits = module(torch.tensor(np.asarray(images)).to(device))
    return logits.float().cpu().numpy() if isinstance(logits, torch.Tensor) else logits

  num_outputs = functools.cache(lambda: call(np.zeros(shape, np.float32)).shape[-1])

  def run(weights: PyTree, images: Array) -> Array:
    logits = jax.ShapeDtypeStruct((len(images), num_outputs()), jnp.float32)
    return jax.pure_callback(call, logits, images)

  @functools.cache
  def attacked() -> Form:
    one = shape[1], shape[2], shape[3]
    function = pytorch.from_torch(module, channels_last=True, image_shape=one)  # they are in order already
    return Form(function.apply, function.weights(), not function.is_translated)

  arrays = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
  plain = {name: (one.float() if one.dtype == torch.bfloat16 else one).numpy() for name, one in arrays.items()}
  kind = f'PyTorch {torch.__version__}'
  return kind, call, Form(run, one_device=True), attacked, state_arrays.hash_arrays(plain)


def _of_safetensors(path: Path, given: Mapping[str, Any]) -> Model:
  for flag in ('mean', 'std', 'layout'):
    if given.get(flag) is not None:
      raise UserError(f"--{flag} has no effect on '{path}', which normalises images by itself; leave it out.")
  found = inference.load_classifier(path)
  form = Form(lambda weights, images: found.apply(weights[0], weights[1], images), (found.params, found.model_state))
  jitted = jax.jit(form.run)
  hashes = {'file_sha256': _sha256_of(path), 'weights_sha256': found.checkpoint_sha256}
  names = given.get('classes') or found.class_names or ()
  call = lambda images: jitted(form.weights, images)
  return Model(path.name, 'adversarial_augment', Input(size=given.get('size')), names, call, form, lambda: form, hashes)


def _of_jax_export(path: Path, given: Mapping[str, Any]) -> Model:
  if importlib.util.find_spec('flatbuffers') is None:
    raise UserError('jax.export needs the package flatbuffers; install it: pip install flatbuffers.')
  from jax import export

  with artifact.storage_errors(f"read '{path}'"):
    content = untrusted.read_bytes(path, _MAX_EXPORT)
  try:
    exported = export.deserialize(bytearray(content))
    (images,), (logits,) = exported.in_avals, exported.out_avals
  except Exception as error:  # whatever another file makes the reader raise
    raise UserError(
      f"'{path}' is no artefact of jax.export of a function images -> logits ({type(error).__name__}); name one, a "
      'folder of `export`, or a model as FILE.py:NAME.'
    ) from error
  if (len(images.shape), len(logits.shape)) != (4, 2) or isinstance(images.shape[0], int):
    raise UserError(
      f"'{path}' was exported for arrays {images.shape} -> {logits.shape}; export it for images and any batch size: "
      "jax.export.symbolic_shape('b, 32, 32, 3')."
    )
  about = {name: value for name, value in given.items() if value is not None and name != 'classes'}
  takes = Input(layout='nchw' if images.shape[1] == 3 != images.shape[3] else 'nhwc')._replace(**about)
  form = Form(lambda weights, x: exported.call(x.astype(images.dtype)), one_device=True)
  jitted, sha256 = jax.jit(lambda x: form.run({}, x)), _sha256_of(path)
  hashes = {'file_sha256': sha256, 'weights_sha256': sha256}
  attacked = lambda: form if exported.has_vjp() else None
  return Model(path.name, 'jax.export', takes, given.get('classes') or (), jitted, form, attacked, hashes)
