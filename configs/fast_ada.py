r"""Fast AdA: one step from beta = 0, of the last third of a small EDSR's layers; AdA at the price of 1.7 nominal steps.

python -m adversarial_augment.train --config=configs/fast_ada.py                # CIFAR-10, full setting
python -m adversarial_augment.train --config=configs/fast_ada.py:quickstart     # embedded images, minutes on 2 cores
python -m adversarial_augment.train --config=configs/fast_ada.py:laptop         # CIFAR-10, small networks
python -m adversarial_augment.train --config=configs/fast_ada.py:gpu            # CIFAR-10, ResNet-18, one GPU
python -m adversarial_augment.train --config=configs/fast_ada.py:smoke          # two steps, for tests

Like ada_edsr.py (arXiv 2104.01086) with a cheaper adversary: it moves a smaller network, and what the first two thirds
of that compute does not depend on beta and is computed once. The full setting costs 1.66 nominal steps by FLOP,
instead of 16.9, and the step adds 78 % of the loss that ten steps over all weights of the paper's EDSR add (to that of
the miniature's classifier, on 256 held-out images); its mCE has not been measured.

`:laptop` gave an mCE of 29.54 ± 0.19 % and a clean error of 18.77 ± 0.07 % at 1.7 to 1.8 nominal steps, ten steps over
all weights 29.29 ± 0.08 and 18.85 ± 0.08 % at 17: means of seeds 0 to 3 ± their standard errors, on CIFAR-10 after a
JPEG round trip (5,000 test images). Paired by seed, the mCE is 0.25 ± 0.12 points higher: docs/reproduction.md. The
runs fine-tune a nominal classifier for one epoch: for seed 1, with --config.seed=1 --config.holdout=5000
--config.init_from=experiments/starts/seed1.safetensors. Their corruptions, of version 2 and with CIFAR-10-C's frost,
are others than those of the numbers in ada_edsr.py.

The evaluation `ada` has the adversary of the training, so its accuracies do not compare with those of ada_edsr.py. To
evaluate a run of `:laptop` under ten steps over all weights of ada_edsr.py's network (of the full setting: of 16
blocks, 64 features, scale 4):

  python -m adversarial_augment.evaluate --workdir=RUN --evals=ada --overwrite --config.attack.moved=all \
    --config.attack.num_steps=10 --config.attack.init=ball --config.attack.nu=0.015 \
    --config.corruption_net.blocks=4 --config.corruption_net.features=16
"""

from pathlib import Path

from adversarial_augment import config as configs

# Networks that cost little beside the classifier, and the radii at which one step leaves images as similar to c(x) as
# ten steps over all weights within the paper's radius of .015 do: a mean SSIM of .992 through the small EDSR (here
# .991 in the miniature), of .96 through the paper's (held-out images of CIFAR-10). That of the quickstart leaves .88,
# as its two steps within .04 do.
VARIANTS = {
  '': {'corruption_net.blocks': 4, 'corruption_net.features': 16, 'corruption_net.scale': 1, 'attack.nu': 0.0765},
  'quickstart': {'attack.nu': 0.115},
  'laptop': {'corruption_net.blocks': 2, 'corruption_net.features': 8, 'attack.nu': 0.0427},
  'gpu': {'attack.nu': 0.0347},
  'smoke': {'attack.nu': 0.0347},
}


def get_config(variant: str = ''):
  cheaper = configs.choose_variant(variant, VARIANTS)
  config = configs.load(f'{Path(__file__).with_name("ada_edsr.py")}:{variant}')
  config.attack.update(num_steps=1, moved='last_third', init='zero', measure_end=False)
  config.update_from_flattened_dict(cheaper)
  return config
