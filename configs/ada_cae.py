"""AdA through the CAE; everything but the corruption network is as in ada_edsr.py.

  python -m adversarial_augment.train --config=configs/ada_cae.py --config.corruption_net.weights=cae.safetensors
  python -m adversarial_augment.train --config=configs/ada_cae.py:quickstart      # embedded images
  python -m adversarial_augment.train --config=configs/ada_cae.py:laptop          # CIFAR-10, small networks
  python -m adversarial_augment.train --config=configs/ada_cae.py:gpu             # CIFAR-10, ResNet-18, one GPU
  python -m adversarial_augment.train --config=configs/ada_cae.py:smoke           # two steps, for tests

Weights of the published size (2.2M parameters) do not ship. `python -m adversarial_augment.convert --net=cae` reads
DeepAugment's; `python -m adversarial_augment.pretrain --config=configs/pretrain_cae.py` trains some. The other variants
use a network with a quarter of the widths, which ships. The CAE has few bits, and they are random, so its output is
less similar to its input than EDSR's, and SSIM starts lower. The paper gives no numbers for CIFAR-10-C; it saw no
improvement from the CAE there.

`:laptop` has a radius of its own, at which the adversary adds as much to c(x) as that of ada_edsr.py does. It gave an
mCE of 38.39 % and a clean error of 34.38 % (seed 0), on CIFAR-10 after a JPEG round trip (5,000 test images,
corruptions generated here), in 14 min on one processor core. With the paper's radius, at which the small CAE destroys
the class of an image, an older run gave 64.40 % and 60.82 %; without an adversary, 36.94 % and 33.18 %:
docs/reproduction.md.
"""

from pathlib import Path

from adversarial_augment import config as configs

VARIANTS = {
  '': {},
  'quickstart': {},
  # On 500 held-out images, the adversary then adds to the network's own output as much as that of ada_edsr.py adds to
  # the output of EDSR: docs/reproduction.md.
  'laptop': {'attack.nu': 0.00175},
  'gpu': {},
  'smoke': {},
}


def get_config(variant: str = ''):
  changes = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("ada_edsr.py")}:{variant}')
  config.corruption_net.update(name='cae', blocks=None, features=16 if variant else None, scale=None)
  config.update_from_flattened_dict(changes)
  return config
