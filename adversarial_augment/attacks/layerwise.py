"""Perturbations of a classifier's input and of its activations: RLAT (Kireev et al., arXiv 2103.02325).

Every layer has an l_2 ball around zero. The adversary makes one step from there, along the gradient of each layer, to
the sphere. It needs the classifier itself and not only its logits, so it is no `Attack`.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment.attacks import trees
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.attacks.lp_ball import check_ball
from adversarial_augment.errors import UserError
from adversarial_augment.types import Array, PyTree

INPUT = 'input'  # the name of the images among the layers


class Layer(NamedTuple):
  """A layer that is moved."""

  shape: tuple[int, int, int]  # h, w, c
  radius: float


class Moved(NamedTuple):
  """What the adversary makes of a batch, and what it learns on the way."""

  images: Array  # [n, h, w, c] in [0, 1]
  offsets: dict[str, Array]  # of the activations, by name: [n, h, w, c]
  state: PyTree  # of the classifier, after the pass of which the gradient is taken
  loss: Array  # [n], of that pass


def layerwise_radii(shapes: Sequence[Sequence[int]], epsilon: float, *, image_size: int | None = None) -> list[float]:
  """Returns the radius of each layer by the published rule 'scaling, descending': epsilon size / image_size / (l + 1).

  Args:
    shapes: of layers l = 0, 1, ... in the order of the network, without the axis of examples.
    epsilon: the radius of the images.
    image_size: numbers in an image; None: in the first layer, which is the input then.

  Raises:
    UserError: an epsilon that no l_2 ball can have, no layers, or images without numbers.
  """
  epsilon = check_ball('l2', epsilon)
  sizes = [math.prod(shape) for shape in shapes]
  if not sizes:
    raise UserError('shapes of attacks.layerwise_radii must be those of at least one layer.')
  whole = sizes[0] if image_size is None else image_size
  if not whole >= 1:
    raise UserError(f'image_size={whole} of attacks.layerwise_radii must be at least 1.')
  return [epsilon * size / whole / (index + 1) for index, size in enumerate(sizes)]


def layerwise(
  classify: Callable[[Array, dict[str, Array]], tuple[Array, PyTree]],
  images: Array,
  labels: Array,
  layers: Mapping[str, Layer],
) -> Moved:
  """Moves every layer by its radius along the normalised gradient of the cross-entropy at zero, example by example.

  The gradient is that of the sum over all examples, which matters where they share batch statistics. A layer whose
  gradient is zero stays. Moved images are cut to [0, 1].

  Args:
    classify: (images, offsets of activations by name) -> (logits [n, k], the classifier's new state).
    images: [n, h, w, c] in [0, 1].
    labels: [n].
    layers: by name; `INPUT` is the images.

  Returns:
    The moved images [n, h, w, c], the offsets of the other layers by name, the state of `classify`, and the loss [n] at
    zero.
  """
  zeros = {name: jnp.zeros((len(images), *layer.shape), images.dtype) for name, layer in layers.items()}

  def objective(deltas: dict[str, Array]) -> tuple[Array, tuple[Array, PyTree]]:
    logits, state = classify(images + deltas.get(INPUT, 0), {name: deltas[name] for name in deltas if name != INPUT})
    losses = cross_entropy(logits, labels)
    return losses.sum(), (losses, state)

  gradients, (loss, state) = jax.grad(objective, has_aux=True)(zeros)
  norms = jax.vmap(trees.block_norms)(gradients)
  factors = {name: layer.radius / jnp.where(norms[name] > 0, norms[name], 1) for name, layer in layers.items()}
  deltas = {name: factors[name].reshape(-1, 1, 1, 1) * gradients[name] for name in layers}
  moved = jnp.clip(images + deltas.pop(INPUT, 0), 0, 1)
  return Moved(moved, deltas, state, loss)
