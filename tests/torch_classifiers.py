"""Published CIFAR classifiers in PyTorch, written anew from their layouts, and random weights for them."""

from typing import Any


def _conv(nn, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def wide_resnet(
  torch, num_classes: int, *, depth: int, width: int, shortcut: str = 'convShortcut', idle: bool = False
) -> Any:
  """WideResNet of RobustBench, or, with `shortcut='conv_shortcut'`, of AugMix; `idle` adds TRADES' sub_block1."""
  nn, relu = torch.nn, torch.nn.functional.relu

  class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(nn, inputs, outputs, 3, stride)
      self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(nn, outputs, outputs, 3)
      if inputs != outputs:
        setattr(self, shortcut, _conv(nn, inputs, outputs, 1, stride))

    def forward(self, x):
      first = relu(self.bn1(x))
      skip = getattr(self, shortcut)(first) if hasattr(self, shortcut) else x
      return skip + self.conv2(relu(self.bn2(self.conv1(first))))

  class Stage(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      rest = [Block(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
      self.layer = nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x):
      return self.layer(x)

  class WideResNet(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1, sizes = _conv(nn, 3, 16, 3), [16, 16 * width, 32 * width, 64 * width]
      self.block1, self.block2, self.block3 = (Stage(sizes[i], sizes[i + 1], 1 + (i > 0)) for i in range(3))
      if idle:
        self.sub_block1 = Stage(sizes[0], sizes[1], 1)
      self.bn1, self.fc = nn.BatchNorm2d(sizes[-1]), nn.Linear(sizes[-1], num_classes)

    def forward(self, x):
      x = relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
      return self.fc(torch.nn.functional.avg_pool2d(x, 8).view(len(x), -1))

  return WideResNet()


def resnext(torch, num_classes: int, *, depth: int, base_width: int = 32) -> Any:
  """CifarResNeXt of AugMix and RobustBench with four groups."""
  nn, relu = torch.nn, torch.nn.functional.relu

  class Block(nn.Module):
    def __init__(self, inputs, planes, stride):
      super().__init__()
      inner = 4 * (planes * base_width // 64)
      self.conv_reduce, self.bn_reduce = _conv(nn, inputs, inner, 1), nn.BatchNorm2d(inner)
      self.conv_conv, self.bn = _conv(nn, inner, inner, 3, stride, groups=4), nn.BatchNorm2d(inner)
      self.conv_expand, self.bn_expand = _conv(nn, inner, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
      self.downsample = None
      if stride != 1 or inputs != 4 * planes:
        self.downsample = nn.Sequential(_conv(nn, inputs, 4 * planes, 1, stride), nn.BatchNorm2d(4 * planes))

    def forward(self, x):
      y = relu(self.bn_reduce(self.conv_reduce(x)))
      y = self.bn_expand(self.conv_expand(relu(self.bn(self.conv_conv(y)))))
      return relu((x if self.downsample is None else self.downsample(x)) + y)

  class CifarResNeXt(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv_1_3x3, self.bn_1 = _conv(nn, 3, 64, 3), nn.BatchNorm2d(64)
      inputs = 64
      for stage, planes in enumerate((64, 128, 256)):
        blocks = []
        for index in range((depth - 2) // 9):
          blocks.append(Block(inputs, planes, 2 if stage and not index else 1))
          inputs = 4 * planes
        setattr(self, f'stage_{stage + 1}', nn.Sequential(*blocks))
      self.classifier = nn.Linear(1024, num_classes)

    def forward(self, x):
      x = self.stage_3(self.stage_2(self.stage_1(relu(self.bn_1(self.conv_1_3x3(x))))))
      return self.classifier(torch.nn.functional.avg_pool2d(x, 8).view(len(x), -1))

  return CifarResNeXt()


def resnet(torch, num_classes: int, counts: list[int], *, bottleneck: bool) -> Any:
  """ResNet of pytorch-cifar, robustness and RobustBench."""
  nn, relu = torch.nn, torch.nn.functional.relu

  class Block(nn.Module):
    def __init__(self, inputs, planes, stride):
      super().__init__()
      sizes, outputs = ((1, 3, 1), 4 * planes) if bottleneck else ((3, 3), planes)
      widths = [inputs, *[planes] * (len(sizes) - 1), outputs]
      for i, size in enumerate(sizes):
        strided = i == len(sizes) - 2
        setattr(self, f'conv{i + 1}', _conv(nn, widths[i], widths[i + 1], size, stride if strided else 1))
        setattr(self, f'bn{i + 1}', nn.BatchNorm2d(widths[i + 1]))
      self.last, self.shortcut = len(sizes), nn.Sequential()
      if stride != 1 or inputs != outputs:
        self.shortcut = nn.Sequential(_conv(nn, inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
      y = x
      for i in range(1, self.last + 1):
        y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
        y = relu(y if i < self.last else y + self.shortcut(x))
      return y

  class ResNet(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1, self.bn1, inputs = _conv(nn, 3, 64, 3), nn.BatchNorm2d(64), 64
      for stage, count in enumerate(counts):
        blocks = []
        for index in range(count):
          blocks.append(Block(inputs, 64 * 2**stage, 2 if stage and not index else 1))
          inputs = 64 * 2**stage * (4 if bottleneck else 1)
        setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
      self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x):
      x = self.layer4(self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x)))))))
      return self.linear(torch.nn.functional.avg_pool2d(x, 4).view(len(x), -1))

  return ResNet()


def alexnet(torch, num_classes: int, *, width: int = 64) -> Any:
  """CifarAlexNet of perceptual adversarial training, of any width."""
  nn = torch.nn

  class CifarAlexNet(nn.Module):
    def __init__(self):
      super().__init__()
      conv = lambda inputs, outputs, stride=1: (nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU(inplace=True))
      pool, hidden = lambda: nn.MaxPool2d(2), 64 * width
      self.features = nn.Sequential(
        *conv(3, width, 2), pool(), *conv(width, 3 * width), pool(),
        *conv(3 * width, 6 * width), *conv(6 * width, 4 * width), *conv(4 * width, 4 * width), pool(),
      )  # fmt: skip
      self.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(4 * width * 2 * 2, hidden), nn.ReLU(inplace=True),
        nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes),
      )  # fmt: skip
      for part in (*self.features, *self.classifier):
        if hasattr(part, 'weight'):
          nn.init.kaiming_normal_(part.weight)  # so that images are told apart

    def forward(self, x):
      return self.classifier(self.features(x).flatten(1))

  return CifarAlexNet()


def randomise(torch, module: Any) -> Any:
  """Draws scales and offsets, and takes statistics of random images; returns the module, for evaluation."""
  generator = torch.Generator().manual_seed(0)
  draw = lambda shape, low, high: low + (high - low) * torch.rand(shape, generator=generator)
  with torch.no_grad():
    for part in module.modules():
      if isinstance(part, torch.nn.BatchNorm2d):
        part.momentum = None  # the plain average
        part.weight.copy_(draw(part.weight.shape, 0.5, 1.5))
        part.bias.copy_(draw(part.bias.shape, -0.3, 0.3))
    for _ in range(2):
      module.train()(draw((8, 3, 32, 32), 0, 1))
  return module.eval()


def normalised(torch, module: Any, mean: float = 0.5, std: float = 0.5) -> Any:
  """Registers the buffers by which RobustBench's models normalise their images, and uses them."""
  module.register_buffer('mu', torch.full((1, 3, 1, 1), mean))
  module.register_buffer('sigma', torch.full((1, 3, 1, 1), std))
  module.register_forward_pre_hook(lambda module, inputs: ((inputs[0] - module.mu) / module.sigma,))
  return module
