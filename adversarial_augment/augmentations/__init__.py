"""Augmentations: one key and one image [h, w, c] in [0, 1] in, one image of the same shape out.

`vmap` is applied once, in train_step.py, with one key per image; a single draw for the whole batch would silently
reduce diversity.
"""

import jax
import jax.numpy as jnp

from adversarial_augment import checks, threefry
from adversarial_augment.augmentations.augmix import augmix, augmix_all_ops
from adversarial_augment.types import Augmentation

_PADDING = 4


def pad_crop(key: jax.Array, image: jax.Array) -> jax.Array:
  """Pads [h, w, c] with 4 black pixels on every side and crops it back at one of 9 x 9 offsets (appendix A)."""
  padded = jnp.pad(image, ((_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
  top, left = jax.random.randint(threefry.own(key), (2,), 0, 2 * _PADDING + 1)
  return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
  """Mirrors [h, w, c] left to right with probability 1/2 (appendix A, arXiv 2104.01086)."""
  return jnp.where(jax.random.bernoulli(threefry.own(key)), image[:, ::-1], image)


AUGMENTATIONS: dict[str, Augmentation] = {
  'pad_crop': pad_crop, 'flip': flip, 'augmix': augmix, 'augmix_all_ops': augmix_all_ops,
}  # fmt: skip


def chain(names: tuple[str, ...]) -> Augmentation:
  """Composes the named augmentations, each with its own key; raises UserError for an unknown name."""
  parts = [checks.lookup(AUGMENTATIONS, name, 'augmentation') for name in names]

  def augment(key, image):
    for index, part in enumerate(parts):
      image = part(jax.random.fold_in(key, index), image)
    return image

  return augment
