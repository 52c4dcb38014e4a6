"""A step of PAT, by the distance of the classifier or of the AlexNet that ships, compared with a nominal one.

  python -m benchmarks.pat [--rounds=9]

Ratios of times are taken over those of operations: each step of Fast-LPA needs the gradient of an image, through the
classifier and the network of the distance, and one more forward pass of the latter, each of about the cost of a
forward pass; a nominal step needs three of the classifier for everything. The clean images need one more of each.
Pre-activation ResNet-18 of width 16, 32 and 128 images, ten steps, two devices. Prints milliseconds and ratios, and
exits with 1 if a bound is missed. Runs on two cores, with huge pages (see timing.py).
"""

import argparse
import sys

import jax
import jax.numpy as jnp

from adversarial_augment import classifiers
from adversarial_augment.evaluation import distances
from benchmarks import timing, train_step


def compare(batch_size: int, rounds: int) -> list[bool]:
  setting = train_step.TOY._replace(batch_size=batch_size)
  variants = {kind: train_step.make_step(setting, 2, kind)[0] for kind in ('nominal', 'pat', 'pat_alexnet')}
  times = timing.interleave(variants, rounds=rounds)
  print(f'\n{batch_size} images, {setting.num_steps} steps:')
  for name, (wall, cpu) in times.items():
    print(f'  {name:<12} {1e3 * wall:9.1f} ms {1e3 * cpu:9.1f} ms cpu')
  steps, alexnet = setting.num_steps, alexnet_flops() / train_step.flops(setting)[1]
  ratios = {'pat': (3 * steps + 1 + 3) / 3, 'pat_alexnet': (2 * steps + 1 + 3 + alexnet * (3 * steps + 1)) / 3}
  return [
    timing.gate(
      f'{name} / nominal over the ratio of operations',
      times[name].wall / times['nominal'].wall / ratio,
      1.1,
      least=False,
    )
    for name, ratio in ratios.items()
  ]


def alexnet_flops() -> float:
  """Returns the operations per image of a forward pass of the AlexNet that ships, up to its features."""
  alexnet = distances.load(None, '', 'float32')
  look = lambda image: classifiers.features(alexnet.network, *alexnet.variables)(image)
  return timing.flop(look, jnp.zeros((1, 32, 32, 3)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=9)
  rounds = parser.parse_args().rounds
  timing.settle('benchmarks.pat', cores=2)
  jax.config.update('jax_num_cpu_devices', 2)
  met = [one for batch_size in (32, 128) for one in compare(batch_size, rounds)]
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
