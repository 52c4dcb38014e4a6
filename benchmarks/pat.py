"""A step of PAT by the distance of the classifier, compared with a nominal one, over the ratio of their operations.

  python -m benchmarks.pat [--rounds=9]

Each step of Fast-LPA needs two forward passes and the gradient of an image: three passes, where a nominal step needs
three for everything. The clean images need one more. Pre-activation ResNet-18 of width 16, 32 and 128 images, ten
steps, two devices. Prints milliseconds and ratios, and exits with 1 if a bound is missed. Runs on two cores, with huge
pages (see timing.py).
"""

import argparse
import sys

import jax

from benchmarks import timing, train_step


def compare(batch_size: int, rounds: int) -> bool:
  setting = train_step.TOY._replace(batch_size=batch_size)
  variants = {kind: train_step.make_step(setting, 2, kind)[0] for kind in ('nominal', 'pat')}
  times = timing.interleave(variants, rounds=rounds)
  print(f'\n{batch_size} images, {setting.num_steps} steps:')
  for name, (wall, cpu) in times.items():
    print(f'  {name:<10} {1e3 * wall:9.1f} ms {1e3 * cpu:9.1f} ms cpu')
  ratio = (3 * setting.num_steps + 1 + 3) / 3
  share = times['pat'].wall / times['nominal'].wall / ratio
  return timing.gate('pat / nominal over the ratio of operations', share, 1.1, least=False)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=9)
  rounds = parser.parse_args().rounds
  timing.settle('benchmarks.pat', cores=2)
  jax.config.update('jax_num_cpu_devices', 2)
  met = [compare(batch_size, rounds) for batch_size in (32, 128)]
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
