"""Training while checkpoints are copied to a mirror, compared with the same training while they are not.

  python -m benchmarks.mirror [--pairs=20] [--url=URL]

One run saves every 20 steps, and every other checkpoint goes to the mirror. So two stretches of 20 steps that follow
each other make a pair, of which one has a copy in its background. Exits with 1 if the median of their images a second,
with a copy over without, is below 0.98.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path
import statistics
import sys
import tempfile

from adversarial_augment import config as configs
from adversarial_augment import datasets, train
from adversarial_augment.run import mirroring
from adversarial_augment.storage.remote import Remote
from benchmarks import timing

BOUND = 0.98
EVERY = 20  # steps between checkpoints
FIELDS = {
  'classifier.width': '32', 'checkpoint_every': f'{EVERY}', 'log_every': f'{EVERY}', 'eval_every': '0',
  'evals': 'clean', 'eval_images': '64',
}  # fmt: skip


def rates(workdir: Path, url: str, pairs: int) -> list[float]:
  """Trains; returns the images a second of each stretch after the first two, with a copy and without in turn."""
  fields = FIELDS | {'num_steps': f'{2 * EVERY * (pairs + 2)}'}
  config = configs.override(configs.load('configs/nominal.py:quickstart'), fields)
  splits = {split: datasets.load('embedded', split, '') for split in ('train', 'test')}
  start = mirroring.Start(reached=True, step=0)
  copies = mirroring.Copies(Remote(url, '--url'), workdir, config.keep_checkpoints, config.num_steps, start)
  offered = lambda step: copies.offer(step) if step // EVERY % 2 == 0 else None
  train.train(config, workdir, splits, saved=offered)
  copies.finish()
  copies.close()
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  found = {line['step']: line['images_per_second'] for line in lines}
  return [found[EVERY * stretch] for stretch in range(3, 2 * pairs + 3)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--pairs', type=int, default=20)
  parser.add_argument('--url', help='of an empty folder; default: a folder of this machine')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    found = rates(Path(folder, 'run'), arguments.url or f'{folder}/mirror', arguments.pairs)
  copied, others = found[::2], found[1::2]
  ratios = [one / other for one, other in zip(copied, others, strict=True)]
  error = statistics.stdev(ratios) / len(ratios) ** 0.5
  print(f'{statistics.mean(copied):.1f} images/s with a copy, {statistics.mean(others):.1f} without')
  print(f'mean of the {len(ratios)} ratios {statistics.mean(ratios):.3f} ± {error:.3f}')
  met = timing.gate('images a second with a copy over without', statistics.median(ratios), BOUND, least=True)
  sys.exit(0 if met else 1)


if __name__ == '__main__':
  main()
