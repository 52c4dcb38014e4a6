"""RLAT after AugMix (Kireev et al., arXiv 2103.02325): mCE 11.47 %, cited in appendix D of arXiv 2104.01086.

  python -m adversarial_augment.train --config=configs/rlat_augmix.py              # CIFAR-10, RLAT's setting
  python -m adversarial_augment.train --config=configs/rlat_augmix.py:quickstart   # embedded images
  python -m adversarial_augment.train --config=configs/rlat_augmix.py:laptop       # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/rlat_augmix.py:gpu          # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/rlat_augmix.py:smoke        # two steps, for tests

As rlat.py, with the published radius of 0.05. AugMix comes first: RLAT moves what the network sees. The result is that
without the Jensen-Shannon loss, as here; with it, RobustBench lists 10.40 %.

`:quickstart`, with seed 0, gave a clean accuracy of 89.90 % on the 2,000 embedded test images.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("rlat.py")}:{variant}')
  config.attack.epsilon = 0.05
  config.augment.before = (*config.augment.before, 'augmix')
  return config
