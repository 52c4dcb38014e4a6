"""Evaluations: (state, poll) -> {name: value}."""

from adversarial_augment.evaluators.accuracy import accuracy

__all__ = ['accuracy']
