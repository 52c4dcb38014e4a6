"""Classifiers: factories of Haiku's (init, apply) with batch-norm state."""

from adversarial_augment.classifiers.preact_resnet import preact_resnet

CLASSIFIERS = {
  'preact_resnet': preact_resnet,
}
