"""Perceptual adversarial training (PAT) by the distance of the classifier itself (Laidlaw et al., arXiv 2006.12655).

  python -m adversarial_augment.train --config=configs/pat_self.py                 # CIFAR-10, ResNet-50
  python -m adversarial_augment.train --config=configs/pat_self.py:quickstart      # embedded images
  python -m adversarial_augment.train --config=configs/pat_self.py:laptop          # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/pat_self.py:gpu             # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/pat_self.py:smoke           # two steps, for tests

The row "PAT-self" of Table 3 of arXiv 2104.01086, mCE 23.54 %, clean error 17.60 %, by Laidlaw et al. Everything but
the adversary is as in nominal_pat.py. That is Fast-LPA within a radius of 0.5, on the images that are still classified
correctly, with running batch statistics and without a projection: ten steps, and five in `:quickstart`, `:laptop` and
`:gpu`.

`:quickstart`, with seed 0, gave a clean accuracy of 89.95 % on the 2,000 embedded test images.

`:laptop` gave an mCE of 48.09 ± 0.26 % and a clean error of 42.02 ± 0.55 % (three seeds, ± their standard error), on
CIFAR-10 after a JPEG round trip (5,000 test images, corruptions generated here), in 12 min on one shared processor
core: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = {
  '': {},
  'quickstart': {'evals': ('clean', 'cifar10_c'), 'attack.num_steps': 5},
  'laptop': {'attack.num_steps': 5},
  'gpu': {'attack.num_steps': 5},
  'smoke': {'evals': ('clean',)},
}


def get_config(variant: str = ''):
  changes = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("nominal_pat.py")}:{variant}')
  config.attack.update(name='pat', distance='self', epsilon=0.5, batch_norm='running')
  config.update_from_flattened_dict(changes)
  return config
