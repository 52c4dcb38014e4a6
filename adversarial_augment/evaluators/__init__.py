"""Evaluators: what a classifier gets right, image by image."""

from adversarial_augment.evaluators.accuracy import Evaluate, accuracy
from adversarial_augment.evaluators.corruptions import Outcomes, corrupted_in_memory, corruption_outcomes

__all__ = ['Evaluate', 'Outcomes', 'accuracy', 'corrupted_in_memory', 'corruption_outcomes']
