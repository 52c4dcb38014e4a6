"""A PyTorch ResNet, hardened with TorchAdA, and what it gained under `audit`.

    python examples/torch_finetune.py                       # embedded images
    python examples/torch_finetune.py --cifar10=DATA_DIR    # where `prepare cifar10 --data_dir=DATA_DIR` put them

It needs the extra `[torch]`. With its defaults (embedded images, seed 0, 500 test images) it took 3.5 minutes on two
cores. The accuracy rose from 0.932 to 0.958 on clean images, and from 0.352 to 0.622 under AdA.
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import adversarial_augment
from adversarial_augment import datasets
from adversarial_augment.pytorch import TorchAdA


class Block(nn.Module):
  def __init__(self, inputs: int, outputs: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
    self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

  def forward(self, x):
    y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
    return functional.relu(y + self.downsample(x))


def resnet(width: int = 16) -> nn.Module:
  """Images [n, 3, h, w] in [0, 1] -> logits [n, 10]."""
  widths = (width, width, 2 * width, 4 * width)
  blocks = [Block(a, b, stride) for a, b, stride in zip(widths, widths[1:], (2, 2, 2), strict=False)]
  stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
  return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def train(model: nn.Module, data, steps: int, ada: TorchAdA | None = None, rate: float = 3e-3) -> None:
  """Trains on batches of 64; with `ada`, on their adversarially corrupted images."""
  optimizer, rng = torch.optim.Adam(model.parameters(), rate), np.random.default_rng(0)
  for step in range(steps):
    batch = data.read(rng.integers(data.num_examples, size=64))
    images = torch.tensor(batch.images).movedim(-1, 1) / 255
    labels = torch.tensor(batch.labels).long()
    if ada:
      images = ada(model.eval(), images, labels)
    loss = functional.cross_entropy(model.train()(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (step + 1) % 50 == 0:
      print(f'step {step + 1}: loss {loss.item():.3f}', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--cifar10', help='folder of CIFAR-10; without it, the embedded images')
  parser.add_argument('--steps', type=int, default=400, help='of training; then a quarter as many with AdA')
  parser.add_argument('--images', type=int, default=500, help='test images of the audit')
  flags = parser.parse_args()
  load = lambda split: datasets.load('cifar10' if flags.cifar10 else 'embedded', split, flags.cifar10 or '')

  torch.manual_seed(0)
  model, data, test = resnet(), load('train'), load('test').read(np.arange(flags.images))
  train(model, data, flags.steps)
  audit = lambda: adversarial_augment.audit(
    model.eval(), test.images, test.labels, evals=('clean', 'ada'), config={'attack.nu': 0.04, 'attack.num_steps': 2}
  )
  before = audit()
  ada = TorchAdA(weights='edsr_4x16_x1', nu=0.04, num_steps=2)
  train(model, data, max(flags.steps // 4, 1), ada, 1e-3)
  after = audit()
  for name in ('clean', 'ada'):
    print(f'{name}: accuracy {before[name].accuracy:.3f} before, {after[name].accuracy:.3f} after AdA')


if __name__ == '__main__':
  main()
