"""VQ-VAE, trained on the photographs that ship with scikit-learn and scikit-image.

  python -m adversarial_augment.pretrain --config=configs/pretrain_vqvae.py            # full widths: 0.9M parameters
  python -m adversarial_augment.pretrain --config=configs/pretrain_vqvae.py:small      # a quarter of the widths; ships

If CIFAR-10 is prepared, `--config.dataset=photographs+cifar10` adds its training images (never the test images). The
VQ-VAE is this package's reading of a later version of the paper (corruption_nets/vqvae.py).
"""

from adversarial_augment import config as configs

VARIANTS = {
  '': {
    'corruption_net.name': 'vqvae',
    'batch_size': 128,
    'num_steps': 100_000,
    'learning_rate': 5e-4,
    'accept_ssim': 0.6,
    'accept_psnr': 20.0,
  },
  'small': {
    'corruption_net.name': 'vqvae',
    'corruption_net.features': 16,
    'num_steps': 3000,
    'learning_rate': 2e-3,
    'checkpoint_every': 250,
    'eval_every': 1000,
    'accept_ssim': 0.7,
    'accept_psnr': 25.0,
  },
  'smoke': {
    'corruption_net.name': 'vqvae',
    'corruption_net.features': 4,
    'batch_size': 4,
    'num_steps': 2,
    'patch': 16,
    'log_every': 1,
    'accept_ssim': -1.0,
  },
}


def get_config(variant: str = ''):
  config = configs.pretrain_config()
  config.update_from_flattened_dict(configs.choose_variant(variant, VARIANTS))
  return config
