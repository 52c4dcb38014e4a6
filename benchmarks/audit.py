"""The evaluation of a PyTorch module under corruptions, compared with its own forward passes and the corrupting alone.

  python -m benchmarks.audit [--rounds=7]

Measures both in one run, in turn: what `audit` takes for one corruption and severity in memory, and what PyTorch takes
for the same images and `corruptions.corrupt` to make them. Exits with 1 if the bound is missed.
"""

import argparse
import sys

import numpy as np
import torch
from torch import nn

from adversarial_augment import config as configs
from adversarial_augment import corruptions, datasets
from adversarial_augment.evaluation import corrupted, foreign
from adversarial_augment.evaluation.accuracy import accuracy
from adversarial_augment.parallel import devices
from benchmarks import timing

IMAGES, BATCH = 512, 128
NAME, SEVERITY = 'gaussian_noise', 3
BOUND = 1.1


def block(inputs: int, outputs: int, stride: int) -> nn.Module:
  first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
  return nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, 1, 1), nn.ReLU())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7)
  rounds = parser.parse_args().rounds
  timing.settle('benchmarks.audit', cores=2)
  devices.virtual_devices(2)
  torch.manual_seed(0)
  blocks = block(3, 64, 1), block(64, 128, 2), block(128, 256, 2)
  module = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)).eval()
  test = datasets.load('embedded', 'test', '')._replace(num_examples=IMAGES)
  config = configs.override(configs.base_config(), {'batch_size': str(BATCH)})

  model = foreign.adopt(module, {}, test.image_shape, 'module', {})
  mesh, state = foreign.place(model.forward)
  measure = accuracy(foreign.network(model.forward, model.takes), mesh, config.batch_size)
  forms = corrupted.in_memory(test, (NAME,))
  read = lambda index: test.read(index)._replace(images=forms.read(NAME, SEVERITY, index))
  cell = test._replace(read=read)

  def alone() -> None:
    for start in range(0, IMAGES, BATCH):
      index = np.arange(start, start + BATCH)
      images = corruptions.corrupt(test.read(index).images, NAME, SEVERITY, 0, index)
      with torch.inference_mode():
        module(torch.tensor(images).movedim(-1, 1).contiguous().float() / 255).argmax(-1)

  times = timing.interleave(
    {'alone': alone, 'audit': lambda: measure(state, cell, lambda: None)['accuracy']}, rounds=rounds
  )
  for name, time in times.items():
    print(f'{name:<8} {1e3 * time.wall:9.1f} ms for {IMAGES} images')
  ratio = times['audit'].wall / times['alone'].wall
  sys.exit(0 if timing.gate('audit over its forward passes and corrupting', ratio, BOUND, least=False) else 1)


if __name__ == '__main__':
  main()
