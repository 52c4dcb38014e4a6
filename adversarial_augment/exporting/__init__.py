"""Trained classifiers in formats for other programs; the command is adversarial_augment.export."""
