"""What each corruption network is trained for, and how its weights are judged.

- EDSR: super-resolution, ||E(D(y)) - y||_1 with D the mean over scale x scale pixels, plus `reconstruction_weight`
  times ||D(E(x)) - x||_1, which pins down what AdA uses: the network at the size of its input. For photographs
  x = D(y), and one forward pass serves both terms. At scale 1 the inputs of half the batch are blurred, so that the
  network is more than the identity.
- CAE: the mean squared error through its drawn bits.
- U-Net: ||U(x with holes) - x||_1, the holes being one to four boxes of zeros.
- VQ-VAE: the mean squared error, plus 0.25 ||z - code||^2. The codebook is a moving average of the latents that chose
  each code (arXiv 1711.00937, appendix A.1); a code that hardly any chooses takes the place of a latent of the batch.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment import corruption_nets, per_example_conv
from adversarial_augment.corruption_nets.vqvae import CODEBOOK
from adversarial_augment.ssim import ssim
from adversarial_augment.types import Array, Key, PyTree

COMMITMENT = 0.25
CODEBOOK_DECAY = 0.99
RARELY = 1.0  # latents of a batch that choose a code, on average, below which it is moved
BOXES, LARGEST = 4, 12  # holes in an image, and their largest side in pixels


class Objective(NamedTuple):
  """How one network is trained; images are float [n, h, w, 3] in [0, 1]."""

  init: Callable[[Key], tuple[PyTree, PyTree]]  # -> parameters, and what else changes in training
  # (parameters, rest, key, images, is_native [n]) -> loss, rest
  loss: Callable[[PyTree, PyTree, Key, Array, Array], tuple[Array, PyTree]]
  settle: Callable[[PyTree, PyTree], PyTree]  # (parameters, rest) -> parameters with what no gradient trains
  measure: Callable[[PyTree, Key, Array], dict[str, Array]]  # one value for each image


def make(name: str, sizes: dict[str, int], *, reconstruction_weight: float) -> Objective:
  """Returns the objective of the corruption network of this name; `reconstruction_weight` is of EDSR's second term."""
  factory: Any = functools.partial(corruption_nets.CORRUPTION_NETS[name], **sizes, conv=per_example_conv.conv)
  trained, judged = factory(native=False), factory()
  objective = Objective(
    init=lambda key: (trained.init(key, jnp.zeros((1, 32, 32, 3))), {}),
    loss=lambda params, rest, key, images, is_native: (_squared(trained.apply(params, images, key), images), rest),
    settle=lambda params, rest: params,
    measure=functools.partial(_measure, judged.apply),
  )
  if name == 'edsr':
    return objective._replace(loss=functools.partial(_edsr_loss, trained.apply, sizes['scale'], reconstruction_weight))
  if name == 'unet':
    return objective._replace(
      loss=functools.partial(_unet_loss, trained.apply), measure=functools.partial(_measure_filling, judged.apply)
    )
  if name == 'vqvae':
    return objective._replace(
      init=lambda key: _start_codes(objective.init(key)[0]),
      loss=functools.partial(_vqvae_loss, trained.apply),
      settle=lambda params, rest: params | {CODEBOOK: {'codebook': rest['sum'] / rest['count'][:, None]}},
    )
  return objective


def _measure(apply: Callable, params: PyTree, key: Key, images: Array) -> dict[str, Array]:
  restored = apply(params, images, key)
  return {'ssim': ssim(images, restored), 'psnr': psnr(images, restored)}


def psnr(images: Array, others: Array) -> Array:
  """Returns the peak signal-to-noise ratio of each pair [n] in dB, at most 100."""
  return -10 * jnp.log10(jnp.maximum(jnp.mean((images - others) ** 2, (1, 2, 3)), 1e-10))


def _squared(a: Array, b: Array) -> Array:
  return jnp.mean((a - b) ** 2)


def _edsr_loss(apply, scale, weight, params, rest, key, crops, is_native):  # native crops are what AdA will corrupt
  del key
  low = _mean_pool(crops, scale)
  if scale == 1:
    n, h, w, c = crops.shape
    blurred = jax.image.resize(_mean_pool(crops, 2), (n, h, w, c), 'bilinear')
    low = jnp.where((jnp.arange(n) % 2 == 0)[:, None, None, None], blurred, crops)
  high = apply(params, low)
  resolution = jnp.abs(high - crops).mean()
  if scale == 1:
    return resolution, rest

  def on_native(crops):
    return jnp.abs(_mean_pool(apply(params, crops), scale) - crops).mean()

  reconstruction = jax.lax.cond(is_native[0], on_native, lambda _: jnp.abs(_mean_pool(high, scale) - low).mean(), crops)
  return resolution + weight * reconstruction, rest


def _mean_pool(images: Array, factor: int) -> Array:
  n, h, w, c = images.shape
  return images.reshape(n, h // factor, factor, w // factor, factor, c).mean((2, 4))


def _unet_loss(apply, params, rest, key, images, is_native):
  del is_native
  return jnp.abs(apply(params, with_holes(key, images)) - images).mean(), rest


def _measure_filling(apply: Callable, params: PyTree, key: Key, images: Array) -> dict[str, Array]:
  holes = with_holes(key, images)
  filled = {'psnr_with_holes': psnr(images, holes), 'psnr_filled': psnr(images, apply(params, holes))}
  return _measure(apply, params, key, images) | filled


def with_holes(key: Key, images: Array) -> Array:
  """Returns [n, h, w, c] with one to `BOXES` boxes of zeros in each image, their sides from 1 to `LARGEST` pixels."""
  n, h, w, _ = images.shape
  number_key, size_key, place_key = jax.random.split(key, 3)
  number = jax.random.randint(number_key, (n, 1), 1, BOXES + 1)
  sides = jax.random.randint(size_key, (n, BOXES, 2), 1, LARGEST + 1)
  first = (jax.random.uniform(place_key, sides.shape) * (jnp.array([[[h, w]]]) - sides + 1)).astype(jnp.int32)

  def inside(axis: int, length: int) -> Array:  # [n, BOXES, length]
    at, start = jnp.arange(length)[None, None], first[..., axis, None]
    return (at >= start) & (at < start + sides[..., axis, None])

  exists = jnp.arange(BOXES)[None] < number
  holes = (inside(0, h)[..., :, None] & inside(1, w)[..., None, :] & exists[..., None, None]).any(1)
  return jnp.where(holes[..., None], 0.0, images)


def _start_codes(params: PyTree) -> tuple[PyTree, PyTree]:
  codebook = params[CODEBOOK]['codebook']
  return params, {'count': jnp.ones(len(codebook)), 'sum': codebook}


def _vqvae_loss(apply, params, rest, key, images, is_native):
  del is_native
  coded = apply(params, images)
  codebook = params[CODEBOOK]['codebook']
  commitment = jnp.mean((coded.latents - jax.lax.stop_gradient(codebook[coded.codes])) ** 2)
  latents = jax.lax.stop_gradient(coded.latents).reshape(-1, codebook.shape[1])
  return _squared(coded.images, images) + COMMITMENT * commitment, move_codes(rest, key, latents, coded.codes.ravel())


def move_codes(rest: dict[str, Array], key: Key, latents: Array, codes: Array) -> dict[str, Array]:
  """Returns the moving averages of a codebook after a batch: 'count' [k], and 'sum' [k, d], code times count.

  `rest` has those before it. Hardly used codes move to latents [m, d] drawn by `key`; `codes` [m] are those chosen.
  """
  size = len(rest['count'])
  chosen = jax.nn.one_hot(codes, size, dtype=latents.dtype)  # [m, k]
  count = CODEBOOK_DECAY * rest['count'] + (1 - CODEBOOK_DECAY) * chosen.sum(0)
  total = CODEBOOK_DECAY * rest['sum'] + (1 - CODEBOOK_DECAY) * jnp.matmul(chosen.T, latents, precision='highest')
  rare = count < RARELY / 2  # below it codes start at `RARELY` again, so that each has time to be chosen
  drawn = latents[jax.random.randint(key, (size,), 0, len(latents))]
  return {'count': jnp.where(rare, RARELY, count), 'sum': jnp.where(rare[:, None], RARELY * drawn, total)}
