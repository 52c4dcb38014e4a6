"""Files that attack, by name: how each is made, which command reads it, and the exit code that is right."""

from collections.abc import Callable
import os
from pathlib import Path

import numpy as np

from adversarial_augment import config as configs
from adversarial_augment.datasets import writer
from tests import checkpoint_cases

ROOT = Path(__file__).parent.parent
DEEP = '[' * 100_000 + ']' * 100_000
ENDLESS = 1 << 40  # bytes that take no place on the disk
NESTED = b'()q\0' + b'h\0h\0\x86q\0' * 40 + b't'  # a tuple of 2**40 parts, which is one value of the pickle

Case = Callable[[Path, 'Base'], list[str]]
CASES: dict[str, tuple[Case, int]] = {}


def case(name: str, code: int = 2):
  def keep(make: Case) -> Case:
    CASES[name] = make, code
    return make

  return keep


def payload(folder: Path) -> None:
  """Lays a module beside the data that leaves a trace when it is imported."""
  for name in ('pets_payload', 'data'):
    (folder / name).mkdir()
    (folder / name / '__init__.py').write_text(f'open({str(folder / "ran")!r}, "w")')


class Base:
  """What hostile files are made of: a good data set, and a good run as far as it is read here."""

  def __init__(self, folder: Path):
    self.data, self.run = folder / 'data', folder / 'run'
    rng = np.random.default_rng(0)
    examples = lambda: [(rng.integers(0, 256, (32, 32, 3), np.uint8), i % 2) for i in range(8)]
    about = writer.Description('pets', '1.0.0', 'Pets.', ('cat', 'dog'), (32, 32, 3), 'own', None)
    writer.write(about, {split: writer.Split(8, examples()) for split in ('train', 'test')}, self.data)
    self.run.mkdir()
    config = configs.load(f'{ROOT}/configs/nominal.py:smoke')
    (self.run / 'config.json').write_text(configs.to_json(config))
    (self.run / 'data.json').write_text('{}')
    (self.run / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}\n')
    checkpoint_cases.three_checkpoints(self.run / 'checkpoints')
    (self.run / 'results').mkdir()


def pipe(path: Path) -> None:
  path.unlink(missing_ok=True)
  os.mkfifo(path)


def endless(path: Path) -> None:
  path.touch()
  os.truncate(path, ENDLESS)


def device(path: Path) -> None:
  path.unlink(missing_ok=True)
  path.symlink_to('/dev/zero')
