"""AdA through EDSR, then AugMix: the row "AdA + AugMix" of Table 1 (arXiv 2104.01086), mCE 8.80 %, clean error 3.74 %.

  python -m adversarial_augment.train --config=configs/ada_augmix.py              # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/ada_augmix.py:quickstart   # embedded images
  python -m adversarial_augment.train --config=configs/ada_augmix.py:laptop       # CIFAR-10, small networks
  python -m adversarial_augment.train --config=configs/ada_augmix.py:gpu          # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/ada_augmix.py:smoke        # two steps, for tests

Like ada_edsr.py, with AugMix as the last augmentation, which the adversary does not see.

`:laptop` gave an mCE of 28.42 ± 0.10 % and a clean error of 19.75 ± 0.21 % (three seeds, ± their standard error), on
CIFAR-10 after a JPEG round trip (5,000 test images, corruptions generated here), in 8 min on one processor core:
docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("ada_edsr.py")}:{variant}')
  config.augment.after = ('augmix',)
  return config
