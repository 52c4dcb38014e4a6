"""DeepAugment's weight options again, in the plainest form: tables of the published scripts, in PyTorch's order.

Kernels are [out, in, height, width] ([in, out, height, width] where transposed) and written in place. Random numbers
are drawn from the generator in the same order as by the package, so that results compare.
"""

import math

import numpy as np

from adversarial_augment import corruption_nets

SMALL = {'edsr': {'blocks': 2, 'features': 4, 'scale': 2}, 'cae': {'features': 4}}


def params_of(net, **sizes):
  """Random weights of a small network, as in a weight file."""
  rng = np.random.default_rng(1)
  draw = lambda shape: (rng.normal(size=shape) / np.sqrt(9 * shape[-1])).astype(np.float32)
  shapes = corruption_nets.shapes(net, SMALL[net] | sizes)
  return {module: {name: draw(shape) for name, shape in layer.items()} for module, layer in shapes.items()}


def pick(rng, values):
  return values[rng.integers(len(values))]


def gelu(w):
  return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in w.reshape(-1).tolist()]).reshape(w.shape)


def conv2d(images, z):
  """Padding 1: out[n, o, y, x] = sum over j, a, b of images[n, j, y + a - 1, x + b - 1] z[o, j, a, b]."""
  padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
  out = np.zeros((len(images), len(z), 3, 3))
  for y in range(3):
    for x in range(3):
      window = padded[:, :, y : y + 3, x : x + 3].reshape(len(images), -1)
      out[:, :, y, x] = window @ z.reshape(len(z), -1).T.astype(np.float64)
  return out


def max_tap(w):
  out = np.zeros_like(w)
  for o in range(w.shape[0]):
    for i in range(w.shape[1]):
      best = max((w[o, i, a, b], -a, -b) for a in range(w.shape[2]) for b in range(w.shape[3]))
      out[o, i, -best[1], -best[2]] = best[0]
  return out


def mask(rng, shape):
  return rng.integers(2, size=shape)


def edsr(option: int, weights: dict, rng: np.random.Generator) -> None:
  """`weights`: 'body.i.body.0.weight' and so on, of the published network."""
  W = lambda i, c: f'body.{i}.body.{c}.weight'
  B = lambda i, c: f'body.{i}.body.{c}.bias'
  thirds = [0, 3, 6, 9]
  if option == 0:
    i = pick(rng, thirds)
    for c in (0, 2):
      weights[W(i, c)] = np.flip(weights[W(i, c)], 0)
      weights[B(i, c)] = np.flip(weights[B(i, c)], 0)
  elif option == 1:
    i = pick(rng, [1, 4, 7])
    weights[W(i, 0)] = -weights[W(i, 0)]
    weights[B(i, 0)] = -weights[B(i, 0)]
  elif option == 2:
    i = pick(rng, thirds)
    weights[W(i, 0)] = np.zeros((64, 64, 3, 3))
    weights[B(i, 0)] = np.zeros(64)
  elif option == 3:
    i = pick(rng, thirds)
    for c in (0, 2):
      weights[W(i, c)] = -gelu(weights[W(i, c)])
  elif option in (4, 5):
    i = pick(rng, thirds)
    table = [[0, 1, 0], [1, -4, 1], [0, 1, 0]] if option == 4 else [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]
    for a in range(3):
      for b in range(3):
        weights[W(i, 0)][:, :, a, b] *= table[a][b]
  elif option == 6:
    i = pick(rng, thirds)
    u = rng.random((), np.float32)
    weights[W(i, 2)] *= 1 + 4 * u * rng.random((64, 64, 3, 3), np.float32)
  elif option == 7:
    i = pick(rng, thirds)
    weights[W(i, 0)] = weights[W(i, 0)][:, :, :, [2, 1, 0]]
    weights[W(i, 2)] *= -1
  elif option == 8:
    i = pick(rng, [1, 5, 9])
    z = np.zeros((64, 64, 3, 3))
    for j in range(64):
      sx, sy = rng.integers(3, size=2)
      z[:, j, sx, sy] = rng.choice((1.0, -1.0))
    weights[W(i, 0)] = conv2d(weights[W(i, 0)], z)
  elif option == 9:
    i = pick(rng, thirds)
    each = rng.random((64, 64, 3, 3), np.float32)
    z = (2 * each * rng.random((), np.float32) - 1) / 6
    weights[W(i, 0)] = conv2d(weights[W(i, 0)], z)
  elif option == 10:
    i = pick(rng, [1, 5, 9])
    z = rng.dirichlet([0.1] * 9, (64, 64)).reshape(64, 64, 3, 3)
    weights[W(i, 2)] = conv2d(weights[W(i, 2)], z)
  elif option == 11:
    i = pick(rng, range(15))
    weights[W(i, 2)] = weights[W(i, 2)] + rng.random((64, 64, 3, 3), np.float32) - 0.5
  elif option == 12:
    for i in [pick(rng, range(15)) for _ in range(5)]:
      c, k = pick(rng, (0, 2)), pick(rng, (1, 2, 3))
      dims = (2, 3) if pick(rng, (0, 1)) else (0, 1)
      for _ in range(k):  # a quarter turn: transpose the two, then mirror the first
        weights[W(i, c)] = np.flip(np.swapaxes(weights[W(i, c)], *dims), dims[0])
  elif option in (13, 14):
    for i in [pick(rng, range(15)) for _ in range(5)]:
      m = mask(rng, (64, 64, 3, 3))
      weights[W(i, 0)] *= m * 2 - 1 if option == 13 else m
  elif option == 15:
    for i in [pick(rng, range(15)) for _ in range(5)]:
      for k in set(rng.integers(64, size=32).tolist()):
        weights[W(i, 0)][k] = -weights[W(i, 0)][k]
  elif option == 16:
    for i in [pick(rng, range(15)) for _ in range(5)]:
      c = pick(rng, (0, 2))
      weights[W(i, c)] = max_tap(weights[W(i, c)])


CAE_LAYERS = {0: range(11, 16), 3: range(10, 14)}  # others: 8 to 13


def cae(option: int, weights: list, rng: np.random.Generator) -> None:
  """`weights`: [kernel, bias] of each of the 21 published layers."""
  numbers = CAE_LAYERS.get(option, range(8, 14))
  i, j = pick(rng, numbers), pick(rng, numbers)
  w, b = weights[i]
  d = len(w)
  if option == 0:
    weights[i] = [np.flip(w, 0), np.flip(b, 0)]
  elif option == 1:
    for k in rng.integers(d, size=12):
      w[k], b[k] = -w[k], -b[k]
  elif option == 2:
    for k in rng.integers(d, size=25):
      w[k], b[k] = 0, 0
  elif option == 3:
    for k in rng.integers(d, size=25):
      w[k], b[k] = -gelu(w[k]), -gelu(b[k])
  elif option == 4:
    for layer in (i, j):
      u = rng.random((), np.float32)
      weights[layer][0] = weights[layer][0] * (1 + 8 * u * rng.random(weights[layer][0].shape, np.float32))
  elif option == 5:
    zeros = pick(rng, (0, 1))
    m = mask(rng, w.shape)
    weights[i][0] = w * (m if zeros else m * 2 - 1)
  elif option == 6:
    for _ in range(pick(rng, (1, 2, 3))):
      weights[i][0] = np.flip(np.swapaxes(weights[i][0], 2, 3), 2)
  elif option == 7:
    for k in set(rng.integers(d, size=d // 5).tolist()):
      w[k] = -w[k]
  elif option == 8:
    weights[i][0] = max_tap(w)
