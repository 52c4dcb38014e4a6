"""The l_inf and l_2 balls around an image, cut by the box [0, 1] that images live in.

A feasible point's distance from its image, in exact arithmetic, is at most epsilon (1 + 1e-6) + 1e-7, and its pixels
lie in [0, 1]: epsilon itself is rounded to the images' precision, and so is image + delta. The rounding of many pixels
adds up in an l_2 norm, so that there the radius is smaller than epsilon by the most that this can be.
"""

import math
import numbers

import jax
import jax.numpy as jnp

from adversarial_augment import checks
from adversarial_augment.attacks import losses, trees
from adversarial_augment.attacks.adversary import adversary
from adversarial_augment.errors import UserError, show
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PerturbationSet, PyTree

NORMS = {'linf': 'l_inf', 'l2': 'l_2'}
INITS = {'ball': 'uniform in the ball', 'gaussian': 'normal draws beside the image', 'zero': 'the image'}
GAUSSIAN = 0.001  # standard deviation of that start, in the code of TRADES (arXiv 1901.08573)

LOSSES = {'cross_entropy': losses.cross_entropy, 'kl': losses.kl_divergence}

_PASSES = 4  # of the projection; each brings a ball that the box cuts closer to its full radius


def check_ball(norm: str, epsilon: float) -> float:
  """Returns epsilon as a float of Python.

  Raises:
    UserError: an unknown norm, or an epsilon that is no number, traced, negative, not finite, or for l_inf more than 1.
  """
  checks.lookup(NORMS, norm, 'norm')
  if not isinstance(epsilon, numbers.Real):
    raise UserError(
      f'epsilon={show(epsilon)} must be a number of Python or NumPy, such as 8/255; images are in [0, 1].'
    )
  try:
    radius = float(epsilon)
  except OverflowError:
    radius = math.inf
  if not 0 <= radius < math.inf:
    raise UserError(f'epsilon={epsilon} must be a finite number, at least 0; images are in [0, 1].')
  if wrong := checks.too_large_radius(norm, radius):
    raise UserError(f'epsilon={epsilon} of norm {norm} {wrong}')
  return radius


def lp_ball(norm: str, epsilon: float, *, init: str = 'ball') -> PerturbationSet:
  """Makes C(x) = {x + delta: ||delta|| <= epsilon, x + delta in [0, 1]}: one block; `frozen` is unused.

  Args:
    norm: 'linf' or 'l2', over all pixels and channels.
    epsilon: its radius, for images in [0, 1].
    init: where delta starts, before it is moved to the nearest feasible point: 'ball' (uniform in the ball), 'gaussian'
      (normal, of standard deviation 0.001 a pixel) or 'zero' (at the image).

  Returns:
    A perturbation set of pixel offsets delta [h, w, c]. Images cannot share one: each has a box of its own.

  Raises:
    UserError: an unknown start; see `check_ball`.
  """
  epsilon = check_ball(norm, epsilon)
  checks.lookup(INITS, init, 'init')

  def apply_batch(frozen, images, deltas, keys=None):
    if len(deltas) != len(images):
      raise UserError(f'{len(images)} images share {len(deltas)} offsets of an l_p ball; each needs its own: group=1.')
    return images + deltas

  return PerturbationSet(
    init=lambda key, frozen, image: _start(norm, epsilon, init, key, image),
    project=lambda radii, image, delta: _feasible(norm, epsilon, image[None], delta[None])[0],
    radii=lambda frozen: jnp.asarray(epsilon, jnp.result_type(float)),
    apply_batch=apply_batch,
  )


def project(norm: str, epsilon: float, images: Array, points: Array) -> Array:
  """Returns the feasible points nearest to `points`: [n, h, w, c] in [0, 1], and the same -> the same.

  A pixel that is NaN becomes that of the image.
  """
  return images + _feasible(norm, epsilon, images, points - images)


def norms(norm: str, deltas: Array) -> Array:
  """Returns the norm of each offset: [n, h, w, c] -> [n]."""
  if norm == 'linf':
    return jnp.abs(deltas).max((1, 2, 3))
  rows = deltas.reshape(len(deltas), deltas.shape[1], -1)
  # Row by row: the rounding of one long sum of squares would be larger than the bound above allows.
  return jax.vmap(trees.block_norms)(jax.vmap(jax.vmap(trees.block_norms))(rows))


def random_start(norm: str, epsilon: float, key: Key, image: Array) -> Array:
  """Returns one feasible point: uniform in the ball, then moved to the nearest one within [0, 1]; [h, w, c]."""
  return image + _start(norm, epsilon, 'ball', key, image)


def _start(norm: str, epsilon: float, init: str, key: Key, image: Array) -> Array:
  if init == 'zero':
    return jnp.zeros_like(image)
  if init == 'gaussian':
    delta = GAUSSIAN * jax.random.normal(key, image.shape, image.dtype)
  elif norm == 'linf':
    delta = jax.random.uniform(key, image.shape, image.dtype, -epsilon, epsilon)
  else:
    delta = trees.random_in_balls(key, image, jnp.asarray(epsilon, image.dtype))
  return _feasible(norm, epsilon, image[None], delta[None])[0]


def _feasible(norm: str, epsilon: float, images: Array, deltas: Array) -> Array:
  """Returns the nearest offsets within ball and box; x + delta is within [0, 1] after rounding, too."""
  deltas = jnp.nan_to_num(deltas)
  if norm == 'linf':
    return jnp.clip(deltas, jnp.maximum(-epsilon, -images), jnp.minimum(epsilon, 1 - images))
  boxed = lambda scale: jnp.clip(deltas * scale[:, None, None, None], -images, 1 - images)
  room = jnp.where(deltas > 0, 1 - images, images)
  ratio = lambda length, norm: jnp.where(norm > length, length / jnp.where(norm > length, norm, 1), 1)  # at most 1
  # Epsilon less the most that the rounding of norms and of image + delta adds to a norm.
  rounding = math.sqrt(math.prod(images.shape[1:])) * float(jnp.finfo(images.dtype).eps)
  radius = jnp.asarray(max(epsilon * (1 - rounding) - rounding / 4, 0), images.dtype)
  scale = ratio(radius, norms(norm, deltas))
  # The nearest point is the box's nearest to scale * delta, for the largest scale that the ball allows. What the box
  # cuts off leaves length to the other pixels; every pass is feasible, and longer than the last.
  for _ in range(_PASSES):
    cut = jnp.abs(deltas) * scale[:, None, None, None] >= room
    spent = norms(norm, jnp.where(cut, room, 0))
    left = jnp.sqrt(jnp.maximum(radius - spent, 0)) * jnp.sqrt(radius + spent)
    scale = jnp.maximum(scale, ratio(left, norms(norm, jnp.where(cut, 0, deltas))))
  return boxed(scale)


def lp(
  *,
  norm: str,
  epsilon: float,
  num_steps: int = 10,
  step: str = 'sign',
  step_fraction: float = 0.25,
  init: str = 'ball',
  loss: str = 'cross_entropy',
  keep_best: bool = False,
  measure_end: bool = True,
) -> Attack:
  """Makes the adversary of training within l_p balls: Madry et al. (arXiv 1706.06083) or TRADES (arXiv 1901.08573).

  It moves the pixels of each image within the ball, cut by [0, 1]. Unlike `attacks.pgd`, which is for evaluation, it
  moves misclassified images too, and returns the last iterate.

  Args:
    norm, epsilon, init: the ball and the start in it, see `lp_ball`.
    num_steps, keep_best, measure_end: the ascent, see `adversary`.
    step: rule of a step: 'sign', 'adam' or 'sgd' for linf, 'l2' (normalised gradients) or 'sign_l2' for l2, whose ball
      a step of 'sign' would leave at once.
    step_fraction: step size in units of epsilon.
    loss: 'cross_entropy', or 'kl', the divergence KL(p(x) || p(x + delta)) of TRADES, for which `init`
      must not be 'zero': at the image itself it is flat.

  Returns:
    An `Attack` of images [n, h, w, c] in [0, 1], labels [n] and one key per image; `frozen` is unused. Its metrics are
    those of `adversary` without a line search.
  """
  maximised = checks.lookup(LOSSES, loss, 'loss')
  search = adversary(
      lp_ball(norm, epsilon, init=init), loss=maximised, root=None,
      num_steps=num_steps, step=step, step_fraction=step_fraction, keep_best=keep_best, measure_end=measure_end,
  )  # fmt: skip

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    # The divergence compares with the logits of the clean images, which take the place of the labels.
    return search(keys, logits_fn, images, logits_fn(images) if loss == 'kl' else labels, frozen)

  return attack
