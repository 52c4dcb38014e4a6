"""EDSR, trained on the photographs that ship with scikit-learn and scikit-image; the weights in this package.

  python -m adversarial_augment.pretrain --config=configs/pretrain_edsr.py            # baseline, x4: 1.5M parameters
  python -m adversarial_augment.pretrain --config=configs/pretrain_edsr.py:small      # 4 blocks x 16 features, x1
  python -m adversarial_augment.pretrain --config=configs/pretrain_edsr.py:tiny       # 2 blocks x 8 features, x1

If CIFAR-10 is prepared, `--config.dataset=photographs+cifar10` adds its training images (never the test images). The
paper used the authors' weights, trained on DIV2K; python -m adversarial_augment.convert reads that file.
"""

from adversarial_augment import config as configs

VARIANTS = {
  '': {
    'batch_size': 8,
    'num_steps': 3000,
    'learning_rate': 5e-4,
    'patch': 24,
    'checkpoint_every': 100,
    'eval_every': 500,
  },
  'small': {
    'batch_size': 16,
    'num_steps': 3000,
    'learning_rate': 2e-3,
    'corruption_net.blocks': 4,
    'corruption_net.features': 16,
    'corruption_net.scale': 1,
  },
  'tiny': {
    'batch_size': 16,
    'num_steps': 15_000,
    'learning_rate': 2e-3,
    'corruption_net.blocks': 2,
    'corruption_net.features': 8,
    'corruption_net.scale': 1,
  },
  'smoke': {
    'batch_size': 4,
    'num_steps': 2,
    'patch': 16,
    'log_every': 1,
    'accept_ssim': -1.0,
    'corruption_net.blocks': 1,
    'corruption_net.features': 8,
    'corruption_net.scale': 2,
  },
}


def get_config(variant: str = ''):
  config = configs.pretrain_config()
  config.update_from_flattened_dict(configs.choose_variant(variant, VARIANTS))
  return config
