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
import weakref

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import torch

from adversarial_augment import attacks, augmentations, corruption_nets, corruptions, threefry
from adversarial_augment.cli import streams
from adversarial_augment.errors import UserError
from adversarial_augment.metrics import NAMES, SEVERITIES
from adversarial_augment.types import Array, PyTree

Weights = dict[str, Array]


class TorchFunction:
  """A PyTorch module as a JAX function of images [n, h, w, c] in [0, 1].

  Calling it uses the weights that the module has at that moment. `apply(weights(), images)` is the same with the
  weights as an argument, for programs that outlive a training step.

  Attributes:
    apply: (weights, images) -> logits [n, k], which JAX can trace, differentiate by the images, and vmap.
    is_translated: whether the module became JAX operations; otherwise each call goes through PyTorch on the host.
  """

  def __init__(self, module: torch.nn.Module, apply: Callable[[Weights, Array], Array], is_translated: bool):
    self._module, self.apply, self.is_translated = module, apply, is_translated
    self._jitted = jax.jit(apply)

  def __call__(self, images: Array) -> Array:
    return self._jitted(self.weights(), images)

  def weights(self) -> Weights:
    """Returns the module's parameters and buffers by name; {} where calls go through PyTorch."""
    return _state(self._module) if self.is_translated else {}


def from_torch(
  module: torch.nn.Module,
  *,
  mean: tuple[float, ...] = (0.0,),
  std: tuple[float, ...] = (1.0,),
  channels_last: bool = False,
  batch_statistics: bool = False,
  image_shape: tuple[int, int, int] = (32, 32, 3),
) -> TorchFunction:
  """Returns a PyTorch classifier as a JAX function of images [n, h, w, c] in [0, 1], differentiable by the images.

  torchax translates the module to JAX where it can. Otherwise PyTorch computes logits and gradients in a callback, and
  a line says so. The module is called in evaluation mode and is left as it was: its mode, its running statistics, and
  the gradients of its parameters.

  Args:
    module: tensors [n, c, h, w] -> logits [n, k].
    mean: of its input, per channel, subtracted from the images before it is called.
    std: the images are divided by it.
    channels_last: the module takes [n, h, w, c].
    batch_statistics: batch norms use the statistics of the images instead of the running ones.
    image_shape: of an image on which the translation is tried.
  """
  mode = functools.partial(_evaluation_mode, module, batch_statistics)
  run, reason = _translated(module, mode, channels_last, image_shape)
  if reason:
    streams.say(f'{type(module).__name__} runs in PyTorch, through a callback: {reason}')
    run = _called_back(module, mode, channels_last)

  def apply(weights: Weights, images: Array) -> Array:
    shift, scale = (jnp.array(values, images.dtype).reshape(1, 1, 1, -1) for values in (mean, std))
    return run(weights, (images - shift) / scale)

  return TorchFunction(module, apply, not reason)


@contextlib.contextmanager
def _evaluation_mode(module: torch.nn.Module, batch_statistics: bool) -> Iterator[None]:
  """Puts a module in evaluation mode for the block; its batch norms can still use the statistics of the batch."""
  before = [(part, part.training) for part in module.modules()]
  norms = [part for part, _ in before if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
  tracked = [(norm, norm.track_running_stats, norm.running_mean, norm.running_var) for norm in norms]
  try:
    module.eval()
    if batch_statistics:
      for norm in norms:  # without running statistics, a batch norm uses those of the batch in either mode
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    yield
  finally:
    for part, was_training in before:
      part.training = was_training
    for norm, was_tracked, mean, var in tracked:
      norm.track_running_stats, norm.running_mean, norm.running_var = was_tracked, mean, var


Run = Callable[[Weights, Array], Array]


def _translated(
  module: torch.nn.Module, mode: Callable, channels_last: bool, image_shape: tuple[int, ...]
) -> tuple[Run, str]:
  """Returns the module in JAX operations, and why that is impossible, or ''."""
  try:
    env = _torchax()
  except Exception as error:  # it is not there, or not for this PyTorch
    return lambda weights, images: images, f'torchax cannot be imported ({error})'

  def run(weights: Weights, images: Array) -> Array:
    inputs = images if channels_last else jnp.moveaxis(images, -1, 1)
    with mode(), env, jax.numpy_rank_promotion('allow'):
      used = {name: weights[name] for name in module.state_dict()}  # batch norms may have none at the moment
      return env.t2j_iso(torch.func.functional_call(module, env.j2t_iso(used), (env.j2t_iso(inputs),)))

  loss = lambda images: run(_state(module), images).sum()
  try:
    jax.eval_shape(jax.grad(loss), jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
  except Exception as error:  # whatever of torch, torchax or JAX the module meets
    return run, f'torchax cannot translate it ({type(error).__name__})'
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


def _called_back(module: torch.nn.Module, mode: Callable, channels_last: bool) -> Run:
  """Returns the module as calls of PyTorch on the host, with a gradient by the images."""

  def call(images: np.ndarray, *cotangent: np.ndarray) -> np.ndarray:
    """Returns the logits of images [..., h, w, c], or the gradient by the images of their product with `cotangent`."""
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device('cpu'))
    flat = torch.tensor(np.asarray(images)).flatten(0, -4).to(device)
    with mode(), torch.set_grad_enabled(bool(cotangent)):
      flat.requires_grad_(bool(cotangent))
      logits = module(flat if channels_last else flat.movedim(-1, 1))
      if cotangent:
        weight = torch.tensor(np.asarray(cotangent[0])).to(device)
        (gradient,) = torch.autograd.grad(logits, flat, weight.reshape(logits.shape))
        return gradient.cpu().numpy().reshape(np.shape(images))
    return logits.cpu().numpy().reshape(*np.shape(images)[:-3], -1)

  @functools.cache
  def num_outputs(shape: tuple[int, ...]) -> int:
    return call(np.zeros((1, *shape), np.float32)).shape[-1]

  def ask(shape: tuple[int, ...], *arrays: Array) -> Array:
    out = jax.ShapeDtypeStruct(shape, arrays[0].dtype)
    return jax.pure_callback(call, out, *arrays, vmap_method='broadcast_all')

  @jax.custom_vjp
  def run(images: Array) -> Array:
    return ask((len(images), num_outputs(images.shape[1:])), images)

  run.defvjp(
    lambda images: (run(images), images),
    lambda images, cotangent: (ask(images.shape, images, cotangent),),
  )
  return lambda weights, images: run(images)


def _state(module: torch.nn.Module) -> Weights:
  return {name: _to_jax(tensor) for name, tensor in module.state_dict().items()}


def _to_jax(tensor: torch.Tensor) -> Array:
  """Returns a tensor as an array of JAX, without a copy where their devices and memory allow it."""
  tensor = tensor.detach()
  if tensor.dtype == torch.int64:  # the counters of batch norms; JAX has 32 bits
    tensor = tensor.to(torch.int32)
  try:
    return jnp.from_dlpack(tensor.contiguous())
  except (RuntimeError, ValueError, BufferError, TypeError):  # a device that JAX does not have
    return jnp.asarray(tensor.cpu().numpy())


def _to_torch(array: Array, like: torch.Tensor) -> torch.Tensor:
  return torch.from_dlpack(array).to(like.device, like.dtype)


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
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    batch_statistics: bool = False,
  ):
    """Loads the corruption network.

    Args:
      corruption_net: 'edsr', 'cae', 'unet' or 'vqvae'.
      weights: a `.safetensors` file, or the name of shipped weights, such as 'edsr_4x16_x1'; None: the largest.
      nu: relative radius of every weight and bias array.
      num_steps: of projected gradient ascent.
      min_ssim: images whose SSIM with the clean one is smaller are pulled back towards it.
      seed: of the random starts.
      mean: subtracted from the images before the model is called.
      std: the images are divided by it before the model is called.
      batch_statistics: the attacked model uses the batch statistics of the images instead of the running ones.

    Raises:
      UserError: an unknown network, a file that cannot be used, or a nu out of range.
    """
    network, self._phi = corruption_nets.load(corruption_net, weights)
    self._attack = attacks.ada(network.apply, nu=nu, num_steps=num_steps, min_ssim=min_ssim, noisy=True)
    self._key, self._calls = threefry.key(seed), 0
    self._options: Mapping[str, Any] = {'mean': mean, 'std': std, 'batch_statistics': batch_statistics}
    self._steps: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

  def __call__(self, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the adversarially corrupted images, like `images` in shape, type and device.

    Args:
      model: [n, 3, h, w] -> logits [n, k], normalising by itself, or see `mean` and `std`.
      images: [n, 3, h, w] in [0, 1].
      labels: [n].
    """
    if model not in self._steps:
      shape = (*images.shape[2:], images.shape[1])
      logits = from_torch(model, image_shape=shape, **self._options)
      self._steps[model] = logits.weights, jax.jit(functools.partial(self._corrupt, logits.apply))
    weights, step = self._steps[model]
    keys = jax.random.split(jax.random.fold_in(self._key, self._calls), len(images))
    self._calls += 1
    arrays = _to_jax(images.movedim(1, -1).float()), _to_jax(labels.to(torch.int32))
    return _to_torch(step(weights(), self._phi, keys, *arrays), images).movedim(-1, 1)

  def _corrupt(
    self, apply: Callable, weights: Weights, phi: PyTree, keys: Array, images: Array, labels: Array
  ) -> Array:
    return self._attack(keys, functools.partial(apply, weights), images, labels, phi).images


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
    self._calls += 1
    if not isinstance(images, torch.Tensor):
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
