"""DeepAugment (Hendrycks et al., arXiv 2006.16241): images processed by a network with damaged weights and features."""

from adversarial_augment.deepaugment.images import (
  NETS,
  SCALES,
  Settings,
  damaged_weights,
  first_of_run,
  generate,
  made_with,
)

__all__ = ['NETS', 'SCALES', 'Settings', 'damaged_weights', 'first_of_run', 'generate', 'made_with']
