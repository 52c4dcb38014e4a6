"""Trained classifiers in forms for other programs; the command line is adversarial_augment.export."""
