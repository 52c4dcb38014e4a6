"""Types shared by modules. Images are NHWC float32 in [0, 1] unless a name says uint8; labels are int32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
  from jax import Array
  import numpy as np
else:  # datasets/ uses these types and does not import JAX
  Array = Any

Key = Array
PyTree = Any
T = TypeVar('T')
LogitsFn = Callable[[Array], Array]  # images [n, h, w, c] -> logits [n, k]
Augmentation = Callable[[Key, Array], Array]  # one image [h, w, c] in, one out


def counts_images(cls: type[T]) -> type[T]:
  """Makes a named tuple whose `len` is the number of its images: its `_replace` must not count fields with `len`."""
  cls._make = classmethod(lambda cls, values: cls(*values))  # type: ignore[attr-defined]
  return cls


@counts_images
class Batch(NamedTuple):
  """A few examples on the host."""

  images: np.ndarray  # uint8 [n, h, w, c]
  labels: np.ndarray  # int32 [n]

  def __len__(self) -> int:
    return len(self.images)


@counts_images
class Dataset(NamedTuple):
  """One split of a data set."""

  name: str
  num_examples: int
  num_classes: int
  image_shape: tuple[int, int, int]
  read: Callable[[np.ndarray], Batch]  # indices [n] -> n examples
  provenance: dict[str, Any]  # name, split, origin, archive_sha256 (or None), sha256; goes into every result
  epoch_size: int | None = None  # examples in an epoch; None: all
  class_names: tuple[str, ...] = ()  # in the order of the labels; () if unknown

  def __len__(self) -> int:
    return self.num_examples


class PerturbationSet(NamedTuple):
  """The perturbations of one image: C(x) of Eq. 1 (arXiv 2104.01086), as pure functions.

  `frozen` holds the parameters that the set is built around (phi for AdA; None for l_p balls). The keys of
  `apply_batch` are those of `init`, and the same in every step, so the noise of c, if any, is constant in the ascent.
  """

  init: Callable[[Key, PyTree, Array], PyTree]  # (key, frozen, image) -> a random feasible perturbation
  project: Callable[[PyTree, Array, PyTree], PyTree]  # (radii, image, perturbation) -> onto the feasible set
  radii: Callable[[PyTree], PyTree]  # frozen -> one radius per block
  # (frozen, images [n], perturbations [m], keys [n]) -> images x' = c(x); each perturbation is of n / m images in turn.
  apply_batch: Callable[[PyTree, Array, PyTree, Key | None], Array]
  # The same for several perturbations of one batch, where a part of c can be computed once: (frozen, images, keys,
  # perturbations or their shapes) -> (perturbations -> images x'); None: there is no such part.
  bind: Callable[[PyTree, Array, Key | None, PyTree], Callable[[PyTree], Array]] | None = None

  def bound(self, frozen: PyTree, images: Array, keys: Key | None, like: PyTree) -> Callable[[PyTree], Array]:
    """Returns `apply_batch` of one batch as a function of perturbations like these."""
    if self.bind is not None:
      return self.bind(frozen, images, keys, like)
    return lambda perturbations: self.apply_batch(frozen, images, perturbations, keys)


@counts_images
class AttackResult(NamedTuple):
  """What an attack makes of a batch."""

  images: Array  # [n, h, w, c] in [0, 1]
  metrics: dict[str, Array]  # one value per attacked image: [n], or fewer if some stay clean

  def __len__(self) -> int:
    return len(self.images)


class Attack(Protocol):
  """An adversary: one key per image; `frozen` is the centre of its set, as in `PerturbationSet`."""

  def __call__(
    self, keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None
  ) -> AttackResult: ...


class Network(Protocol):
  """A network with state, as a pair of pure functions, like the result of Haiku's `transform_with_state`."""

  @property
  def init(self) -> Callable[..., Any]: ...  # (key, images, ...) -> params, state

  @property
  def apply(self) -> Callable[..., Any]: ...  # (params, state, key, images, ...) -> outputs, state


class TrainState(NamedTuple):
  """Everything that changes during training; arrays only. A checkpoint contains exactly this."""

  step: Array  # int32 [], updates made so far
  params: PyTree
  model_state: PyTree
  opt_state: PyTree
