"""TRADES within l_inf balls of radius 8/255 (Zhang et al., arXiv 1901.08573).

  python -m adversarial_augment.train --config=configs/trades.py                        # CIFAR-10, ResNet-50
  python -m adversarial_augment.train --config=configs/trades.py:quickstart             # embedded images
  python -m adversarial_augment.train --config=configs/trades.py:gpu                    # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/trades.py:smoke                  # two steps, for tests

The loss is the cross-entropy of clean images plus 6 (1/lambda) times KL(p(clean) || p(adversarial)). The adversary
climbs that divergence, starting from 0.001 N(0, 1) around the image, with running batch-norm statistics, as in the
authors' code. The authors use a radius of 0.031 and ten steps of 0.007; here they are 8/255 and a quarter of it. Here,
clean and adversarial images form one batch and share its statistics; in the authors' code they are two batches.
Everything else is as in linf_adversarial.py.

`:quickstart`, with seed 0, gave a clean accuracy of 90.25 % on the 2,000 embedded test images. Under `evaluate
--attack=pgd --norm=linf --epsilon=8/255 --num_examples=500`, 72.4 % remained correct (after nominal training, 15.2 %).
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = ('', 'quickstart', 'gpu', 'smoke')


def get_config(variant: str = ''):
  config = configs.load(f'{Path(__file__).with_name("linf_adversarial.py")}:{variant}')
  config.attack.update(trades=6.0, init='gaussian', batch_norm='running')
  return config
