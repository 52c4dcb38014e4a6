"""Evaluators: what a classifier gets right, from integer counts."""

from adversarial_augment.evaluators.accuracy import Evaluate, accuracy
from adversarial_augment.evaluators.corruptions import corrupted_in_memory, corruption_counts

__all__ = ['Evaluate', 'accuracy', 'corrupted_in_memory', 'corruption_counts']
