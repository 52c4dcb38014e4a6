"""The 15 + 4 corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), and the 10 of CIFAR-10-C-bar
(Mintun et al. 2021, arXiv 2102.11273), seeded.

The bytes of a corrupted image do not depend on its batch, subset, device or process. Images are corrupted one at a time
in a loop on the host CPU: another batch size or an accelerator would round differently, and truncation to grey levels
turns the last bit into a level.
"""

from collections.abc import Callable, Collection, Sequence
import functools
import importlib.metadata
import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import __version__, checks, threefry
from adversarial_augment.corruptions import bar, blur, color, digital, noise, spatter, weather
from adversarial_augment.corruptions.corruption import Corruption, DrawnCorruption, HostCorruption, Size
from adversarial_augment.corruptions.frost import describe, with_photographs
from adversarial_augment.errors import UserError
from adversarial_augment.metrics import (
  ALL_NAMES,
  BAR_NAMES,
  CORRUPTIONS_VERSION,
  EXTRA_NAMES,
  MIN_SIZE,
  NAMES,
  SEVERITIES,
)  # fmt: skip
from adversarial_augment.storage import files
from adversarial_augment.types import PyTree

_ALL: dict[str, Corruption | HostCorruption | DrawnCorruption] = {
  'frost': with_photographs(None), **noise.CORRUPTIONS, **blur.CORRUPTIONS, **color.CORRUPTIONS,
  **digital.CORRUPTIONS, **spatter.CORRUPTIONS, **weather.CORRUPTIONS, **bar.BAR,
}  # fmt: skip
CORRUPTIONS = {name: _ALL[name] for name in (*ALL_NAMES, *BAR_NAMES)}

__all__ = ['BAR_NAMES', 'CORRUPTIONS', 'EXTRA_NAMES', 'NAMES', 'SEVERITIES', 'corrupt', 'describe_frost', 'made_with']

_CHUNK = 32  # images per call of the compiled loop; a batch is distributed over the devices


def corrupt(
  images: np.ndarray,
  name: str,
  severity: int,
  seed: int = 0,
  indices: Sequence[int] | np.ndarray | None = None,
  *,
  frost: str | None = None,
) -> np.ndarray:
  """Corrupts images as in CIFAR-10-C or CIFAR-10-C-bar.

  Args:
    images: uint8 [n, h, w, 3], at least 32 pixels per side.
    name: one of `NAMES`, `EXTRA_NAMES` or `BAR_NAMES`.
    severity: 1 to 5.
    seed: of all draws.
    indices: [n], of the images in their data set; the draws of an image depend on (seed, name, severity, index). By
      default 0 to n - 1.
    frost: folder of the photographs for 'frost', see frost.py.

  Returns:
    uint8, in the shape of `images`.

  Raises:
    UserError: an argument is invalid.
  """
  corruption = checks.lookup(CORRUPTIONS, str(name), 'corruption')
  if name == 'frost' and frost is not None:
    corruption = with_photographs(files.user_path(frost, 'frost'))
  images, index = _checked(images, severity, seed, indices)
  if isinstance(corruption, HostCorruption):
    return np.stack([corruption.apply(image, corruption.severities[severity - 1]) for image in images])
  severity, seed = int(severity), int(seed)
  if isinstance(corruption, DrawnCorruption):
    number = BAR_NAMES.index(name)
    rngs = (np.random.default_rng([seed, number, severity, at]) for at in index)
    return np.stack([corruption.corrupt(image, severity, rng) for image, rng in zip(images, rngs, strict=True)])
  size = (images.shape[1], images.shape[2])
  number = ALL_NAMES.index(name)
  run, devices = _compiled(corruption.draw, corruption.apply), itertools.cycle(_processors())
  done = []
  for start in range(0, len(images), _CHUNK):
    count = min(_CHUNK, len(images) - start)
    rows = np.minimum(np.arange(start, start + _CHUNK), len(images) - 1)  # one shape, one compilation
    device = next(devices)
    # The same bytes whatever the calling program has configured.
    with jax.default_device(device), jax.enable_x64(False), jax.threefry_partitionable(True):
      constants = _constants(corruption, severity, size, device)
      done.append((run(images[rows], index[rows], count, (seed, number, severity), constants), count))
  return np.concatenate([np.asarray(part)[:count] for part, count in done])


def made_with(names: Collection[str] = NAMES) -> dict[str, str]:
  """Returns the versions on which the bytes depend: of the corruptions, and of the packages that they use."""
  more = ('scikit-image',) if set(names) & set(BAR_NAMES) else ()
  versions = {name: importlib.metadata.version(name) for name in ('jax', 'numpy', 'scipy', 'pillow', *more)}
  return {'adversarial_augment': __version__, 'corruptions': CORRUPTIONS_VERSION, **versions}


def describe_frost(folder: str | None = None) -> str:
  """Returns which photographs `corrupt` uses for 'frost', or 'procedural'.

  Raises:
    UserError: the folder lacks a photograph.
  """
  return describe(None if folder is None else files.user_path(folder, 'frost'))


@functools.lru_cache(200)
def _constants(corruption: Corruption, severity: int, size: Size, device: jax.Device) -> PyTree:
  return jax.device_put(corruption.constants(severity, size), device)


@functools.cache
def _compiled(draw: Callable, apply: Callable) -> Callable:
  """Returns the jitted loop over the first `count` images of a chunk."""

  def run(images, index, count, key_of, constants):
    key = functools.reduce(jax.random.fold_in, key_of[1:], threefry.key(key_of[0]))

    def corrupt_one(i, out):
      draws = draw(jax.random.fold_in(key, index[i]), images.shape[1:3], constants)
      levels = apply(images[i].astype(jnp.float32), draws, constants)
      return out.at[i].set(jnp.clip(levels, 0, 255).astype(jnp.uint8))

    return jax.lax.fori_loop(0, count, corrupt_one, images)

  return jax.jit(run)


def _processors() -> list[jax.Device]:
  try:
    return jax.local_devices(backend='cpu')
  except RuntimeError as error:
    raise UserError(
      f'Corruptions run on the host processor, which JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS")} leaves out; '
      "add 'cpu' to it."
    ) from error


def _checked(
  images: np.ndarray, severity: int, seed: int, indices: Sequence[int] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images, and the indices as an int32 array."""
  images = np.asarray(images)
  checks.check_images(images, ('uint8',), channels=3, min_side=MIN_SIZE)
  if not _is_integer(severity) or severity not in SEVERITIES:
    raise UserError(f'severity={severity!r} must be an integer from 1 to 5.')
  if not _is_integer(seed) or not 0 <= seed < 2**31:
    raise UserError(f'seed={seed!r} must be an integer from 0 to 2**31 - 1.')
  index = np.arange(len(images)) if indices is None else np.asarray(indices)
  if index.shape != (len(images),) or index.dtype.kind not in 'iu' or index.min() < 0 or index.max() >= 2**31:
    raise UserError(f'indices must be {len(images)} integers from 0 to 2**31 - 1, one per image.')
  return images, index.astype(np.int32)


def _is_integer(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool)
