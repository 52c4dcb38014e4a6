"""Adversarial training within l_inf balls of radius 8/255, in the recipe of PAT (Laidlaw et al., arXiv 2006.12655).

  python -m adversarial_augment.train --config=configs/linf_adversarial_pat.py              # CIFAR-10, ResNet-50
  python -m adversarial_augment.train --config=configs/linf_adversarial_pat.py:quickstart   # embedded images
  python -m adversarial_augment.train --config=configs/linf_adversarial_pat.py:laptop       # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/linf_adversarial_pat.py:gpu          # ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/linf_adversarial_pat.py:smoke        # two steps, for tests

A row of Table 3 of arXiv 2104.01086, mCE 20.71 %, clean error 13.20 %, by Laidlaw et al. Everything but the adversary
is as in nominal_pat.py. Its steps, ten, are the radius over the root of their number, with running batch statistics, as
in attacks.py of PAT. `:quickstart`, `:laptop` and `:gpu` have five.

`:quickstart`, with seed 0, gave a clean accuracy of 96.00 % on the 2,000 embedded test images.

`:laptop` gave an mCE of 50.08 % and a clean error of 43.82 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000 test
images, corruptions generated here), in 7 min on one shared processor core: docs/reproduction.md.
"""

import math
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
  config.attack.update(name='lp', norm='linf', epsilon=8 / 255, batch_norm='running')
  config.update_from_flattened_dict(changes)
  config.attack.step_fraction = 1 / math.sqrt(config.attack.num_steps)
  return config
