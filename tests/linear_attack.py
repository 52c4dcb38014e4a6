"""A corruption network and a classifier that are linear, so that the best perturbations have a closed form."""

import jax
import jax.numpy as jnp
import numpy as np

RNG = np.random.default_rng(0)
PHI = {'w': np.float32(RNG.normal(size=(3, 3))), 'b': np.float32(RNG.normal(size=3)), 'dead': np.zeros(4, np.float32)}
IMAGES = np.float32(RNG.uniform(size=(6, 12, 12, 3)))
LABELS = np.array([0, 1, 0, 1, 1, 0], np.int32)
TEMPLATE = np.float32(RNG.normal(size=(12, 12, 3)) / 50)
KEYS = jax.random.split(jax.random.key(0), 6)


def linear_network(phi, images):
  """A 1x1 convolution; 'dead' takes part with a gradient, and its norm is zero."""
  return images @ phi['w'] + phi['b'].reshape(1, 1, 1, 3) + phi['dead'].sum()


def linear_logits(images):
  """Two classes, so that the loss of either is monotone in one linear function of the image."""
  score = jnp.einsum('nhwc,hwc->n', images, TEMPLATE)
  return jnp.stack([score, -score], axis=-1)


def ascent_directions(labels) -> dict[str, np.ndarray]:
  """The gradient of the wrong class's margin in each block, per image, by hand: constant over the ball."""
  wrong = np.where(labels == 0, -1.0, 1.0)[:, None, None]
  return {
    'w': wrong * np.einsum('nhwc,hwd->ncd', IMAGES.astype(float), TEMPLATE),
    'b': wrong[:, 0] * np.broadcast_to(TEMPLATE.astype(float).sum((0, 1)), (6, 3)),
  }


def radius(block, nu=0.1) -> float:
  return nu * float(np.linalg.norm(PHI[block].astype(float)))
