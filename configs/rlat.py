"""RLAT: adversarial training of input and activations (Kireev et al., arXiv 2103.02325), mCE 15.90 % there.

  python -m adversarial_augment.train --config=configs/rlat.py               # CIFAR-10, RLAT's setting
  python -m adversarial_augment.train --config=configs/rlat.py:quickstart    # embedded images
  python -m adversarial_augment.train --config=configs/rlat.py:laptop        # CIFAR-10, a small network
  python -m adversarial_augment.train --config=configs/rlat.py:gpu           # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/rlat.py:smoke         # two steps, for tests

The setting is that of RLAT's code: ResNet-18, 150 epochs, a learning rate of 0.1 that falls to a tenth after 34 % and
to a hundredth after 67 % of them. The other variants are those of nominal.py with this adversary. arXiv 2104.01086
quotes the best result of that paper, 11.47 % with AugMix (appendix D): rlat_augmix.py.

`:quickstart`, with seed 0, gave a clean accuracy of 89.65 % on the 2,000 embedded test images.

`:laptop` gave an mCE of 30.11 ± 0.21 % and a clean error of 19.17 ± 0.33 % (three seeds, ± their standard error), on
CIFAR-10 after a JPEG round trip (5,000 test images, corruptions generated here), in 5 min on one shared processor core:
docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = {
  '': {
    'num_epochs': 150.0,
    'batch_size': 128,
    'classifier.depth': 18,
    'classifier.batch_norm_decay': 0.9,
    'optimizer.nesterov': False,
    'optimizer.weight_decay': 5e-4,
    'optimizer.decay_batch_norm': True,
    'optimizer.warmup_epochs': 0.0,
    'optimizer.schedule': 'steps',
    'optimizer.drops': (0.34, 0.67),
  },
  'quickstart': {'attack.warmup_epochs': 0.0},
  'laptop': {},
  'gpu': {},
  'smoke': {},
}


def get_config(variant: str = ''):
  changes = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("nominal.py")}:{variant}')
  config.attack.update(name='rlat', epsilon=0.08)
  config.update_from_flattened_dict(changes)
  return config
