"""A step of RLAT, compared with a nominal one: two passes, of which the first needs no gradient of the parameters.

  python -m benchmarks.rlat [--rounds=9]

Pre-activation ResNet-18 of width 16, 32 and 128 images, two devices. Prints milliseconds and ratios, and exits with 1
if a bound is missed. Runs on two cores, with huge pages (see timing.py).
"""

import argparse
import sys

import jax

from benchmarks import timing, train_step


def compare(batch_size: int, rounds: int) -> bool:
  setting = train_step.TOY._replace(batch_size=batch_size)
  variants = {kind: train_step.make_step(setting, 2, kind)[0] for kind in ('nominal', 'rlat')}
  times = timing.interleave(variants, rounds=rounds, calls=train_step.CALLS)
  print(f'\n{batch_size} images:')
  for name, (wall, cpu) in times.items():
    print(f'  {name:<10} {1e3 * wall:9.1f} ms {1e3 * cpu:9.1f} ms cpu')
  return timing.gate('rlat / nominal', times['rlat'].wall / times['nominal'].wall, 2.3, least=False)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=9)
  rounds = parser.parse_args().rounds
  timing.settle('benchmarks.rlat', cores=2)
  jax.config.update('jax_num_cpu_devices', 2)
  met = [compare(batch_size, rounds) for batch_size in (32, 128)]
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
