"""Perceptual adversarial training (PAT) by the distance of a fixed AlexNet (Laidlaw et al., arXiv 2006.12655).

  python -m adversarial_augment.train --config=configs/pat_alexnet.py --config.attack.distance_from=runs/alexnet
  python -m adversarial_augment.train --config=configs/pat_alexnet.py:quickstart      # embedded images
  python -m adversarial_augment.train --config=configs/pat_alexnet.py:laptop          # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/pat_alexnet.py:gpu             # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/pat_alexnet.py:smoke           # two steps, for tests

The row "PAT-AlexNet" of Table 3 of arXiv 2104.01086, mCE 34.25 %, clean error 28.40 %, by Laidlaw et al. Like
pat_self.py, with a radius of 1, as the checkpoint that they have released is named. Train the AlexNet by
configs/alexnet.py; without one, distances are those of a small AlexNet that ships.

`:quickstart`, with seed 0, gave a clean accuracy of 84.30 % on the 2,000 embedded test images.

`:laptop` gave an mCE of 46.73 ± 0.20 % and a clean error of 40.01 ± 0.28 % (three seeds, ± their standard error), on
CIFAR-10 after a JPEG round trip (5,000 test images, corruptions generated here), in 10 min on one shared processor
core: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("pat_self.py")}:{variant}')
  config.attack.update(distance='alexnet', epsilon=1.0)
  return config
