"""The pre-activation ResNet of basic blocks in PyTorch, with the state dict of `exporting.torch_layout`."""

import torch
from torch import nn


class PreActResNet(nn.Module):
  """Images [n, 3, h, w] in [0, 1] -> logits [n, num_classes]."""

  def __init__(self, num_blocks: tuple[int, ...], width: int, num_classes: int = 10):
    super().__init__()
    self.register_buffer('mu', torch.full((1, 3, 1, 1), 0.47))
    self.register_buffer('sigma', torch.full((1, 3, 1, 1), 0.25))
    self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    self.stages, inputs = len(num_blocks), width
    for stage, count in enumerate(num_blocks):
      outputs = width * 2**stage
      first = _Block(inputs, outputs, 2 if stage else 1)
      blocks = nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(count - 1)))
      setattr(self, f'layer{stage + 1}', blocks)
      inputs = outputs
    self.bn, self.linear = nn.BatchNorm2d(inputs), nn.Linear(inputs, num_classes)

  def forward(self, x):
    x = self.conv1((x - self.mu) / self.sigma)
    for stage in range(self.stages):
      x = getattr(self, f'layer{stage + 1}')(x)
    return self.linear(self.bn(x).relu().mean((2, 3)))


class _Block(nn.Module):
  def __init__(self, inputs: int, outputs: int, stride: int):
    super().__init__()
    self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
    self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    projects = stride > 1 or inputs != outputs
    self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False)) if projects else None

  def forward(self, x):
    y = self.bn1(x).relu()
    residual = x if self.shortcut is None else self.shortcut(y)
    return self.conv2(self.bn2(self.conv1(y)).relu()) + residual
