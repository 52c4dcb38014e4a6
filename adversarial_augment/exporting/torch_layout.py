"""A pre-activation ResNet as a state dict of RobustBench's PyTorch class, with the same function.

The class is `PreActResNet(block, num_blocks, num_classes, bn_before_fc=True)` of robustbench/model_zoo/architectures/
resnet.py (github.com/RobustBench/robustbench, commit 3c3ee54), with the buffers `mu` and `sigma` that the models there
use for normalisation (`Rice2020OverfittingNetL2`, `Kireev2021EffectivenessNet`). Its blocks:

- `PreActBlockV2`: two 3x3 convolutions, the projection sees the activated input (shortcut 'preact').
- `PreActBlock`: the same, the projection sees the raw input (shortcut 'input').
- `PreActBottleneck`: 1x1, 3x3, 1x1, the projection sees the activated input.

All have 64 channels in the first stage, pad one pixel on each side, and normalise with epsilon 1e-5, which is PyTorch's
default and ours; running variances are copied. `DMPreActResNet` in their dm_wide_resnet.py is a different function: its
projections are 3x3 convolutions of the raw input, and it pads only on the right and below.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment.classifiers import torch_layouts
from adversarial_augment.classifiers.layers import MEAN, STD
from adversarial_augment.classifiers.preact_resnet import DEPTHS
from adversarial_augment.config.fields import spell
from adversarial_augment.errors import UserError

WIDTH = 64
SIDES = (25, 32)  # pixels: the class averages over the first 4x4 positions, whatever the size of the image

_CODE = """\
import torch
from robustbench.model_zoo.architectures.resnet import {block}, PreActResNet
from safetensors.torch import load_file


class Classifier(PreActResNet):

  def __init__(self):
    super().__init__({block}, {num_blocks}, num_classes={num_classes}, bn_before_fc=True)
    self.register_buffer('mu', torch.zeros(1, 3, 1, 1))
    self.register_buffer('sigma', torch.ones(1, 3, 1, 1))

  def forward(self, images):  # float32 [n, 3, h, w], RGB in [0, 1], {low} to {high} pixels a side{note}
    return super().forward((images - self.mu) / self.sigma)


classifier = Classifier().eval()
classifier.load_state_dict(load_file({file!r}))
"""


def check(config: ConfigDict) -> None:
  """Raises UserError, with the first field that prevents it, where the class cannot represent the classifier."""
  classifier = config.classifier
  for name, needed in (('name', 'preact_resnet'), ('padding', 'torch'), ('width', WIDTH)):
    if classifier[name] != needed:
      raise UserError(f"{spell(config, f'classifier.{name}')}, but RobustBench's PreActResNet needs {needed}.")
  if DEPTHS[classifier.depth][1] and classifier.shortcut != 'preact':
    given = spell(config, 'classifier.shortcut', 'classifier.depth')
    raise UserError(f"{given}, but RobustBench's bottlenecks need the shortcut preact.")


def state_dict(
  params: Mapping[str, Any], model_state: Mapping[str, Any], mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> dict[str, np.ndarray]:
  """Returns the state dict of a `preact_resnet`, with the buffers of the normalisation."""
  channels = lambda values: np.asarray(values, np.float32).reshape(1, 3, 1, 1)
  return {'mu': channels(mean), 'sigma': channels(std), **torch_layouts.to_torch(params, model_state)}


def code(config: ConfigDict, num_classes: int, file: str) -> str:
  """Returns the Python code that defines the class and loads `file`; PyTorch computes in float32 whatever the run."""
  num_blocks, bottleneck = DEPTHS[config.classifier.depth]
  basic = 'PreActBlockV2' if config.classifier.shortcut == 'preact' else 'PreActBlock'
  return _CODE.format(
    block='PreActBottleneck' if bottleneck else basic,
    num_blocks=list(num_blocks),
    num_classes=num_classes,
    low=SIDES[0],
    high=SIDES[1],
    note='' if config.precision == 'float32' else f'; in float32, whereas the run computed in {config.precision}',
    file=file,
  )
