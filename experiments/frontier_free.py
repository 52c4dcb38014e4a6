"""Free replay (arXiv 1904.12843) for AdA: the trainer with another step, one pass for classifier and perturbation.

  python -m experiments.frontier_free --replay=2 --config=configs/ada_edsr.py:laptop --workdir=runs/free

A step makes `replay` updates on one batch. Each has a single forward and backward pass through corruption network and
classifier in training, which moves the parameters down and every image's perturbation up by one sign step; the first
one starts at random. There is no line search. An epoch of images then is `replay` epochs of passes. The other flags are
those of adversarial_augment.train, which it patches: a study, not a part of the package.
"""

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from adversarial_augment import attacks, cli, threefry, train
from adversarial_augment import config as configs
from adversarial_augment.attacks.ascent import STEPS
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.config import command_line
from adversarial_augment.errors import UserError
from adversarial_augment.training import builders, train_step
from adversarial_augment.training.recipe import Recipe
from adversarial_augment.types import Array, PyTree, TrainState


def main(argv: Sequence[str]) -> None:
  flags = dict(flag.removeprefix('--').partition('=')[::2] for flag in argv)
  try:
    replay = int(flags['replay'])
    spec = flags['config']
  except (KeyError, ValueError):
    raise UserError('give --replay=2 or more, and --config=configs/ada_edsr.py:laptop or the like.') from None
  config = configs.override(configs.load(spec), command_line.split_overrides(argv)[0])
  with replaying(config, replay):
    train.main([flag for flag in argv if not flag.startswith('--replay=')])


@contextlib.contextmanager
def replaying(config: ConfigDict, replay: int) -> Iterator[None]:
  """Gives programs that are made within the block a step with that many updates on a batch; 0: the usual step."""
  usual = train_step.train_step
  if replay:
    network, _ = builders.load_network(config)
    ball = attacks.weight_ball(network.apply, nu=config.attack.nu)
    rule, size = STEPS[config.attack.step], config.attack.step_fraction

    def free(recipe: Recipe, state: TrainState, step: Array, images: Array, labels: Array, phi: PyTree) -> Any:
      return _free_step(replay, ball, lambda radii: rule(radii, size), recipe, state, step, images, labels, phi)

    train_step.train_step = free
  try:
    yield
  finally:
    train_step.train_step = usual


def _free_step(replay, ball, rule_of, recipe, state, step, images, labels, phi):
  """Makes `replay` updates on one batch; arguments and results are those of `train_step.train_step`."""
  step_key = jax.random.fold_in(threefry.key(recipe.seed), state.step)
  keys = jax.vmap(lambda index: jax.random.fold_in(step_key, index))(jnp.arange(images.shape[0]))
  before_keys, attack_keys, after_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
  images = jax.vmap(recipe.before)(before_keys, images.astype(jnp.float32) / 255)
  radii = ball.radii(phi)
  rule = rule_of(radii)
  betas = jax.vmap(lambda key, image: ball.init(key, phi, image))(threefry.own(attack_keys), images)
  corrupt = ball.bound(phi, images, threefry.own(attack_keys), betas)
  after = lambda views: jax.vmap(recipe.after)(after_keys, views)

  def loss_of(params, betas, model_state):
    views = corrupt(betas)
    # AugMix has no gradient to speak of: the adversary sees the image before it, the classifier the one after.
    views = views + jax.lax.stop_gradient(after(views) - views)
    logits, updated = recipe.classifier.apply(params, model_state, step_key, views, is_training=True)
    losses = cross_entropy(logits, labels)
    return losses.mean(), (losses, logits, updated)

  new, first = state, None
  for index in range(replay):
    gradient_of = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (_, (losses, logits, updated)), (down, up) = gradient_of(new.params, betas, new.model_state)
    first = losses.mean() if first is None else first
    updates, opt_state = recipe.optimizer.update(down, new.opt_state, new.params)
    if index < replay - 1:  # the schedule counts steps
      opt_state = optax.tree.set(opt_state, count=optax.tree.get(new.opt_state, 'count'))
    new = TrainState(state.step, optax.apply_updates(new.params, updates), updated, opt_state)
    moves, _ = jax.vmap(rule.update)(up, jax.vmap(rule.init)(betas))
    betas = jax.vmap(lambda beta, move: ball.project(radii, None, jax.tree.map(jnp.add, beta, move)))(betas, moves)
  metrics = {
    'loss': losses.mean(),
    'accuracy': (logits.argmax(-1) == labels).mean(),
    'learning_rate': recipe.schedule(state.step + 1),
    'attack_loss_start': first,
    'attack_loss_end': losses.mean(),
  }
  return train_step.update_if_finite(state, new._replace(step=state.step + 1), step, metrics)


if __name__ == '__main__':
  cli.run(main)
