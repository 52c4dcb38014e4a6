"""Augmentations: one key and one image [h, w, c] in [0, 1] in, one image of the same shape out.

`vmap` is applied once, in train_step.py, with one key per image; a single draw for the whole batch would silently
reduce diversity.
"""

import jax

from adversarial_augment import registry
from adversarial_augment.augmentations.augmix import augmix, augmix_all_ops
from adversarial_augment.augmentations.flip import flip
from adversarial_augment.augmentations.pad_crop import pad_crop
from adversarial_augment.types import Augmentation

AUGMENTATIONS: dict[str, Augmentation] = {
  'pad_crop': pad_crop,
  'flip': flip,
  'augmix': augmix,
  'augmix_all_ops': augmix_all_ops,
}


def chain(names: tuple[str, ...]) -> Augmentation:
  """Composes the named augmentations, each with its own key.

  Raises:
    UserError: an unknown name.
  """
  parts = [registry.lookup(AUGMENTATIONS, name, 'augmentation') for name in names]

  def augment(key, image):
    for index, part in enumerate(parts):
      image = part(jax.random.fold_in(key, index), image)
    return image

  return augment
