"""Projected gradient ascent over the perturbations of a batch: Eq. 2 of arXiv 2104.01086, and the rules of its steps.

A rule makes, from the radii of the blocks of one perturbation, an `optax.GradientTransformation` of its gradient.
`size` is the step in units of the median radius over blocks (1/4 in appendix A).
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adversarial_augment.attacks import trees
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.types import Array, Key, LogitsFn, PerturbationSet, PyTree

Loss = Callable[[Array, Array], Array]  # (logits [n, k], labels [n], or what else it takes) -> [n]
StepRule = Callable[[PyTree, float], optax.GradientTransformation]

SCOPE = 'ascent'  # of the loop over the steps, which is found by it in a compiled program


def sign(radii: PyTree, size: float) -> optax.GradientTransformation:
  """Iterated FGSM, the paper's choice: every entry moves by `size` times the median radius.

  On a block of n entries that step has an l2 length of sqrt(n) times as much, mostly beyond the ball: the iterate is
  the sign of the gradient, rescaled to the sphere by the projection.
  """
  step = size * trees.median_radius(radii)
  return optax.stateless(lambda gradient, _: jax.tree.map(lambda g: step * jnp.sign(g), gradient))


def normalised(
  radii: PyTree, size: float, direction: Callable = lambda gradient: gradient
) -> optax.GradientTransformation:
  """Normalised gradient ascent (footnote 1), or its signs: an l2 length of `size` times the block's own radius."""

  def update(gradient, _):
    directions = jax.tree.map(direction, gradient)
    norms = trees.block_norms(directions, radii)
    factors = jax.tree.map(lambda n, r: size * r / jnp.where(n > 0, n, 1), norms, radii)
    return jax.tree.map(lambda d, f: d * jnp.expand_dims(f, range(f.ndim, d.ndim)), directions, factors)

  return optax.stateless(update)


def sgd(radii: PyTree, size: float) -> optax.GradientTransformation:
  """Plain gradient ascent (footnote 1), its learning rate `size` times the median radius."""
  return optax.scale(size * trees.median_radius(radii))


def adam(radii: PyTree, size: float) -> optax.GradientTransformation:
  """Adam (footnote 1) with the constants of the group's published code, its learning rate as for `sgd`."""
  return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-9), sgd(radii, size))


STEPS: dict[str, StepRule] = {
  'sign': sign,
  'sign_l2': functools.partial(normalised, direction=jnp.sign),
  'l2': normalised,
  'sgd': sgd,
  'adam': adam,
}


class Ascent(NamedTuple):
  """Where the ascent ended, for n images and m <= n perturbations."""

  perturbations: PyTree  # [m, ...]
  images: Array  # [n, h, w, c]
  loss_start: Array | None  # [n], at the random start; None where it is not measured
  loss_end: Array | None  # [n], of `images`; None where it is not measured
  gradient_norm: Array  # [m], of the first step's gradient; 0 without steps


def ascend(
  perturbation_set: PerturbationSet,
  keys: Key,
  logits_fn: LogitsFn,
  images: Array,
  labels: Array,
  frozen: PyTree,
  *,
  num_steps: int,
  step: StepRule,
  step_fraction: float,
  loss: Loss = cross_entropy,
  keep_best: bool = False,
  measure_end: bool = True,
  score: Loss | None = None,
  group: int | None = 1,
  axis_name: str | None = None,
) -> Ascent:
  """Maximises a loss of `logits_fn` over the perturbation of every image, or of every group of images.

  Arguments that are not here are those of `adversary.adversary` and of the attacks that it makes. Where images share
  batch statistics, the sum over groups is maximised.

  Args:
    labels: [n]; whatever `loss` and `score` compare logits with.
    step: the rule that turns a gradient into a step.
    loss: what the gradient is taken of, and what `loss_start` and `loss_end` are.
    keep_best: returns the iterate of each group's highest score, instead of the last one.
    measure_end: whether to measure `loss_end` where nothing needs it: one more forward pass of the classifier.
    score: that score; None: the loss. A score that is NaN is never the highest.
  """
  size = group or len(images)
  everywhere = axis_name if group is None else None
  radii = perturbation_set.radii(frozen)  # once: in the loop, XLA would compute them again in every step
  project = jax.vmap(lambda x, beta: perturbation_set.project(radii, x, beta))
  firsts, first_keys = images[::size], keys[::size]
  if everywhere:
    first_keys = _of_first_device(first_keys, everywhere)
  rule = step(radii, step_fraction)

  def measured(corrupted):
    logits = logits_fn(corrupted)
    losses = loss(logits, labels)
    return losses, losses if score is None else score(logits, labels)

  def over_devices(tree):
    return jax.lax.pmean(tree, everywhere) if everywhere else tree

  def group_means(losses):
    return over_devices(losses.reshape(-1, size).mean(-1))

  def objective(beta):
    losses, scores = measured(corrupt(beta))
    return losses.sum() / size, (losses, scores)

  def climb(i, carry):
    beta, rule_state, loss_start, gradient_norm, best = carry
    (_, (losses, scores)), gradient = jax.value_and_grad(objective, has_aux=True)(beta)
    gradient = over_devices(gradient)
    loss_start = jnp.where(i == 0, losses, loss_start)
    gradient_norm = jax.lax.cond(i == 0, lambda: _norms(gradient), lambda: gradient_norm)
    if keep_best:
      best = _better((group_means(scores), beta), best)
    move, rule_state = jax.vmap(rule.update)(gradient, rule_state)
    beta = jax.tree.map(lambda b, m: b + m.astype(b.dtype), beta, move)  # with 64 bits on, a step's size may have them
    return project(firsts, beta), rule_state, loss_start, gradient_norm, best

  beta = jax.vmap(lambda key, x: perturbation_set.init(key, frozen, x))(first_keys, firsts)
  corrupt = perturbation_set.bound(frozen, images, keys, beta)
  zeros = jnp.zeros(images.shape[0], jnp.promote_types(images.dtype, jnp.float32))
  best = (zeros[::size] - jnp.inf, beta) if keep_best else None
  carry = (beta, jax.vmap(rule.init)(beta), zeros, zeros[::size], best)
  with jax.named_scope(SCOPE):
    beta, _, loss_start, gradient_norm, best = jax.lax.fori_loop(0, num_steps, climb, carry)

  corrupted = corrupt(beta)
  if not measure_end and not keep_best:
    return Ascent(beta, corrupted, loss_start if num_steps else None, None, gradient_norm)
  loss_end, score_end = measured(corrupted)
  loss_start = loss_start if num_steps else loss_end
  if keep_best:
    _, beta = _better((group_means(score_end), beta), best)
    corrupted = corrupt(beta)
    loss_end, _ = measured(corrupted)
  return Ascent(beta, corrupted, loss_start, loss_end, gradient_norm)


def _of_first_device(keys: Key, axis_name: str) -> Key:
  """Returns the keys [m] of the first device, on all devices."""
  data = jax.lax.all_gather(jax.random.key_data(keys), axis_name)[0]
  return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def _norms(tree: PyTree) -> Array:
  """Returns the l2 norm of each perturbation's whole gradient, [m]."""
  norms = jax.vmap(lambda one: jnp.stack(jax.tree.leaves(trees.block_norms(one))))(tree)
  return jax.vmap(trees.block_norms)(norms)


def _better(new: tuple[Array, PyTree], old: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
  """Takes, perturbation by perturbation, the one of higher score."""
  return trees.choose(new[0] > old[0], new, old)
