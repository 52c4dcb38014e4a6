"""Classifiers: factories of Haiku's (init, apply) with batch-norm state."""

from adversarial_augment import errors

errors.require_assertions()  # before Haiku is imported

from adversarial_augment.classifiers.alexnet import alexnet
from adversarial_augment.classifiers.layers import features, logits_fn, parts, reorder_outputs
from adversarial_augment.classifiers.preact_resnet import preact_resnet, wide_resnet
from adversarial_augment.classifiers.resnet import resnet
from adversarial_augment.classifiers.resnext import resnext

__all__ = ['CLASSIFIERS', 'features', 'logits_fn', 'parts', 'reorder_outputs']

CLASSIFIERS = {
  'preact_resnet': preact_resnet,
  'wide_resnet': wide_resnet,
  'resnext': resnext,
  'resnet': resnet,
  'alexnet': alexnet,
}
