"""The train step once more, for one device, in the plainest form: vmap, lax.conv, no shard_map, no closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.attacks import trees

MEAN = np.array([0.4488, 0.4371, 0.4040])


def conv(x, w, stride=1, padding='SAME'):
  return jax.lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def edsr_x1(phi, image, blocks):
  layer = lambda x, name: conv(x, phi[f'edsr/{name}']['w']) + phi[f'edsr/{name}']['b'][None, None, None]
  mean = jnp.asarray(255 * MEAN, image.dtype)[None, None, None]
  x = head = layer(255 * image[None] - mean, 'head')
  for i in range(blocks):
    x = x + layer(jnp.maximum(layer(x, f'block_{i}/conv_0'), 0), f'block_{i}/conv_1')
  return jnp.clip((layer(layer(x, 'body_out') + head, 'out') + mean) / 255, 0, 1)[0]


def attack(keys, logits_fn, images, labels, phi, *, blocks, nu, num_steps, fraction=0.25):
  """AdA with sign steps, up to the line search; the step is `fraction` of the median radius."""
  norm = lambda x: jnp.sqrt((x**2).sum())
  radii = jax.tree.map(lambda p: nu * norm(p), phi)
  size = fraction * jnp.median(jnp.stack(jax.tree.leaves(radii)))
  clip = lambda beta: jax.tree.map(lambda b, r: b * jnp.minimum(1, r / norm(b)), beta, radii)
  corrupt = jax.vmap(lambda x, beta: edsr_x1(jax.tree.map(jnp.add, phi, beta), x, blocks))

  def losses(betas):
    log_probabilities = jax.nn.log_softmax(logits_fn(corrupt(images, betas)))
    return -log_probabilities[jnp.arange(len(labels)), labels]

  betas = jax.vmap(lambda key: trees.random_in_balls(key, phi, radii))(keys)
  start = losses(betas)
  for _ in range(num_steps):
    gradient = jax.grad(lambda b: losses(b).sum())(betas)
    betas = jax.vmap(clip)(jax.tree.map(lambda b, g: b + size * jnp.sign(g), betas, gradient))
  return corrupt(images, betas), start, losses(betas)


def linf_attack(keys, logits_fn, images, labels, phi, *, epsilon, num_steps, fraction=0.25, trades=False):
  """Iterated signs within the box, from a uniform start; with `trades`, of its divergence and from its start."""
  del phi
  low, high = jnp.maximum(images - epsilon, 0), jnp.minimum(images + epsilon, 1)
  clean = jax.nn.softmax(logits_fn(images))
  if trades:
    start = jax.vmap(lambda key: 0.001 * jax.random.normal(key, images.shape[1:], images.dtype))(keys)
  else:
    start = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], images.dtype, -epsilon, epsilon))(keys)

  def losses(points):
    log_probabilities = jax.nn.log_softmax(logits_fn(points))
    if trades:
      return (clean * (jnp.log(clean) - log_probabilities)).sum(-1)
    return -log_probabilities[jnp.arange(len(labels)), labels]

  points = jnp.clip(images + start, low, high)
  first = losses(points)
  for _ in range(num_steps):
    gradient = jax.grad(lambda points: losses(points).sum())(points)
    points = jnp.clip(points + fraction * epsilon * jnp.sign(gradient), low, high)
  return points, first, losses(points)


def train_step(
  state,
  images,
  labels,
  phi,
  lr,
  *,
  classifier,
  before,
  seed,
  momentum,
  decay,
  adversary,
  local_stats=True,
  trades=0.0,
  parts=1,
):
  """One update; state is (step, params, model_state, velocity). `trades` weighs a divergence from the clean image.

  The attacked classifier has statistics of each of so many `parts` of the batch; without `local_stats`, running ones.
  """
  step, params, model_state, velocity = state
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  keys = jnp.stack([jax.random.split(jax.random.fold_in(step_key, i), 3) for i in range(len(labels))])
  images = jax.vmap(before)(keys[:, 0], images.astype(jnp.float64) / 255)
  options = {'is_training': False, 'test_local_stats': local_stats}
  of_part = lambda x: classifier.apply(params, model_state, None, x, **options)[0]
  logits_fn = lambda x: jnp.concatenate([of_part(part) for part in jnp.split(x, parts)])
  corrupted, start, end = adversary(keys[:, 1], logits_fn, images, labels, phi)
  batch = jnp.concatenate([images, corrupted]) if trades else corrupted

  def loss_of(params):
    logits, new = classifier.apply(params, model_state, None, batch, is_training=True)
    log_p = jax.nn.log_softmax(logits)
    loss = -log_p[jnp.arange(len(labels)), labels].mean()
    if trades:
      clean, moved = jnp.split(log_p, 2)
      loss += trades * (jnp.exp(clean) * (clean - moved)).sum(-1).mean()
    return loss, new

  (loss, model_state), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
  l2 = lambda path, p: 0.0 if 'norm' in str(path) else decay
  gradient = jax.tree.map_with_path(lambda path, g, p: g + l2(path, p) * p, gradient, params)
  velocity = jax.tree.map(lambda v, g: g + momentum * v, velocity, gradient)
  params = jax.tree.map(lambda p, g, v: p - lr * (g + momentum * v), params, gradient, velocity)
  return (step + 1, params, model_state, velocity), loss, start.mean(), end.mean()
