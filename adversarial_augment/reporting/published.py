"""Published numbers on the official CIFAR-10-C, all of its 10,000 x 75 images: what a report puts beside a run.

Sources: Tables 1 and 2 of arXiv 2104.01086, and RobustBench (model_info/cifar10/corruptions). Errors in percent.
"""

from typing import NamedTuple

from adversarial_augment import metrics

# The headings of Table 1, and how many of them each of its groups has.
HEADINGS = (
  'Gauss', 'Shot', 'Impulse', 'Defocus', 'Glass', 'Motion', 'Zoom', 'Snow', 'Frost', 'Fog', 'Bright', 'Contrast',
  'Elastic', 'Pixel', 'JPEG',
)  # fmt: skip
COLUMNS = dict(zip(metrics.NAMES, HEADINGS, strict=True))
EXTRA = {name: name.replace('_', ' ').capitalize() for name in metrics.EXTRA_NAMES}
GROUPS = (('Noise', 3), ('Blur', 4), ('Weather', 4), ('Digital', 4))

PAPER = 'paper'
ROBUSTBENCH = 'RobustBench'


class Model(NamedTuple):
  name: str
  source: str
  clean: float
  mce: float
  errors: tuple[float, ...]  # of COLUMNS
  severity: tuple[float, ...] | None = None  # error at severities 1 to 5, mean over corruptions


# The paper's rows; severities of the first are RobustBench's, of the released model (Calian2021Defending).
# One cell (DeepAugment + AugMix, impulse) is hard to read in the source; 10.8 agrees with the row's mean.
MODELS = (
  Model(
    'AdA + DeepAugment (10×) + AugMix', PAPER, 5.07, 7.83,
    (8.8, 7.8, 11.2, 5.9, 10.7, 7.3, 6.5, 8.5, 6.7, 8.7, 5.2, 6.2, 8.5, 7.7, 7.8),
    (6.04, 6.54, 7.35, 8.61, 10.60),
  ),
  Model(
    'AdA + DeepAugment + AugMix', PAPER, 5.28, 8.58,
    (9.8, 8.7, 12.4, 6.3, 11.6, 8.0, 6.8, 9.4, 7.5, 8.8, 5.4, 6.6, 9.2, 9.7, 8.6),
  ),
  Model(
    'AdA + AugMix', PAPER, 3.74, 8.80,
    (16.4, 12.8, 14.4, 5.7, 10.9, 7.5, 6.3, 7.7, 6.7, 6.6, 3.9, 4.7, 8.1, 11.9, 8.4),
  ),
  Model(
    'AdA', PAPER, 3.82, 12.49,
    (25.8, 19.8, 29.9, 9.3, 15.6, 10.9, 9.6, 9.3, 8.1, 8.8, 4.3, 11.0, 9.3, 6.7, 9.2),
  ),
  Model(
    'DeepAugment', PAPER, 5.73, 11.67,
    (12.1, 10.2, 15.2, 7.1, 20.5, 12.2, 8.4, 12.3, 9.8, 9.3, 6.7, 13.1, 11.8, 14.1, 12.2),
  ),
  Model(
    'DeepAugment + AugMix', PAPER, 5.75, 10.15,
    (10.9, 9.4, 10.8, 7.0, 18.2, 10.4, 7.7, 10.6, 8.7, 9.3, 6.3, 8.6, 11.4, 12.3, 10.7),
  ),
  Model(
    'DeepAugment (10×)', PAPER, 4.43, 8.30,
    (9.0, 7.6, 11.5, 5.4, 14.0, 7.9, 6.1, 8.6, 6.6, 7.1, 5.0, 7.3, 9.1, 10.0, 9.4),
  ),
  Model(
    'DeepAugment (10×) + AugMix', PAPER, 4.79, 8.11,
    (8.8, 7.7, 8.6, 5.7, 14.4, 7.9, 6.2, 8.4, 6.7, 7.3, 5.1, 6.5, 9.2, 10.4, 8.9),
  ),
  Model(
    'AugMix', PAPER, 3.95, 13.13,
    (26.2, 18.3, 10.6, 7.2, 32.8, 10.4, 9.0, 10.5, 10.1, 6.3, 4.7, 6.3, 11.4, 20.1, 13.0),
  ),
  Model(
    'Nominal', PAPER, 4.23, 25.17,
    (58.3, 44.6, 49.1, 15.4, 44.7, 19.7, 19.4, 15.6, 17.9, 10.0, 5.5, 17.2, 15.3, 24.7, 19.8),
  ),
  Model(
    'CARD-Deck of LRR, WRN-18-2', ROBUSTBENCH, 3.44, 7.21,
    (8.0, 6.7, 7.3, 4.8, 13.7, 6.3, 5.7, 7.1, 6.9, 7.4, 4.1, 8.7, 7.2, 7.2, 7.2),
    (4.65, 5.33, 6.27, 8.21, 11.60),
  ),
  Model(
    'NoisyMix, WRN-28-4', ROBUSTBENCH, 3.27, 7.22,
    (8.2, 6.7, 3.6, 4.7, 12.6, 6.4, 5.5, 6.9, 6.4, 6.6, 3.9, 11.5, 7.1, 10.2, 8.2),
    (4.44, 5.21, 6.08, 7.97, 12.42),
  ),
  Model(
    'AugMix with JSD, ResNeXt-29', ROBUSTBENCH, 4.17, 10.91,
    (22.7, 16.5, 10.6, 5.5, 17.9, 7.3, 6.4, 9.7, 10.0, 8.5, 5.3, 9.0, 8.7, 14.4, 11.1),
    (6.32, 7.73, 9.67, 12.84, 17.99),
  ),
  Model(
    'Standard, WRN-28-10', ROBUSTBENCH, 5.22, 26.54,
    (53.0, 41.2, 44.7, 18.5, 49.0, 22.3, 24.4, 18.1, 25.0, 11.2, 6.7, 17.4, 16.2, 28.0, 22.4),
    (13.10, 18.66, 25.08, 32.36, 43.51),
  ),
)  # fmt: skip
