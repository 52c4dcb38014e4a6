"""AdversarialAugment (arXiv 2104.01086, section 2 and appendices A and G), and its perturbation set.

An image-to-image network corrupts an image; the adversary moves the network's weights within balls.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import checks, per_example_conv
from adversarial_augment.attacks import hoisting, trees
from adversarial_augment.attacks.adversary import adversary
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import platforms
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PerturbationSet, PyTree

CONSTANT = 'codebook'  # a parameter of this name is no block: its radius is 0


class Growing(NamedTuple):
  """What an adversary whose radius grows takes as `frozen`."""

  phi: PyTree
  share: Array  # of the radius, [] in [0, 1]


def ada(
  apply: Callable,
  *,
  nu: float = 0.015,
  num_steps: int = 10,
  step: str = 'sign',
  step_fraction: float = 0.25,
  init: str = 'ball',
  moved: str | Sequence[str] = 'all',
  keep_best: bool = False,
  measure_end: bool = True,
  min_ssim: float = 0.3,
  root: str | None = 'strict',
  group: int | None = 1,
  axis_name: str | None = None,
  impl: str = 'auto',
  noisy: bool = False,
) -> Attack:
  """Makes the adversary that perturbs the weights of a frozen corruption network, image by image.

  It maximises the cross-entropy by projected gradient ascent (Eq. 2), then corrects images that became too dissimilar
  (appendix G). The defaults are the paper's.

  Args:
    apply, nu, init, moved, impl, noisy: the perturbation set, see `weight_ball`.
    num_steps, step, step_fraction, keep_best, measure_end: the ascent, see `adversary`.
    min_ssim, root: the correction, see `adversary`.
    group, axis_name: images that share a perturbation, see `adversary`.

  Returns:
    An `Attack` of images [n, h, w, 3] in [0, 1], labels [n] and one key per image, called with phi as `frozen`. To the
    metrics of `adversary` it adds `radius_fraction`, the median over blocks of ||beta_i|| / nu_i. Outside jit it raises
    a UserError for a phi that is zero throughout.
  """
  if isinstance(nu, int | float) and not 0 <= nu < float('inf'):  # it may be traced
    raise UserError(f'nu={nu} of attacks.ada must be a finite number, at least 0.')

  def search(*, stacked: bool) -> Attack:
    ball = weight_ball(apply, nu=nu, init=init, moved=moved, impl=impl, noisy=noisy, stacked=stacked)
    measure = lambda phi, betas: {'radius_fraction': _radius_fraction(betas, ball.radii(phi))}
    return adversary(
        ball, num_steps=num_steps, step=step, step_fraction=step_fraction, keep_best=keep_best,
        measure_end=measure_end, min_ssim=min_ssim, root=root, group=group, axis_name=axis_name, measure=measure,
    )  # fmt: skip

  separate, on_gpus = search(stacked=False), search(stacked=True)  # docs/accelerators.md has what each takes

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(frozen)):
      check_blocks(frozen)
    chosen = on_gpus if platforms.current() == 'gpu' else separate
    return chosen(keys, logits_fn, images, labels, frozen)

  return attack


def weight_ball(
  apply: Callable,
  *,
  nu: float,
  init: str = 'ball',
  moved: str | Sequence[str] = 'all',
  impl: str = 'auto',
  noisy: bool = False,
  stacked: bool = False,
) -> PerturbationSet:
  """Makes C(x) = {c_{phi + beta}(x): ||beta_i||_2 <= nu ||phi_i||_2 for every weight and every bias array i}.

  Args:
    apply: the corruption network c, (phi, images [n, h, w, c]) -> images of the same shape in [0, 1].
    nu: relative radius of every block, at least 0; 0 gives c_phi(x).
    init: random start in the balls: 'ball' (uniform), 'uniform' (at a uniform distance from the centre) or 'zero'.
    moved: the blocks that move: 'all', 'biases', those of layers by name, or 'scales': every weight array W by one
      number for each of its output channels, W (1 + s), within the same ball. What c computes before it reaches the
      first of them is then computed once for all steps.
    impl: how the network runs over examples, see per_example_conv.
    noisy: `apply` takes a key as a third argument, from which it draws its noise.
    stacked: points of the set, and radii, are `trees.Stacks` of what they are otherwise: trees like phi, or dicts of
      the blocks that move.

  Returns:
    A perturbation set around `frozen` = phi. Blocks of norm zero and constants of the network stay at zero.
  """

  kind = _coordinates(moved)
  stacks = lambda phi: trees.Stacks(kind.of(phi))
  stack = lambda tree, phi: stacks(phi).stack(tree) if stacked else tree

  def radii_of_blocks(phi):
    is_constant = lambda path: bool(path) and getattr(path[-1], 'key', None) == CONSTANT
    radius = lambda path, norm: jnp.zeros_like(norm) if is_constant(path) else nu * norm
    return jax.tree.map_with_path(radius, trees.block_norms(kind.blocks(phi)))

  def corrupt(phi, images, u, key=None):
    return run(apply, kind.move(phi, stacks(phi).unstack(u) if stacked else u), images, key if noisy else None)

  apply_batch = over_groups(corrupt, impl=impl)
  return PerturbationSet(
    init=lambda key, phi, image: stack(
      trees.random_in_balls(key, kind.of(phi), radii_of_blocks(phi), radius=init), phi
    ),
    project=lambda radii, image, u: trees.project(u, radii),
    radii=lambda phi: stack(radii_of_blocks(phi), phi),
    apply_batch=apply_batch,
    bind=None if moved == 'all' else hoisted(corrupt, impl=impl),
  )


class _Coordinates(NamedTuple):
  """How points u of balls around 0 move the weights."""

  blocks: Callable[[PyTree], PyTree]  # phi -> the blocks that have a ball, whose norms make its radius
  of: Callable[[PyTree], PyTree]  # phi -> arrays like u, of the same structure
  move: Callable[[PyTree, PyTree], PyTree]  # (phi, u) -> phi + beta


def _coordinates(moved: str | Sequence[str]) -> _Coordinates:
  """Returns the coordinates of `weight_ball`'s `moved`."""
  layers = set() if isinstance(moved, str) else {*moved}
  keys_of = lambda path: {getattr(key, 'key', None) for key in path}
  if moved == 'all':
    same = lambda phi: phi
    # phi + beta stays in the precision of phi: bfloat16 would lose a relative change of .015.
    return _Coordinates(same, same, lambda phi, u: jax.tree.map(jnp.add, phi, u))
  if isinstance(moved, str):
    known: dict[str, Callable] = {
      'all': lambda *_: True, 'biases': lambda _, x: jnp.ndim(x) == 1, 'scales': lambda _, x: jnp.ndim(x) > 1,
    }  # fmt: skip
    takes = checks.lookup(known, moved, 'moved')
  else:
    takes = lambda path, _: bool(layers & keys_of(path))

  def blocks(phi):
    leaves = jax.tree.leaves_with_path(phi)
    missing = layers.difference(*(keys_of(path) for path, _ in leaves))
    found = {
      jax.tree_util.keystr(path, simple=True, separator='/'): block
      for path, block in leaves
      if getattr(path[-1], 'key', None) != CONSTANT and takes(path, block)
    }
    if missing or not found:
      which = ', '.join(sorted(missing)) or moved
      raise UserError(f"attacks.ada: the network has no block for '{which}' in moved; name its layers, or set all.")
    return found

  def move(phi, u):
    def one(path, block):
      change = u.get(jax.tree_util.keystr(path, simple=True, separator='/'))
      if change is None:
        return block
      if moved == 'scales':
        change = block * jnp.expand_dims(change / _channel_norms(block), range(block.ndim - 1))
      return block + change

    return jax.tree.map_with_path(one, phi)

  # u / (norm of a channel) is its s, so that beta is as long as u.
  of = lambda phi: {name: block[(0,) * (block.ndim - 1)] for name, block in blocks(phi).items()}
  return _Coordinates(blocks, of if moved == 'scales' else blocks, move)


def _channel_norms(block: Array) -> Array:
  """Returns the l2 norm of the part of a weight array [..., k] of each output channel; 1 where it is 0."""
  norms = jnp.sqrt(jnp.square(block).sum(range(block.ndim - 1)))
  return jnp.where(norms > 0, norms, 1)


def over_groups(corrupt: Callable, *, impl: str = 'auto') -> Callable:
  """Returns an `apply_batch` (see `PerturbationSet`) of `corrupt(frozen, images, perturbation, key)`.

  The images of a group go through the network together, in convolutions of one kernel, and with the first one's key.
  So where devices share a perturbation, each draws noise of its own.
  """

  def apply_batch(frozen, images, perturbations, keys=None):
    num_groups = len(jax.tree.leaves(perturbations)[0])
    groups = images.reshape(num_groups, -1, *images.shape[1:])
    first_keys = None if keys is None else keys.reshape(num_groups, -1)[:, 0]
    one = lambda both, group: corrupt(frozen, group, *both)
    return per_example_conv.over_examples(one, impl=impl)((perturbations, first_keys), groups).reshape(images.shape)

  return apply_batch


def hoisted(corrupt: Callable, *, impl: str = 'auto') -> Callable:
  """Returns the `bind` (see `PerturbationSet`) of the same: what does not depend on perturbations is computed once."""

  def bind(frozen, images, keys, like):
    num_groups = len(jax.tree.leaves(like)[0])
    groups = images.reshape(num_groups, -1, *images.shape[1:])
    first_keys = None if keys is None else keys.reshape(num_groups, -1)[:, 0]
    function = lambda beta, fixed, phi: corrupt(phi, fixed[0], beta, fixed[1])
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    parts = hoisting.parts(function, first(like), first((groups, first_keys)), frozen)
    values = jax.vmap(parts.before, (0, None))((groups, first_keys), frozen)
    one = lambda beta, values: parts.after(beta, values, frozen)
    return lambda perturbations: per_example_conv.over_examples(one, impl=impl)(perturbations, values).reshape(
      images.shape
    )

  return bind


def run(apply: Callable, params: PyTree, images: Array, key: Key | None) -> Array:
  """Returns c(images); with a key, of a network that draws noise."""
  if key is None:
    return apply(params, images)
  # The start is drawn from fold_in(key, 0) and (key, 1), which is what `split` gives.
  return apply(params, images, jax.random.fold_in(key, 2))


def check_blocks(phi: PyTree) -> None:
  """Raises UserError where no leaf of phi has a non-zero entry: every ball is a point, and nothing can move."""
  if not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(phi)):
    raise UserError(
      'All weights of the corruption network are zero, so that every radius nu * ||phi_i|| is; load trained weights.'
    )


def _radius_fraction(perturbations: PyTree, radii: PyTree) -> Array:
  """Returns, per perturbation, the median over blocks of non-zero radius of ||beta_i|| / nu_i."""
  flat = lambda tree: jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])

  def one(beta):
    norms, limits = flat(trees.block_norms(beta, radii)), flat(radii)
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(limits > 0, norms / limits, jnp.nan)))

  return jax.vmap(one)(perturbations)
