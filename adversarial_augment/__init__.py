"""AdversarialAugment (AdA): classifiers hardened against image corruptions, in JAX.

The method of Calian et al., Defending Against Image Corruptions Through Adversarial Augmentations
(arXiv 2104.01086). Start with `adversarial_augment.train`, or, as a library, with
`adversarial_augment.attacks.ada` and `adversarial_augment.corruption_nets.load`.
"""

__version__ = '0.1.0'
