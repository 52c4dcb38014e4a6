"""The AdvMix-style adversary, which mixes offsets of a corruption network's parameters: see weight_hull.py."""

from collections.abc import Callable
from typing import Any

from adversarial_augment.attacks.adversary import adversary
from adversarial_augment.attacks.weight_hull import weight_hull
from adversarial_augment.types import Attack


def advmix(apply: Callable, *, init: str = 'ball', impl: str = 'auto', noisy: bool = False, **options: Any) -> Attack:
  """Makes the adversary that searches, image by image, the mixtures of pre-drawn offsets of phi.

  Args:
    apply: the corruption network c, (phi, images [n, h, w, 3]) -> images of the same shape in [0, 1].
    init: 'ball' starts at a random mixture, 'zero' at the mean of the offsets.
    impl: how the network runs over examples, see per_example_conv.
    noisy: `apply` takes a key too, see `weight_ball`.
    **options: of `adversary`; `step_fraction` is in units of the logarithms of the mixture's weights.

  Returns:
    An `Attack`, called with a `Hull` as `frozen`.

  Raises:
    UserError: an unknown rule.
  """
  return adversary(weight_hull(apply, init=init, impl=impl, noisy=noisy), **options)
