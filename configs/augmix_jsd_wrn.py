"""AugMix with its Jensen-Shannon loss, on WRN-40-2 (arXiv 1912.02781): mCE 11.18 % (RobustBench).

  python -m adversarial_augment.train --config=configs/augmix_jsd_wrn.py                 # CIFAR-10, AugMix's setting
  python -m adversarial_augment.train --config=configs/augmix_jsd_wrn.py:quickstart      # embedded images
  python -m adversarial_augment.train --config=configs/augmix_jsd_wrn.py:laptop          # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/augmix_jsd_wrn.py:gpu             # CIFAR-10, one GPU
  python -m adversarial_augment.train --config=configs/augmix_jsd_wrn.py:smoke           # two steps, for tests

Everything but the classifier and the 100 epochs is as in augmix_jsd_resnext.py.

`:laptop` gave an mCE of 33.41 % and a clean error of 25.38 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000 test
images, corruptions generated here), in 5 min on one processor core, with evaluation. Its start, 12 epochs of nominal.py
with the same classifier, had 36.09 % and 22.22 %: docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

SMALL = {'classifier.depth': 10, 'classifier.width': 1}
VARIANTS = {
  '': {'num_epochs': 100.0, 'classifier.depth': 40, 'classifier.width': 2},
  'quickstart': SMALL,
  'laptop': SMALL,
  'gpu': {'classifier.depth': 40, 'classifier.width': 2},
  'smoke': SMALL,
}


def get_config(variant: str = ''):
  changes = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("augmix_jsd_resnext.py")}:{variant}')
  config.classifier.name = 'wide_resnet'
  config.update_from_flattened_dict(changes)
  return config
