"""One update, from uint8 images to new parameters: pure functions, and the only place that orders the stages.

The adversary runs under `shard_map`: automatic sharding gives per-example convolution weights a gradient of zero on all
devices but the first. The outer gradient is taken outside of it, under jit with NamedShardings, where XLA inserts the
sum over devices and the batch statistics are those of the global batch.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import optax

from adversarial_augment import attacks, classifiers, threefry
from adversarial_augment.attacks.losses import cross_entropy, kl_divergence
from adversarial_augment.augmentations.augmix import jensen_shannon
from adversarial_augment.parallel import platforms, sharding
from adversarial_augment.training import free_replay
from adversarial_augment.training.recipe import Recipe
from adversarial_augment.types import Array, Key, PyTree, TrainState


def init_state(recipe: Recipe, image_shape: tuple[int, int, int]) -> TrainState:
  """Returns the state before the first update; a pure function of the recipe's seed."""
  images = jnp.zeros((1, *image_shape))
  params, model_state = recipe.classifier.init(threefry.key(recipe.seed), images, is_training=True)
  return TrainState(jnp.zeros((), jnp.int32), params, model_state, recipe.optimizer.init(params))


def jitted(recipe: Recipe) -> jax.stages.Wrapped:
  """Returns a recipe's jitted `train_step`: (state, step, images, labels, phi) -> state, metrics; donates state."""
  # With a device for each core, threads inside an operation get in each other's way.
  several = platforms.of(recipe.mesh) == 'cpu' and recipe.mesh.local_mesh.size > 1
  return jax.jit(
    platforms.for_mesh(recipe.mesh, functools.partial(train_step, recipe)),
    donate_argnums=0,
    out_shardings=sharding.replicated(recipe.mesh),
    compiler_options={'xla_cpu_multi_thread_eigen': False} if several else None,
  )


def traced(recipe: Recipe, phi: PyTree, image_shape: tuple[int, int, int]) -> jax.stages.Traced:
  """Returns the program of a recipe's step for devices that need not exist; nothing is computed.

  `phi` may be shapes; `image_shape` is (h, w, c) of the training images.
  """
  whole, split = sharding.replicated(recipe.mesh), sharding.batch_sharding(recipe.mesh)
  spec = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
  state, step = jax.eval_shape(lambda: (init_state(recipe, image_shape), jnp.int32(0)))
  n = recipe.batch_size
  batch = jax.eval_shape(lambda: (jnp.zeros((n, *image_shape), jnp.uint8), jnp.zeros(n, jnp.int32)))
  return jitted(recipe).trace(spec(state, whole), spec(step, whole), *spec(batch, split), spec(phi, whole))


def train_step(
  recipe: Recipe, state: TrainState, step: Array, images: Array, labels: Array, phi: PyTree
) -> tuple[TrainState, dict[str, Array]]:
  """Makes one update (Eq. 3, arXiv 2104.01086).

  All views of the images go through the classifier as one batch. The cross-entropy is that of the first view. Further
  terms are, with `recipe.jsd`, AugMix's (arXiv 1912.02781, section 3) and, with `recipe.trades`, the divergence of the
  probabilities of the adversarial image from those of the clean one (Algorithm 1, arXiv 1901.08573).

  With `recipe.replay`, it makes several, see free_replay.py.

  With `recipe.layers`, RLAT moves images and activations by a gradient of this classifier in training, whose running
  statistics therefore follow two batches, as published (arXiv 2103.02325).

  Args:
    recipe: the static parts.
    state: before the update.
    step: updates made before this one.
    images: uint8 [batch_size, h, w, c], sharded over the devices.
    labels: int32 [batch_size], likewise.
    phi: parameters of the corruption network, replicated; {} without an adversary.

  Returns:
    The next state, and metrics: means over the batch, the learning rate of this update, and whether all is finite
    (see `update_if_finite`).
  """
  step_key = jax.random.fold_in(threefry.key(recipe.seed), state.step)
  keys = jax.vmap(lambda index: jax.random.fold_in(step_key, index))(jnp.arange(images.shape[0]))
  dropout_key = jax.random.fold_in(step_key, images.shape[0])  # unlike the keys of the images
  if recipe.replay is not None:
    return update_if_finite(state, *free_replay.updates(recipe, keys, dropout_key, state, images, labels, phi), step)
  views, attack_metrics = corrupt(recipe, keys, images, labels, state, phi)
  batch, model_state = views.reshape(-1, *views.shape[2:]), state.model_state
  offsets: dict[str, Array] = {}
  classify = functools.partial(recipe.classifier.apply, is_training=not recipe.frozen_statistics)
  if recipe.layers:
    at_zero = lambda images, offsets: classify(state.params, model_state, dropout_key, images, offsets=offsets)
    batch, offsets, model_state, start = attacks.layerwise(at_zero, batch, labels, recipe.layers)
    attack_metrics = {'attack_loss_start': start}

  def loss_of(params):
    logits, updated = classify(params, model_state, dropout_key, batch, offsets=offsets)
    logits = logits.reshape(*views.shape[:2], -1)
    loss, terms = cross_entropy(logits[:, 0], labels).mean(), {}
    if recipe.layers:
      terms['attack_loss_end'] = loss
    if recipe.jsd:
      terms['jsd'] = jensen_shannon(logits).mean()
      loss += recipe.jsd * terms['jsd']
    if recipe.trades:
      terms['kl'] = kl_divergence(logits[:, 1], reference=logits[:, 0]).mean()
      loss += recipe.trades * terms['kl']
    return loss, (logits[:, 0], terms, updated)

  (loss, (logits, terms, updated)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
  updates, opt_state = recipe.optimizer.update(gradient, state.opt_state, state.params)
  new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), updated, opt_state)
  metrics = {
    'loss': loss,
    'accuracy': (logits.argmax(-1) == labels).mean(),
    'learning_rate': recipe.schedule(state.step + 1),
  }
  metrics |= terms | {name: value.mean() for name, value in attack_metrics.items()}
  return update_if_finite(state, new, metrics, step)


def update_if_finite(
  state: TrainState, new: TrainState, metrics: dict[str, Array], step: Array
) -> tuple[TrainState, dict[str, Array]]:
  """Returns `new` and its metrics with 'finite'; the state as it was if a metric, parameter or statistic is not finite.

  Where `step` is not that of `state`, an earlier update was left out, and so is this.
  """
  # Not of the counters: their squares overflow.
  numbers = [x for x in jax.tree.leaves((new.params, new.model_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
  is_finite = jnp.isfinite(jnp.stack([*metrics.values(), optax.tree.norm(numbers)])).all()
  is_finite &= state.step == step
  return optax.tree.where(is_finite, new, state), metrics | {'finite': is_finite}


def corrupt(
  recipe: Recipe, keys: Key, images: Array, labels: Array, state: TrainState, phi: PyTree
) -> tuple[Array, dict[str, Array]]:
  """Returns the views of each image [n, views, h, w, c] that the classifier is trained on, and the adversary's metrics.

  The stages are in the paper's order (appendix A): pad, crop and flip; AdA and its line search; AugMix. There is one
  view; with `recipe.jsd` three, the image before AugMix, and two of its AugMix; with `recipe.trades` two, the clean
  image and the adversarial one. Of each metric there is one value per attacked image.

  Args:
    recipe: the static parts.
    keys: [n], one per image of the global batch.
    images: uint8 [n, h, w, c].
    labels: [n].
    state: the classifier under attack, with its number of updates.
    phi: parameters of the corruption network.
  """
  data, whole = PartitionSpec(sharding.AXIS), PartitionSpec()

  def local(keys, images, labels, step, params, model_state, phi):
    before_keys, attack_keys, after_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
    images = images.astype(jax.tree.leaves(params)[0].dtype) / 255
    images = clean = jax.vmap(recipe.before)(before_keys, images)

    # Batch statistics are those of the global batch, through the mesh axis, or of this device; no state is kept.
    logits_fn = classifiers.logits_fn(
      recipe.attacked_classifier, params, model_state, batch_statistics=recipe.attack_batch_norm != 'running'
    )

    def attacked(images):
      assert recipe.attack is not None
      frozen = phi
      if recipe.growth_steps:
        share = (step + 1 - recipe.warmup_steps) / recipe.growth_steps
        frozen = attacks.Growing(phi, jnp.minimum(share, 1))
      return recipe.attack(attack_keys, logits_fn, images, labels, frozen)

    metrics = {}
    if recipe.attack is not None and (recipe.warmup_steps or recipe.every > 1):
      shapes = jax.eval_shape(attacked, images)
      spared = lambda images: shapes._replace(
        images=images, metrics=jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), shapes.metrics)
      )
      images, metrics = jax.lax.cond(recipe.is_attacked(step), attacked, spared, images)
    elif recipe.attack is not None:
      images, metrics = attacked(images)
    after = jax.vmap(recipe.after)
    if recipe.jsd:
      first_keys, second_keys = jnp.moveaxis(jax.vmap(jax.random.split)(after_keys), 1, 0)
      views = [images, after(first_keys, images), after(second_keys, images)]
    elif recipe.trades:
      views = [clean, images]  # nothing comes after, by config/rules.py
    else:
      views = [after(after_keys, images)]
    return jax.lax.stop_gradient((jnp.stack(views, 1), metrics))

  sharded = jax.shard_map(
    local,
    mesh=recipe.mesh,
    in_specs=(data, data, data, whole, whole, whole, whole),
    out_specs=data,
    check_vma=False,  # nothing replicated is differentiated inside
  )
  return sharded(keys, images, labels, state.step, state.params, state.model_state, phi)
