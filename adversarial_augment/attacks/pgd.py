"""Projected gradient ascent over the perturbations of a batch: Eq. 2 of arXiv 2104.01086, and its l_p kin."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment import trees
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.attacks.steps import StepRule
from adversarial_augment.types import LogitsFn, PerturbationSet, PyTree


class Ascent(NamedTuple):
  """Where the ascent ended; arrays have the batch in front."""

  perturbations: PyTree
  images: jax.Array  # [n, h, w, c]
  loss_start: jax.Array  # [n], at the random start
  loss_end: jax.Array  # [n], of `images`
  gradient_norm: jax.Array  # [n], of the first step's gradient; 0 without steps


def pgd(
  perturbation_set: PerturbationSet,
  keys: jax.Array,
  logits_fn: LogitsFn,
  images: jax.Array,
  labels: jax.Array,
  frozen: PyTree,
  *,
  num_steps: int,
  step: StepRule,
  step_fraction: float,
  keep_best: bool = False,
) -> Ascent:
  """Maximises the cross-entropy of `logits_fn` over the perturbation of every image.

  Args:
    perturbation_set: the feasible set and its action on an image.
    keys: [n], one per image.
    logits_fn: [n, h, w, c] -> [n, k]; images may share batch statistics, then the sum of their losses is maximised.
    images: [n, h, w, c] in [0, 1].
    labels: [n].
    frozen: parameters the set is built around.
    num_steps: steps of ascent, each followed by a projection.
    step: the rule that turns a gradient into a step.
    step_fraction: step size in units of the median block radius.
    keep_best: returns each image's iterate of highest loss, instead of the last one.

  Returns:
    An `Ascent`.
  """
  per_example = lambda function, *batches: jax.vmap(lambda *one: function(*one))(*batches)
  project = lambda beta: per_example(lambda x, b: perturbation_set.project(frozen, x, b), images, beta)
  rule = step(perturbation_set.radii(frozen), step_fraction)

  def losses_of(corrupted):
    return cross_entropy(logits_fn(corrupted), labels)

  def objective(beta):
    losses = losses_of(perturbation_set.apply_batch(frozen, images, beta))
    return losses.sum(), losses

  def ascend(i, carry):
    beta, rule_state, loss_start, gradient_norm, best = carry
    (_, losses), gradient = jax.value_and_grad(objective, has_aux=True)(beta)
    loss_start = jnp.where(i == 0, losses, loss_start)
    gradient_norm = jax.lax.cond(i == 0, lambda: _norms(gradient), lambda: gradient_norm)
    if keep_best:
      best = _better((losses, beta), best)
    move, rule_state = jax.vmap(rule.update)(gradient, rule_state)
    return project(jax.tree.map(jnp.add, beta, move)), rule_state, loss_start, gradient_norm, best

  beta = project(per_example(lambda key, x: perturbation_set.init(key, frozen, x), keys, images))
  zeros = jnp.zeros(images.shape[0], jnp.promote_types(images.dtype, jnp.float32))
  best = (zeros - jnp.inf, beta) if keep_best else None
  carry = (beta, jax.vmap(rule.init)(beta), zeros, zeros, best)
  beta, _, loss_start, gradient_norm, best = jax.lax.fori_loop(0, num_steps, ascend, carry)

  corrupted = perturbation_set.apply_batch(frozen, images, beta)
  loss_end = losses_of(corrupted)
  if keep_best:
    loss_end, beta = _better((loss_end, beta), best)
    corrupted = perturbation_set.apply_batch(frozen, images, beta)
  return Ascent(beta, corrupted, loss_start if num_steps else loss_end, loss_end, gradient_norm)


def _norms(tree: PyTree) -> jax.Array:
  """Returns the l2 norm of each example's whole gradient, [n]."""
  norms = jax.vmap(lambda one: jnp.stack(jax.tree.leaves(trees.block_norms(one))))(tree)
  return jax.vmap(lambda blocks: trees.block_norms(blocks))(norms)


def _better(new: tuple[jax.Array, PyTree], old: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
  """Takes, example by example, the perturbation of higher loss."""
  wins = new[0] > old[0]
  pick = lambda a, b: jnp.where(wins.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)
  return jnp.where(wins, new[0], old[0]), jax.tree.map(pick, new[1], old[1])
