"""Layers of the classifiers: convolutions, batch norm, the linear head, and the wrapper around a network body."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import per_example_conv
from adversarial_augment.errors import UserError, show
from adversarial_augment.types import Network, PyTree

MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, per channel
STD = (0.2471, 0.2435, 0.2616)
EPSILON = 1e-5  # of batch normalisation


class Layers(NamedTuple):
  """The layers of one call of a network, with their common options; see `classifier`."""

  batch_norm_decay: float
  padding: str
  axis_name: str | None
  conv: Callable[..., jax.Array]
  is_training: bool
  test_local_stats: bool
  offsets: Mapping[str, jax.Array]
  activations: dict[str, jax.Array]  # of the calls of `tap` so far

  def tap(self, name: str, x: jax.Array) -> jax.Array:
    """Names an activation [n, h, w, c]; returns it with its offset, if it has one."""
    if name in self.offsets:
      x = x + self.offsets[name].astype(x.dtype)
    self.activations[name] = x
    return x

  def convolve(
    self, x: jax.Array, channels: int, size: int, stride: int, name: str, groups: int = 1, *, bias: bool = False
  ) -> jax.Array:
    """Convolves [n, h, w, c] with a kernel of `size` pixels per side, by default without a bias.

    Groups are convolved one by one, because the gradient of a grouped convolution is slow on CPUs.
    """
    with hk.name_scope(name):
      w = hk.get_parameter('w', (size, size, x.shape[-1] // groups, channels), jnp.float32, _he_normal)
      b = hk.get_parameter('b', (channels,), jnp.float32, jnp.zeros) if bias else None
    w = w.astype(x.dtype)
    explicit = self.padding == 'torch' and size == 3 and stride > 1  # otherwise the two rules agree
    padding: Any = [(1, 1), (1, 1)] if explicit else 'SAME'
    convolved = lambda x, w: self.conv(x, w, stride=stride, padding=padding)
    if groups == 1:
      y = convolved(x, w)
    else:
      y = jnp.concatenate([*map(convolved, jnp.split(x, groups, -1), jnp.split(w, groups, -1))], -1)
    return y if b is None else y + b.astype(y.dtype).reshape(1, 1, 1, -1)

  def linear(self, x: jax.Array, channels: int, name: str) -> jax.Array:
    """Returns the products of [n, c] and a matrix, and a bias."""
    return _linear(x, channels, name, _he_normal)

  def dropout(self, x: jax.Array) -> jax.Array:
    """Sets half of the numbers of [n, c] to 0 and doubles the others, in training only.

    Each image draws by the key of `apply` and its place in the batch, however the batch is spread over devices.
    """
    if not self.is_training or hk.running_init():
      return x
    keys = jax.vmap(jax.random.fold_in, (None, 0))(hk.next_rng_key(), jnp.arange(len(x)))
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, x.shape[1:]))(keys)
    return jnp.where(kept, 2 * x, 0)

  def norm(self, x: jax.Array, name: str, *, relu: bool = True) -> jax.Array:
    """Normalises [n, h, w, c] over all axes but the channels; by default followed by a ReLU."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    with hk.name_scope(name):
      wide = _batch_norm(wide, self.batch_norm_decay, self.axis_name, self.is_training, self.test_local_stats)
    return (jax.nn.relu(wide) if relu else wide).astype(x.dtype)


Body = Callable[[Layers, jax.Array], jax.Array]  # normalised images [n, h, w, 3] -> features [n, h', w', c]


def classifier(
  name: str,
  body: Body,
  num_classes: int,
  *,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  batch_norm_decay: float = 0.99,
  padding: str = 'torch',
  axis_name: str | None = None,
  conv: Callable[..., jax.Array] = per_example_conv.conv,
  dtype: Any = jnp.float32,
) -> hk.TransformedWithState:
  """Makes a classifier: normalisation of the images, a body, the mean over positions, and a linear head.

  `apply(params, state, key, images, is_training=..., test_local_stats=False)` takes images [n, h, w, 3] in [0, 1],
  normalises them itself, and returns (logits [n, num_classes], new state). `key` is of the dropout in training, and
  None where there is none. `is_training=True` normalises by batch statistics and updates the running ones.
  `is_training=False` normalises by the running statistics, or, with `test_local_stats=True`, by those of the batch, and
  does not change the state. Float64 images give float64 logits.

  Some activations have names, such as 'stem' and 'stage1'. `offsets={name: array}` adds to them. With
  `with_activations=True` the output is (logits, {name: [n, h, w, c]}) in the order of the network, offsets included.

  Args:
    name: of the architecture, the prefix of its parameter names.
    body: everything between normalisation and mean.
    num_classes: number of logits.
    mean, std: of each channel, by which images are normalised; None: those of CIFAR-10.
    batch_norm_decay: of the running statistics, per update, in [0, 1).
    padding: of strided 3x3 convolutions: 'torch' pads one pixel on each side, 'same' as TensorFlow does.
    axis_name: the mapped axis (of shard_map or vmap) over which batch statistics are averaged; None: those of `images`.
    conv: `conv(x, w, *, stride, padding)` with padding 'SAME' or [(before, after), (before, after)].
    dtype: of convolutions and activations, float32 or bfloat16. Parameters, statistics and logits stay float32.

  Returns:
    The transformed function; `init(key, images, is_training=True)` needs no mapped axis.

  Raises:
    UserError: an argument out of range.
  """
  dtype = jnp.dtype(dtype)
  for argument, value, holds, rule in (
    ('num_classes', num_classes, num_classes >= 1, 'at least 1'),
    ('batch_norm_decay', batch_norm_decay, 0 <= batch_norm_decay < 1, 'in [0, 1)'),
    ('padding', padding, padding in ('torch', 'same'), "'torch' or 'same'"),
    ('dtype', dtype.name, dtype in (jnp.float32, jnp.bfloat16), 'float32 or bfloat16'),
  ):
    if not holds:
      raise UserError(f'{argument}={show(value)} of {name} must be {rule}.')

  normalisation = (tuple(mean or MEAN), tuple(std or STD))

  def network(
    images: jax.Array,
    *,
    is_training: bool,
    test_local_stats: bool = False,
    offsets: Mapping[str, jax.Array] | None = None,
    with_activations: bool = False,
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
      raise UserError(f'{name} takes floats [n, h, w, 3] in [0, 1], not {images.dtype} of shape {list(images.shape)}.')
    with hk.name_scope(name):
      shift, scale = (jnp.array(value, images.dtype).reshape(1, 1, 1, 3) for value in normalisation)
      x = ((images - shift) / scale).astype(dtype if dtype == jnp.bfloat16 else jnp.promote_types(images.dtype, dtype))
      offsets = offsets or {}
      layers = Layers(batch_norm_decay, padding, axis_name, conv, is_training, test_local_stats, offsets, {})
      x = body(layers, x)
      if unknown := offsets.keys() - layers.activations.keys():
        known = ', '.join(layers.activations)
        raise UserError(f'offsets of {name} have the name {show(min(unknown))}, which must be one of {known}.')
      x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
      logits = _linear(x, num_classes, 'head', _small_normal)
      return (logits, layers.activations) if with_activations else logits

  return hk.transform_with_state(network)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
  """A trained classifier as a pure function, images [n, h, w, 3] in [0, 1] -> logits [n, num_classes].

  Attributes:
    classifier, params, model_state: the network and its variables, which stay as they are.
    batch_statistics: normalises by those of the images; otherwise by the running ones.
  """

  classifier: Network
  params: PyTree
  model_state: PyTree
  batch_statistics: bool = False

  def __call__(self, images: jax.Array) -> jax.Array:
    return self._apply(images)

  def observe(self, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the logits, and the activations that make up the perceptual distance of the classifier.

    They are all that have names but the stem's: of a ResNet the outputs of its stages, of AlexNet those of its
    convolutions.
    """
    logits, activations = self._apply(images, with_activations=True)
    return logits, [value for name, value in activations.items() if name != 'stem']

  def _apply(self, images: jax.Array, **options: bool) -> Any:
    if self.batch_statistics:
      options['test_local_stats'] = True
    return self.classifier.apply(self.params, self.model_state, None, images, is_training=False, **options)[0]


def logits_fn(classifier: Network, params: PyTree, model_state: PyTree, *, batch_statistics: bool = False) -> Predictor:
  """Returns a trained classifier as a pure function, images [n, h, w, 3] in [0, 1] -> logits [n, num_classes]."""
  return Predictor(classifier, params, model_state, batch_statistics)


def features(classifier: Network, params: PyTree, model_state: PyTree) -> Callable[[jax.Array], list[jax.Array]]:
  """Returns the activations of a trained classifier that make up a perceptual distance, as a function of images.

  See `Predictor.observe`. Norms normalise by the running statistics.
  """
  return lambda images: Predictor(classifier, params, model_state).observe(images)[1]


def reorder_outputs(params: PyTree, outputs: Sequence[int]) -> PyTree:
  """Returns the parameters of a classifier whose output j is output outputs[j] of the given one, a permutation."""
  index = np.array(outputs)
  moved = lambda leaf: jax.jit(lambda x: x[..., index], out_shardings=leaf.sharding)(leaf)
  return {name: jax.tree.map(moved, leaves) if name.endswith('/head') else leaves for name, leaves in params.items()}


def parts(params: PyTree) -> PyTree:
  """Returns the tree of 'head', for the linear layer, or 'body', for each parameter of a classifier."""
  return {name: dict.fromkeys(leaves, 'head' if name.endswith('/head') else 'body') for name, leaves in params.items()}


def _batch_norm(
  x: jax.Array, decay: float, axis_name: str | None, is_training: bool, test_local_stats: bool
) -> jax.Array:
  """Normalises [n, h, w, c] over all axes but the channels.

  `hk.BatchNorm` is not used: its running variance is 0 before the first update. An adversary with running statistics
  would then see activations multiplied by 1 / sqrt(epsilon) in every layer, hence NaN.
  """
  channels = (x.shape[-1],)
  scale = hk.get_parameter('scale', channels, jnp.float32, jnp.ones)
  offset = hk.get_parameter('offset', channels, jnp.float32, jnp.zeros)
  running_mean = hk.get_state('mean', channels, jnp.float32, jnp.zeros)
  running_var = hk.get_state('var', channels, jnp.float32, jnp.ones)
  count = hk.get_state('count', (), jnp.int32, jnp.zeros)

  mean, var = running_mean, running_var
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # in bfloat16, the variance would be lost
  if is_training or test_local_stats:
    moments = jnp.stack([jnp.mean(wide, axis=(0, 1, 2)), jnp.mean(jnp.square(wide), axis=(0, 1, 2))])
    if axis_name is not None and not hk.running_init():
      moments = jax.lax.pmean(moments, axis_name)  # one all-reduce for both; devices wait at each
    mean, mean_square = moments
    var = jnp.maximum(mean_square - jnp.square(mean), 0.0)
  if is_training:
    # The debiased moving average, updated in debiased form: weight 1 at first, decreasing to 1 - decay.
    weight = (1.0 - decay) / (1.0 - decay ** (count + 1).astype(wide.dtype))
    hk.set_state('mean', (running_mean + weight * (mean - running_mean)).astype(running_mean.dtype))
    hk.set_state('var', (running_var + weight * (var - running_var)).astype(running_var.dtype))
    hk.set_state('count', count + 1)

  factor = scale * jax.lax.rsqrt(var + EPSILON)
  factor, shift = (value.astype(wide.dtype).reshape(1, 1, 1, -1) for value in (factor, offset - mean * factor))
  return (wide * factor + shift).astype(x.dtype)  # one pass over the activations, forward and backward


def _linear(x: jax.Array, channels: int, name: str, init: Callable[..., jax.Array]) -> jax.Array:
  with hk.name_scope(name):
    w = hk.get_parameter('w', (x.shape[-1], channels), jnp.float32, init)
    b = hk.get_parameter('b', (channels,), jnp.float32, jnp.zeros)
  return x @ w.astype(x.dtype) + b.astype(x.dtype).reshape(1, -1)


def _he_normal(shape: Sequence[int], dtype: Any) -> jax.Array:
  """He initialisation with fan-out, for ReLU (arXiv 1502.01852), of a kernel [kh, kw, c, k] or [c, k]."""
  # Drawn as a vector: the numbers are the same, and XLA compiles its random bits five times faster.
  draw = jax.random.normal(hk.next_rng_key(), (math.prod(shape),), dtype)
  return draw.reshape(shape) * math.sqrt(2.0 / (math.prod(shape) // shape[-2]))


def _small_normal(shape: Sequence[int], dtype: Any) -> jax.Array:
  """Normal with standard deviation 0.01, truncated at two: for the head, which would be no adversary's guide at 0."""
  return 0.01 * jax.random.truncated_normal(hk.next_rng_key(), -2.0, 2.0, (math.prod(shape),), dtype).reshape(shape)
