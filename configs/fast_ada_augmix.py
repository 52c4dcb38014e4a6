"""Fast AdA, then AugMix: ada_augmix.py at the price of 1.9 nominal steps.

  python -m adversarial_augment.train --config=configs/fast_ada_augmix.py              # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/fast_ada_augmix.py:quickstart   # embedded images
  python -m adversarial_augment.train --config=configs/fast_ada_augmix.py:laptop       # CIFAR-10, small networks
  python -m adversarial_augment.train --config=configs/fast_ada_augmix.py:gpu          # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/fast_ada_augmix.py:smoke        # two steps, for tests

Like fast_ada.py, with AugMix as the last augmentation, which the adversary does not see.

`:laptop` gave an mCE of 29.10 ± 0.12 % and a clean error of 19.77 ± 0.12 % at 1.7 to 1.9 nominal steps, ten steps over
all weights 28.83 ± 0.08 and 19.68 ± 0.19 % at 19: means of seeds 0 to 3 ± their standard errors, on CIFAR-10 after a
JPEG round trip (5,000 test images), from starts and with corruptions as in fast_ada.py, so that they do not compare
with the numbers in ada_augmix.py. Paired by seed, the mCE is 0.27 ± 0.08 points higher: docs/reproduction.md. With more
epochs for the same minutes, an attack at every 4th step in twice the radius does better: `:laptop
--config.attack.every=4 --config.attack.nu=0.09` costs 1.2 nominal steps on average, and in the minutes that one epoch
of ten steps takes (13.7 epochs), gave 25.03 ± 0.18 % (seeds 1 to 3), 0.55 ± 0.19 points less than AugMix alone.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("fast_ada.py")}:{variant}')
  config.augment.after = ('augmix',)
  return config
