"""Nominal training: everything as in ada_edsr.py, without the adversary; the row "Nominal" of Table 1.

  python -m adversarial_augment.train --config=configs/nominal.py                 # CIFAR-10, the paper's full setting
  python -m adversarial_augment.train --config=configs/nominal.py:quickstart      # embedded images
  python -m adversarial_augment.train --config=configs/nominal.py:laptop          # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/nominal.py:laptop_start    # a start for the rows' :laptop
  python -m adversarial_augment.train --config=configs/nominal.py:smoke           # two steps, for tests

The evaluation under attack stays that of ada_edsr.py, so that the closing tables of both compare.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = {
  '': {},
  'quickstart': {},
  'laptop': {},
  'laptop_start': {
    'batch_size': 128,
    'num_epochs': 24.0,
    'evals': ('clean',),
    'optimizer.learning_rate': 0.1,
    'optimizer.warmup_epochs': 1.0,
    'log_every': 100,
    'checkpoint_every': 2000,
  },
  'smoke': {},
}


def get_config(variant: str = ''):
  changes = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("ada_edsr.py")}:{variant.removesuffix("_start")}')
  config.attack.name = 'none'
  config.update_from_flattened_dict(changes)
  return config
