"""Classifiers: factories of Haiku's (init, apply) with batch-norm state."""

from pathlib import Path

from adversarial_augment import errors

errors.require_assertions()  # before Haiku is imported

from adversarial_augment.classifiers.alexnet import alexnet
from adversarial_augment.classifiers.layers import features, logits_fn, parts, reorder_outputs
from adversarial_augment.classifiers.preact_resnet import preact_resnet, wide_resnet
from adversarial_augment.classifiers.resnet import resnet
from adversarial_augment.classifiers.resnext import resnext

__all__ = ['CLASSIFIERS', 'SHIPPED_ALEXNET', 'features', 'logits_fn', 'parts', 'reorder_outputs']

# A small one as a perceptual distance, trained by configs/alexnet.py:laptop; for `inference.load_classifier`.
SHIPPED_ALEXNET = Path(__file__).parent / 'shipped' / 'alexnet_8.safetensors'
CLASSIFIERS = {
  'preact_resnet': preact_resnet,
  'wide_resnet': wide_resnet,
  'resnext': resnext,
  'resnet': resnet,
  'alexnet': alexnet,
}
