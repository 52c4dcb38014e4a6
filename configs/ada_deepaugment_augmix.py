"""DeepAugment, then AdA through EDSR, then AugMix (arXiv 2104.01086): mCE 8.58 %, clean error 5.28 %.

  python -m adversarial_augment.train --config=configs/ada_deepaugment_augmix.py             # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/ada_deepaugment_augmix.py:quickstart  # embedded images
  python -m adversarial_augment.train --config=configs/ada_deepaugment_augmix.py:laptop      # CIFAR-10, small
  python -m adversarial_augment.train --config=configs/ada_deepaugment_augmix.py:gpu         # CIFAR-10, one GPU
  python -m adversarial_augment.train --config=configs/ada_deepaugment_augmix.py:smoke       # two steps, for tests

Like ada_edsr.py, with the sets of deepaugment.py, and AugMix as the last augmentation, which the adversary does not
see.

`:laptop` gave an mCE of 29.33 % and a clean error of 23.50 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000
test images, corruptions generated here), in 7 min on one processor core: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("ada_edsr.py")}:{variant}')
  config.deepaugment.sets = ('edsr', 'cae')
  config.deepaugment.copies = 1
  config.augment.after = ('augmix',)
  return config
