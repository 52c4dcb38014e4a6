"""CAE, DeepAugment's compressive autoencoder, trained on the photographs that ship with scikit-learn and scikit-image.

  python -m adversarial_augment.pretrain --config=configs/pretrain_cae.py            # as published: 2.2M parameters
  python -m adversarial_augment.pretrain --config=configs/pretrain_cae.py:small      # a quarter of the widths; ships

If CIFAR-10 is prepared, `--config.dataset=photographs+cifar10` adds its training images (never the test images). The
paper used DeepAugment's weights; python -m adversarial_augment.convert --net=cae reads that file.
"""

from adversarial_augment import config as configs

VARIANTS = {
  '': {
    'corruption_net.name': 'cae',
    'batch_size': 128,
    'num_steps': 200_000,
    'learning_rate': 1e-3,
    'accept_ssim': 0.8,
    'accept_psnr': 24.0,
  },
  'small': {
    'corruption_net.name': 'cae',
    'corruption_net.features': 16,
    'num_steps': 10_000,
    'learning_rate': 2e-3,
    'checkpoint_every': 250,
    'eval_every': 2500,
    'accept_ssim': 0.7,
    'accept_psnr': 25.0,
  },
  'smoke': {
    'corruption_net.name': 'cae',
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
