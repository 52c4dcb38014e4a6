"""A classifier as a PyTorch module in one file: the source of its class, and a state dict that the source reads.

The keys are those of the published classes (`classifiers.torch_layouts`), with the buffers `mu` and `sigma` by which
RobustBench's models normalise images. So RobustBench's own `PreActResNet` (width 64, model_zoo/architectures/resnet.py)
and `WideResNet` take the state dict of a classifier of theirs, too.
"""

from collections.abc import Mapping, Sequence
import pprint
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment.classifiers import torch_layouts
from adversarial_augment.classifiers.alexnet import POOLED, STEM_STRIDE, channels
from adversarial_augment.classifiers.layers import EPSILON, MEAN, STD
from adversarial_augment.classifiers.preact_resnet import DEPTHS
from adversarial_augment.classifiers.resnext import GROUPS

FILE, WEIGHTS = 'classifier_torch.py', 'torch_state_dict.safetensors'

_HEAD = '''\
"""A trained image classifier; it needs PyTorch and nothing else.

    from classifier_torch import load
    classifier = load()  # reads {weights}, in the folder of this file
    logits = classifier(images)

Images are [n, 3, h, w], RGB: floats in [0, 1], or uint8. They are normalised inside; do not normalise them before.
Logits are [n, {num_classes}], in the order of CLASS_NAMES. Exported by adversarial_augment; card.json says how it was
trained.{note}
"""

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import {functions}

TITLE = {title}
CHECKPOINT_SHA256 = {sha256!r}
CLASS_NAMES = {class_names}
MEAN, STD = {mean}, {std}


'''

_NORM = """\
def norm(channels):
  return nn.BatchNorm2d(channels, eps={epsilon})


"""

_CONV = {
  'torch': """\
def conv(inputs, outputs, size, stride=1, groups=1, bias=False):
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)
""",
  'same': '''\
class StridedConv(nn.Conv2d):
  """A 3x3 convolution with stride 2, padded as XLA and TensorFlow do: even sides only on the right and below."""

  def forward(self, x):
    height, width = x.shape[2:]
    return conv2d(pad(x, (width % 2, 1, height % 2, 1)), self.weight, self.bias, stride=2, groups=self.groups)


def conv(inputs, outputs, size, stride=1, groups=1, bias=False):
  if (size, stride) == (3, 2):
    return StridedConv(inputs, outputs, size, stride, groups=groups, bias=bias)
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)
''',
}

_BASIC = """

class Block(nn.Module):

  def __init__(self, inputs, channels, stride):
    super().__init__()
    self.bn1, self.conv1 = norm(inputs), conv(inputs, channels, 3, stride)
    self.bn2, self.conv2 = norm(channels), conv(channels, channels, 3)
    self.{shortcut} = None
    if stride != 1 or inputs != channels:
      self.{shortcut} = {projection}

  def forward(self, x):
    y = relu(self.bn1(x))
    skip = x if self.{shortcut} is None else self.{shortcut}({seen})
    return self.conv2(relu(self.bn2(self.conv1(y)))) + skip
"""

_BOTTLENECK = """

class Block(nn.Module):

  def __init__(self, inputs, channels, stride):
    super().__init__()
    self.bn1, self.conv1 = norm(inputs), conv(inputs, channels, 1)
    self.bn2, self.conv2 = norm(channels), conv(channels, channels, 3, stride)
    self.bn3, self.conv3 = norm(channels), conv(channels, 4 * channels, 1)
    self.{shortcut} = None
    if stride != 1 or inputs != 4 * channels:
      self.{shortcut} = nn.Sequential(conv(inputs, 4 * channels, 1, stride))

  def forward(self, x):
    y = relu(self.bn1(x))
    skip = x if self.{shortcut} is None else self.{shortcut}({seen})
    y = self.conv2(relu(self.bn2(self.conv1(y))))
    return self.conv3(relu(self.bn3(y))) + skip
"""

_POST_BASIC = """

class Block(nn.Module):

  def __init__(self, inputs, channels, stride):
    super().__init__()
    self.conv1, self.bn1 = conv(inputs, channels, 3, stride), norm(channels)
    self.conv2, self.bn2 = conv(channels, channels, 3), norm(channels)
    self.shortcut = nn.Sequential()
    if stride != 1 or inputs != channels:
      self.shortcut = nn.Sequential(conv(inputs, channels, 1, stride), norm(channels))

  def forward(self, x):
    y = relu(self.bn1(self.conv1(x)))
    return relu(self.bn2(self.conv2(y)) + self.shortcut(x))
"""

_POST_BOTTLENECK = """

class Block(nn.Module):

  def __init__(self, inputs, channels, stride):
    super().__init__()
    self.conv1, self.bn1 = conv(inputs, channels, 1), norm(channels)
    self.conv2, self.bn2 = conv(channels, channels, 3, stride), norm(channels)
    self.conv3, self.bn3 = conv(channels, 4 * channels, 1), norm(4 * channels)
    self.shortcut = nn.Sequential()
    if stride != 1 or inputs != 4 * channels:
      self.shortcut = nn.Sequential(conv(inputs, 4 * channels, 1, stride), norm(4 * channels))

  def forward(self, x):
    y = relu(self.bn1(self.conv1(x)))
    y = relu(self.bn2(self.conv2(y)))
    return relu(self.bn3(self.conv3(y)) + self.shortcut(x))
"""

_AGGREGATED = """

class Block(nn.Module):

  def __init__(self, inputs, channels, stride):
    super().__init__()
    inner, outputs = {groups} * channels, 8 * channels
    self.conv_reduce, self.bn_reduce = conv(inputs, inner, 1), norm(inner)
    self.conv_conv, self.bn = conv(inner, inner, 3, stride, groups={groups}), norm(inner)
    self.conv_expand, self.bn_expand = conv(inner, outputs, 1), norm(outputs)
    self.downsample = None
    if stride != 1 or inputs != outputs:
      self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))

  def forward(self, x):
    y = relu(self.bn_reduce(self.conv_reduce(x)))
    y = self.bn_expand(self.conv_expand(relu(self.bn(self.conv_conv(y)))))
    return relu((x if self.downsample is None else self.downsample(x)) + y)
"""

_CLASS = '''

class Classifier(nn.Module):
  """The network, with untrained weights; see `load`."""

  def __init__(self):
    super().__init__()
    self.class_names = CLASS_NAMES
    self.register_buffer('mu', torch.tensor(MEAN).reshape(1, 3, 1, 1))
    self.register_buffer('sigma', torch.tensor(STD).reshape(1, 3, 1, 1))
'''

_RESIDUAL = """\
    self.{stem} = conv(3, {stem_channels}, 3{stem_stride})
    inputs = {stem_channels}
    for stage, (channels, count) in enumerate({stages}, 1):
      blocks = []
      for index in range(count):
        blocks.append(Block(inputs, channels, 2 if stage > 1 and index == 0 else 1))
        inputs = {expansion} * channels
      self.add_module(f'{prefix}{{stage}}', {stage_module})
    self.{norm}, self.{head} = norm({norm_channels}), nn.Linear(inputs, {num_classes})
"""

_FORWARD = """
  def forward(self, images):
    if images.dtype == torch.uint8:
      images = images.to(self.mu.dtype) / 255
"""

_RESIDUAL_FORWARD = """\
    x = self.{stem}((images - self.mu) / self.sigma)
{body}
    return self.{head}(x.mean((2, 3)))
"""

_ALEXNET = """\
    layers, inputs = [], 3
    for index, outputs in enumerate({convolutions}, 1):
      layers += [conv(inputs, outputs, 3, {stem_stride} if index == 1 else 1, bias=True), nn.ReLU()]
      layers += [nn.MaxPool2d(2)] if index in {pooled} else []
      inputs = outputs
    first, second = {hidden}
    self.features = nn.Sequential(*layers)
    self.classifier = nn.Sequential(
      nn.Dropout(), nn.Linear(4 * inputs, first), nn.ReLU(),
      nn.Dropout(), nn.Linear(first, second), nn.ReLU(),
      nn.Linear(second, {num_classes}),
    )
"""

_ALEXNET_FORWARD = """\
    x = self.features((images - self.mu) / self.sigma)
    return self.classifier(adaptive_avg_pool2d(x, 2).flatten(1))
"""

_LOAD = '''

def load(path=None):
  """Returns the trained classifier in evaluation mode, on the CPU, with the weights beside this file or at `path`."""
  data = Path(path or Path(__file__).with_name({weights!r})).read_bytes()
  start = 8 + int.from_bytes(data[:8], 'little')  # of the tensors, after a header in JSON
  header, state = json.loads(data[8:start]), {{}}
  header.pop('__metadata__', None)
  for key, about in header.items():
    first, last = (start + offset for offset in about['data_offsets'])
    dtype = {{'F32': torch.float32, 'I64': torch.int64}}[about['dtype']]
    state[key] = torch.frombuffer(bytearray(data[first:last]), dtype=dtype).reshape(about['shape'])
  classifier = Classifier()
  classifier.load_state_dict(state)
  return classifier.eval()
'''

_PRE_BODY = """\
    for stage in ({stages}):
      x = stage(x)
    x = relu(self.{norm}(x))"""
_POST_BODY = """\
    x = relu(self.{norm}(x))
    for stage in ({stages}):
      x = stage(x)"""


def state_dict(
  params: Mapping[str, Any], model_state: Mapping[str, Any], mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> dict[str, np.ndarray]:
  """Returns the state dict of a classifier, with the buffers of the normalisation."""
  channels = lambda values: np.asarray(values, np.float32).reshape(1, 3, 1, 1)
  return {'mu': channels(mean), 'sigma': channels(std), **torch_layouts.to_torch(params, model_state)}


def stages(classifier: ConfigDict) -> list[tuple[int, int]]:
  """Returns the width of the blocks of each stage of a classifier, and their number."""
  name, depth, width = (classifier[field] for field in ('name', 'depth', 'width'))
  if name in ('preact_resnet', 'resnet'):
    return [(width * 2**stage, count) for stage, count in enumerate(DEPTHS[depth][0])]
  first, count = (16 * width, (depth - 4) // 6) if name == 'wide_resnet' else (width, (depth - 2) // 9)
  return [(first * 2**stage, count) for stage in range(3)]


def source(
  config: ConfigDict,
  num_classes: int,
  class_names: Sequence[str] | None,
  normalisation: Mapping[str, Sequence[float]],
  title: str,
  sha256: str,
) -> str:
  """Returns the source of a classifier's module; PyTorch computes in float32 whatever the run did."""
  note = f' This module computes in float32, whereas the run did in {config.precision}.'
  names = None if class_names is None else tuple(class_names)
  is_alexnet, padding = config.classifier.name == 'alexnet', config.classifier.padding
  functions = ['adaptive_avg_pool2d' if is_alexnet else 'relu', *(['conv2d', 'pad'] if padding == 'same' else [])]
  values = {
    'weights': WEIGHTS,
    'num_classes': num_classes,
    'note': '' if config.precision == 'float32' else note,
    'title': ascii(title),
    'sha256': sha256,
    'class_names': pprint.pformat(names, width=110, compact=True),
    'mean': tuple(normalisation['mean']),
    'std': tuple(normalisation['std']),
    'functions': ', '.join(sorted(functions)),
  }
  parts = _alexnet_parts(config.classifier) if is_alexnet else _residual_parts(config.classifier)
  block, network, forward = (part.format_map(values | parts.values) for part in parts.templates)
  head, start, load = (part.format_map(values) for part in (_HEAD, _CLASS, _LOAD))
  norm = '' if is_alexnet else _NORM.format(epsilon=EPSILON)
  return ''.join([head, norm, _CONV[padding], block, start, network, _FORWARD, forward, load])


class _Parts(NamedTuple):
  """What the source of an architecture has of its own."""

  templates: tuple[str, str, str]  # of blocks, of the layers, and of the forward pass
  values: dict[str, Any]


def _alexnet_parts(classifier: ConfigDict) -> _Parts:
  *convolutions, first, second = channels(classifier.width)
  stem_stride = classifier.stem_stride or STEM_STRIDE
  values = {'convolutions': convolutions, 'hidden': (first, second), 'pooled': POOLED, 'stem_stride': stem_stride}
  return _Parts(('', _ALEXNET, _ALEXNET_FORWARD), values)


def _residual_parts(classifier: ConfigDict) -> _Parts:
  name, width = classifier.name, classifier.width
  is_bottleneck = name in ('preact_resnet', 'resnet') and DEPTHS[classifier.depth][1]
  words = {
    'preact_resnet': {
      'stem': 'conv1', 'norm': 'bn', 'head': 'linear', 'prefix': 'layer', 'stem_channels': width,
      'shortcut': 'shortcut', 'projection': 'nn.Sequential(conv(inputs, channels, 1, stride))',
    },
    'wide_resnet': {
      'stem': 'conv1', 'norm': 'bn1', 'head': 'fc', 'prefix': 'block', 'stem_channels': 16,
      'shortcut': 'convShortcut', 'projection': 'conv(inputs, channels, 1, stride)',
    },
    'resnext': {
      'stem': 'conv_1_3x3', 'norm': 'bn_1', 'head': 'classifier', 'prefix': 'stage_', 'stem_channels': 2 * width,
    },
    'resnet': {
      'stem': 'conv1', 'norm': 'bn1', 'head': 'linear', 'prefix': 'layer', 'stem_channels': width,
    },
  }[name]  # fmt: skip
  is_post, sizes = name in ('resnext', 'resnet'), stages(classifier)
  block = {
    'resnext': _AGGREGATED,
    'resnet': _POST_BOTTLENECK if is_bottleneck else _POST_BASIC,
  }.get(name, _BOTTLENECK if is_bottleneck else _BASIC)
  calls = ', '.join(f'self.{words["prefix"]}{stage + 1}' for stage in range(len(sizes)))
  body = (_POST_BODY if is_post else _PRE_BODY).format(stages=calls, norm=words['norm'])
  layer = 'nn.Sequential(*blocks)'
  values = {
    **words,
    'stem_stride': ', 2' if classifier.stem_stride == 2 else '',
    'seen': 'y' if classifier.shortcut == 'preact' else 'x',
    'groups': GROUPS,
    'stages': sizes,
    'expansion': 8 if name == 'resnext' else 4 if is_bottleneck else 1,
    'stage_module': f"nn.ModuleDict({{'layer': {layer}}})" if name == 'wide_resnet' else layer,
    'norm_channels': words['stem_channels'] if is_post else 'inputs',
    'body': body.replace('stage(x)', 'stage.layer(x)') if name == 'wide_resnet' else body,
  }
  return _Parts((block, _RESIDUAL, _RESIDUAL_FORWARD), values)
