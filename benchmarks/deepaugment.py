"""DeepAugment: images per second through each network, compared with one image at a time.

  python -m benchmarks.deepaugment [--rounds=5] [--images=1000]

The baseline is that of the published script: ordinary convolutions, one image per call, and weights that are kept until
new ones are drawn. Prints the speed of the small networks that ship, and the ratio to the baseline. Exits with 1 if a
bound is missed.
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import corruption_nets, datasets, deepaugment, per_example_conv
from adversarial_augment.deepaugment import features
from adversarial_augment.parallel import devices
from benchmarks import timing

SPEED = 300  # images per second of the small EDSR at native 32, on two cores
WEIGHTS = 'edsr_4x16_x1'


def plain(images: np.ndarray, params, settings: deepaugment.Settings):
  """The published script's formulation."""
  apply = functools.partial(features.edsr, bug_compatible=True, conv=per_example_conv.conv)
  levels = lambda weights, image, key: jnp.clip(apply(weights, image.astype(jnp.float32), key), 0, 255)
  one = jax.jit(lambda weights, image, key: levels(weights, image, key).astype(jnp.uint8))
  out, weights = np.empty_like(images), params
  for i, first in enumerate(deepaugment.first_of_run(settings.seed, 0, len(images))):
    if i == first:
      weights = jax.device_put(deepaugment.damaged_weights(params, settings, 0, i))
    out[i] = one(weights, images[i], jax.random.key(i))
  return out


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--images', type=int, default=1000)
  args = parser.parse_args()
  timing.settle('benchmarks.deepaugment', cores=2)
  images = datasets.load('embedded', 'train', '').read(np.arange(args.images)).images
  devices.virtual_devices(2)
  params, _ = corruption_nets.read('edsr', WEIGHTS)
  settings = deepaugment.Settings('edsr', seed=0)
  variants = {
    'ours': lambda: deepaugment.generate(images, np.arange(len(images)), 0, params, settings),
    'plain': functools.partial(plain, images, params, settings),
  }
  times = timing.interleave(variants, rounds=args.rounds)
  print(f'images per second of 32x32 through {WEIGHTS}, native, two cores; of processor time after the slash')
  for name, time in times.items():
    print(f'  {name:<8} {len(images) / time.wall:7.0f} /{len(images) / time.cpu:7.0f}')
  met = [
    timing.gate('images per second', len(images) / times['ours'].wall, SPEED, least=True),
    timing.gate('ours over one image at a time', times['plain'].wall / times['ours'].wall, 1.5, least=True),
  ]
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
