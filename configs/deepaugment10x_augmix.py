"""DeepAugment (10x), then AugMix: a row of Table 1 (arXiv 2104.01086), mCE 8.11 %, clean error 4.79 %.

  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py             # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py:quickstart  # embedded images
  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py:laptop      # CIFAR-10, small
  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py:smoke       # two steps, for tests

As deepaugment10x.py, with the same sets, and AugMix as the last augmentation.

`:laptop` has not been run on CIFAR-10.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("deepaugment10x.py")}:{variant}')
  config.augment.after = ('augmix',)
  return config
