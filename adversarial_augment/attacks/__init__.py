"""The adversaries: perturbation sets, projected gradient ascent, and the attacks made of them.

An attack maps (keys, logits_fn, images, labels, frozen) to corrupted images and one value of each metric per image.
Functions that make one raise a UserError for unknown names and numbers out of range, before anything is compiled.
"""

from adversarial_augment.attacks import validity
from adversarial_augment.attacks.ada import Growing, ada, check_blocks, weight_ball
from adversarial_augment.attacks.adversary import attacked_images, in_microbatches, on_share
from adversarial_augment.attacks.advmix import Hull, advmix, weight_hull
from adversarial_augment.attacks.apgd import apgd
from adversarial_augment.attacks.fab import fab
from adversarial_augment.attacks.feature_distance import feature_distance
from adversarial_augment.attacks.layerwise import INPUT, Layer, layerwise, layerwise_radii
from adversarial_augment.attacks.lp_ball import lp
from adversarial_augment.attacks.perceptual import perceptual
from adversarial_augment.attacks.pgd import multitargeted, pgd
from adversarial_augment.attacks.square import square
from adversarial_augment.attacks.suites import autoattack

__all__ = [
  'INPUT', 'Growing', 'Hull', 'Layer', 'ada', 'advmix', 'apgd', 'attacked_images', 'autoattack', 'check_blocks', 'fab',
  'feature_distance', 'in_microbatches', 'layerwise', 'layerwise_radii', 'lp', 'multitargeted', 'on_share',
  'perceptual', 'pgd', 'square', 'validity', 'weight_ball', 'weight_hull',
]  # fmt: skip
