"""DeepAugment's 17 ways to damage the weights of EDSR (Hendrycks et al., arXiv 2006.16241; hendrycks/imagenet-r).

Blocks are numbered as in the published network of 16 blocks with 64 features. In a network of another size, block i is
block floor(i * blocks / 16), so several numbers may refer to one block, and numbers of filters scale with the features.
Weights are converted to PyTorch's order, [out, in, height, width], in which the options are defined.
"""

from collections.abc import Callable, Mapping

import numpy as np

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

BLOCKS, FEATURES = 16, 64  # of the published network
NUM_DRAWS = 3  # options applied to one set of weights

_THIRDS = (0, 3, 6, 9)
_FIRST, _SECOND = 0, 1  # convolutions of a block
_LAPLACE = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)
_EDGES = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], np.float32)


class Weights:
  """A copy of EDSR's weights, with the published numbering of blocks; arrays are replaced, never modified."""

  def __init__(self, params: Mapping[str, Mapping[str, np.ndarray]]):
    self.params: Params = copy_of(params)
    self._blocks = sum(name.endswith('/conv_0') for name in params)

  def get(self, i: int, conv: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel [out, in, 3, 3] and the bias [out] of a convolution of block i."""
    layer = self.params[self._name(i, conv)]
    return to_published(layer['w']), layer['b']

  def put(self, i: int, conv: int, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
    layer = self.params[self._name(i, conv)]
    layer['w'] = from_published(kernel)
    if bias is not None:
      layer['b'] = np.ascontiguousarray(bias)

  def _name(self, i: int, conv: int) -> str:
    return f'edsr/block_{i * self._blocks // BLOCKS}/conv_{conv}'


Option = Callable[[Weights, np.random.Generator, bool], None]  # the last argument is `bug_compatible`


def distort(params: Mapping[str, Mapping[str, np.ndarray]], rng: np.random.Generator, bug_compatible: bool) -> Params:
  """Returns weights damaged by three options, drawn with replacement and applied in turn.

  Args:
    params: of EDSR, as in a weight file; not modified.
    rng: for all draws.
    bug_compatible: whether option 6 multiplies by 1 + 4 u U, as the published code does (a misplaced parenthesis),
      or by 1 + 2 u (2 U - 1), as it means.
  """
  weights = Weights(params)
  for option in rng.integers(len(OPTIONS), size=NUM_DRAWS):
    OPTIONS[option](weights, rng, bug_compatible)
  return weights.params


def _reverse_filters(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, _THIRDS)
  for conv in (_FIRST, _SECOND):
    kernel, bias = weights.get(i, conv)
    weights.put(i, conv, kernel[::-1], bias[::-1])


def _negate(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, (1, 4, 7))
  kernel, bias = weights.get(i, _FIRST)
  weights.put(i, _FIRST, -kernel, -bias)


def _zero(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, _THIRDS)
  kernel, bias = weights.get(i, _FIRST)
  weights.put(i, _FIRST, 0 * kernel, 0 * bias)


def _gelu(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, _THIRDS)
  for conv in (_FIRST, _SECOND):
    weights.put(i, conv, -gelu(weights.get(i, conv)[0]))


def _times(taps: np.ndarray) -> Option:
  def option(weights: Weights, rng: np.random.Generator, _: bool) -> None:
    i = pick(rng, _THIRDS)
    weights.put(i, _FIRST, weights.get(i, _FIRST)[0] * taps)

  return option


def _scale(weights: Weights, rng: np.random.Generator, bug_compatible: bool) -> None:
  i = pick(rng, _THIRDS)
  kernel, _ = weights.get(i, _SECOND)
  u, each = uniform(rng), uniform(rng, kernel.shape)
  weights.put(i, _SECOND, kernel * (1 + 4 * u * each if bug_compatible else 1 + 2 * u * (2 * each - 1)))


def _mirror(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, _THIRDS)
  weights.put(i, _FIRST, weights.get(i, _FIRST)[0][..., ::-1])
  weights.put(i, _SECOND, -weights.get(i, _SECOND)[0])


def _convolve(kernels: np.ndarray, by: np.ndarray) -> np.ndarray:
  """Convolves kernels [n, c, 3, 3], as if they were images, with `by` [o, c, 3, 3] -> [n, o, 3, 3]."""
  padded = np.pad(kernels, ((0, 0), (0, 0), (1, 1), (1, 1)))
  parts = [
    np.einsum('nchw,oc->nohw', padded[:, :, a : a + 3, b : b + 3], by[:, :, a, b]) for a in range(3) for b in range(3)
  ]
  return np.asarray(sum(parts))


def _shift_inputs(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, (1, 5, 9))
  kernel, _unused = weights.get(i, _FIRST)
  by = np.zeros_like(kernel)
  for j in range(by.shape[1]):  # the same for all outputs, so all inputs of a filter become equal
    row, column = rng.integers(3, size=2)
    by[:, j, row, column] = rng.choice((1.0, -1.0))
  weights.put(i, _FIRST, _convolve(kernel, by))


def _blur_at_random(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, _THIRDS)
  kernel, _unused = weights.get(i, _FIRST)
  by = (2 * uniform(rng, kernel.shape) * uniform(rng) - 1) / 6
  weights.put(i, _FIRST, _convolve(kernel, by))


def _dirichlet(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, (1, 5, 9))
  kernel, _unused = weights.get(i, _SECOND)
  by = rng.dirichlet([0.1] * 9, kernel.shape[:2]).reshape(kernel.shape).astype(np.float32)
  weights.put(i, _SECOND, _convolve(kernel, by))


def _add_noise(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  i = pick(rng, range(15))
  kernel, _unused = weights.get(i, _SECOND)
  weights.put(i, _SECOND, kernel + (uniform(rng, kernel.shape) - np.float32(0.5)))


def _five(rng: np.random.Generator) -> list[int]:
  return [pick(rng, range(15)) for _ in range(5)]


def _rotate(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  for i in _five(rng):
    conv, turns = pick(rng, (_FIRST, _SECOND)), pick(rng, (1, 2, 3))
    axes = (2, 3) if pick(rng, (0, 1)) else (0, 1)
    weights.put(i, conv, np.rot90(weights.get(i, conv)[0], turns, axes))


def _multiply_at_random(draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> Option:
  def option(weights: Weights, rng: np.random.Generator, _: bool) -> None:
    for i in _five(rng):
      kernel, _unused = weights.get(i, _FIRST)
      weights.put(i, _FIRST, kernel * draw(rng, kernel.shape))

  return option


def _negate_filters(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  for i in _five(rng):
    kernel, _unused = weights.get(i, _FIRST)
    factor = np.ones((len(kernel), 1, 1, 1), np.float32)
    factor[rng.integers(len(kernel), size=scaled(32, len(kernel), FEATURES))] = -1  # each drawn one once
    weights.put(i, _FIRST, kernel * factor)


def _keep_largest_taps(weights: Weights, rng: np.random.Generator, _: bool) -> None:
  for i in _five(rng):
    conv = pick(rng, (_FIRST, _SECOND))
    weights.put(i, conv, largest_tap(weights.get(i, conv)[0]))


OPTIONS: tuple[Option, ...] = (
  _reverse_filters,
  _negate,
  _zero,
  _gelu,
  _times(_LAPLACE),
  _times(_EDGES),
  _scale,
  _mirror,
  _shift_inputs,
  _blur_at_random,
  _dirichlet,
  _add_noise,
  _rotate,
  _multiply_at_random(signs),
  _multiply_at_random(bits),
  _negate_filters,
  _keep_largest_taps,
)
