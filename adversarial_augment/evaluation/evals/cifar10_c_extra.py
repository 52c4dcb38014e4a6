"""Errors under the 4 extra corruptions of CIFAR-10-C, which are no part of the mCE."""

from adversarial_augment import metrics
from adversarial_augment.evaluation.evals.cifar10_c import CorruptionErrors


class Extra(CorruptionErrors):
  name, order = 'cifar10_c_extra', 3
  title, meaning = 'extra corruptions', 'the 4 extra corruptions'
  corruptions, mean_error, label = metrics.EXTRA_NAMES, 'mean_error', 'mean'

  def sections(self, runs):
    from adversarial_augment.reporting import results

    return [results.extra(runs)]


ENTRY = Extra()
