"""DeepAugment (10x), then AugMix: a row of Table 1 (arXiv 2104.01086), mCE 8.11 %, clean error 4.79 %.

  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py             # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py:quickstart  # embedded images
  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py:laptop      # CIFAR-10, small
  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py:gpu         # CIFAR-10, one GPU
  python -m adversarial_augment.train --config=configs/deepaugment10x_augmix.py:smoke       # two steps, for tests

Like deepaugment10x.py, with AugMix as the last augmentation.

`:quickstart` and `:smoke` use two copies to save time.

`:laptop` gave an mCE of 29.23 % and a clean error of 22.68 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000
test images, corruptions generated here), in 1 min on one processor core: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("deepaugment10x.py")}:{variant}')
  config.augment.after = ('augmix',)
  return config
