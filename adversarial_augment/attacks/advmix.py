"""The AdvMix-style adversary (Gowal et al. 2019, arXiv 1912.03192; appendix C of arXiv 2104.01086).

The parameters of the image-to-image network are its latents. Instead of balls around them, the adversary has the convex
hull of a few offsets, which DeepAugment's distortions draw beforehand, and searches over the mixture. AdvMix-style
only: there is no disentangled generator, and every parameter is a latent of style.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adversarial_augment.attacks.ada import over_groups, run
from adversarial_augment.attacks.adversary import adversary
from adversarial_augment.types import Attack, PerturbationSet, PyTree


class Hull(NamedTuple):
  """What the set is built around: `frozen`."""

  phi: PyTree
  offsets: PyTree  # like phi, with an axis in front: [m, ...]


def advmix(
  apply: Callable,
  *,
  num_steps: int = 10,
  step: str = 'sign',
  step_fraction: float = 0.25,
  init: str = 'ball',
  keep_best: bool = False,
  measure_end: bool = True,
  min_ssim: float = 0.3,
  root: str | None = 'strict',
  group: int | None = 1,
  axis_name: str | None = None,
  impl: str = 'auto',
  noisy: bool = False,
) -> Attack:
  """Makes the adversary that searches, image by image, the mixtures of pre-drawn offsets of phi.

  Args:
    apply, init, impl, noisy: the perturbation set, see `weight_hull`.
    num_steps, step, step_fraction, keep_best, measure_end, min_ssim, root, group, axis_name: as in `ada`. The unit of
      `step_fraction` is 1, in logarithms of the mixture's weights.

  Returns:
    An `Attack` of images [n, h, w, 3] in [0, 1], labels [n] and one key per image, called with a `Hull` as `frozen`.
    Its metrics are those of `adversary`.
  """
  hull = weight_hull(apply, init=init, impl=impl, noisy=noisy)
  return adversary(
      hull, num_steps=num_steps, step=step, step_fraction=step_fraction, keep_best=keep_best,
      measure_end=measure_end, min_ssim=min_ssim, root=root, group=group, axis_name=axis_name,
  )  # fmt: skip


def weight_hull(apply: Callable, *, init: str = 'ball', impl: str = 'auto', noisy: bool = False) -> PerturbationSet:
  """Makes C(x) = {c_{phi + sum_m softmax(a)_m Delta_m}(x)}, with `Hull.offsets` as Delta and a as the perturbation.

  Args:
    apply, impl, noisy: as in `ada.weight_ball`.
    init: 'ball' starts at a uniform draw from all mixtures, 'zero' in their middle.

  Returns:
    A perturbation set around `frozen`, a `Hull`; every a [m] is feasible, and its one radius, the unit of steps, is 1.
  """

  def corrupt(frozen, images, a, key=None):
    weights = jax.nn.softmax(a)
    mixed = lambda p, offsets: p + jnp.tensordot(weights, offsets, axes=1, precision='highest')
    return run(apply, jax.tree.map(mixed, frozen.phi, frozen.offsets), images, key if noisy else None)

  def start(key, frozen, image):
    del image
    first = jax.tree.leaves(frozen.offsets)[0]
    if init == 'zero':
      return jnp.zeros(len(first), first.dtype)
    # The softmax of the logarithms of exponential variates is uniform on the simplex.
    return jnp.log(jax.random.exponential(key, (len(first),), first.dtype))

  return PerturbationSet(
    init=start,
    project=lambda radii, image, a: a,
    radii=lambda frozen: jnp.ones((), jax.tree.leaves(frozen.offsets)[0].dtype),
    apply_batch=over_groups(corrupt, impl=impl),
  )
