"""Evaluators: what a classifier gets right, from integer counts."""

from adversarial_augment.evaluators.accuracy import Evaluate, accuracy
from adversarial_augment.evaluators.corruptions import Counts, corrupted_in_memory, corruption_counts

__all__ = ['Counts', 'Evaluate', 'accuracy', 'corrupted_in_memory', 'corruption_counts']
