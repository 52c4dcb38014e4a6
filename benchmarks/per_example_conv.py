"""Per-example 3x3 convolutions, forward and backward: every formulation, interleaved, and PyTorch's if installed.

  python -m benchmarks.per_example_conv [--rounds=7] [--features 16 32 64]

Prints milliseconds and ratios to `vmap` of an ordinary convolution, and exits with 1 if a bound is missed. Runs on one
core, like each virtual device of the trainer, with huge pages (see timing.py).
"""

import argparse
import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import per_example_conv
from benchmarks import timing

SHARE_OF_YARD = {16: 0.30, 32: 0.60, 64: 0.75}  # per processor second
BATCH = 16


def arrays(n: int, features: int):
  rng = np.random.default_rng(0)
  x, g = (jnp.asarray(rng.normal(size=(n, 32, 32, features)), jnp.float32) for _ in range(2))
  return x, jnp.asarray(rng.normal(size=(n, 3, 3, features, features)) / 10, jnp.float32), g


def forward_and_backward(impl: str):
  @jax.jit
  def run(x, w, g):
    y, pull = jax.vjp(functools.partial(per_example_conv.per_example_conv, impl=impl), x, w)
    return y, pull(g)

  return run


def torch_grouped(n: int, features: int):
  """PyTorch's grouped convolution, one group per example."""
  import torch

  x, w, g = (torch.tensor(np.array(a)) for a in arrays(n, features))
  x = x.permute(0, 3, 1, 2).reshape(1, n * features, 32, 32).contiguous().requires_grad_()
  w = w.permute(0, 4, 3, 1, 2).reshape(n * features, features, 3, 3).contiguous().requires_grad_()
  g = g.permute(0, 3, 1, 2).reshape(1, n * features, 32, 32).contiguous()

  def run():
    y = torch.nn.functional.conv2d(x, w, padding=1, groups=n)
    return [np.zeros(1) for _ in torch.autograd.grad(y, (x, w), g)]

  return run


def measure(features: int, rounds: int) -> bool:
  x, w, g = arrays(BATCH, features)
  double = arrays(2 * BATCH, features)
  functions = {impl: forward_and_backward(impl) for impl in ('vmap', 'map', 'im2col')}
  variants = {impl: functools.partial(function, x, w, g) for impl, function in functions.items()}
  variants['map, twice the batch'] = functools.partial(functions['map'], *double)
  variants['yard'], yard_flops = timing.yardstick()
  if importlib.util.find_spec('torch') is not None:
    variants['torch grouped'] = torch_grouped(BATCH, features)
  times = timing.interleave(variants, rounds=rounds, slow=('vmap',))
  flops = 3 * 2.0 * BATCH * 32 * 32 * 9 * features**2
  yard = yard_flops / times['yard'].cpu
  print(f'\n{BATCH} images of 32 x 32 x {features}, forward and backward:')
  for name, (wall, cpu) in times.items():
    if name != 'yard':
      work = flops * (2 if 'twice' in name else 1)
      print(f'  {name:<22} {1e3 * wall:9.1f} ms {1e3 * cpu:9.1f} ms cpu  {work / cpu / yard:6.1%} of matmul')
  memory = functions['map'].lower(x, w, g).compile().memory_analysis().temp_size_in_bytes
  arguments = sum(a.nbytes for a in (x, w, g))
  own = times['map']
  met = [
    timing.gate('vmap / map, processor time', times['vmap'].cpu / own.cpu, 40, least=True) if features != 32 else True,
    timing.gate('share of matmul', flops / own.cpu / yard, SHARE_OF_YARD.get(features, 0), least=True),
    timing.gate('twice the batch', times['map, twice the batch'].wall / own.wall, 2.3, least=False),
    timing.gate('temporaries / (x + w + g)', memory / arguments, 2, least=False),
  ]
  return all(met)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--features', type=int, nargs='+', default=[16, 32, 64])
  args = parser.parse_args()
  timing.settle('benchmarks.per_example_conv', cores=1)
  met = [measure(features, args.rounds) for features in args.features]
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
