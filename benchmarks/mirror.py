"""Training with a mirror, compared with the same training without one.

  python -m benchmarks.mirror [--rounds=4] [--url=URL]

Both run in turn, in processes of their own, and save every 20 steps; the mirror gets each of these checkpoints. Exits
with 1 if images a second with a mirror are below 0.98 of those without.
"""

import argparse
import json
from pathlib import Path
import shutil
import statistics
import subprocess
import sys
import tempfile

from benchmarks import timing

BOUND = 0.98
FLAGS = (
  '--config=configs/nominal.py:quickstart', '--config.classifier.width=32', '--config.num_steps=200',
  '--config.checkpoint_every=20', '--config.log_every=10', '--config.eval_every=0', '--config.evals=clean',
  '--config.eval_images=64',
)  # fmt: skip


def rate(workdir: Path, *flags: str) -> float:
  """Trains, and returns the images a second over all steps but the first ones; saving is not counted."""
  shutil.rmtree(workdir, ignore_errors=True)
  command = [sys.executable, '-m', 'adversarial_augment.train', *FLAGS, f'--workdir={workdir}', *flags]
  subprocess.run(command, check=True, capture_output=True)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return statistics.harmonic_mean([line['images_per_second'] for line in lines[2:]])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=4)
  parser.add_argument('--url', help='of an empty folder; default: a folder of this machine')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    workdir = Path(folder, 'run')
    ratios = []
    for number in range(arguments.rounds):
      mirror = f'{arguments.url or f"{folder}/mirror"}/{number}'
      runs = {'with': (f'--mirror={mirror}',), 'without': ()}
      order = list(runs) if number % 2 else list(runs)[::-1]  # so that neither always comes first
      found = {name: rate(workdir, *runs[name]) for name in order}
      ratios.append(found['with'] / found['without'])
      print(f'round {number + 1}: {found["with"]:.1f} images/s with a mirror, {found["without"]:.1f} without')
  ratio = statistics.median(ratios)
  sys.exit(0 if timing.gate('images a second with a mirror over without', ratio, BOUND, least=True) else 1)


if __name__ == '__main__':
  main()
