"""DeepAugment (10x): ten passes through each network; mCE 8.30 %, clean error 4.43 % (arXiv 2104.01086).

  python -m adversarial_augment.train --config=configs/deepaugment10x.py             # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/deepaugment10x.py:quickstart  # embedded images
  python -m adversarial_augment.train --config=configs/deepaugment10x.py:laptop      # CIFAR-10, small
  python -m adversarial_augment.train --config=configs/deepaugment10x.py:gpu         # CIFAR-10, one GPU
  python -m adversarial_augment.train --config=configs/deepaugment10x.py:smoke       # two steps, for tests

Like deepaugment.py, with sets prepared with --copies=10. deepaugment.py can use these sets too, and takes their first
copies.

`:quickstart` and `:smoke` use two copies to save time.

`:laptop` gave an mCE of 28.71 % and a clean error of 22.22 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000
test images, corruptions generated here), in 1 min on one processor core: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("deepaugment.py")}:{variant}')
  config.deepaugment.copies = 2 if config.dataset == 'embedded' else 10  # to save time
  return config
