"""AdversarialAugment (AdA): classifiers hardened against image corruptions, in JAX.

The method of Calian et al., Defending Against Image Corruptions Through Adversarial Augmentations
(arXiv 2104.01086). Start with `adversarial_augment.train`, or, as a library, with
`adversarial_augment.attacks.ada` and `adversarial_augment.corruption_nets.load`.
"""

import importlib

__version__ = '0.1.0'


def __getattr__(name: str):
  if name == 'audit':  # the module, which can be called; imported when it is used
    return importlib.import_module('adversarial_augment.audit')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
