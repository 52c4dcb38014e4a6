"""TorchAdA beside the same step in JAX: one ResNet, one corruption network, the same images.

    python -m benchmarks.torch_ada

The JAX model has the layout [n, h, w, c], the translated one [n, c, h, w]. Both include what a training loop pays at
each step: copying the weights of the module counts for TorchAdA. The two take turns. On two cores, processor time was
114 ms against 98 ms for batches of 16 (1.17 times as much), and 251 ms against 212 ms for 32 (1.19).
"""

import argparse

import jax
import numpy as np
import torch

from adversarial_augment import attacks, classifiers, corruption_nets
from adversarial_augment.pytorch import TorchAdA
from benchmarks import timing, torch_classifier

WIDTH, BOUND = 16, 1.3


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--num_steps', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=7)
  flags = parser.parse_args()
  images = np.random.default_rng(0).random((flags.batch_size, 32, 32, 3), np.float32)
  labels = np.arange(flags.batch_size) % 10

  module = torch_classifier.PreActResNet((2, 2, 2, 2), WIDTH).eval()
  ada = TorchAdA(weights='edsr_4x16_x1', num_steps=flags.num_steps)
  tensors = torch.tensor(images).movedim(-1, 1).contiguous(), torch.tensor(labels)

  network, phi = corruption_nets.load('edsr', 'edsr_4x16_x1')
  attack = attacks.ada(network.apply, num_steps=flags.num_steps, noisy=True)
  model = classifiers.CLASSIFIERS['preact_resnet'](10, depth=18, width=WIDTH)
  params, state = model.init(jax.random.key(0), images, is_training=False)

  @jax.jit
  def step(params, state, phi, keys, images, labels):
    return attack(keys, classifiers.logits_fn(model, params, state), images, labels, phi).images

  keys = jax.random.split(jax.random.key(0), flags.batch_size)
  found = timing.interleave(
    {
      'TorchAdA': lambda: ada(module, *tensors).numpy(),
      'JAX': lambda: step(params, state, phi, keys, images, labels),
    },
    rounds=flags.rounds,
  )
  for name, one in found.items():
    print(f'{name}: {1e3 * one.wall:.0f} ms, {1e3 * one.cpu:.0f} ms of processor time')
  timing.gate('TorchAdA / JAX', found['TorchAdA'].cpu / found['JAX'].cpu, BOUND, least=False)


if __name__ == '__main__':
  main()
