"""Nominal training: the row "Nominal" of Table 1 (arXiv 2104.01086), mCE 25.17 %, clean error 4.23 %.

  python -m adversarial_augment.train --config=configs/nominal.py                 # CIFAR-10, full setting
  python -m adversarial_augment.train --config=configs/nominal.py:quickstart      # embedded images
  python -m adversarial_augment.train --config=configs/nominal.py:laptop          # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/nominal.py:laptop_start    # a start for the :laptop rows
  python -m adversarial_augment.train --config=configs/nominal.py:gpu             # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/nominal.py:smoke           # two steps, for tests

Like ada_edsr.py, without the adversary. The evaluation under attack is that of ada_edsr.py, so that the results of both
can be compared.

`:laptop` gave an mCE of 31.82 ± 0.33 % and a clean error of 18.31 ± 0.27 % (three seeds, ± their standard error), on
CIFAR-10 after a JPEG round trip (5,000 test images, corruptions generated here), in 1 min on one processor core:
docs/reproduction.md.
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
  'gpu': {},
  'smoke': {},
}


def get_config(variant: str = ''):
  changes = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("ada_edsr.py")}:{variant.removesuffix("_start")}')
  config.attack.name = 'none'
  config.update_from_flattened_dict(changes)
  return config
