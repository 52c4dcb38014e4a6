"""DeepAugment (10x), then AdA through EDSR, then AugMix (arXiv 2104.01086): mCE 7.83 %, clean error 5.07 %.

  python -m adversarial_augment.train --config=configs/ada_deepaugment10x_augmix.py             # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/ada_deepaugment10x_augmix.py:quickstart  # embedded images
  python -m adversarial_augment.train --config=configs/ada_deepaugment10x_augmix.py:laptop      # CIFAR-10, small
  python -m adversarial_augment.train --config=configs/ada_deepaugment10x_augmix.py:gpu         # CIFAR-10, one GPU
  python -m adversarial_augment.train --config=configs/ada_deepaugment10x_augmix.py:smoke       # two steps, for tests

The best row of Table 1. Like ada_deepaugment_augmix.py, with the sets of deepaugment10x.py.

`:quickstart` and `:smoke` use two copies to save time.

`:laptop` gave an mCE of 30.79 % and a clean error of 25.62 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000
test images, corruptions generated here), in 5 min on one processor core: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("ada_deepaugment_augmix.py")}:{variant}')
  config.deepaugment.copies = 2 if config.dataset == 'embedded' else 10  # to save time
  return config
