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

from collections.abc import Mapping
import re
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment.classifiers.layers import MEAN, STD
from adversarial_augment.classifiers.preact_resnet import DEPTHS
from adversarial_augment.config.fields import spell
from adversarial_augment.errors import UserError

WIDTH = 64
SIDES = (25, 32)  # pixels: the class averages over the first 4x4 positions, whatever the size of the image
_NAMES = {'stem': 'conv1', 'norm': 'bn', 'head': 'linear'}
_BLOCK_NAMES = {'conv': 'conv', 'norm': 'bn'}
_LEAVES = {
  'w': 'weight', 'b': 'bias', 'scale': 'weight', 'offset': 'bias', 'mean': 'running_mean', 'var': 'running_var',
  'count': 'num_batches_tracked',
}  # fmt: skip

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


def state_dict(params: Mapping[str, Any], model_state: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the state dict of a `preact_resnet`: float32, batch counts int64, OIHW, the head [classes, c]."""
  tensors: dict[str, np.ndarray] = {
    'mu': np.asarray(MEAN, np.float32).reshape(1, 3, 1, 1),
    'sigma': np.asarray(STD, np.float32).reshape(1, 3, 1, 1),
  }
  for tree in (params, model_state):
    for module, leaves in tree.items():
      for leaf, value in leaves.items():
        array = np.asarray(value)
        array = array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim)))
        dtype = np.int64 if leaf == 'count' else np.float32
        tensors[f'{_module(module)}.{_LEAVES[leaf]}'] = np.ascontiguousarray(array, dtype).reshape(array.shape)
  return tensors


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


def _module(name: str) -> str:
  """'preact_resnet/stage_1_block_0/norm_1' -> 'layer2.0.bn2'"""
  name = name.removeprefix('preact_resnet/')
  block = re.fullmatch(r'stage_(\d)_block_(\d+)/(?:(conv|norm)_(\d)|shortcut)', name)
  if block is None:
    return _NAMES[name]
  stage, index, part, number = block.groups()
  inner = f'{_BLOCK_NAMES[part]}{int(number) + 1}' if part else 'shortcut.0'
  return f'layer{int(stage) + 1}.{index}.{inner}'
