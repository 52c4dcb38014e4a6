"""The corruptions of CIFAR-10-C: milliseconds per image, compared with the package imagecorruptions and with ResNet-18.

  python -m benchmarks.corruptions [--rounds=3] [--images=500]

Prints the speed of each corruption and, if imagecorruptions can be imported, the speed of its version on the same
images (its constants are those of ImageNet-C, but the work is similar); how long all 19 corruptions of 10,000 images
would take; and, for the 15 x 5 errors of a ResNet-18, the time for corrupting over the time for classifying. Exits with
1 if a bound is missed.
"""

import argparse
import functools
import importlib.util
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import classifiers, corruptions, datasets
from adversarial_augment.parallel import devices
from benchmarks import timing

MINUTES = 15  # for 19 x 5 x 10,000 images, on two cores
OVER_CLASSIFYING = 2
THEIR_IMAGES = 20  # some of its corruptions take seconds


def theirs(name: str, images: np.ndarray, severity: int):
  """The corruption of `imagecorruptions`, one image at a time, as it only allows."""
  import imagecorruptions

  return [imagecorruptions.corrupt(image, severity=severity, corruption_name=name) for image in images]


def can_compare(name: str, images: np.ndarray) -> bool:
  """Whether imagecorruptions is installed and supports this corruption for images of this size."""
  if importlib.util.find_spec('imagecorruptions') is None:
    return False
  try:
    theirs(name, images[:1], 3)
  except Exception as error:  # of any type: for example, motion blur fails on images of 32x32
    print(f'  imagecorruptions cannot do {name} on {images.shape[1]}x{images.shape[2]}: {error}')
    return False
  return True


def resnet18(images: np.ndarray):
  """Returns a function that classifies all images."""
  network = classifiers.CLASSIFIERS['preact_resnet'](10, depth=18, width=64)
  batch = jnp.asarray(images, jnp.float32) / 255
  params, state = network.init(jax.random.key(0), batch[:1], is_training=True)
  run = jax.jit(classifiers.logits_fn(network, params, state))
  return lambda: run(batch)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--images', type=int, default=500)
  args = parser.parse_args()
  timing.settle('benchmarks.corruptions', cores=2)
  images = datasets.load('embedded', 'test', '').read(np.arange(args.images)).images
  devices.virtual_devices(2)
  variants = {'resnet18': resnet18(images[:64])}
  for name in corruptions.CORRUPTIONS:
    for severity in corruptions.SEVERITIES:
      variants[f'{name} {severity}'] = functools.partial(corruptions.corrupt, images, name, severity)
    if can_compare(name, images):
      variants[f'theirs {name}'] = functools.partial(theirs, name, images[:THEIR_IMAGES], 3)
  times = timing.interleave(variants, rounds=args.rounds)
  print(f'milliseconds per image of 32x32, {args.images} images, two cores; processor time after the slash')
  seconds = dict.fromkeys(corruptions.CORRUPTIONS, 0.0)
  for name in corruptions.CORRUPTIONS:
    own = [times[f'{name} {severity}'] for severity in corruptions.SEVERITIES]
    seconds[name] = sum(one.wall for one in own) / args.images
    wall, cpu = (1e3 * statistics.mean(values) / args.images for values in zip(*own, strict=True))
    line = f'  {name:<18} {wall:7.3f} /{cpu:7.3f}'
    if f'theirs {name}' in times:
      other = 1e3 * times[f'theirs {name}'].cpu / THEIR_IMAGES
      line += f'   imagecorruptions {other:8.3f}, {other / cpu:6.1f} times the processor time'
    print(line)
  minutes = 10_000 * sum(seconds.values()) / 60
  classifying = 5 * len(corruptions.NAMES) * times['resnet18'].wall / 64
  corrupting = sum(seconds[name] for name in corruptions.NAMES)
  met = [
    timing.gate('minutes for 19 x 5 x 10,000 images', minutes, MINUTES, least=False),
    timing.gate('corrupting / classifying by ResNet-18', corrupting / classifying, OVER_CLASSIFYING, least=False),
  ]
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
