"""Published numbers on the official CIFAR-10-C, all of its 10,000 x 75 images: what a report puts beside a run.

published.csv has the errors in percent, from Tables 1 to 3 of arXiv 2104.01086 and from RobustBench
(model_info/cifar10/corruptions). The severities of the paper's first row are RobustBench's, of the released model
(Calian2021Defending). Four cells are hard to read in the source; what they are taken for agrees with the means of their
rows: impulse noise of DeepAugment + AugMix, glass blur of l_inf training, brightness and contrast of PAT-self.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from adversarial_augment import metrics

# The headings of Table 1, and how many of them each of its groups has.
_HEADINGS = 'Gauss Shot Impulse Defocus Glass Motion Zoom Snow Frost Fog Bright Contrast Elastic Pixel JPEG'
COLUMNS = dict(zip(metrics.NAMES, _HEADINGS.split(), strict=True))
LABELS = COLUMNS | {name: name.replace('_', ' ').capitalize() for name in (*metrics.EXTRA_NAMES, *metrics.BAR_NAMES)}
GROUPS = (('Noise', 3), ('Blur', 4), ('Weather', 4), ('Digital', 4))

PAPER = 'paper'
ROBUSTBENCH = 'RobustBench'


class Model(NamedTuple):
  name: str
  source: str  # PAPER or ROBUSTBENCH
  clean: float
  mce: float
  errors: tuple[float, ...]  # of COLUMNS
  severity: tuple[float, ...]  # error at severities 1 to 5, mean over corruptions; () where it is not known


def _model(row: dict[str, str]) -> Model:
  numbers = lambda columns: tuple(float(row[column]) for column in columns if row[column])
  severity = numbers(f'severity_{severity}' for severity in metrics.SEVERITIES)
  return Model(row['name'], row['source'], float(row['clean']), float(row['mce']), numbers(COLUMNS), severity)


with open(Path(__file__).with_suffix('.csv'), newline='', encoding='utf-8') as _file:
  MODELS = tuple(map(_model, csv.DictReader(_file)))
