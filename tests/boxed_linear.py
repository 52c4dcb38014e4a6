"""Linear classifiers, whose robust accuracy in l_p balls and the box [0, 1] has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (6, 6, 3)


def problem(num_classes: int, num_images: int = 256, *, low: float = 0.0, high: float = 1.0, balanced: bool = True):
  """Returns logits_fn, its weights in float64, images of pixels in [low, high], labels as classified, and the logits.

  `balanced`: about as many images of each class, through a bias. Without it few classes come near most images, so that
  even a loss over all classes at once leads to the nearest one.
  """
  rng = np.random.default_rng(num_classes)
  weights = np.float32(rng.normal(size=(num_classes, *SHAPE)))
  images = np.float32(rng.uniform(low, high, size=(num_images, *SHAPE)))
  bias = -np.einsum('khwc,nhwc->k', weights, images) / num_images * balanced
  logits = np.einsum('khwc,nhwc->nk', weights, images) + bias
  logits_fn = lambda x: jnp.einsum('nhwc,khwc->nk', x, weights, precision='highest') + jnp.float32(bias)[None]
  return logits_fn, weights.astype(float), images, logits.argmax(1).astype(np.int32), logits


def best_margins(norm: str, epsilon: float, weights, images, labels, logits) -> np.ndarray:
  """Returns the highest margin within the ball: for l_inf with the box, for l_2 where the box is out of reach."""
  margins = []
  for target in range(len(weights)):
    gradient = (weights[target] - weights[labels]).reshape(len(images), -1)
    pixels = images.reshape(len(images), -1).astype(float)
    if norm == 'linf':
      best = np.where(gradient > 0, np.minimum(pixels + epsilon, 1), np.maximum(pixels - epsilon, 0))
      gain = (gradient * (best - pixels)).sum(1)
    else:
      gain = epsilon * np.linalg.norm(gradient, axis=1)
    margin = logits[:, target] - logits[np.arange(len(images)), labels] + gain
    margins.append(np.where(labels == target, -np.inf, margin))
  return np.max(margins, axis=0)


def quantile_epsilon(norm: str, robust: float, *args) -> float:
  """Returns the radius at which that share of the images is robust, by bisection."""
  low, high = 0.0, 2.0
  for _ in range(40):
    middle = (low + high) / 2
    low, high = (middle, high) if (best_margins(norm, middle, *args) < 0).mean() > robust else (low, middle)
  return low


def keys(number: int, seed: int = 0):
  return jax.random.split(jax.random.key(seed), number)
