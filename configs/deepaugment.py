"""DeepAugment without an adversary: a row of Table 1 (arXiv 2104.01086), mCE 11.67 %, clean error 5.73 %.

  python -m adversarial_augment.train --config=configs/deepaugment.py             # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/deepaugment.py:quickstart  # embedded images
  python -m adversarial_augment.train --config=configs/deepaugment.py:laptop      # CIFAR-10, small
  python -m adversarial_augment.train --config=configs/deepaugment.py:gpu         # CIFAR-10, one GPU
  python -m adversarial_augment.train --config=configs/deepaugment.py:smoke       # two steps, for tests

Prepare its data sets first, one for each network (those of the embedded images are made automatically):

  python -m adversarial_augment.prepare deepaugment --net=edsr
  python -m adversarial_augment.prepare deepaugment --net=cae

`:laptop` was run with sets of the small EDSR, --weights=edsr_4x16_x1.

Everything but the training images is as in nominal.py. Each is drawn uniformly from the clean images and their copies.
An epoch is as long as in nominal.py, so that all rows see the same number of images.

`:laptop` gave an mCE of 29.06 % and a clean error of 21.58 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000
test images, corruptions generated here), in 2 min on one processor core: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("nominal.py")}:{variant}')
  config.deepaugment.sets = ('edsr', 'cae')
  config.deepaugment.copies = 1
  return config
