"""Nominal training: everything as in ada_edsr.py, without the adversary; the row "Nominal" of Table 1.

  python -m adversarial_augment.train --config=configs/nominal.py                 # CIFAR-10, the paper's full setting
  python -m adversarial_augment.train --config=configs/nominal.py:quickstart      # embedded images
  python -m adversarial_augment.train --config=configs/nominal.py:laptop          # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/nominal.py:smoke           # two steps, for tests

The evaluation under attack stays that of ada_edsr.py, so that the closing tables of both compare.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'laptop', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("ada_edsr.py")}:{variant}')
  config.attack.name = 'none'
  return config
