"""The 15 + 4 corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), seeded."""

from adversarial_augment.corruptions.api import CORRUPTIONS, corrupt, describe_frost, made_with
from adversarial_augment.metrics import EXTRA_NAMES, NAMES, SEVERITIES

__all__ = ['CORRUPTIONS', 'EXTRA_NAMES', 'NAMES', 'SEVERITIES', 'corrupt', 'describe_frost', 'made_with']
