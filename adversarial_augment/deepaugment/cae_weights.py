"""DeepAugment's ways to damage the weights of the CAE (Hendrycks et al., arXiv 2006.16241; hendrycks/imagenet-r).

The 21 layers are numbered as in the published file. Kernels are converted to PyTorch's order, in which the options are
defined: [out, in, height, width], and [in, out, height, width] for the two transposed convolutions, whose "filters" are
therefore their inputs. Numbers of filters scale with the network's width.
"""

from collections.abc import Callable, Mapping

import numpy as np

from adversarial_augment.corruption_nets.cae import cae_table
from adversarial_augment.deepaugment.kernels import (
  Params,
  bits,
  copy_of,
  from_published,
  gelu,
  largest_tap,
  pick,
  scaled,
  signs,
  to_published,
  uniform,
)

_PUBLISHED = cae_table(64)
LAYERS = tuple(_PUBLISHED)


class Weights:
  """A copy of the CAE's weights; arrays are replaced, never modified."""

  def __init__(self, params: Mapping[str, Mapping[str, np.ndarray]]):
    self.params: Params = copy_of(params)

  def get(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel of layer i in PyTorch's order, and its bias."""
    layer = self.params[f'cae/{LAYERS[i]}']
    kernel = to_published(layer['w'])
    return kernel.swapaxes(0, 1) if _is_transposed(i) else kernel, layer['b']

  def put(self, i: int, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
    layer = self.params[f'cae/{LAYERS[i]}']
    layer['w'] = from_published(kernel.swapaxes(0, 1) if _is_transposed(i) else kernel)
    if bias is not None:
      layer['b'] = np.ascontiguousarray(bias)


def _is_transposed(i: int) -> bool:
  return LAYERS[i].endswith('/up')


Option = Callable[[Weights, np.random.Generator, int, int, bool], None]  # layers i and j; bug-compatible


def distort(params: Mapping[str, Mapping[str, np.ndarray]], rng: np.random.Generator, bug_compatible: bool) -> Params:
  """Returns weights damaged by one option.

  Args:
    params: of the CAE, as in a weight file; not modified.
    rng: for all draws.
    bug_compatible: whether to do as the published code, which reverses the second layer of option 0 twice, multiplies
      by 1 + 8 u U in option 4 (a misplaced parenthesis) instead of 1 + 2 u (4 U - 1), and never draws the last option.
  """
  weights = Weights(params)
  option, layers = OPTIONS[rng.integers(len(OPTIONS) - 1 if bug_compatible else len(OPTIONS))]
  option(weights, rng, pick(rng, layers), pick(rng, layers), bug_compatible)
  return weights.params


def _reverse(weights: Weights, rng: np.random.Generator, i: int, j: int, bug_compatible: bool) -> None:
  for layer in (i,) if bug_compatible else (i, j):
    kernel, bias = weights.get(layer)
    weights.put(layer, kernel[::-1], bias[::-1])


def _filters(rng: np.random.Generator, kernel: np.ndarray, i: int, count: int) -> np.ndarray:
  """Returns filters of layer i drawn with replacement, `count` of the published number."""
  _, inputs, outputs = _PUBLISHED[LAYERS[i]]
  published = inputs if _is_transposed(i) else outputs
  return rng.integers(len(kernel), size=scaled(count, len(kernel), published))


def _change_filters(change: Callable[[np.ndarray], np.ndarray], count: int) -> Option:
  """Changes filters and biases, once for each time that they are drawn."""

  def option(weights: Weights, rng: np.random.Generator, i: int, j: int, bug_compatible: bool) -> None:
    kernel, bias = (array.copy() for array in weights.get(i))
    for k in _filters(rng, kernel, i, count):
      kernel[k], bias[k] = change(kernel[k]), change(bias[k])
    weights.put(i, kernel, bias)

  return option


def _scale(weights: Weights, rng: np.random.Generator, i: int, j: int, bug_compatible: bool) -> None:
  for layer in (i, j):
    kernel, _ = weights.get(layer)
    u, each = uniform(rng), uniform(rng, kernel.shape)
    weights.put(layer, kernel * (1 + 8 * u * each if bug_compatible else 1 + 2 * u * (4 * each - 1)))


def _multiply_at_random(weights: Weights, rng: np.random.Generator, i: int, j: int, bug_compatible: bool) -> None:
  kernel, _ = weights.get(i)
  draw = bits if pick(rng, (0, 1)) else signs
  weights.put(i, kernel * draw(rng, kernel.shape))


def _rotate(weights: Weights, rng: np.random.Generator, i: int, j: int, bug_compatible: bool) -> None:
  weights.put(i, np.rot90(weights.get(i)[0], pick(rng, (1, 2, 3)), (2, 3)))


def _negate_fifth(weights: Weights, rng: np.random.Generator, i: int, j: int, bug_compatible: bool) -> None:
  kernel, _ = weights.get(i)
  factor = np.ones((len(kernel), 1, 1, 1), np.float32)
  factor[rng.integers(len(kernel), size=max(1, len(kernel) // 5))] = -1  # each drawn one once
  weights.put(i, kernel * factor)


def _keep_largest_taps(weights: Weights, rng: np.random.Generator, i: int, j: int, bug_compatible: bool) -> None:
  weights.put(i, largest_tap(weights.get(i)[0]))


_MIDDLE = range(8, 14)
OPTIONS: tuple[tuple[Option, range], ...] = (  # and the layers that i and j are drawn from
  (_reverse, range(11, 16)),
  (_change_filters(np.negative, 12), _MIDDLE),
  (_change_filters(np.zeros_like, 25), _MIDDLE),
  (_change_filters(lambda x: -gelu(x), 25), range(10, 14)),
  (_scale, _MIDDLE),
  (_multiply_at_random, _MIDDLE),
  (_rotate, _MIDDLE),
  (_negate_fifth, _MIDDLE),
  (_keep_largest_taps, _MIDDLE),
)
