"""PyTorch and JAX side by side: PyTorch models under our attacks, and AdA in a PyTorch training loop.

    logits_fn = from_torch(model)                       # images [n, h, w, 3] -> logits, with gradients
    images = TorchAdA()(model, images, labels)          # tensors [n, 3, h, w] in a training loop

It needs PyTorch; with torchax installed as well, models are translated to JAX and compiled with the attack.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import os
from typing import Any
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

try:
  import torch
except ModuleNotFoundError as error:
  raise ModuleNotFoundError(f"{error}; pip install 'adversarial-augment[torch]'", name=error.name) from error

from adversarial_augment import attacks, augmentations, checks, corruption_nets, corruptions, threefry
from adversarial_augment.cli import streams
from adversarial_augment.config import fields
from adversarial_augment.config.tables import TRAIN
from adversarial_augment.errors import UserError, show
from adversarial_augment.metrics import NAMES, SEVERITIES
from adversarial_augment.types import Array, PyTree

Weights = dict[str, Array]
Run = Callable[[Weights, Array], Array]

_TRIED = 4  # images on which a module is tried, and its translation compared


class TorchFunction:
  """A PyTorch module as a JAX function of images [n, h, w, c] in [0, 1].

  Calling it uses the weights that the module has at that moment. Within a function that is compiled, that is the moment
  of compilation; there, take `apply(weights, images)`, which is the same with the weights as an argument.

  Attributes:
    is_translated: whether the module became JAX operations; otherwise each call goes through PyTorch on the host.
    num_classes: k.
  """

  def __init__(self, module: torch.nn.Module, run: Run, *, is_translated: bool, num_classes: int):
    self._module, self._run = module, run  # `run` has a weak reference to the module
    self._jitted = jax.jit(run)
    self.is_translated, self.num_classes = is_translated, num_classes

  def __call__(self, images: Array) -> Array:
    """Returns logits [n, k].

    Raises:
      UserError: images that are no floats [n, h, w, c] in [0, 1]; the range of traced ones is not checked.
    """
    is_traced = isinstance(images, jax.core.Tracer)
    checks.check_images(images, ('floats',), min_images=0, values=not is_traced)
    logits = self._jitted(self.weights(), images)
    if not self.is_translated and not is_traced:
      logits.block_until_ready()  # the caller may go on to train the module, which is in evaluation mode until then
    return logits

  def apply(self, weights: Weights, images: Array) -> Array:
    """Returns logits [n, k]; JAX can compile it, differentiate it by the images, and vmap it."""
    return self._run(weights, images)

  def weights(self) -> Weights:
    """Returns copies of the module's parameters and buffers by name; {} where calls go through PyTorch."""
    return _state(self._module) if self.is_translated else {}


def from_torch(
  module: torch.nn.Module,
  *,
  mean: float | Sequence[float] = 0.0,
  std: float | Sequence[float] = 1.0,
  channels_last: bool = False,
  batch_statistics: bool = False,
  image_shape: tuple[int, int, int] = (32, 32, 3),
) -> TorchFunction:
  """Returns a PyTorch classifier as a JAX function of images [n, h, w, c] in [0, 1], differentiable by the images.

  torchax translates the module to JAX, if logits and gradients of a few random images are then those of PyTorch.
  Otherwise PyTorch computes both in a callback, and a line says so. The module is called in evaluation mode and is left
  as it was: its mode, its running statistics, and the gradients of its parameters.

  Args:
    module: tensors [n, c, h, w] -> logits [n, k], of any floating dtype; it gets images of its own dtype.
    mean: of its input, one number or one per channel, subtracted from the images before it is called.
    std: the images are divided by it.
    channels_last: the module takes [n, h, w, c].
    batch_statistics: batch norms use the statistics of the images instead of the running ones.
    image_shape: [h, w, c] of the images on which the module is tried.

  Raises:
    UserError: it is no module, cannot be called with such images, returns something else than logits [n, k], or mean
      or std do not fit.
  """
  if not isinstance(module, torch.nn.Module):
    raise UserError(f'from_torch needs a torch.nn.Module, not {type(module).__name__}; wrap it in one.')
  mean, std = checks.per_channel(mean, 'mean'), checks.per_channel(std, 'std', positive=True)
  sides = image_shape if isinstance(image_shape, tuple | list) else ()
  if len(sides) != 3 or not all(type(side) is int and side > 0 for side in sides):
    raise UserError(f'image_shape={show(image_shape)} must be (height, width, channels) of an image.')
  if {len(mean), len(std)} - {1, sides[2]}:
    raise UserError(f'mean and std must have one number or {sides[2]}, one for each channel of image_shape.')
  module = _unwrapped(module)
  reference = weakref.ref(module)
  call = functools.partial(_called_back, reference, channels_last)
  trial = np.random.default_rng(0).random((_TRIED, *image_shape), np.float32)
  num_classes = _num_classes(module, call, trial)
  cotangent = np.random.default_rng(1).standard_normal((_TRIED, num_classes), np.float32)
  expected = call(False, trial), call(False, trial, cotangent)
  inner, reason = _translated(reference, channels_last, batch_statistics, (trial, cotangent), expected)
  if reason:
    streams.say(f'{type(module).__name__} runs in PyTorch, through a callback: {reason}')
    inner = _through_callback(functools.partial(call, batch_statistics), num_classes)

  def run(weights: Weights, images: Array) -> Array:
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    shift, scale = (jnp.array(values, wide.dtype).reshape(1, 1, 1, -1) for values in (mean, std))
    return inner(weights, (wide - shift) / scale).astype(wide.dtype)

  return TorchFunction(module, run, is_translated=not reason, num_classes=num_classes)


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
  """Returns the module within what torch.compile and data parallelism wrap around it."""
  while isinstance(module, _WRAPPERS):
    module = module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module.module
  return module


_WRAPPERS = (
  torch.nn.DataParallel,
  torch.nn.parallel.DistributedDataParallel,
  torch._dynamo.OptimizedModule,
)


@contextlib.contextmanager
def _evaluation_mode(module: torch.nn.Module, batch_statistics: bool) -> Iterator[None]:
  """Puts a module in evaluation mode for the block; its batch norms can still use the statistics of the batch.

  Afterwards all attributes are what they were, those that `forward` sets too.
  """
  before = [(part, dict(vars(part)), dict(part._buffers)) for part in module.modules()]
  try:
    module.eval()
    if batch_statistics:
      for part, *_ in before:  # without running statistics, a batch norm uses those of the batch in either mode
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
          part.track_running_stats, part.running_mean, part.running_var = False, None, None
    with torch.compiler.set_stance('force_eager'):
      yield
  finally:
    for part, attributes, buffers in before:
      vars(part).clear()
      vars(part).update(attributes)
      part._buffers.clear()
      part._buffers.update(buffers)


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
  """Returns parameters and buffers, those that are not saved too, each once."""
  return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _home(module: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
  """Returns where a module is, and the dtype that it computes in."""
  floats = (tensor for tensor in _tensors(module).values() if tensor.is_floating_point())
  first = next(floats, torch.zeros(()))
  return first.device, first.dtype


def _num_classes(module: torch.nn.Module, call: Callable, trial: np.ndarray) -> int:
  """Returns k of the logits [n, k]."""
  name, shape = type(module).__name__, list(trial.shape[1:])
  try:
    logits = call(False, trial)
  except UserError:
    raise
  except Exception as error:  # whatever the module meets
    first = (str(error).splitlines() or [''])[0]
    raise UserError(
      f'{name} cannot be called with images of shape {shape} ({type(error).__name__}: {first}); image_shape must be '
      'that of your images, and channels_last must be set where the channels come last.'
    ) from error
  if logits.ndim != 2 or len(logits) != len(trial) or not logits.shape[1]:
    raise UserError(f'{name} returns {list(logits.shape)} for {len(trial)} images of shape {shape}, not logits [n, k].')
  return logits.shape[1]


def _called_back(
  reference: weakref.ref,
  channels_last: bool,
  batch_statistics: bool,
  images: np.ndarray,
  *cotangent: np.ndarray,
) -> np.ndarray:
  """Returns the logits of images [..., h, w, c], or the gradient by the images of their product with `cotangent`."""
  module: Any = reference()
  device, dtype = _home(module)
  images = np.asarray(images)
  flat = torch.tensor(images.reshape(-1, *images.shape[-3:])).to(device, dtype)
  with (
    torch.inference_mode(False),
    torch.set_grad_enabled(bool(cotangent)),
    _evaluation_mode(module, batch_statistics),
  ):
    inputs = flat if channels_last else flat.movedim(-1, 1).contiguous()
    inputs.requires_grad_(bool(cotangent))
    logits = _logits(module, module(inputs))
    if not cotangent:
      return logits.float().cpu().numpy().reshape(*images.shape[:-3], *logits.shape[1:]).astype(images.dtype)
    weight = torch.tensor(np.asarray(cotangent[0])).to(device, logits.dtype).reshape(logits.shape)
    (gradient,) = torch.autograd.grad(logits, inputs, weight)
  moved = gradient if channels_last else gradient.movedim(1, -1)
  return moved.float().cpu().numpy().reshape(images.shape).astype(images.dtype)


def _logits(module: torch.nn.Module, output: Any) -> torch.Tensor:
  if isinstance(output, torch.Tensor):
    return output
  raise UserError(
    f'{type(module).__name__} returns {type(output).__name__}, not a tensor of logits [n, k]; wrap it in a module that '
    'returns the logits alone.'
  )


def _translated(
  reference: weakref.ref,
  channels_last: bool,
  batch_statistics: bool,
  trial: Sequence[np.ndarray],
  expected: Sequence[np.ndarray],
) -> tuple[Run, str]:
  """Returns the module in JAX operations, and why that is impossible, or ''.

  Args:
    reference: to the module.
    channels_last, batch_statistics: see `from_torch`.
    trial: images and cotangents of their logits.
    expected: PyTorch's logits and gradient of `trial`, with running statistics.
  """

  def run(weights: Weights, images: Array, batch_statistics: bool = batch_statistics) -> Array:
    module: Any = reference()
    inputs = (images if channels_last else jnp.moveaxis(images, -1, 1)).astype(_jax_dtype(_home(module)[1]))
    with (
      _evaluation_mode(module, batch_statistics),
      env,
      jax.numpy_rank_promotion('allow'),
      warnings.catch_warnings(action='ignore'),  # torchax asks for 64 bits
    ):
      used = {name: weights[name] for name in _tensors(module)}  # batch norms may have none at the moment
      output = torch.func.functional_call(module, env.j2t_iso(used), (env.j2t_iso(inputs),))
      return env.t2j_iso(output)

  @jax.jit
  def logits_and_gradient(weights: Weights, images: Array, cotangent: Array) -> tuple[Array, Array]:
    logits, pull = jax.vjp(lambda images: run(weights, images, False).astype(jnp.float32), images)
    return logits, pull(cotangent)[0]

  try:
    env = _torchax()
  except Exception as error:  # it is not there, or not for this PyTorch
    return run, f'torchax cannot be imported ({error})'
  try:
    found = logits_and_gradient(_state(reference()), *trial)
  except Exception as error:  # whatever of torch, torchax or JAX the module meets
    return run, f'torchax cannot translate it ({type(error).__name__})'
  tolerance = 10 * float(jnp.finfo(_jax_dtype(_home(reference())[1])).eps) ** 0.5
  for what, ours, theirs in zip(('logits', 'gradients'), found, expected, strict=True):
    if np.isfinite(theirs).all() and not np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs):
      return run, f'torchax translates it to a function with other {what}'
  return run, ''


@functools.cache
def _torchax() -> Any:
  """Imports torchax and returns its environment.

  torchax 0.0.13 lists operators for named dimensions that newer versions of PyTorch have removed. No module can call
  them, so a placeholder takes their place.
  """
  packet = torch._ops.OpOverloadPacket
  find = packet.__getattr__

  def find_or_placeholder(self: Any, name: str) -> Any:
    try:
      return find(self, name)
    except AttributeError:
      if 'name' not in name.lower():
        raise
      return object()

  packet.__getattr__ = find_or_placeholder
  try:
    import torchax

    return torchax.default_env()
  finally:
    packet.__getattr__ = find


def _through_callback(call: Callable, num_classes: int) -> Run:
  """Returns calls of PyTorch on the host as a function of JAX, with a gradient by the images."""

  def ask(shape: tuple[int, ...], *arrays: Array) -> Array:
    out = jax.ShapeDtypeStruct(shape, arrays[0].dtype)
    return jax.pure_callback(call, out, *arrays, vmap_method='broadcast_all')

  @jax.custom_vjp
  def run(images: Array) -> Array:
    return ask((len(images), num_classes), images)

  run.defvjp(
    lambda images: (run(images), images),
    lambda images, cotangent: (ask(images.shape, images, cotangent),),
  )
  return lambda weights, images: run(images)


def _state(module: torch.nn.Module) -> Weights:
  return jax.device_put({name: _to_jax(tensor) for name, tensor in _tensors(module).items()})  # all at once: faster


def _to_jax(tensor: torch.Tensor) -> Array | np.ndarray:
  """Returns a copy of a tensor: PyTorch changes weights in place, while JAX may still compute with them.

  It is on the host, unless JAX has the tensor's device.
  """
  copy, dtype = tensor.detach().clone(memory_format=torch.contiguous_format), _jax_dtype(tensor.dtype)
  if copy.is_cuda and jax.default_backend() == 'gpu':
    return jnp.from_dlpack(copy).astype(dtype)
  return (copy.float() if copy.dtype == torch.bfloat16 else copy).cpu().numpy().astype(dtype, copy=False)


def _jax_dtype(dtype: torch.dtype) -> Any:
  """Returns the dtype of JAX, which has 32 bits for 64 unless told otherwise."""
  return jax.dtypes.canonicalize_dtype(str(dtype).removeprefix('torch.'))


def _to_torch(array: Array, like: torch.Tensor) -> torch.Tensor:
  """Returns a copy of an array [n, h, w, c] as a tensor [n, c, h, w] of the kind of another."""
  tensor = torch.from_dlpack(array) if like.is_cuda else torch.tensor(np.asarray(array))
  return torch.empty_like(like, requires_grad=False).copy_(tensor.movedim(-1, 1))


class TorchAdA:
  """AdversarialAugment (arXiv 2104.01086) for a PyTorch training loop.

      ada = TorchAdA(num_steps=2)
      for images, labels in loader:                     # tensors [n, 3, h, w] in [0, 1]; the model normalises them
        loss = F.cross_entropy(model(ada(model, images, labels)), labels)

  The corruption network runs in JAX; so does the model, if torchax translates it. It is compiled once per model and
  shape of a batch, however the weights change.
  """

  def __init__(
    self,
    corruption_net: str = 'edsr',
    weights: str | None = None,
    *,
    nu: float = 0.015,
    num_steps: int = 10,
    min_ssim: float = 0.3,
    seed: int = 0,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    batch_statistics: bool = False,
  ):
    """Loads the corruption network.

    Args:
      corruption_net: 'edsr', 'cae', 'unet' or 'vqvae'.
      weights: a `.safetensors` file, or the name of shipped weights, such as 'edsr_4x16_x1'; None: the largest.
      nu: relative radius of every weight and bias array.
      num_steps: of projected gradient ascent.
      min_ssim: images whose SSIM with the clean one is smaller are pulled back towards it.
      seed: of the random starts; processes that train together need different ones.
      mean: subtracted from the images before the model is called.
      std: the images are divided by it before the model is called.
      batch_statistics: the attacked model uses the batch statistics of the images instead of the running ones.

    Raises:
      UserError: an unknown network, a file that cannot be used, or a number out of range.
    """
    given = {'attack.nu': nu, 'attack.num_steps': num_steps, 'attack.min_ssim': min_ssim, 'seed': seed}
    fields.check_values({name: TRAIN[name] for name in given}, given)
    mean, std = checks.per_channel(mean, 'mean'), checks.per_channel(std, 'std', positive=True)
    network, self._phi = corruption_nets.load(corruption_net, weights)
    self._attack = attacks.ada(network.apply, nu=nu, num_steps=num_steps, min_ssim=min_ssim, noisy=True)
    self._seed, self._calls = seed, 0
    self._options: Mapping[str, Any] = {'mean': mean, 'std': std, 'batch_statistics': batch_statistics}
    self._steps: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # its values refer to models weakly too

  def __call__(self, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the adversarially corrupted images, like `images` in shape, dtype and device, without a gradient.

    Args:
      model: [n, 3, h, w] -> logits [n, k], normalising by itself, or see `mean` and `std`.
      images: [n, 3, h, w] in [0, 1].
      labels: [n], integers from 0 to k - 1.

    Raises:
      UserError: images or labels of another kind, or what `from_torch` raises for the model.
    """
    _check_batch(images, labels)
    if not len(images):
      return images.detach().clone()
    if model not in self._steps:
      function = from_torch(model, image_shape=(*images.shape[2:], images.shape[1]), **self._options)
      step = jax.jit(functools.partial(self._corrupt, function._run))
      self._steps[model] = function.num_classes, function.is_translated, step
    num_classes, is_translated, step = self._steps[model]
    if labels.max() >= num_classes:
      raise UserError(f'labels run up to {labels.max()}, but the model has {num_classes} classes.')
    keys = jax.random.split(jax.random.fold_in(threefry.key(self._seed), self._calls), len(images))
    self._calls += 1
    arrays = _to_jax(images.float().movedim(1, -1)), _to_jax(labels.to(torch.int32))
    return _to_torch(step(_state(_unwrapped(model)) if is_translated else {}, self._phi, keys, *arrays), images)

  def state_dict(self) -> dict[str, int]:
    """Returns what the random starts depend on, for a checkpoint of the loop."""
    return {'seed': self._seed, 'calls': self._calls}

  def load_state_dict(self, state: Mapping[str, int]) -> None:
    """Goes on where the loop was that gave `state`."""
    self._seed, self._calls = int(state['seed']), int(state['calls'])

  def _corrupt(self, run: Run, weights: Weights, phi: PyTree, keys: Array, images: Array, labels: Array) -> Array:
    return self._attack(keys, functools.partial(run, weights), images, labels, phi).images


def _check_batch(images: Any, labels: Any) -> None:
  """Raises UserError for images or labels that TorchAdA cannot take."""
  kind = lambda x: f'{x.dtype} of shape {list(x.shape)}' if isinstance(x, torch.Tensor) else type(x).__name__
  if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3:
    hint = ''
    if isinstance(images, torch.Tensor) and images.ndim == 4 and images.shape[3] == 3:
      hint = '; the channels come first: images.movedim(-1, 1)'
    raise UserError(f'images are {kind(images)}; they must be float tensors [n, 3, h, w]{hint}.')
  if not images.is_floating_point():
    raise UserError(f'images are {kind(images)}; they must be floats in [0, 1]; divide 8-bit images by 255.')
  if len(images) and not (images.min() >= 0 and images.max() <= 1):  # NaN too
    way_out = 'divide them by 255' if images.min() >= 0 and images.max() > 2 else 'normalise inside the model'
    low, high = float(images.min()), float(images.max())
    raise UserError(f'images run from {low:g} to {high:g}; they must lie in [0, 1]; {way_out}.')
  is_integer = isinstance(labels, torch.Tensor) and labels.dtype in _INTEGERS
  if not is_integer or labels.shape != images.shape[:1] or (len(labels) and labels.min() < 0):
    raise UserError(f'labels are {kind(labels)}; they must be classes from 0, one integer for each image.')


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class _Transform:
  """A transform of uint8 images: a tensor [3, h, w], a batch of them [n, 3, h, w], or an image of Pillow."""

  def __init__(self, seed: int):
    self._seed, self._calls, self._process = seed, 0, os.getpid()

  def __call__(self, images: Any) -> Any:
    if os.getpid() != self._process:
      raise UserError(
        f'{type(self).__name__} uses JAX, which does not survive a fork; give the DataLoader '
        "multiprocessing_context='spawn', or transform batches in the training loop."
      )
    is_tensor = isinstance(images, torch.Tensor)
    fits = images.dtype == torch.uint8 and images.ndim in (3, 4) and images.shape[-3] == 3 if is_tensor else None
    if not (fits or isinstance(images, Image.Image)):
      kind = f'{images.dtype} of shape {list(images.shape)}' if is_tensor else type(images).__name__
      raise UserError(
        f'{type(self).__name__} takes images of Pillow and uint8 tensors [3, h, w] or [n, 3, h, w], not {kind}; put it '
        'before ToTensor.'
      )
    self._calls += 1
    if not is_tensor:
      return Image.fromarray(self._transform(np.asarray(images.convert('RGB'))[None])[0])
    batch = images if images.ndim == 4 else images[None]
    out = self._transform(batch.movedim(1, -1).cpu().numpy())
    return torch.tensor(out).movedim(-1, 1).reshape(images.shape).to(images.device)

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__ |= state | {'_process': os.getpid()}

  def _draws(self) -> np.random.Generator:
    """Returns the random numbers of this call, which differ between the workers of a DataLoader."""
    worker = torch.utils.data.get_worker_info()
    return np.random.default_rng([self._seed, worker.seed if worker else 0, self._calls])

  def _transform(self, images: np.ndarray) -> np.ndarray:
    """Transforms uint8 [n, h, w, 3]."""
    raise NotImplementedError


class TorchCorruptions(_Transform):
  """Corrupts each image by one of several corruptions and severities at random; see `corruptions.corrupt`."""

  def __init__(self, names: Sequence[str] = NAMES, severities: Sequence[int] = SEVERITIES, *, seed: int = 0):
    super().__init__(seed)
    for what, given in (('names', names), ('severities', severities)):
      if not isinstance(given, tuple | list) or not given:
        raise UserError(f'{what}={show(given)} must be a list of at least one.')
    for name in names:
      checks.lookup(corruptions.CORRUPTIONS, name, 'corruption')
    if wrong := [severity for severity in severities if severity not in SEVERITIES]:
      raise UserError(f'severities has {show(wrong[0])}; they are integers from 1 to {SEVERITIES[-1]}.')
    self._names, self._severities = tuple(names), tuple(severities)

  def _transform(self, images: np.ndarray) -> np.ndarray:
    rng, out = self._draws(), np.empty_like(images)
    for i, index in enumerate(rng.integers(2**31, size=len(images))):
      name, severity = rng.choice(self._names), int(rng.choice(self._severities))
      out[i] = corruptions.corrupt(images[i : i + 1], str(name), severity, self._seed, [index])[0]
    return out


class TorchAugMix(_Transform):
  """AugMix of each image; see `augmentations.augmix`."""

  def __init__(self, *, seed: int = 0):
    super().__init__(seed)

  def _transform(self, images: np.ndarray) -> np.ndarray:
    key = threefry.key(int(self._draws().integers(2**31)))
    return np.asarray(_augmix(jax.random.split(key, len(images)), images))


@jax.jit
def _augmix(keys: Array, images: Array) -> Array:
  mixed = jax.vmap(augmentations.augmix)(keys, images.astype(jnp.float32) / 255)
  return jnp.round(255 * mixed).astype(jnp.uint8)
