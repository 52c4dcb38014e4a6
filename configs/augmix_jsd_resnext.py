"""AugMix with its Jensen-Shannon loss, on ResNeXt-29 4x32d (arXiv 1912.02781): mCE 10.90 %, cited at Table 1.

  python -m adversarial_augment.train --config=configs/augmix_jsd_resnext.py             # CIFAR-10, AugMix's setting
  python -m adversarial_augment.train --config=configs/augmix_jsd_resnext.py:quickstart  # embedded images
  python -m adversarial_augment.train --config=configs/augmix_jsd_resnext.py:laptop      # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/augmix_jsd_resnext.py:gpu         # CIFAR-10, one GPU
  python -m adversarial_augment.train --config=configs/augmix_jsd_resnext.py:smoke       # two steps, for tests

The setting is that of AugMix's code, except for the normalisation constants, which are those of nominal.py.

`:laptop` gave an mCE of 43.67 % and a clean error of 34.64 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000 test
images, corruptions generated here), in 15 min on one busy processor core. Its start, 8 epochs of nominal.py with the
same classifier of 41,458 parameters, had 46.52 % and 31.58 %: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

SMALL = {'classifier.depth': 11, 'classifier.width': 4}
VARIANTS = {
  '': {
    'num_epochs': 200.0,
    'batch_size': 128,
    'optimizer.warmup_epochs': 0.0,
    'optimizer.weight_decay': 5e-4,
    'optimizer.decay_batch_norm': True,
    'classifier.batch_norm_decay': 0.9,
    'classifier.depth': 29,
    'classifier.width': 32,
  },
  'quickstart': SMALL,
  'laptop': SMALL,
  'gpu': {'classifier.depth': 29, 'classifier.width': 32},
  'smoke': {'classifier.depth': 11, 'classifier.width': 1},
}


def get_config(variant: str = ''):
  changes = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("augmix.py")}:{variant}')
  config.augment.jsd = 12.0
  config.classifier.name = 'resnext'
  config.update_from_flattened_dict(changes)
  return config
