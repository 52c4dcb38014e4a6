"""Attacks on a classifier with ordinary convolutions, compared with the package's own classifier.

  python -m benchmarks.user_functions [--rounds=5] [--images=16] [--width=16]

The same pre-activation ResNet twice: with the axes of the package, NHWC, and with those of PyTorch, NCHW. Prints
milliseconds of processor time per step and their ratio for every attack; then the same for single convolutions inside
the loop of an attack and outside of it, where each step is a separate program. Exits with 1 if a bound is missed. Runs
on one core, with huge pages (see timing.py).
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp

from adversarial_augment import attacks, classifiers, corruption_nets, per_example_conv
from adversarial_augment.classifiers import preact_resnet
from adversarial_augment.types import LogitsFn
from benchmarks import timing

STEPS = 4
BALL = {'norm': 'linf', 'epsilon': 1e-6}  # so small that no image breaks, and all steps run
ATTACKS = {
  'pgd': attacks.pgd(**BALL, num_steps=STEPS),
  'apgd': attacks.apgd(**BALL, num_steps=STEPS),
  'fab': attacks.fab(**BALL, num_steps=STEPS, num_targets=1),
  'square': attacks.square(**BALL, num_queries=STEPS),
  'multitargeted': attacks.multitargeted(**BALL, num_steps=STEPS, num_targets=1, restarts=1),
}
CONVOLUTIONS = {
  'plain': {},
  'strided': {'window_strides': (2, 2)},
  'dilated': {'rhs_dilation': (2, 2)},
  '4 groups': {'feature_group_count': 4},
  'depthwise': {'feature_group_count': 64},
}


def nchw_conv(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding='SAME') -> jax.Array:
  """Returns the convolution of NHWC with HWIO, computed with PyTorch's axes."""
  x, w = images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
  y = jax.lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=('NCHW', 'OIHW', 'NCHW'))
  return y.transpose(0, 2, 3, 1)


def user_functions(num_images: int, width: int, rounds: int) -> list[bool]:
  """Times every attack on both forms of the classifier."""
  images = jax.random.uniform(jax.random.key(1), (num_images, 32, 32, 3))
  make = functools.partial(preact_resnet, 10, depth=10, width=width)
  params, state = make().init(jax.random.key(0), images, is_training=True)
  forms = {'NHWC': per_example_conv.conv, 'NCHW': nchw_conv}
  functions = {name: classifiers.logits_fn(make(conv=conv), params, state) for name, conv in forms.items()}
  labels, keys = functions['NHWC'](images).argmax(-1), jax.random.split(jax.random.key(2), num_images)
  network, phi = corruption_nets.load('edsr', 'edsr_4x16_x1')
  ada = attacks.ada(network.apply, num_steps=STEPS)
  met = []
  print(f'\nResNet-10 of width {width}, {num_images} images, milliseconds of processor time per step:')
  for name, attack in (ATTACKS | {'ada': ada}).items():

    def run(logits_fn: LogitsFn, attack=attack):
      return jax.jit(lambda images, phi: attack(keys, logits_fn, images, labels, phi).images)

    variants = {
      form: functools.partial(run(function), images, phi if name == 'ada' else None)
      for form, function in functions.items()
    }
    times = timing.interleave(variants, rounds=rounds)
    print(f'  {name:<16}' + ''.join(f'{form} {1e3 * time.cpu / STEPS:8.1f}  ' for form, time in times.items()))
    met.append(timing.gate(f'{name}: NCHW over NHWC', times['NCHW'].cpu / times['NHWC'].cpu, 1.5, least=False))
  return met


def convolutions(num_images: int, rounds: int) -> list[bool]:
  """Times steps along the gradient of one convolution, in the loop of an attack and as separate programs."""
  images = jax.random.uniform(jax.random.key(1), (num_images, 32, 32, 64))
  keys, labels = jax.random.split(jax.random.key(2), num_images), jnp.zeros(num_images, jnp.int32)
  attack = attacks.pgd(**BALL, num_steps=STEPS)
  met = []
  print('\none convolution of 64 channels, milliseconds of processor time per step:')
  for name, options in CONVOLUTIONS.items():
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 64 // options.get('feature_group_count', 1), 64)) / 24
    options = {'window_strides': (1, 1), 'padding': 'SAME', 'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')} | options

    def logits_fn(images, kernel=kernel, options=options):
      return jax.lax.conv_general_dilated(images, kernel, **options).mean((1, 2)) ** 2

    inside = jax.jit(lambda images, logits_fn=logits_fn: attack(keys, logits_fn, images, labels).images)
    one = jax.jit(jax.grad(lambda images, logits_fn=logits_fn: logits_fn(images)[:, 0].sum()))
    outside = lambda one=one: [one(images) for _ in range(STEPS)]
    times = timing.interleave({'inside': lambda inside=inside: inside(images), 'outside': outside}, rounds=rounds)
    print(f'  {name:<16}' + ''.join(f'{form} {1e3 * time.cpu / STEPS:8.1f}  ' for form, time in times.items()))
    met.append(timing.gate(f'{name}: inside over outside', times['inside'].cpu / times['outside'].cpu, 2, least=False))
  return met


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--images', type=int, default=16)
  parser.add_argument('--width', type=int, default=16)
  arguments = parser.parse_args()
  timing.settle('benchmarks.user_functions', cores=1)
  met = user_functions(arguments.images, arguments.width, arguments.rounds)
  met += convolutions(arguments.images, arguments.rounds)
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
