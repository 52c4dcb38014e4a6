"""DeepAugment's damage to weights: 17 options for EDSR, 9 for the CAE (arXiv 2006.16241; hendrycks/imagenet-r).

An option draws layers and changes their kernels and biases, in PyTorch's order: [out, in, height, width], and
[in, out, height, width] in transposed convolutions, whose "filters" are therefore their inputs. Numbers of filters
scale with the network's width. Blocks of EDSR are numbered as in the published network of 16 blocks with 64 features:
block i is block floor(i * blocks / 16) of another network, so several numbers may refer to one block.

The published code has mistakes, which `bug_compatible` repeats: a misplaced parenthesis in `_scale`; the first option
of the CAE reverses its second layer twice; the last one is never drawn.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from adversarial_augment.corruption_nets import torch_layouts
from adversarial_augment.corruption_nets.cae import cae_table
from adversarial_augment.corruption_nets.weights import Params

BLOCKS, FEATURES = 16, 64  # of the published EDSR
CAE = cae_table(64)  # layers of the published CAE, which options refer to by their position
NUM_DRAWS = {'edsr': 3, 'cae': 1}  # options applied to one set of weights


class Draws(NamedTuple):
  """Random numbers of one set of weights."""

  rng: np.random.Generator
  bug_compatible: bool

  def pick(self, values: Sequence):
    return values[int(self.rng.integers(len(values)))]

  def uniform(self, shape: tuple[int, ...] = ()) -> np.ndarray:
    return np.asarray(self.rng.random(shape, np.float32))

  def bits(self, shape: tuple[int, ...]) -> np.ndarray:
    return self.rng.integers(2, size=shape).astype(np.float32)

  def signs(self, shape: tuple[int, ...]) -> np.ndarray:
    return self.bits(shape) * 2 - 1


class Layer(NamedTuple):
  """A layer in PyTorch's order."""

  kernel: np.ndarray
  bias: np.ndarray
  published: int  # filters of the layer in the published network


Change = Callable[[Draws, Layer], Layer]


class Weights:
  """A copy of a network's weights; arrays are replaced, never modified."""

  def __init__(self, params: Params):
    self.params: Params = {module: dict(layer) for module, layer in params.items()}
    self._blocks = sum(module.endswith('/conv_0') for module in params)

  def block(self, i: int) -> str:
    return f'edsr/block_{i * self._blocks // BLOCKS}'

  def change(self, module: str, change: Change, draws: Draws, published: int = FEATURES) -> None:
    layer, order = self.params[module], torch_layouts.order(module)
    kernel, bias, _ = change(draws, Layer(layer['w'].transpose(np.argsort(order)), layer['b'], published))
    layer['w'] = np.ascontiguousarray(kernel.transpose(order), np.float32)
    layer['b'] = np.ascontiguousarray(bias)


Option = Callable[[Weights, Draws], None]


def distort(net: str, params: Params, rng: np.random.Generator, bug_compatible: bool) -> Params:
  """Returns weights of 'edsr' or 'cae', damaged by options that are drawn with replacement and applied in turn."""
  weights, draws = Weights(params), Draws(rng, bug_compatible)
  options = OPTIONS[net][:-1] if net == 'cae' and bug_compatible else OPTIONS[net]
  for option in rng.integers(len(options), size=NUM_DRAWS[net]):
    options[option](weights, draws)
  return weights.params


def scaled(count: int, channels: int, published_channels: int) -> int:
  """Scales a number of channels of the published network to a network of another width; at least 1."""
  return max(1, count * channels // published_channels)


# Changes of one layer.


def _map(change: Callable[[np.ndarray], np.ndarray]) -> Change:
  return lambda draws, layer: layer._replace(kernel=change(layer.kernel), bias=change(layer.bias))


def _map_kernel(change: Callable[[np.ndarray], np.ndarray]) -> Change:
  return lambda draws, layer: layer._replace(kernel=change(layer.kernel))


def _multiply(factor: Callable[[Draws, tuple[int, ...]], np.ndarray]) -> Change:
  return lambda draws, layer: layer._replace(kernel=layer.kernel * factor(draws, layer.kernel.shape))


def _scale(width: int) -> Change:
  def factor(draws: Draws, shape: tuple[int, ...]) -> np.ndarray:
    u, each = draws.uniform(), draws.uniform(shape)
    return 1 + 2 * width * u * each if draws.bug_compatible else 1 + 2 * u * (width * each - 1)

  return _multiply(factor)


def _change_filters(change: Callable[[np.ndarray], np.ndarray], count: int) -> Change:
  """Changes filters and biases, once for each time that they are drawn."""

  def changed(draws: Draws, layer: Layer) -> Layer:
    kernel, bias = layer.kernel.copy(), layer.bias.copy()
    for k in draws.rng.integers(len(kernel), size=scaled(count, len(kernel), layer.published)):
      kernel[k], bias[k] = change(kernel[k]), change(bias[k])
    return layer._replace(kernel=kernel, bias=bias)

  return changed


def _negate_filters(count: Callable[[int], int]) -> Change:
  def factor(draws: Draws, shape: tuple[int, ...]) -> np.ndarray:
    factors = np.ones((shape[0], 1, 1, 1), np.float32)
    factors[draws.rng.integers(shape[0], size=count(shape[0]))] = -1  # each drawn one once
    return factors

  return _multiply(factor)


def _rotate(*planes: tuple[int, int]) -> Change:
  def rotated(draws: Draws, layer: Layer) -> Layer:
    turns = draws.pick((1, 2, 3))
    return layer._replace(kernel=np.rot90(layer.kernel, turns, planes[0] if len(planes) == 1 else draws.pick(planes)))

  return rotated


def _convolve(draw: Callable[[Draws, tuple[int, ...]], np.ndarray]) -> Change:
  """Convolves kernels [n, c, 3, 3], as if they were images, with drawn ones [o, c, 3, 3]."""

  def convolved(draws: Draws, layer: Layer) -> Layer:
    by = draw(draws, layer.kernel.shape)
    padded = np.pad(layer.kernel, ((0, 0), (0, 0), (1, 1), (1, 1)))
    taps = np.ndindex(3, 3)
    parts = [np.einsum('nchw,oc->nohw', padded[:, :, a : a + 3, b : b + 3], by[:, :, a, b]) for a, b in taps]
    return layer._replace(kernel=np.asarray(sum(parts)))

  return convolved


def _signed_taps(draws: Draws, shape: tuple[int, ...]) -> np.ndarray:
  by = np.zeros(shape, np.float32)
  for j in range(shape[1]):  # the same for all outputs, so all inputs of a filter become equal
    row, column = draws.rng.integers(3, size=2)
    by[:, j, row, column] = draws.rng.choice((1.0, -1.0))
  return by


def _dirichlet(draws: Draws, shape: tuple[int, ...]) -> np.ndarray:
  return draws.rng.dirichlet([0.1] * 9, shape[:2]).reshape(shape).astype(np.float32)


def _add_noise(draws: Draws, layer: Layer) -> Layer:
  return layer._replace(kernel=layer.kernel + (draws.uniform(layer.kernel.shape) - np.float32(0.5)))


def _gelu(x: np.ndarray) -> np.ndarray:
  return x * np.float32(0.5) * (1 + scipy.special.erf(x / np.float32(np.sqrt(2))))


def _largest_tap(kernel: np.ndarray) -> np.ndarray:
  """Keeps only the largest value of each plane of [out, in, height, width]."""
  flat = kernel.reshape(*kernel.shape[:2], -1)
  taps = np.arange(flat.shape[2]) == flat.argmax(2)[..., None]
  return np.where(taps, flat, np.float32(0)).reshape(kernel.shape)


# Options.


def _block(numbers: Sequence[int], **changes: Change) -> Option:
  """Changes convolutions of a block that is drawn from these."""

  def option(weights: Weights, draws: Draws) -> None:
    block = weights.block(draws.pick(numbers))
    for conv, change in changes.items():
      weights.change(f'{block}/{conv}', change, draws)

  return option


def _five_blocks(change: Change, *, either: bool = False) -> Option:
  """Changes the first convolution, or either, of five of the first 15 blocks, drawn with replacement."""

  def option(weights: Weights, draws: Draws) -> None:
    for i in [draws.pick(range(15)) for _ in range(5)]:
      conv = draws.pick((0, 1)) if either else 0
      weights.change(f'{weights.block(i)}/conv_{conv}', change, draws)

  return option


def _cae(change: Change, numbers: range = range(8, 14), *, both: bool = False, meant_both: bool = False) -> Option:
  """Changes the first of two layers that are drawn from these, or both."""

  def option(weights: Weights, draws: Draws) -> None:
    i, j = draws.pick(numbers), draws.pick(numbers)
    for number in (i, j) if both or (meant_both and not draws.bug_compatible) else (i,):
      name = list(CAE)[number]
      _, inputs, outputs = CAE[name]
      weights.change(f'cae/{name}', change, draws, inputs if torch_layouts.is_transposed(name) else outputs)

  return option


_reverse = _map(lambda x: x[::-1])
_minus_gelu = lambda x: -_gelu(x)
_zeros_or_signs = _multiply(lambda draws, shape: (draws.bits if draws.pick((0, 1)) else draws.signs)(shape))
_THIRDS = (0, 3, 6, 9)
_LAPLACE = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)
_EDGES = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], np.float32)

OPTIONS: dict[str, tuple[Option, ...]] = {
  'edsr': (
    _block(_THIRDS, conv_0=_reverse, conv_1=_reverse),
    _block((1, 4, 7), conv_0=_map(np.negative)),
    _block(_THIRDS, conv_0=_map(lambda x: 0 * x)),
    _block(_THIRDS, conv_0=_map_kernel(_minus_gelu), conv_1=_map_kernel(_minus_gelu)),
    _block(_THIRDS, conv_0=_map_kernel(lambda kernel: kernel * _LAPLACE)),
    _block(_THIRDS, conv_0=_map_kernel(lambda kernel: kernel * _EDGES)),
    _block(_THIRDS, conv_1=_scale(2)),
    _block(_THIRDS, conv_0=_map_kernel(lambda kernel: kernel[..., ::-1]), conv_1=_map_kernel(np.negative)),
    _block((1, 5, 9), conv_0=_convolve(_signed_taps)),
    _block(_THIRDS, conv_0=_convolve(lambda draws, shape: (2 * draws.uniform(shape) * draws.uniform() - 1) / 6)),
    _block((1, 5, 9), conv_1=_convolve(_dirichlet)),
    _block(range(15), conv_1=_add_noise),
    _five_blocks(_rotate((0, 1), (2, 3)), either=True),
    _five_blocks(_multiply(Draws.signs)),
    _five_blocks(_multiply(Draws.bits)),
    _five_blocks(_negate_filters(lambda filters: scaled(32, filters, FEATURES))),
    _five_blocks(_map_kernel(_largest_tap), either=True),
  ),
  'cae': (
    _cae(_reverse, range(11, 16), meant_both=True),
    _cae(_change_filters(np.negative, 12)),
    _cae(_change_filters(np.zeros_like, 25)),
    _cae(_change_filters(_minus_gelu, 25), range(10, 14)),
    _cae(_scale(4), both=True),
    _cae(_zeros_or_signs),
    _cae(_rotate((2, 3))),
    _cae(_negate_filters(lambda filters: max(1, filters // 5))),
    _cae(_map_kernel(_largest_tap)),
  ),
}
