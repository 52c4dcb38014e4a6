"""Projected gradient ascent over the perturbations of a batch: Eq. 2 of arXiv 2104.01086, and its l_p kin."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment.attacks import trees
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.attacks.steps import StepRule
from adversarial_augment.types import LogitsFn, PerturbationSet, PyTree

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [n, k], labels [n], or what else it takes) -> [n]


SCOPE = 'ascent'  # of the loop over the steps, which is found by it in a compiled program


class Ascent(NamedTuple):
  """Where the ascent ended, for n images and m <= n perturbations."""

  perturbations: PyTree  # [m, ...]
  images: jax.Array  # [n, h, w, c]
  loss_start: jax.Array  # [n], at the random start
  loss_end: jax.Array  # [n], of `images`
  gradient_norm: jax.Array  # [m], of the first step's gradient; 0 without steps


def ascend(
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
  loss: Loss = cross_entropy,
  keep_best: bool = False,
  score: Loss | None = None,
  group: int | None = 1,
  axis_name: str | None = None,
) -> Ascent:
  """Maximises a loss of `logits_fn` over the perturbation of every image, or of every group of images.

  Args:
    perturbation_set: the feasible set and its action on an image.
    keys: [n], one per image; a group takes that of its first image.
    logits_fn: [n, h, w, c] -> [n, k]; images may share batch statistics, then the sum over groups is maximised.
    images: [n, h, w, c] in [0, 1].
    labels: [n]; whatever `loss` and `score` compare logits with.
    frozen: parameters the set is built around.
    num_steps: steps of ascent, each followed by a projection.
    step: the rule that turns a gradient into a step.
    step_fraction: step size in units of the median block radius.
    loss: what the gradient is taken of, and what `loss_start` and `loss_end` are.
    keep_best: returns the iterate of each group's highest score, instead of the last one.
    score: that score; None: the loss. A score that is NaN is never the highest.
    group: images that share a perturbation, one after the other, and whose mean loss it maximises; a divisor of n.
      None: all images, and those of every device along `axis_name`.
    axis_name: mesh axis of a perturbation that all devices share; unused for groups of a number.

  Returns:
    An `Ascent`.
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
    losses, scores = measured(perturbation_set.apply_batch(frozen, images, beta, keys))
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
  zeros = jnp.zeros(images.shape[0], jnp.promote_types(images.dtype, jnp.float32))
  best = (zeros[::size] - jnp.inf, beta) if keep_best else None
  carry = (beta, jax.vmap(rule.init)(beta), zeros, zeros[::size], best)
  with jax.named_scope(SCOPE):
    beta, _, loss_start, gradient_norm, best = jax.lax.fori_loop(0, num_steps, climb, carry)

  corrupted = perturbation_set.apply_batch(frozen, images, beta, keys)
  loss_end, score_end = measured(corrupted)
  loss_start = loss_start if num_steps else loss_end
  if keep_best:
    _, beta = _better((group_means(score_end), beta), best)
    corrupted = perturbation_set.apply_batch(frozen, images, beta, keys)
    loss_end, _ = measured(corrupted)
  return Ascent(beta, corrupted, loss_start, loss_end, gradient_norm)


def _of_first_device(keys: jax.Array, axis_name: str) -> jax.Array:
  """Returns the keys [m] of the first device, on all devices."""
  data = jax.lax.all_gather(jax.random.key_data(keys), axis_name)[0]
  return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def _norms(tree: PyTree) -> jax.Array:
  """Returns the l2 norm of each perturbation's whole gradient, [m]."""
  norms = jax.vmap(lambda one: jnp.stack(jax.tree.leaves(trees.block_norms(one))))(tree)
  return jax.vmap(lambda blocks: trees.block_norms(blocks))(norms)


def _better(new: tuple[jax.Array, PyTree], old: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
  """Takes, perturbation by perturbation, the one of higher score."""
  wins = new[0] > old[0]
  pick = lambda a, b: jnp.where(wins.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)
  return jnp.where(wins, new[0], old[0]), jax.tree.map(pick, new[1], old[1])
