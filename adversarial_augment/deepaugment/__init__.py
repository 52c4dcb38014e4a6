"""DeepAugment (Hendrycks et al., arXiv 2006.16241): images processed by a network with damaged weights and features.

All draws of an image depend on (seed, copy, index), so its bytes do not depend on the subset, device or process. Before
each image, new damaged weights are drawn with probability 0.05, always from the undamaged ones. Images between two such
draws share weights, so the weights of image i depend on (seed, copy, the last index up to i with a draw).

On a CPU, images are processed one at a time in a loop, which is faster there than a batch (docs/performance.md) and
rounds the same for any position of an image; elsewhere, a chunk is one batch.
"""

from collections.abc import Callable, Iterator
import functools
import importlib.metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np

from adversarial_augment import __version__, per_example_conv, threefry
from adversarial_augment.corruption_nets.weights import Params
from adversarial_augment.deepaugment import features
from adversarial_augment.deepaugment.weights import distort
from adversarial_augment.parallel import platforms
from adversarial_augment.types import Array, Key

VERSION = '1'  # raise it when the same seed gives other bytes
SCALES = ('native32', 'published')
_ANEW = 0.05  # probability of new weights before an image
_CHUNK = 8  # images with the same weights per device and call; 20 images share weights on average
_AXIS = 'device'
_UPSCALED = 4  # 32 -> 128 pixels, the input size of EDSR in the published script
_RESAMPLING, _DAMAGE = 0, 1  # streams of random numbers

# (params, levels [h, w, 3], key, ...) -> levels [s * h, s * w, 3]
NETS: dict[str, Callable[..., Array]] = {'edsr': features.edsr, 'cae': features.cae}


class Settings(NamedTuple):
  """Everything that determines the bytes besides the images and the undamaged weights."""

  net: str  # of NETS
  seed: int
  bug_compatible: bool = True
  scale: str = 'native32'  # the images as they are, or 'published': enlarged four times before, averaged after


def first_of_run(seed: int, copy: int, num_examples: int) -> np.ndarray:
  """Returns, for each image, the last index up to it at which weights are drawn: int64 [num_examples]."""
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((_RESAMPLING, seed, copy))))
  anew = rng.random(num_examples) < _ANEW
  anew[:1] = True
  return np.maximum.accumulate(np.where(anew, np.arange(num_examples), 0))


def damaged_weights(params: Params, settings: Settings, copy: int, first: int) -> Params:
  """Returns the weights of the images whose run begins at index `first`; `params` is not modified."""
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((_DAMAGE, settings.seed, copy, first))))
  return distort(settings.net, params, rng, settings.bug_compatible)


def generate(images: np.ndarray, indices: np.ndarray, copy: int, params: Params, settings: Settings) -> np.ndarray:
  """Returns the DeepAugment form of images.

  Args:
    images: uint8 [n, h, w, 3].
    indices: [n], of the images in their data set, increasing.
    copy: which pass over the data set.
    params: the undamaged weights, as in a weight file.
    settings: the network and other settings.

  Returns:
    uint8 [n, h, w, 3], truncated to levels.
  """
  chunks = list(_chunks(indices, copy, params, settings))
  chunks.sort(key=lambda chunk: len(chunk.rows), reverse=True)  # so that devices finish at the same time
  devices, out, done = tuple(jax.local_devices()), np.empty_like(images), []
  chunks += [_Chunk(np.arange(0), chunks[0].weights)] * (-len(chunks) % len(devices))
  run = _compiled(devices, settings.net, settings.bug_compatible, settings.scale)
  for start in range(0, len(chunks), len(devices)):
    group = chunks[start : start + len(devices)]
    rows = np.stack([np.resize(chunk.rows, _CHUNK) for chunk in group])  # one shape, one compilation
    counts = np.array([len(chunk.rows) for chunk in group], np.int32)
    weights = jax.tree.map(lambda *arrays: np.stack(arrays), *(chunk.weights for chunk in group))
    # The same bytes whatever the calling program has configured.
    with jax.enable_x64(False), jax.threefry_partitionable(True):
      done.append(run(weights, images[rows], indices[rows].astype(np.int32), counts, (settings.seed, copy)))
  for chunk, made in zip(chunks, np.concatenate(done), strict=True):
    out[chunk.rows] = made[: len(chunk.rows)]
  return out


class _Chunk(NamedTuple):
  rows: np.ndarray  # at most _CHUNK images with common weights
  weights: Params


def _chunks(indices: np.ndarray, copy: int, params: Params, settings: Settings) -> Iterator[_Chunk]:
  firsts = first_of_run(settings.seed, copy, int(indices[-1]) + 1)[indices]
  for first in np.unique(firsts):
    rows = np.flatnonzero(firsts == first)
    weights = damaged_weights(params, settings, copy, int(first))
    for start in range(0, len(rows), _CHUNK):
      yield _Chunk(rows[start : start + _CHUNK], weights)


@functools.cache
def made_with() -> dict[str, str]:
  """Returns on what the bytes depend: the versions of DeepAugment and of packages, and the kind of device."""
  versions = {name: importlib.metadata.version(name) for name in ('jax', 'numpy', 'scipy')}
  about = {'adversarial_augment': __version__, 'deepaugment': VERSION, 'platform': jax.default_backend()}
  return {**about, **versions}


@functools.cache
def _compiled(devices: tuple[jax.Device, ...], net: str, bug_compatible: bool, scale: str) -> Callable[..., Array]:
  """Returns the jitted program that processes a chunk on each device, using the first `count` images."""
  on_cpu = devices[0].platform == 'cpu'
  conv = per_example_conv.example_conv if on_cpu else per_example_conv.conv
  apply = functools.partial(NETS[net], bug_compatible=bug_compatible, conv=conv)

  def local(weights: Params, images: Array, index: Array, count: Array, key_of: tuple[Array, Array]) -> Array:
    weights, images, index, count = jax.tree.map(lambda x: x[0], (weights, images, index, count))
    key = jax.random.fold_in(threefry.key(key_of[0]), key_of[1])

    def one(image: Array, index: Array) -> Array:
      return _through(lambda x, key: apply(weights, x, key), image, jax.random.fold_in(key, index), scale)

    if on_cpu:
      out = jax.lax.fori_loop(0, count, lambda i, out: out.at[i].set(one(images[i], index[i])), images)
    else:
      out = jax.vmap(one)(images, index)
    return out[None]

  mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
  each = PartitionSpec(_AXIS)
  specs = (each, each, each, each, PartitionSpec())
  on_devices = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=each, check_vma=False)
  return jax.jit(platforms.for_mesh(mesh, on_devices))


def _through(apply: Callable[[Array, Key], Array], image: Array, key: Key, scale: str) -> Array:
  """Applies the network to an image, uint8 [h, w, 3], and averages the output down to its size."""
  h, w, _ = image.shape
  x = image.astype(jnp.float32)
  if scale == 'published':
    x = jax.image.resize(x, (_UPSCALED * h, _UPSCALED * w, 3), 'bilinear')
  y = jnp.clip(apply(x, key), 0, 255)
  factor = y.shape[0] // h
  return y.reshape(h, factor, w, factor, 3).mean((1, 3)).astype(jnp.uint8)
