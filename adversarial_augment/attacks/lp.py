"""The adversaries of training within l_p balls: that of Madry et al. (arXiv 1706.06083) and of TRADES (1901.08573).

Unlike `attacks.pgd`, which measures, they move every image, misclassified or not, and hand out the last iterate.
"""

from typing import Any

from adversarial_augment import registry
from adversarial_augment.attacks import losses
from adversarial_augment.attacks.adversary import adversary
from adversarial_augment.attacks.lp_ball import lp_ball
from adversarial_augment.types import Array, Attack, AttackResult, Key, LogitsFn, PyTree

LOSSES = {'cross_entropy': losses.cross_entropy, 'kl': losses.kl_divergence}


def lp(*, norm: str, epsilon: float, init: str = 'ball', loss: str = 'cross_entropy', **options: Any) -> Attack:
  """Makes the adversary that moves the pixels of each image within an l_p ball, cut by [0, 1].

  Args:
    norm: 'linf' or 'l2', over all pixels and channels.
    epsilon: its radius, for images in [0, 1].
    init: where the ascent starts: 'ball' (uniform in it), 'gaussian' (0.001 N(0, 1), as TRADES) or 'zero'.
    loss: what is climbed: 'cross_entropy', or 'kl', the divergence KL(p(x) || p(x + delta)) of TRADES, for which `init`
      must not be 'zero': at the image itself it is flat.
    **options: of `adversary`; `step_fraction` is in units of epsilon, and there is no line search. On an l_2 ball,
      `step` is 'l2' (normalised gradients): a step of 'sign' would leave it at once.

  Returns:
    An `Attack`, whose `frozen` is unused; of the metrics of `adversary`, it lacks those of the line search.

  Raises:
    UserError: no ball, or an unknown name.
  """
  climbed = registry.lookup(LOSSES, loss, 'loss')
  search = adversary(lp_ball(norm, epsilon, init=init), loss=climbed, root=None, **options)

  def attack(keys: Key, logits_fn: LogitsFn, images: Array, labels: Array, frozen: PyTree = None) -> AttackResult:
    # The divergence compares with the logits of the clean images, which take the place of the labels.
    return search(keys, logits_fn, images, logits_fn(images) if loss == 'kl' else labels, frozen)

  return attack
