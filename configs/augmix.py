"""AugMix without an adversary: the row "AugMix" of Table 1 (arXiv 2104.01086), mCE 13.13 %, clean error 3.95 %.

  python -m adversarial_augment.train --config=configs/augmix.py                  # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/augmix.py:quickstart       # embedded images
  python -m adversarial_augment.train --config=configs/augmix.py:laptop           # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/augmix.py:gpu              # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/augmix.py:smoke            # two steps, for tests

Everything but the augmentation is as in nominal.py. The paper's row does not use the Jensen-Shannon loss (its caption
names AugMix "with an additional regularizing loss" as another method), so augment.jsd is 0; augmix_jsd_resnext.py has
that loss.

`:laptop` gave an mCE of 29.50 ± 0.04 % and a clean error of 18.84 ± 0.26 % (three seeds, ± their standard error), on
CIFAR-10 after a JPEG round trip (5,000 test images, corruptions generated here), in 1 min on one processor core:
docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("nominal.py")}:{variant}')
  config.augment.after = ('augmix',)
  return config
