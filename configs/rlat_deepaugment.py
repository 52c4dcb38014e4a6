"""RLAT on images of DeepAugment (Kireev et al., arXiv 2103.02325): mCE 12.16 % there.

  python -m adversarial_augment.train --config=configs/rlat_deepaugment.py              # CIFAR-10, RLAT's setting
  python -m adversarial_augment.train --config=configs/rlat_deepaugment.py:quickstart   # embedded images
  python -m adversarial_augment.train --config=configs/rlat_deepaugment.py:laptop       # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/rlat_deepaugment.py:gpu          # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/rlat_deepaugment.py:smoke        # two steps, for tests

As rlat.py, with the published radius of 0.02 and the training images of deepaugment.py, whose sets are to be prepared.

`:quickstart`, with seed 0, gave a clean accuracy of 86.10 % on the 2,000 embedded test images.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("rlat.py")}:{variant}')
  config.attack.epsilon = 0.02
  config.deepaugment.update(sets=('edsr', 'cae'), copies=1)
  return config
