"""A linear classifier, whose robust accuracy on l_p balls has a closed form; images lie away from the box's edges."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (4, 4, 3)
NUM = 300
NUM_CLASSES = 5
IMAGES = np.float32(np.random.default_rng(0).uniform(0.3, 0.7, size=(NUM, *SHAPE)))
WEIGHTS = np.float32(np.random.default_rng(1).normal(size=(*SHAPE, NUM_CLASSES)))
LABELS = np.einsum('nhwc,hwck->nk', IMAGES.astype(float), WEIGHTS).argmax(1).astype(np.int32)
LABELS[::10] = (LABELS[::10] + 1) % NUM_CLASSES  # a tenth is misclassified already
KEYS = jax.random.split(jax.random.key(0), NUM)
EPSILONS = {'linf': 0.02, 'l2': 0.12}


def logits_fn(images):
  return jnp.einsum('nhwc,hwck->nk', images, WEIGHTS, precision='highest')


def margins(norm: str, epsilon: float, images=IMAGES, labels=LABELS) -> np.ndarray:
  """The largest margin in each image's ball: max over j of z_j - z_y + epsilon ||w_j - w_y|| (the dual norm), [n]."""
  weights = WEIGHTS.astype(float).reshape(-1, NUM_CLASSES)
  logits = images.reshape(len(images), -1).astype(float) @ weights
  differences = weights.T[None] - weights.T[labels][:, None]  # [n, k, d]
  dual = np.abs(differences).sum(-1) if norm == 'linf' else np.sqrt((differences**2).sum(-1))
  reached = logits - logits[np.arange(len(labels)), labels][:, None] + epsilon * dual
  reached[np.arange(len(labels)), labels] = -np.inf
  return reached.max(1)
