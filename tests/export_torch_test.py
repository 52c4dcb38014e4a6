"""The state dict for RobustBench's PyTorch class: its names, and the function that the class makes of it."""

import sys
import types

import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import export
from adversarial_augment.errors import UserError
from adversarial_augment.exporting import torch_layout
from tests.classifier_cases import images, load_by_card, random_classifier


@pytest.mark.parametrize('depth, count', [(18, 11_172_170), (50, 23_513_162)])
def test_torch_layout_has_the_published_number_of_parameters(depth, count):
  classifier = random_classifier(depth)
  tensors = torch_layout.state_dict(classifier.params, classifier.model_state)
  assert sum(value.size for name, value in tensors.items() if name.endswith(('.weight', '.bias'))) == count


def test_torch_layout_has_the_names_and_shapes_of_the_class():
  classifier = random_classifier(10, num_classes=7)
  tensors = torch_layout.state_dict(classifier.params, classifier.model_state)
  norm = {'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'}
  names = {'mu', 'sigma', 'conv1.weight', 'linear.weight', 'linear.bias'} | {f'bn.{leaf}' for leaf in norm}
  for layer in ('layer1', 'layer2', 'layer3', 'layer4'):
    names |= {f'{layer}.0.{conv}.weight' for conv in ('conv1', 'conv2')}
    names |= {f'{layer}.0.{bn}.{leaf}' for bn in ('bn1', 'bn2') for leaf in norm}
    names |= {f'{layer}.0.shortcut.0.weight'} if layer != 'layer1' else set()
  assert tensors.keys() == names
  shapes = {
    'mu': (1, 3, 1, 1),
    'conv1.weight': (64, 3, 3, 3),
    'layer2.0.conv1.weight': (128, 64, 3, 3),
    'layer2.0.shortcut.0.weight': (128, 64, 1, 1),
    'layer2.0.bn1.running_var': (64,),
    'bn.num_batches_tracked': (),
    'linear.weight': (7, 512),
  }
  assert {name: tensors[name].shape for name in shapes} == shapes
  kinds = {name: value.dtype for name, value in tensors.items()}
  assert {kinds.pop(name) for name in list(kinds) if name.endswith('num_batches_tracked')} == {np.dtype(np.int64)}
  assert set(kinds.values()) == {np.dtype(np.float32)}
  assert all(value.flags.c_contiguous for value in tensors.values())
  kernel = classifier.params['preact_resnet/stage_1_block_0/conv_0']['w']
  np.testing.assert_array_equal(tensors['layer2.0.conv1.weight'][5, 3], kernel[:, :, 3, 5])


@pytest.mark.parametrize(
  'depth, fields, words',
  [
    (10, {'padding': 'same'}, 'config.classifier.padding=same'),
    (10, {'width': 16}, 'config.classifier.width=16'),
    (50, {'shortcut': 'input'}, 'config.classifier.shortcut=input, config.classifier.depth=50, but'),
  ],
)
def test_functions_that_the_class_has_not_are_refused(tmp_path, depth, fields, words):
  with pytest.raises(UserError) as error:
    export.export(random_classifier(depth, **fields), tmp_path, tmp_path / 'out', ['torch'])
  assert str(error.value).startswith(words)
  assert 'Omit torch from --formats' in str(error.value)
  assert not (tmp_path / 'out').exists()


def test_torch_code_notes_another_precision():
  config = configs.base_config()
  assert 'computed' not in torch_layout.code(config, 10, 'f')
  config.precision = 'bfloat16'
  assert 'bfloat16' in torch_layout.code(config, 10, 'f')


def robustbench(torch) -> types.ModuleType:
  """The classes of robustbench/model_zoo/architectures/resnet.py that the layout is for, written anew."""
  nn, functional = torch.nn, torch.nn.functional

  def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

  class Block(nn.Module):
    """Pre-activation; subclasses say how many convolutions, and what the projection sees."""

    sizes, expansion, activated = (3, 3), 1, True

    def __init__(self, inputs, planes, stride):
      super().__init__()
      widths = [inputs, *[planes] * (len(self.sizes) - 1), planes * self.expansion]
      strided = len(self.sizes) - 2  # the first of two convolutions, the second of three
      for i, size in enumerate(self.sizes):
        setattr(self, f'bn{i + 1}', nn.BatchNorm2d(widths[i]))
        setattr(self, f'conv{i + 1}', conv(widths[i], widths[i + 1], size, stride if i == strided else 1))
      if stride != 1 or inputs != widths[-1]:
        self.shortcut = nn.Sequential(conv(inputs, widths[-1], 1, stride))

    def forward(self, x):
      first = y = functional.relu(self.bn1(x))
      skip = self.shortcut(first if self.activated else x) if hasattr(self, 'shortcut') else x
      for i in range(1, len(self.sizes)):
        y = getattr(self, f'conv{i}')(y)
        y = functional.relu(getattr(self, f'bn{i + 1}')(y))
      return getattr(self, f'conv{len(self.sizes)}')(y) + skip

  class PreActResNet(nn.Module):
    def __init__(self, block, num_blocks, num_classes=10, bn_before_fc=False):
      super().__init__()
      assert bn_before_fc
      self.conv1 = conv(3, 64, 3)
      channels = 64
      for i, count in enumerate(num_blocks):
        blocks = []
        for j in range(count):
          blocks.append(block(channels, 64 * 2**i, 2 if i and not j else 1))
          channels = 64 * 2**i * block.expansion
        setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
      self.bn, self.linear = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def forward(self, x):
      x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
      x = functional.avg_pool2d(functional.relu(self.bn(x)), 4)
      return self.linear(x.view(x.size(0), -1))

  module = types.ModuleType('robustbench.model_zoo.architectures.resnet')
  module.PreActResNet, module.PreActBlockV2 = PreActResNet, type('PreActBlockV2', (Block,), {})
  module.PreActBlock = type('PreActBlock', (Block,), {'activated': False})
  module.PreActBottleneck = type('PreActBottleneck', (Block,), {'sizes': (1, 3, 1), 'expansion': 4})
  return module


@pytest.mark.slow
@pytest.mark.parametrize(
  'depth, shortcut', [(10, 'preact'), (18, 'preact'), (18, 'input'), (34, 'preact'), (50, 'preact'), (101, 'preact')]
)
def test_torch_computes_the_same_logits(tmp_path, monkeypatch, depth, shortcut):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  monkeypatch.setitem(sys.modules, 'robustbench.model_zoo.architectures.resnet', robustbench(torch))
  classifier = random_classifier(depth, num_classes=7, shortcut=shortcut)
  export.export(classifier, tmp_path, tmp_path / 'out', ['torch'])
  loaded = load_by_card(tmp_path / 'out', 'torch_state_dict.safetensors', monkeypatch)['classifier']  # strictly
  assert not loaded.training
  for shape in ((4, 32, 32), (2, 25, 30)):
    x = images(*shape)
    with torch.no_grad():
      found = loaded(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    expected = classifier(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected.std(axis=0).max() > 1e-3  # images are told apart
