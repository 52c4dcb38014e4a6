"""A corruption network and a classifier that are linear, so that the best perturbations have a closed form.

And the smallest EDSR, for tests of the attack inside a run.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.corruption_nets import weights
from adversarial_augment.corruption_nets.edsr import edsr

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


def smallest_edsr(folder: Path) -> str:
  """Writes random weights of an EDSR of one block of 4 features; returns the file."""
  sizes = {'blocks': 1, 'features': 4, 'scale': 1}
  shapes = jax.eval_shape(edsr(**sizes).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
  rng = np.random.default_rng(5)
  params = jax.tree.map(lambda p: np.float32(rng.uniform(-0.2, 0.2, p.shape)), shapes)
  weights.save(folder / 'phi.safetensors', params, {'network': {'name': 'edsr'} | sizes})
  return str(folder / 'phi.safetensors')
