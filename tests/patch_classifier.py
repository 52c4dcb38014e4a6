"""A small convolutional classifier of 16x16 digits that trains in seconds: its convolutions are products of patches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adversarial_augment import attacks
from adversarial_augment.attacks.losses import cross_entropy
from adversarial_augment.datasets import embedded

SHAPE = (16, 16, 3)


def digits(split: str, num: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [num, 16, 16, 3] in [0, 1] and labels."""
  batch = embedded.load(split).read(np.arange(num))
  small = batch.images.reshape(num, 16, 2, 16, 2, 3).astype(np.float64).mean((2, 4)) / 255
  return np.float32(small), batch.labels


def logits_fn(params, images):
  """Patches of 4x4 pixels, then of 2x2 of those, then all: [n, 16, 16, 3] -> [n, 10]."""
  x = images - 0.5
  for name, size in (('first', 4), ('second', 2)):
    n, height, width, channels = x.shape
    x = x.reshape(n, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, height // size, width // size, size * size * channels)
    x = jax.nn.relu(x @ params[name]['w'] + params[name]['b'].reshape(1, 1, 1, -1))
  return x.reshape(len(x), -1) @ params['last']['w'] + params['last']['b'].reshape(1, -1)


def init(seed: int) -> dict:
  sizes = {'first': (48, 48), 'second': (192, 64), 'last': (256, 10)}
  keys = jax.random.split(jax.random.key(seed), len(sizes))
  draw = lambda key, shape: jax.random.normal(key, shape) * np.sqrt(2 / shape[0])
  return {
    name: {'w': draw(key, shape), 'b': jnp.zeros(shape[1])}
    for key, (name, shape) in zip(keys, sizes.items(), strict=True)
  }


@functools.cache
def trained(seed: int = 0, norm: str = 'linf', epsilon: float = 0.0, num_steps: int = 1500) -> dict:
  """Returns parameters trained on clean images, or against PGD."""
  images, labels = digits('train', 4000)
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
  attack = attacks.pgd(norm=norm, epsilon=epsilon, num_steps=5, step_size=0.4)

  @jax.jit
  def update(params, opt_state, step):
    key = jax.random.fold_in(jax.random.key(seed), step)
    index = jax.random.randint(key, (100,), 0, len(images))
    x, y = jnp.asarray(images)[index], jnp.asarray(labels)[index]
    if epsilon:
      x = attack(jax.random.split(key, 100), functools.partial(logits_fn, params), x, y).images
    gradient = jax.grad(lambda params: cross_entropy(logits_fn(params, x), y).mean())(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  params = init(seed)
  opt_state = optimizer.init(params)
  for step in range(num_steps):
    params, opt_state = update(params, opt_state, step)
  return jax.device_get(params)
