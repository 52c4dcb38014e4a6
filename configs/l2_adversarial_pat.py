"""Adversarial training within l_2 balls of radius 1, in the recipe of PAT (Laidlaw et al., arXiv 2006.12655).

  python -m adversarial_augment.train --config=configs/l2_adversarial_pat.py                # CIFAR-10, ResNet-50
  python -m adversarial_augment.train --config=configs/l2_adversarial_pat.py:quickstart     # embedded images
  python -m adversarial_augment.train --config=configs/l2_adversarial_pat.py:laptop         # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/l2_adversarial_pat.py:gpu            # ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/l2_adversarial_pat.py:smoke          # two steps, for tests

A row of Table 3 of arXiv 2104.01086, mCE 21.83 %, clean error 15.00 %, by Laidlaw et al. Everything but the ball and
its steps, normalised gradients, is as in linf_adversarial_pat.py.

`:quickstart`, with seed 0, gave a clean accuracy of 95.90 % on the 2,000 embedded test images.

`:laptop` gave an mCE of 46.60 % and a clean error of 39.98 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000 test
images, corruptions generated here), in 7 min on one shared processor core: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("linf_adversarial_pat.py")}:{variant}')
  config.attack.update(norm='l2', epsilon=1.0, step='l2')
  return config
