"""How much memory of a device a train step takes, estimated before anything is compiled.

docs/accelerators.md has what compilers say beside it.
"""

from collections.abc import Callable
import functools
import itertools
import math
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import attacks, classifiers, threefry
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.attacks.lp_ball import lp_ball
from adversarial_augment.config import adversaries
from adversarial_augment.parallel import platforms
from adversarial_augment.training import builders
from adversarial_augment.training.recipe import Recipe
from adversarial_augment.types import LogitsFn, PerturbationSet, PyTree, TrainState

_LANES, _SUBLANES = 128, 8  # of a TPU's registers
_FORMS = ('reshape', 'transpose', 'squeeze', 'optimization_barrier', 'broadcast_in_dim')  # of the same numbers
_OVERHEAD = 32 << 20  # bytes: the program of a TPU, and what cuBLAS takes of a GPU


def estimate(
  config: ConfigDict, recipe: Recipe, state: TrainState, phi: PyTree, image_shape: tuple[int, int, int]
) -> int:
  """Returns the bytes that a step of a run with an adversary needs on each device: its state, and attack or update.

  `state` and `phi`, what the adversary is built around, may be shapes; `image_shape` is (h, w, c).
  """
  local, views = recipe.batch_size // recipe.mesh.size, 3 if recipe.jsd else 2 if recipe.trades else 1
  batch = jax.ShapeDtypeStruct((views * local, *image_shape), jnp.float32)
  held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((state, phi)))
  params, model_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (state.params, state.model_state))
  logits_fn = classifiers.logits_fn(
    recipe.classifier, params, model_state, batch_statistics=config.attack.batch_norm != 'running'
  )
  with platforms.tracing_for(recipe.mesh):
    outputs = functools.partial(recipe.classifier.apply, is_training=True)
    loss = lambda params, images: outputs(params, model_state, threefry.key(0), images)[0].sum()
    update = kept_bytes(loss, params, batch, dtype=config.precision)
    attack = _attack_bytes_of_run(config, recipe.mesh.size, logits_fn, image_shape)
    return held + max(update, attack) + (_OVERHEAD if platforms.current() != 'cpu' else 0)


def _attack_bytes_of_run(config: ConfigDict, num_devices: int, logits_fn: LogitsFn, image_shape: tuple) -> int:
  split = builders.training_split(config, num_devices)
  perturbation_set: PerturbationSet = lp_ball('linf', 1.0)
  phi: PyTree = {}
  if adversaries.moves_weights(config.attack):  # those that an adversary mixes for an image take the memory of a beta
    network, phi = builders.load_network(config)
    moved = builders.moved_blocks(config)
    perturbation_set = attacks.weight_ball(network.apply, nu=1.0, moved=moved, noisy=True)
  options: dict[str, Any] = {'group': split.group or split.at_a_time, 'dtype': config.precision}
  return attack_bytes(perturbation_set, phi, logits_fn, image_shape, split.at_a_time, **options)


def attack_bytes(
  perturbation_set: PerturbationSet,
  frozen: PyTree,
  logits_fn: LogitsFn,
  image_shape: tuple,
  num_images: int,
  *,
  group: int = 1,
  dtype: jnp.dtype | str = 'float32',
) -> int:
  """Returns the bytes of one gradient of an attack: what its backward pass keeps, and its copies of beta.

  They are those of `platforms.current()`. A GPU moves beta in place, and has room for the gradient where the backward
  pass has used what was kept; elsewhere beta, its gradient and the moved beta stand side by side.

  Args:
    perturbation_set: what the attack searches.
    frozen: parameters the set is built around, or their shapes.
    logits_fn: the classifier under attack; batch statistics must not need a mesh axis.
    image_shape: (h, w, c).
    num_images: attacked at a time on one device.
    group: images that share a beta.
    dtype: what the networks compute in.
  """
  spec = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)

  def loss(betas, frozen, images, labels, keys):
    corrupt = perturbation_set.bound(frozen, images, keys, betas)
    return cross_entropy(logits_fn(corrupt(betas)), labels).sum()

  keys = jax.eval_shape(lambda: jax.random.split(threefry.key(0), num_images))
  images, labels = spec((num_images, *image_shape)), spec((num_images,), jnp.int32)
  start = jax.vmap(lambda key, image, frozen: perturbation_set.init(key, frozen, image), (0, 0, None))
  first = lambda x: spec((num_images // group, *x.shape[1:]), x.dtype)
  betas = jax.tree.map(first, jax.eval_shape(start, keys, images, frozen))
  copies = 1 if platforms.current() == 'gpu' else 3
  beta = sum(_numbers(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(betas))
  return kept_bytes(loss, betas, frozen, images, labels, keys, dtype=dtype) + copies * beta


def kept_bytes(function: Callable[..., jax.Array], *args: PyTree, dtype: jnp.dtype | str) -> int:
  """Returns the bytes of what the backward pass of a function by its first argument keeps, on `platforms.current()`.

  Arrays in another form, and multiples, count once, and repeated ones as what is repeated: compilers make them again.
  TPUs pad arrays to whole registers: an array of 64 channels takes twice its numbers. `args` may be shapes. Numbers of
  more bits than `dtype` are computed again instead of being kept.
  """
  program = jax.make_jaxpr(lambda first, *rest: jax.vjp(lambda x: function(x, *rest), first)[1])(*args).jaxpr
  sources: dict[Any, Any] = {}
  for equation in program.eqns:
    name, arrays = equation.primitive.name, [x for x in equation.invars if isinstance(x, core.Var)]
    if name in _FORMS or (name == 'mul' and len(arrays) == 1):
      sources[equation.outvars[0]] = sources.get(arrays[0], arrays[0]) if arrays else None
  kept = {sources.get(x, x) for x in program.outvars if isinstance(x, core.Var)} - {None}
  kernels = [equation for equation in program.eqns if equation.primitive.name == 'custom_vjp_call']  # tpu_conv's
  as_is = {x.aval.shape[-2:] for equation in kernels for x in (*equation.invars, *equation.outvars)}
  size = lambda x: min(x.dtype.itemsize, jnp.dtype(dtype).itemsize)
  return sum(_numbers(x.aval.shape, x.aval.shape[-2:] in as_is) * size(x.aval) for x in kept)


def _numbers(shape: tuple[int, ...], as_is: bool = False) -> int:
  """Returns how many numbers an array has room for: on a TPU, two axes are padded.

  Those are the last two of a Pallas kernel's array (`as_is`), and otherwise the two that need it least.
  """
  if platforms.current() != 'tpu':
    return math.prod(shape)
  shape = (1, 1, *shape)
  up_to = lambda size, unit: math.ceil(size / unit) * unit / size
  pairs = [shape[-2:]] if as_is else itertools.permutations(shape, 2)
  padding = (up_to(few, _SUBLANES) * up_to(many, _LANES) for few, many in pairs)
  return round(math.prod(shape) * min(padding))
