"""The AlexNet whose features are a perceptual distance, for PAT (arXiv 2006.12655) and for perceptual attacks.

python -m adversarial_augment.train --config=configs/alexnet.py                # CIFAR-10, 23,272,266 parameters
python -m adversarial_augment.train --config=configs/alexnet.py:quickstart     # embedded images
python -m adversarial_augment.train --config=configs/alexnet.py:laptop         # CIFAR-10, 369,330 parameters
python -m adversarial_augment.train --config=configs/alexnet.py:gpu            # CIFAR-10, all parameters, one GPU
python -m adversarial_augment.train --config=configs/alexnet.py:smoke          # two steps, for tests

The layers are those of PAT's CifarAlexNet, and images are normalised by ImageNet's statistics, as there. Its training
is not published; here, SGD as in nominal.py has half the learning rate, because there are no norms.

`:laptop` with --config.holdout=5000 gave the AlexNet that ships, with a clean error of 37.78 % (seed 0), on CIFAR-10
after a JPEG round trip (5,000 test images): docs/reproduction.md. `:quickstart` gave a clean accuracy of 88.15 % (seed
0) on the 2,000 embedded test images; with fewer epochs it has hardly begun to learn.
"""

from pathlib import Path

from adversarial_augment import config as configs

ALEXNET = {
  'classifier.name': 'alexnet',
  'classifier.depth': 8,
  'classifier.width': 64,
  'classifier.mean': (0.485, 0.456, 0.406),
  'classifier.std': (0.229, 0.224, 0.225),
  'optimizer.learning_rate': 0.05,
  'optimizer.weight_decay': 5e-4,
  'evals': ('clean',),
}
SMALL = {**ALEXNET, 'classifier.width': 8}
VARIANTS = {
  '': {**ALEXNET, 'batch_size': 128, 'num_epochs': 100.0},
  'quickstart': {**SMALL, 'num_epochs': 8.0},
  'laptop': {**SMALL, 'batch_size': 128, 'num_epochs': 24.0, 'optimizer.warmup_epochs': 1.0, 'log_every': 100},
  'gpu': ALEXNET,
  'smoke': SMALL,
}


def get_config(variant: str = ''):
  changes = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("nominal.py")}:{variant}')
  config.update_from_flattened_dict(changes)
  return config
