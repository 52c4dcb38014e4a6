"""Accuracy on the images as they are."""

from adversarial_augment.evaluation.evals import Evaluation


class Clean(Evaluation):
  name, order = 'clean', 0
  title, meaning = 'clean accuracy', 'clean images'
  headline = 0, 'Clean accuracy', 'accuracy'


ENTRY = Clean()
