"""The adversaries: perturbation sets, projected gradient ascent, and the attacks made of them.

An attack maps (keys, logits_fn, images, labels, frozen) to corrupted images and one value of each metric per image.
"""

from adversarial_augment.attacks.ada import ada
from adversarial_augment.attacks.memory import attack_bytes
from adversarial_augment.attacks.microbatch import in_microbatches
from adversarial_augment.attacks.weight_ball import check_blocks, weight_ball

ATTACKS = {'ada': ada}

__all__ = ['ATTACKS', 'ada', 'attack_bytes', 'check_blocks', 'in_microbatches', 'weight_ball']
