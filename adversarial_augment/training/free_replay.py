"""Free adversarial training (arXiv 1904.12843) for AdA: one gradient for the classifier and for the perturbations.

A step makes several updates on one batch. Each has a single forward and backward pass, through corruption network and
classifier in training, which moves the parameters down and every image's perturbation one step up. The perturbations
start at random with every batch, where the paper goes on from those of the batch before, and there is no line search.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import optax

from adversarial_augment import threefry
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.parallel import sharding
from adversarial_augment.training.recipe import Recipe
from adversarial_augment.types import Array, Key, PyTree, TrainState


def updates(
  recipe: Recipe, keys: Key, dropout_key: Key, state: TrainState, images: Array, labels: Array, phi: PyTree
) -> tuple[TrainState, dict[str, Array]]:
  """Makes the updates of one step.

  Args:
    recipe: with `replay`.
    keys: [n], one per image of the global batch.
    dropout_key: of the classifier.
    state: before the step, which counts as one update.
    images: uint8 [n, h, w, c], sharded over the devices.
    labels: int32 [n], likewise.
    phi: parameters of the corruption network, replicated.

  Returns:
    The state after them, and metrics: means over the batch, those of the classifier and `attack_loss_end` at the last
    update, `attack_loss_start` at the first.
  """
  assert recipe.replay is not None
  ball, data, whole = recipe.replay.ball, PartitionSpec(sharding.AXIS), PartitionSpec()
  radii = ball.radii(phi)
  rule = recipe.replay.rule(radii)
  before_keys, attack_keys, _ = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)

  def over_devices(function, *arguments):
    specs = tuple(whole if argument is phi else data for argument in arguments)
    return jax.shard_map(function, mesh=recipe.mesh, in_specs=specs, out_specs=data, check_vma=False)(*arguments)

  def start(phi, before_keys, attack_keys, images):
    images = jax.vmap(recipe.before)(before_keys, images.astype(jax.tree.leaves(state.params)[0].dtype) / 255)
    own = threefry.own(attack_keys)
    return images, jax.vmap(lambda key, image: ball.init(key, phi, image))(own, images)

  def corrupt(phi, keys, images, betas):
    return ball.bound(phi, images, threefry.own(keys), betas)(betas)

  def climb(betas, gradient, rule_state):
    moves, rule_state = jax.vmap(rule.update)(gradient, rule_state)
    moved = jax.tree.map(lambda b, m: b + m.astype(b.dtype), betas, moves)
    return jax.vmap(lambda image, beta: ball.project(radii, image, beta))(images, moved), rule_state

  images, betas = over_devices(start, phi, before_keys, attack_keys, images)

  def loss_of(params, betas, model_state):
    moved = over_devices(corrupt, phi, attack_keys, images, betas)
    logits, updated = recipe.classifier.apply(params, model_state, dropout_key, moved, is_training=True)
    return cross_entropy(logits, labels).mean(), (logits, updated)

  new, losses, logits, rule_state = state, [], jnp.zeros(()), jax.vmap(rule.init)(betas)
  for index in range(recipe.replay.updates):
    gradient_of = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (loss, (logits, updated)), (down, up) = gradient_of(new.params, betas, new.model_state)
    losses.append(loss)
    change, opt_state = recipe.optimizer.update(down, new.opt_state, new.params)
    if index < recipe.replay.updates - 1:  # the schedule counts steps
      opt_state = optax.tree.set(opt_state, count=optax.tree.get(new.opt_state, 'count'))
    new = TrainState(state.step + 1, optax.apply_updates(new.params, change), updated, opt_state)
    up = jax.tree.map(lambda g: len(labels) * g, up)  # of each image's own loss
    betas, rule_state = climb(betas, up, rule_state)
  return new, {
    'loss': losses[-1],
    'accuracy': (logits.argmax(-1) == labels).mean(),
    'learning_rate': recipe.schedule(state.step + 1),
    'attack_loss_start': losses[0],
    'attack_loss_end': losses[-1],
  }
