"""The train step once more, for one device, in the plainest form: vmap, lax.conv, no shard_map, no closed forms."""

import math

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


def fast_lpa(keys, logits_fn, images, labels, phi, *, epsilon, num_steps, features=None):
  """Fast-LPA from a start of normal draws, on the images that are classified correctly.

  `features` takes phi and images; None: those of the classifier.
  """
  features = features or (lambda phi, points: logits_fn.stages(points))

  def embed(points):
    unit = lambda a: a / (jnp.sqrt((a**2).sum(-1, keepdims=True) + 1e-300) + 1e-10) / math.sqrt(a.shape[1] * a.shape[2])
    return jnp.concatenate([unit(a).reshape(len(a), -1) for a in features(phi, points)], 1)

  def margins(points):
    logits = logits_fn(points)
    others = jnp.where(jnp.arange(logits.shape[1])[None] == labels[:, None], -jnp.inf, logits)
    return others.max(1) - logits[jnp.arange(len(labels)), labels]

  norm = lambda x: jnp.sqrt((x.reshape(len(x), -1) ** 2).sum(1))
  each = lambda x: x.reshape(-1, 1, 1, 1)
  start, clean = embed(images), margins(images)
  points = images + 0.01 * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
  for t in range(num_steps):
    weight, size = 10 * 0.1 ** (1 - t / num_steps), epsilon * 0.1 ** (t / num_steps)
    loss = lambda x, weight=weight: weight * jnp.maximum(norm(embed(x) - start) - epsilon, 0) - margins(x)
    gradient = jax.grad(lambda x, loss=loss: loss(x).sum())(points)
    gradient = gradient / each(norm(gradient) + 1e-8)
    speed = norm(embed(points) - embed(points - 0.1 * gradient)) / 0.1
    points = jnp.clip(points - gradient * each(size / (speed + 1e-4)), 0, 1)
  points = jnp.where(each(clean < 0), points, images)
  return points, clean, margins(points)


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
  activations = lambda x: classifier.apply(params, model_state, None, x, with_activations=True, **options)[0][1]
  logits_fn.stages = lambda x: [value for name, value in activations(x).items() if name.startswith('stage')]
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
  params, velocity = descend(params, velocity, gradient, lr, momentum=momentum, decay=decay)
  return (step + 1, params, model_state, velocity), loss, start.mean(), end.mean()


def descend(params, velocity, gradient, lr, *, momentum, decay):
  """A step of SGD with Nesterov momentum and weight decay of all but the norms."""
  l2 = lambda path, p: 0.0 if 'norm' in str(path) else decay
  gradient = jax.tree.map_with_path(lambda path, g, p: g + l2(path, p) * p, gradient, params)
  velocity = jax.tree.map(lambda v, g: g + momentum * v, velocity, gradient)
  params = jax.tree.map(lambda p, g, v: p - lr * (g + momentum * v), params, gradient, velocity)
  return params, velocity


def preact_resnet_10(params, state, images, offsets, decay=0.99):
  """The classifier of tiny.py in training, with an offset for each of its layers: the stem and four stages."""
  state, prefix = dict(state), 'preact_resnet/'

  def norm(x, name):
    p, s = params[prefix + name], state[prefix + name]
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    row = lambda value: value[None, None, None]
    weight = (1 - decay) / (1 - decay ** (s['count'] + 1.0))
    follow = lambda old, new: (1 - weight) * old + weight * new
    state[prefix + name] = {'mean': follow(s['mean'], mean), 'var': follow(s['var'], var), 'count': s['count'] + 1}
    y = (x - row(mean)) / row(jnp.sqrt(var + 1e-5))
    return jnp.maximum(y * row(p['scale']) + row(p['offset']), 0)

  def layer(x, name, stride=1):
    w = params[prefix + name]['w']
    return conv(x, w, stride, [(len(w) // 2, len(w) // 2)] * 2)

  x = (images - np.array([[[[0.4914, 0.4822, 0.4465]]]])) / np.array([[[[0.2471, 0.2435, 0.2616]]]])
  x = layer(x, 'stem') + offsets[0]
  for stage in range(4):
    block, stride = f'stage_{stage}_block_0', 1 + (stage > 0)
    y = norm(x, f'{block}/norm_0')
    shortcut = layer(y, f'{block}/shortcut', stride) if stage else x
    y = layer(norm(layer(y, f'{block}/conv_0', stride), f'{block}/norm_1'), f'{block}/conv_1')
    x = y + shortcut + offsets[1 + stage]
  head = params[prefix + 'head']
  return norm(x, 'norm').mean((1, 2)) @ head['w'] + head['b'][None], state


def rlat_step(state, images, labels, lr, *, before, seed, momentum, decay, epsilon):
  """One update of RLAT; state as in `train_step`, of the classifier `preact_resnet_10` of width 4."""
  step, params, model_state, velocity = state
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  keys = jnp.stack([jax.random.split(jax.random.fold_in(step_key, i), 3)[0] for i in range(len(labels))])
  images = jax.vmap(before)(keys, images.astype(jnp.float64) / 255)

  def loss_of(params, model_state, layers):
    logits, new = preact_resnet_10(params, model_state, layers[0], layers[1:])
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean(), new

  shapes = [(32, 32, 3), (32, 32, 4), (32, 32, 4), (16, 16, 8), (8, 8, 16), (4, 4, 32)]
  layers = [images, *(jnp.zeros((len(labels), *shape)) for shape in shapes[1:])]
  (start, model_state), gradients = jax.value_and_grad(loss_of, argnums=2, has_aux=True)(params, model_state, layers)
  for index, (gradient, shape) in enumerate(zip(gradients, shapes, strict=True)):
    radius = epsilon * math.prod(shape) / 3072 / (index + 1)
    layers[index] += jnp.stack([radius * one / jnp.sqrt((one**2).sum()) for one in gradient])
  layers[0] = jnp.minimum(jnp.maximum(layers[0], 0), 1)
  (loss, model_state), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, model_state, layers)
  params, velocity = descend(params, velocity, gradient, lr, momentum=momentum, decay=decay)
  return (step + 1, params, model_state, velocity), loss, start
